# %% [markdown]
# # 4 · Noise schedules
#
# Lesson 2 used the schedule of DDPM. The literature has several others, and they are often presented as different
# models. In fact a schedule only decides *at which time t* each noise level occurs. You use one network with four
# schedules and get the same images. Then you measure what a schedule does change: how often training and sampling visit
# each noise level.
#
# File: [`schedules.py`](../src/simple_diffusion/schedules.py).

# %%
import os

import matplotlib.pyplot as plt
import torch

import simple_diffusion as sd
from simple_diffusion.schedules import Quadratic, Schedule, Sigmoid

FAST = bool(os.environ.get("FAST"))  # the tests set it: seconds instead of minutes
STEPS, COUNT = (4, 20) if FAST else (400, 512)
images = sd.load_images("digits")

# %% [markdown]
# ## Four schedules
#
# In continuous time the noise rate is $\beta(t)$, and $\alpha^2 = \exp(-\int_0^t \beta)$. The table of lesson 2 is the
# *linear* rate at 100 points. In the *quadratic* schedule $\sqrt\beta$ is linear, in the *sigmoid* schedule $\beta$ is
# a logistic function. The *cosine* schedule (Nichol & Dhariwal 2021) defines $\alpha$ itself, as a cosine. In all four
# $\alpha^2 + \sigma^2 = 1$.
#
# The noise level is the ratio $\sigma / \alpha$. The figure shows it as the log signal-to-noise ratio,
# $\log \mathrm{SNR} = 2 \log(\alpha / \sigma)$.

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
# In each schedule the log SNR decreases from $t = 0$ to $t = 1$, so each noise level occurs exactly once.
# `schedule.time_of(ratio)` returns the time at which $\sigma / \alpha$ has a given value. Two schedules therefore
# differ only by a change of the time variable.
#
# ## One network on four schedules
#
# The input of the network is the noise level, $\frac14 \log(\sigma / \alpha)$, and not the time. So a network that you
# train on one schedule works on every other. You train two networks, on the linear and on the cosine schedule.


# %%
def train(schedule: Schedule) -> torch.nn.Module:  # with times that are uniform on this schedule
    torch.manual_seed(0)
    denoiser = sd.Denoiser(sd.UNet(widths=(32, 64), blocks=(1, 2)), schedule, sd.targets.noise)
    sd.fit(denoiser, images.without_labels(), STEPS)
    return denoiser.net


nets = {name: train(schedules[name]) for name in ("linear", "cosine")}

# %% [markdown]
# Take the network that was trained on the linear schedule, and 20 noise levels. On each schedule the sampler visits the
# times at which these levels occur, and starts from the same noise. The times differ, the images agree to rounding.

# %%
linear = schedules["linear"]
levels = linear.ratio(sd.karras_grid(linear, 20, sigma_min=0.02, sigma_max=30))
rows = {}
for name, schedule in schedules.items():
    times = schedule.time_of(levels)
    rows[name] = sd.sample(sd.Denoiser(nets["linear"], schedule, sd.targets.noise), (12, 1, 28, 28), times)
    difference = (rows[name] - rows["linear"]).abs().max()
    print(f"{name}: step 10 starts at t = {times[9]:.3f}; largest pixel difference from linear {difference:.1e}")


def show(rows: dict[str, torch.Tensor]) -> None:  # a row of twelve images for each name
    picture = sd.make_grid(sd.to_uint8(torch.cat(list(rows.values()))), 12)
    plt.figure(figsize=(8, 0.62 * len(rows)), layout="constrained")
    plt.imshow(picture)
    plt.yticks([(i + 0.5) * picture.height / len(rows) for i in range(len(rows))], rows)
    plt.xticks([])
    plt.show()


show(rows)

# %% [markdown]
# ## What the schedule changes
#
# DDPM trains at uniform times, and its sampler takes uniform steps in time. Uniform times give different noise levels
# on each schedule. The first figure shows the levels of 25 uniform times, the second a digit at 12 uniform times. Below
# a log SNR of −5, less than a tenth of the image is left. The linear schedule puts 8 of its 25 times there, the cosine
# schedule only 2, so the cosine schedule has more times for the levels at which the shape of a digit appears.

# %%
_, axis = plt.subplots(figsize=(8, 2.4), layout="constrained")
for row, schedule in enumerate(schedules.values()):
    uniform_times = sd.uniform_grid(schedule, 25)
    axis.plot(-2 * schedule.ratio(uniform_times).log(), [row] * 25, "|", markersize=14)
axis.set(yticks=range(4), yticklabels=schedules, xlabel="log SNR (left noise, right clean)", ylim=(3.6, -0.6))
axis.grid(axis="x", alpha=0.3)
plt.show()

x0 = sd.to_unit(images.pixels[:1]).expand(12, -1, -1, -1)
eps = torch.randn(1, 28, 28).expand_as(x0)
show({name: schedules[name].add_noise(x0, torch.arange(1, 13) / 12, eps) for name in nets})

# %% [markdown]
# ## Result
#
# Does the schedule matter more in training or in sampling? You sample from both networks with DDPM's sampler, in 25
# uniform steps of either schedule.

# %%
scores = {}
for sampling_schedule in nets:
    times = sd.uniform_grid(schedules[sampling_schedule], 5 if FAST else 25)
    for training_schedule, net in nets.items():
        denoiser = sd.Clipped(sd.Denoiser(net, schedules[sampling_schedule], sd.targets.noise))
        pixels = sd.to_uint8(sd.sample(denoiser, (COUNT, 1, 28, 28), times, sampler=sd.ddpm))
        scores[training_schedule] = sd.fid(pixels, images)
    fids = f"{scores['linear']:.2f} trained on linear, {scores['cosine']:.2f} trained on cosine"
    print(f"FID[digits-cnn-1, n={COUNT} vs train]: {fids}, sampled in steps of {sampling_schedule}")

# %% [markdown]
# Here the schedule matters in training: the cosine schedule trains less at levels that are almost pure noise. In
# sampling it matters little at 25 steps. Both can be chosen without a schedule. Lesson 7 sets the noise levels of the
# sampler directly, and lesson 9 those of training.
#
# **New code since lesson 3:** another schedule, and a network that moves between schedules.
#
# ```python
# denoiser = sd.Denoiser(net, sd.Cosine(), sd.targets.noise)  # instead of sd.Discrete(sd.linear_betas(100))
# moved = sd.Denoiser(denoiser.net, sd.Linear(), sd.targets.noise)  # the same network on another schedule
# sd.sample(moved, shape, sd.Linear().time_of(levels))  # the same noise levels give the same images
# ```
#
# **Try.** Sample in 10 and in 100 steps. Does the schedule of the sampler matter more or less?
#
# **Exercise.** Write `cosine(t)`, its alpha and sigma: `simple-diffusion check 4 my_solution.py`.
