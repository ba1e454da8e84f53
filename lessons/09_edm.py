# %% [markdown]
# # 9 · EDM: which noise, how often, in which scale
#
# Lesson 8 found the velocity by asking which question is worth asking. Karras et al. 2022, "Elucidating the Design
# Space of Diffusion-Based Generative Models" (EDM), ask what a network likes to see and to say at each noise level,
# which levels it should practise, and which ones a sampler should visit. Their first answer is the velocity again, with
# the deviation of the data put in. The other two cost no weight and no second of computing.
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

FAST = bool(os.environ.get("FAST"))  # seconds instead of minutes, for the tests
STEPS, COUNT = (4, 64) if FAST else (1000, 512)
torch.manual_seed(0)
images = sd.load_images("digits")

# %% [markdown]
# ## In which scale: the preconditioning
#
# EDM never shrinks the image: $x = x_0 + \sigma \varepsilon$, with $\sigma$ from 0.002 to 80 (`Karras`). Such an $x$
# has the deviation $\sqrt{s^2 + \sigma^2}$, where $s$ is that of the data. A network wants to see numbers of deviation
# 1, and to be asked for such. So the paper wraps it, $\hat x_0 = c_{skip}\, x + c_{out}\, F(c_{in}\, x)$, with the
# factors (table 1)
#
# $$c_{skip} = \frac{s^2}{\sigma^2 + s^2}, \qquad c_{out} = \frac{\sigma s}{\sqrt{\sigma^2 + s^2}}, \qquad
# c_{in} = \frac{1}{\sqrt{\sigma^2 + s^2}}.$$
#
# Nothing has to be added here for that. The target is $a z_0 + b \varepsilon$ with $z_0 = x_0 / s$, and `Denoiser`
# solves for $x_0$ (lesson 8's formula, times $s$). What stands before $x$ in its solution is $c_{skip}$, and what
# stands before the network's output is $c_{out}$, with the sign turned: EDM's $F$ is minus the velocity. To rounding,
# they are the paper's.

# %%
s = images.std
edm = sd.Denoiser(sd.UNet(widths=(32, 64), blocks=(1, 2)), sd.Karras(), sd.targets.v, data_std=s)

sigma = torch.tensor([[0.02], [0.5], [20.0]], dtype=torch.float64)  # little, middling and much noise
z, n, a, b = edm.coefficients(edm.schedule.time_of(sigma).flatten(), sigma)  # x = z z0 + n eps, out = a z0 + b eps
ours = {"c_skip": s * b / (b * z - a * n), "c_out": s * n / (b * z - a * n), "c_in": (z**2 + n**2).rsqrt()}
total = sigma**2 + s**2
paper = {"c_skip": s**2 / total, "c_out": sigma * s / total.sqrt(), "c_in": 1 / total.sqrt()}
for name in paper:
    off = (ours[name] / paper[name] - 1).abs().max().item()
    print(f"{name:>6}", *(f"{c:9.5f}" for c in ours[name].flatten()), f"  the paper's, but for a share of {off:.0e}")

# %% [markdown]
# From left to right: at little noise the image is there and the network's mistakes hardly count; at much noise all is
# the network's.
#
# ## Which noise, how often
#
# DDPM draws its times evenly. What that means depends on the schedule, since a time is only a name for a noise level.
# EDM draws the level itself: $\ln \sigma$ is normal, with the mean $-1.2$ and the deviation 1.2. With less noise there
# is nothing left to do, with more nothing can be done. The paper's mean belongs to data with $s = 0.5$: it is
# $\ln s - 0.5$.
#
# The left figure has both densities on one axis. The right one has the levels that a sampler visits in 18 steps: evenly
# in time, or evenly in $\sigma^{1/7}$ (eq. 5), which spends more of them at little noise, where the details are made.
# That is the `karras_grid` that we use since lesson 7.

