# %% [markdown]
# # 10 · Flow matching: it was the same model
#
# Flow matching (Lipman et al. 2023) and rectified flow (Liu et al. 2023) do without diffusion, so it seems. They draw a
# straight line from an image to a piece of noise, teach a network the velocity along such lines, and follow it back.
# Here we take the EDM network of lesson 9, which has never heard of this, and make it follow the lines, without a step
# of training. Then we train a network their way, and look whether it comes out better. Files: `Flow` in
# [`schedules.py`](../src/simple_diffusion/schedules.py), `flow` in [`targets.py`](../src/simple_diffusion/targets.py),
# both a few lines.

# %%
import math
import os
from functools import partial
from itertools import pairwise

import matplotlib.pyplot as plt
import torch

import simple_diffusion as sd

FAST = bool(os.environ.get("FAST"))  # seconds instead of minutes, for the tests
STEPS, COUNT = (4, 64) if FAST else (800, 512)
images = sd.load_images("digits")
s = images.std
loss = partial(sd.denoising_loss, density=sd.LogNormal(math.log(s) - 0.5, 1.2))


def trained(schedule, target, seed: int = 0) -> sd.Denoiser:
    torch.manual_seed(seed)  # of the first weights; fit's seed makes the order of the images and their noise
    denoiser = sd.Denoiser(sd.UNet(widths=(32, 64), blocks=(1, 2)), schedule, target, s)
    return sd.fit(denoiser, images, STEPS, loss=loss, batch=16, seed=seed).model


edm = trained(sd.Karras(), sd.targets.v)

# %% [markdown]
# ## A change of clock and of scale
#
# On the straight line $x_t = (1 - t)\, x_0 + t\, \varepsilon$ the noise-to-signal ratio is $t / (1 - t)$. EDM's
# $x = x_0 + \sigma\varepsilon$ has the ratio $\sigma$. So at $\sigma = t / (1 - t)$ both are the same picture in
# another brightness: $x_t = (1 - t)\, x$. And whoever can guess the clean image from one can guess it from the other.
# In code: the same network in a `Denoiser` with another schedule.

# %%
flow = sd.Denoiser(edm.net, sd.Flow(), sd.targets.v, s)

x0 = sd.to_unit(images.pixels[:64])
sigma = torch.linspace(-3, 3, 64).exp()  # a level for each image
x = x0 + sigma[:, None, None, None] * torch.randn_like(x0)
on_line = flow.schedule.time_of(sigma)
alpha, _ = flow.schedule.levels(on_line, x)
with torch.no_grad():
    one, other = edm(x, edm.schedule.time_of(sigma)), flow(alpha * x, on_line)
print(f"two guesses of the clean image, largest difference of a pixel: {(one - other).abs().max():.0e}")

# %% [markdown]
# ## The velocity, from a guess of the clean image
#
# Along its line a point moves with the velocity $\varepsilon - x_0$. Many lines run through one $x_t$, and a network
# that is trained by the squared error learns their mean, $v = E[\varepsilon - x_0 \mid x_t]$. From the line's equation
# $\varepsilon - x_0 = (x_t - x_0) / t$, so that $v = (x_t - \hat x_0) / t$. To draw is to solve $dx/dt = v$ from
# $t = 1$ to 0. Three lines do it by Euler's method, with no word of diffusion in them. Beside them run lesson 7's
# `ddim` on the same schedule, and `ddim` on EDM's own.

# %%
times, shape = sd.karras_grid(flow.schedule, 30), (8, 1, 28, 28)
noise, *_, by_ddim = sd.trajectory(flow, shape, times, sampler=sd.ddim, batch=8)
*_, by_edm = sd.trajectory(edm, shape, sd.karras_grid(edm.schedule, 30), sampler=sd.ddim, batch=8)

x = noise
with torch.no_grad():
    for t, u in pairwise([*times.to(x), torch.tensor(0.0)]):
        x = x + (u - t) * (x - flow(x, t)) / t

