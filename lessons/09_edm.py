# %% [markdown]
# # 9 · EDM: preconditioning and noise levels
#
# Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models" (EDM), make three choices:
#
# 1. *preconditioning*: how to scale the input and output of the network at each noise level;
# 2. the *density of noise levels* in training;
# 3. the *noise levels of the sampler*.
#
# You show that the preconditioning is the target `v` of lesson 8 with the standard deviation of the data. Then you
# measure what choices 2 and 3 gain at equal cost.
#
# Files: `Karras` in [`schedules.py`](../src/simple_diffusion/schedules.py), `LogNormal` in
# [`losses.py`](../src/simple_diffusion/losses.py), `karras_grid` in
# [`samplers.py`](../src/simple_diffusion/samplers.py).

# %%
import math
import os
from functools import partial

import matplotlib.pyplot as plt
import torch

import simple_diffusion as sd
from simple_diffusion.denoising_error import LEVELS, model_error

FAST = bool(os.environ.get("FAST"))  # the tests set it: seconds instead of minutes
STEPS, COUNT = (4, 20) if FAST else (1000, 512)
torch.manual_seed(0)
images = sd.load_images("digits")

# %% [markdown]
# ## Preconditioning
#
# EDM does not scale the image: $x = x_0 + \sigma \varepsilon$ with $\sigma$ from 0.002 to 80 (`Karras`). The standard
# deviation of $x$ is $\sqrt{s^2 + \sigma^2}$, where $s$ is that of the data. A network trains best if its input and
# output have a standard deviation of 1. So the paper computes $\hat x_0 = c_{skip}\, x + c_{out}\, F(c_{in}\, x)$ with
# the network $F$ and (table 1)
#
# $$c_{skip} = \frac{s^2}{\sigma^2 + s^2}, \qquad c_{out} = \frac{\sigma s}{\sqrt{\sigma^2 + s^2}}, \qquad
# c_{in} = \frac{1}{\sqrt{\sigma^2 + s^2}}.$$
#
# `Denoiser` gives the same factors without extra code. Its target is $a z_0 + b \varepsilon$ with $z_0 = x_0 / s$, and
# it solves for $x_0$ (the formula of lesson 8, times $s$). For the target `v` the factor of $x$ in the solution is
# $c_{skip}$. The factor of the output is $-c_{out}$, because EDM's $F$ is minus the v-prediction.

# %%
data, s = images.without_labels(), images.std
edm = sd.Denoiser(sd.UNet(widths=(32, 64), blocks=(1, 2)), sd.Karras(), sd.targets.v, data_std=s)

sigma = torch.tensor([[0.02], [0.5], [20.0]], dtype=torch.float64)  # low, medium and high noise
z, n, a, b = edm.coefficients(edm.schedule.time_of(sigma).flatten(), sigma)  # x = z z0 + n eps, out = a z0 + b eps
ours = {"c_skip": s * b / (b * z - a * n), "c_out": s * n / (b * z - a * n), "c_in": (z**2 + n**2).rsqrt()}
total = sigma**2 + s**2
paper = {"c_skip": s**2 / total, "c_out": sigma * s / total.sqrt(), "c_in": 1 / total.sqrt()}
for name in paper:
    error = (ours[name] / paper[name] - 1).abs().max().item()
    print(
        f"{name:>6}", *(f"{c:9.5f}" for c in ours[name].flatten()), f"  relative difference from the paper {error:.0e}"
    )

# %% [markdown]
# From left to right: at low noise the x0 prediction is almost $x$, and the network output has a small factor. At high
# noise it is almost the network output alone.
#
# ## Density of noise levels
#
# DDPM trains at uniform times, so the density of noise levels depends on the schedule. EDM sets the density directly:
# $\ln \sigma$ is normal with mean $-1.2$ and standard deviation 1.2. Very low levels are skipped because little remains
# to be learned there, and very high ones because little can be learned. The mean $-1.2$ is for data with $s = 0.5$; for
# other data use $\ln s - 0.5$.
#
# The left figure shows both densities. The right figure shows the noise levels of two 18-step samplers: uniform in
# time, and uniform in $\sigma^{1/7}$ (eq. 5, `karras_grid`). The second has more steps at low noise.