# %%
times = sd.LogNormal(math.log(s) - 0.5, 1.2)
cosine = sd.Cosine()
u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000  # a density is a function of uniform numbers
figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained", sharex=True)
ratios = {"cosine, uniform times": cosine.ratio(sd.uniform(u, cosine))}
ratios["EDM, log-normal"] = edm.schedule.ratio(times(u, edm.schedule))
for name, ratio in ratios.items():
    axes[0].hist(ratio.log(), bins=80, range=(-7, 7), density=True, alpha=0.6, label=name)
axes[0].set(xlabel="ln(σ/α)", ylabel="density", title="levels in training")
axes[0].legend(loc="upper right", fontsize=8)
grids = {
    "cosine, uniform_grid": cosine.ratio(sd.uniform_grid(cosine, 18)),
    "karras_grid": cosine.ratio(sd.karras_grid(cosine, 18)),
}
for row, (name, ratio) in enumerate(grids.items()):
    axes[1].plot(ratio.log(), torch.full((18,), -float(row)), "|", markersize=18, markeredgewidth=2, label=name)
axes[1].set(xlabel="ln(σ/α)", yticks=[0, -1], yticklabels=list(grids), ylim=(-1.7, 0.7), title="levels in sampling")
plt.show()

# %% [markdown]
# ## What it is worth
#
# Lesson 8's velocity on the cosine schedule with uniform times, against EDM: the same first weights, the same images in
# the same order, equally many steps (of 16 images in place of 64: more steps for the same computing take a young
# network further). First the error of the guessed clean image by noise level, on unseen images.

# %%
torch.manual_seed(0)  # the first weights of `edm`
velocity = sd.Denoiser(sd.UNet(widths=(32, 64), blocks=(1, 2)), cosine, sd.targets.v)
cosine_model = sd.fit(velocity, images, STEPS, batch=16).model
edm_model = sd.fit(edm, images, STEPS, loss=partial(sd.denoising_loss, density=times), batch=16).model

unseen = sd.to_unit(sd.load_images("digits", split="test").pixels[: 16 if FAST else 256])
plt.figure(figsize=(6.5, 3), layout="constrained")
plt.semilogx(LEVELS, model_error(edm_model, unseen, None) / model_error(cosine_model, unseen, None), ".-")
plt.axhline(1, color="0.5", linewidth=1)
plt.xlabel("noise level σ/α")
plt.ylabel("|x̂₀ − x₀|² of EDM / of cosine")
plt.show()

# %% [markdown]
# Then images, by `dpmpp` in 18 steps. The cosine model is drawn on either grid, to tell the halves of the change apart.

# %%
drawn = {}
for name, model, grid in (
    ("cosine, uniform_grid", cosine_model, sd.uniform_grid),
    ("cosine, karras_grid", cosine_model, sd.karras_grid),
    ("EDM, karras_grid", edm_model, sd.karras_grid),
):
    drawn[name] = sd.to_uint8(sd.sample(sd.Clipped(model), (COUNT, 1, 28, 28), grid(model.schedule, 18)))
figure, axes = plt.subplots(3, 1, figsize=(9, 2.2), layout="constrained")
for axis, (name, pixels) in zip(axes, drawn.items(), strict=True):
    axis.imshow(sd.make_grid(pixels[:14], 14))
    axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    axis.set(xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## The number that moved

# %%
fids = ", ".join(f"{sd.fid(pixels, images):.2f} with {name}" for name, pixels in drawn.items())
print(f"FID[digits-cnn-1, n={COUNT} vs train]: {fids}")

# %% [markdown]
# **What is new since lesson 8**, in code: the schedule, the data's deviation, the levels in training, the levels in
# sampling.
#
# ```python
# edm = sd.Denoiser(net, sd.Karras(), sd.targets.v, data_std=images.std)
# times = sd.LogNormal(math.log(images.std) - 0.5, 1.2)
# sd.fit(edm, images, STEPS, loss=partial(sd.denoising_loss, density=times))
# sd.sample(sd.Clipped(edm), (COUNT, 1, 28, 28), sd.karras_grid(edm.schedule, 18))
# ```
#
# **Exercise.** Write `karras_levels(n, sigma_min, sigma_max, rho)`: `simple-diffusion check 9 my_solution.py`.