apart = [(x - other).abs().max() for other in (by_ddim, by_edm)]
print("largest difference of a pixel: {:.0e} from ddim on Flow, {:.0e} from ddim on EDM's schedule".format(*apart))
plt.figure(figsize=(8, 2.3), layout="constrained")
plt.imshow(sd.make_grid(sd.to_uint8(torch.cat([by_edm, x])), 8))
plt.title("above: ddim on EDM's schedule; below: the three lines, from the same noise", fontsize=10)
plt.axis("off")
plt.show()

# %% [markdown]
# The differences are roundings: `ddim` is Euler's method on the straight line. But only the line from an image to its
# noise is straight. The path that the mean of all lines makes is not: a sampler still needs steps. Some pixels:

# %%
*steps, _ = sd.trajectory(flow, shape, sd.uniform_grid(flow.schedule, 20 if FAST else 100), sampler=sd.ddim, batch=8)
paths = torch.stack(steps)[:, 0, 0]  # [steps, 28, 28], the first image
t = sd.uniform_grid(flow.schedule, len(paths))
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained", sharey=True)
for k, (row, column) in enumerate([(8, 14), (11, 11), (14, 14), (17, 16), (20, 13), (4, 4)]):
    path = paths[:, row, column]
    axes[0].plot([0, 1], [x0[0, 0, row, column], path[0]], color=f"C{k}")
    axes[1].plot(t, path, color=f"C{k}")
    axes[1].plot([t[-1], 1], [path[-1], path[0]], ":", color=f"C{k}", linewidth=1)
axes[0].set(xlabel="t", ylabel="pixel", title="in training: lines from an image to noise")
axes[1].set(xlabel="t", title="in sampling: the paths (dotted: straight)")
plt.show()

# %% [markdown]
# ## What is left: a weight
#
# Trained with the target `flow`, the network is corrected by the error of $\varepsilon - z_0$, where $z_0 = x_0 / s$ is
# the image brought to deviation 1; with EDM's target, by the error of the velocity. Both are the error of $\hat x_0$
# times a factor that depends on the noise level alone: lesson 8's weight. If both also practise the same levels
# (`LogNormal` on `Flow` is the logit-normal density of Stable Diffusion 3), then this weight is all that remains, and
# nowhere do the two differ by more than a factor of 2.

# %%
level = torch.logspace(-2, 2, 100, dtype=torch.float64)[:, None]
plt.figure(figsize=(6, 3.2), layout="constrained")
for name, denoiser in {"EDM": edm, "flow": sd.Denoiser(edm.net, sd.Flow(), sd.targets.flow, s)}.items():
    alpha, sigma, a, b = denoiser.coefficients(denoiser.schedule.time_of(level).flatten(), level)
    plt.loglog(level, ((b * alpha - a * sigma) / (sigma * s)) ** 2, label=name)
plt.gca().set(xlabel="σ/α", ylabel="weight of |x̂₀ − x₀|²")
plt.legend()
plt.show()

# %% [markdown]
# ## Trained as a flow
#
# The same steps, levels and images as above, and EDM once more from another seed: a difference like that between the
# two seeds may be luck. [Three seeds on Fashion-MNIST](../docs/ladder.md) could not tell flow matching from EDM.

# %%
models = {"EDM": edm, "flow matching": trained(sd.Flow(), sd.targets.flow)}
models["EDM, another seed"] = trained(sd.Karras(), sd.targets.v, seed=1)
scores = {}
for name, model in models.items():
    drawn = sd.sample(sd.Clipped(model), (COUNT, 1, 28, 28), sd.karras_grid(model.schedule, 18))
    scores[name] = sd.fid(sd.to_uint8(drawn), images)

# %% [markdown]
# ## The number that moved

# %%
fids = ", ".join(f"{score:.2f} with {name}" for name, score in scores.items())
print(f"FID[digits-cnn-1, n={COUNT} vs train]: {fids}")

# %% [markdown]
# **What is new since lesson 9**, in code: another schedule and another target.
#
# ```python
# denoiser = sd.Denoiser(net, sd.Flow(), sd.targets.flow, images.std)
# x = x + (u - t) * (x - denoiser(x, t)) / t  # a step from t to u, which is ddim's
# ```
#
# **Exercise.** Write `flow_x0(x_t, velocity, t)`, the image: `simple-diffusion check 10 my_solution.py`.
