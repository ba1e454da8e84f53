# %% [markdown]
# # 8 · Targets and weights: what the network is asked for
#
# So far the network guessed the noise. It might as well guess the clean image, or a mixture of the two: any one of
# these gives the others, since $x_t = \alpha x_0 + \sigma \varepsilon$ is known. So does it matter what one asks for?
# To the best of all networks it does not. To one that errs it does, because each question makes its errors count
# differently at each noise level.
#
# File: [`targets.py`](../src/simple_diffusion/targets.py), where a target is two numbers $(a, b)$: the network is asked
# for $a\,x_0 + b\,\varepsilon$.
#
# - `noise`: $(0, 1)$, DDPM's;
# - `clean`: $(1, 0)$;
# - `velocity`: $(-\sigma, \alpha) / \sqrt{\alpha^2 + \sigma^2}$ (Salimans & Ho 2022);
# - `flow`: $(-1, 1)$, lesson 10's.

# %%
import os

import matplotlib.pyplot as plt
import torch

import simple_diffusion as sd
from simple_diffusion.denoising_error import LEVELS, model_error
from simple_diffusion.targets import TARGETS

FAST = bool(os.environ.get("FAST"))  # seconds instead of minutes, for the tests
STEPS, COUNT = (4, 64) if FAST else (250, 512)
images, schedule = sd.load_images("digits"), sd.Cosine()

# %% [markdown]
# ## One answer is as good as another
#
# $x_t = \alpha x_0 + \sigma\varepsilon$ and $\text{out} = a\,x_0 + b\,\varepsilon$ are two linear equations. Solved for
# the clean image they say
#
# $$\hat x_0 = \frac{b\,x_t - \sigma\,\text{out}}{b\,\alpha - a\,\sigma},$$
#
# which is the last line of `Denoiser`. To check it, here are networks that know the right answer, each to its own
# question. All denoisers then find the same image, to rounding.

# %%
x0 = sd.to_unit(images.pixels[:64]).double()
eps, t = torch.randn_like(x0), torch.linspace(0.01, 0.99, 64, dtype=torch.float64)
alpha, sigma = schedule.levels(t, x0)
for name, target in TARGETS.items():
    a, b = target(alpha, sigma)
    answer = a * x0 + b * eps
    denoiser = sd.Denoiser(lambda x, noise_level, cond, answer=answer: answer, schedule, target)
    off = (denoiser(alpha * x0 + sigma * eps, t) - x0).abs().max()
    print(f"{name:>8}: x0_hat is off by {off:.0e} at most")

# %% [markdown]
# ## A target is a weight
#
# Now let the network err by $\delta$. By the formula above $\hat x_0$ errs by $\sigma\delta / (b\,\alpha - a\,\sigma)$.
# So to ask for a small $|\delta|^2$ is to ask for a small $|\hat x_0 - x_0|^2$ times a weight,
#
# $$w = \left(\frac{b\,\alpha - a\,\sigma}{\sigma}\right)^2,$$
#
# which depends on the noise level $\sigma / \alpha$ alone. With the signal-to-noise ratio
# $\text{snr} = \alpha^2/\sigma^2$ it is $\text{snr}$ for noise, $1$ for clean and $1 + \text{snr}$ for velocity. A
# weight can also be set by hand, whatever the target: `MinSNR` is $\min(\text{snr}, 5)$ (Hang et al. 2023), given to
# the loss as `weight`. It holds the weight down where there is little noise.

# %%
ratio = torch.logspace(-1.5, 1.5, 200, dtype=torch.float64)
alpha, sigma = (curve(schedule.time_of(ratio)) for curve in (schedule.alpha, schedule.sigma))
plt.figure(figsize=(6.5, 4), layout="constrained")
for name, target in TARGETS.items():
    a, b = target(alpha, sigma)
    plt.loglog(ratio, ((b * alpha - a * sigma) / sigma) ** 2, label=name, linewidth=2.5)
plt.loglog(ratio, sd.MinSNR()((alpha / sigma) ** 2), "k--", linewidth=1, label="min-SNR, any target")
plt.gca().set(xlabel="noise level σ/α", ylabel="weight of |x̂₀ − x₀|²")
plt.legend()
plt.show()

# %% [markdown]
# Look at the right side. Where there is much noise, to guess the noise is easy: it is nearly what one sees. The little
# that is missing is the image, and the target `noise` hardly weighs it. But drawing begins there. The clean image is
# the opposite: at little noise, on the left, nothing it does wrong counts much, though the fine strokes are made there.
# The velocity is worth asking for on both sides, for it turns from the one into the other: noise where there is little
# of it, (minus) the image where there is much noise.
#
# ## Trained
#
# The same first weights, images and noise for each target. Without labels again, to keep to one question.

# %%
models = {}
for target in (sd.targets.noise, sd.targets.x0, sd.targets.v):
    torch.manual_seed(0)
    denoiser = sd.Denoiser(sd.UNet(widths=(32, 64), blocks=(1, 2)), schedule, target)
    models[target.__name__] = sd.fit(denoiser, images, STEPS).model

# %% [markdown]
# How well does each guess the clean image, by noise level? On images that the training did not see, relative to the
# velocity.

# %%
unseen = sd.to_unit(sd.load_images("digits", split="test").pixels[: 16 if FAST else 256])
errors = {name: model_error(model, unseen, None) for name, model in models.items()}
plt.figure(figsize=(6.5, 3.5), layout="constrained")
for name, error in errors.items():
    plt.loglog(LEVELS, error / errors["velocity"], ".-", label=name)
plt.gca().set(xlabel="noise level σ/α", ylabel="|x̂₀ − x₀|² / that of velocity")
plt.legend()
plt.show()

# %% [markdown]
# Each target is worst where its weight is smallest: noise at much noise, clean at little. The velocity is not the best
# everywhere, but nowhere bad.
#
# ## Drawn
#
# What is wrong at much noise shows as odd shapes and specks, and what is wrong at little noise as blurred strokes.

# %%
drawn = {
    name: sd.to_uint8(sd.sample(sd.Clipped(model), (COUNT, 1, 28, 28), sd.karras_grid(schedule, 18)))
    for name, model in models.items()
}
figure, axes = plt.subplots(3, 1, figsize=(9, 2.2), layout="constrained")
for axis, (name, pixels) in zip(axes, drawn.items(), strict=True):
    axis.imshow(sd.make_grid(pixels[:14], 14))
    axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    axis.set(xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## The number that moved

# %%
scores = {name: sd.fid(pixels, images) for name, pixels in drawn.items()}
print(
    f"FID[digits-cnn-1, n={COUNT} vs train]: {scores['noise']:.2f} with noise, "
    f"{scores['velocity']:.2f} with velocity ({scores['clean']:.2f} with clean)"
)

# %% [markdown]
# **What is new since lesson 7**, in code: one word.
#
# ```python
# sd.Denoiser(net, schedule, sd.targets.noise)
# sd.Denoiser(net, schedule, sd.targets.v)
# ```
#
# **Exercise.** Write `x0_from_v(x_t, v, alpha, sigma)`, the clean image that a velocity implies:
# `simple-diffusion check 8 my_solution.py`.
