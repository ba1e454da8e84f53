# %% [markdown]
# # 4 · Schedules: a change of clock
#
# Lesson 2 took DDPM's schedule as given. Others have been proposed since, and they look like different models. They are
# one: a schedule only says *when* each noise level comes. This lesson draws the same images on four schedules with one
# network, and then shows what a schedule does change.
#
# File: [`schedules.py`](../src/simple_diffusion/schedules.py).

# %%
import os

import matplotlib.pyplot as plt
import torch

import simple_diffusion as sd
from simple_diffusion.schedules import Quadratic, Schedule, Sigmoid

FAST = bool(os.environ.get("FAST"))  # seconds instead of minutes, for the tests
STEPS, COUNT = (4, 64) if FAST else (400, 512)
images = sd.load_images("digits")

# %% [markdown]
# ## Four schedules
#
# The noise rises by a rate $\beta(t)$, and $\alpha^2 = \exp(-\int_0^t \beta)$ is what is left of the image: lesson 2's
# table is the *linear* rate, read at 100 points. *Quadratic* means that $\sqrt\beta$ rises in a straight line,
# *sigmoid* that $\beta$ rises along a logistic curve. *Cosine* (Nichol & Dhariwal 2021) starts at the other end:
# $\alpha$ falls like a cosine, and there is no $\beta$ to choose. All four keep $\alpha^2 + \sigma^2 = 1$.
#
# What tells how noisy an image is, is the ratio of the two, here as $\log \mathrm{SNR} = 2 \log(\alpha / \sigma)$.

# %%
schedules = {"linear": sd.Linear(), "quadratic": Quadratic(), "sigmoid": Sigmoid(), "cosine": sd.Cosine()}
t = torch.linspace(0.001, 1, 500, dtype=torch.float64)

figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained", sharex=True)
for name, schedule in schedules.items():
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    for axis, curve in zip(axes, (alpha, sigma, 2 * (alpha / sigma).log()), strict=True):
        axis.plot(t, curve, label=name)
for axis, title in zip(axes, ("signal α", "noise σ", "log SNR"), strict=True):
    axis.set(title=title, xlabel="time t (0 clean, 1 noise)", xlim=(0, 1))
    axis.grid(alpha=0.3)
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# Every log SNR falls all the way, so each noise level comes exactly once: `schedule.time_of(ratio)` says when
# $\sigma / \alpha$ has a given value. One schedule is another one with its clock changed.
#
# ## One network, four clocks
#
# The network does not know which clock it runs on: `Denoiser` tells it the noise level,
# $\frac14 \log(\sigma / \alpha)$, and not the time. So the two networks below, each trained on its own schedule, can be
# moved to any other.


# %%
def trained(schedule: Schedule) -> torch.nn.Module:  # at times spread evenly over this schedule
    torch.manual_seed(0)
    denoiser = sd.Denoiser(sd.UNet(widths=(32, 64), blocks=(1, 2)), schedule, sd.targets.noise)
    sd.fit(denoiser, images, STEPS)
    return denoiser.net


nets = {name: trained(schedules[name]) for name in ("linear", "cosine")}

# %% [markdown]
# Take the network that was trained on the linear schedule and 20 noise levels. On each schedule let the sampler visit
# the times at which these levels come, from the same noise. The times differ widely and the images do not, but for
# rounding.

# %%
linear = schedules["linear"]
levels = linear.ratio(sd.karras_grid(linear, 20, sigma_min=0.02, sigma_max=30))
rows = {}
for name, schedule in schedules.items():
    times = schedule.time_of(levels)
    rows[name] = sd.sample(sd.Denoiser(nets["linear"], schedule, sd.targets.noise), (12, 1, 28, 28), times)
    gap = (rows[name] - rows["linear"]).abs().max()
    print(f"{name}: the tenth step starts at t = {times[9]:.3f}; largest difference of a pixel from linear {gap:.1e}")


def show(rows: dict[str, torch.Tensor]) -> None:
    picture = sd.make_grid(sd.to_uint8(torch.cat(list(rows.values()))), 12)
    plt.figure(figsize=(8, 0.62 * len(rows)), layout="constrained")
    plt.imshow(picture)
    plt.yticks([(i + 0.5) * picture.height / len(rows) for i in range(len(rows))], rows)
    plt.xticks([])
    plt.show()


show(rows)

# %% [markdown]
# ## What does differ
#
# What is spread evenly over t is not spread evenly over the noise levels. DDPM does so twice: with the times of
# training and with the steps of its sampler. Below, 25 even times on each clock, and a digit at even times on two of
# them. Below a log SNR of −5 less than a tenth of the image is left: the linear clock puts 8 of its 25 times there, the
# cosine clock 2, and has more to spare for the levels at which a digit takes shape.

# %%
_, axis = plt.subplots(figsize=(8, 2.4), layout="constrained")
for row, schedule in enumerate(schedules.values()):
    even = sd.uniform_grid(schedule, 25)
    axis.plot(-2 * schedule.ratio(even).log(), [row] * len(even), "|", markersize=14)
axis.set(yticks=range(4), yticklabels=schedules, xlabel="log SNR (left noise, right clean)", ylim=(3.6, -0.6))
axis.grid(axis="x", alpha=0.3)
plt.show()

eps = torch.randn(1, 28, 28)
x0 = sd.to_unit(images.pixels[:1]).expand(12, -1, -1, -1)
rows = {}
for name in nets:
    alpha, sigma = schedules[name].levels(torch.arange(1, 13) / 12, x0)
    rows[name] = alpha * x0 + sigma * eps
show(rows)

# %% [markdown]
# ## The number that moved
#
# Which of the two matters? Each network draws by DDPM's sampler, in 25 even steps of either clock.

# %%
scores = {}
for steps_of in nets:
    times = sd.uniform_grid(schedules[steps_of], 5 if FAST else 25)
    for trained_on, net in nets.items():
        denoiser = sd.Clipped(sd.Denoiser(net, schedules[steps_of], sd.targets.noise))
        pixels = sd.to_uint8(sd.sample(denoiser, (COUNT, 1, 28, 28), times, sampler=sd.ddpm))
        scores[trained_on] = sd.fid(pixels, images)
    fids = f"{scores['linear']:.2f} with training on linear, {scores['cosine']:.2f} on cosine"
    print(f"FID[digits-cnn-1, n={COUNT} vs train]: {fids}, in even steps of {steps_of}")

# %% [markdown]
# In this run it is the training that gains: on the cosine clock fewer examples are spent on levels that are almost pure
# noise. At 25 steps the sampler's clock matters little. Neither need be left to a schedule: lesson 7 chooses the noise
# levels of its steps outright, and lesson 9 those of the training too.
#
# **What is new since lesson 3**, in code: another curve, and a network that moves between curves.
#
# ```python
# denoiser = sd.Denoiser(net, sd.Cosine(), sd.targets.noise)  # in place of sd.Discrete(sd.linear_betas(100))
# moved = sd.Denoiser(denoiser.net, sd.Linear(), sd.targets.noise)  # the same network, another clock
# sd.sample(moved, shape, sd.Linear().time_of(levels))  # the same images, if the noise levels are the same
# ```
#
# **Exercise.** Write `cosine(t)`, alpha and sigma of that schedule: `simple-diffusion check 4 my_solution.py`.