# %%
density = sd.LogNormal(math.log(s) - 0.5, 1.2)
cosine = sd.Cosine()
u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000  # a density is given by its quantile function
figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained", sharex=True)
ratios = {"cosine, uniform times": cosine.ratio(sd.uniform(u, cosine))}
ratios["EDM, log-normal"] = edm.schedule.ratio(density(u, edm.schedule))
for name, ratio in ratios.items():
    axes[0].hist(ratio.log(), bins=80, range=(-7, 7), density=True, alpha=0.6, label=name)
axes[0].set(xlabel="ln(σ/α)", ylabel="density", title="noise levels in training")
axes[0].legend(loc="upper right", fontsize=8)
grids = {"cosine, uniform_grid": sd.uniform_grid, "karras_grid": sd.karras_grid}
for row, grid in enumerate(grids.values()):
    axes[1].plot(cosine.ratio(grid(cosine, 18)).log(), [-row] * 18, "|", markersize=18, markeredgewidth=2)
axes[1].set(xlabel="ln(σ/α)", yticks=[0, -1], yticklabels=grids, ylim=(-1.7, 0.7), title="noise levels in sampling")
plt.show()

# %% [markdown]
# ## Training
#
# You compare EDM with the target `v` on the cosine schedule at uniform times. Both have the same initial weights, the
# same order of images and the same number of steps, with batches of 16. The figure shows the error of the x0 prediction
# on held-out images by noise level.

# %%
torch.manual_seed(0)  # the same initial weights as `edm`
cosine_v = sd.Denoiser(sd.UNet(widths=(32, 64), blocks=(1, 2)), cosine, sd.targets.v)
cosine_model = sd.fit(cosine_v, data, STEPS, batch=16).model
edm_model = sd.fit(edm, data, STEPS, loss=partial(sd.denoising_loss, density=density), batch=16).model

held_out = sd.to_unit(sd.load_images("digits", split="test").pixels[: 16 if FAST else 256])
plt.figure(figsize=(6.5, 3), layout="constrained")
plt.semilogx(LEVELS, model_error(edm_model, held_out, None) / model_error(cosine_model, held_out, None), ".-")
plt.axhline(1, color="0.5", linewidth=1)
plt.xlabel("noise level σ/α")
plt.ylabel("|x̂₀ − x₀|² of EDM / of cosine")
plt.show()

# %% [markdown]
# Then sample with `dpmpp` in 18 steps. The cosine model uses both grids, to separate the effects of choices 2 and 3.

# %%
runs = {
    "cosine, uniform_grid": (cosine_model, sd.uniform_grid),
    "cosine, karras_grid": (cosine_model, sd.karras_grid),
    "EDM, karras_grid": (edm_model, sd.karras_grid),
}
samples = {}
for name, (model, grid) in runs.items():
    samples[name] = sd.to_uint8(sd.sample(sd.Clipped(model), (COUNT, 1, 28, 28), grid(model.schedule, 18)))
figure, axes = plt.subplots(3, 1, figsize=(9, 2.2), layout="constrained")
for axis, (name, pixels) in zip(axes, samples.items(), strict=True):
    axis.imshow(sd.make_grid(pixels[:14], 14))
    axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    axis.set(xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## Result

# %%
fids = ", ".join(f"{sd.fid(pixels, images):.2f} with {name}" for name, pixels in samples.items())
print(f"FID[digits-cnn-1, n={COUNT} vs train]: {fids}")

# %% [markdown]
# **New code since lesson 8:** the schedule, the standard deviation of the data, and the density of noise levels.
#
# ```python
# edm = sd.Denoiser(net, sd.Karras(), sd.targets.v, data_std=images.std)
# density = sd.LogNormal(math.log(images.std) - 0.5, 1.2)
# sd.fit(edm, images.without_labels(), STEPS, loss=partial(sd.denoising_loss, density=density))
# ```
#
# **Exercise.** Write `karras_levels(n, sigma_min, sigma_max, rho)`: `simple-diffusion check 9 my_solution.py`.
