# %% [markdown]
# # 8 · Prediction targets and loss weights
#
# So far the network predicted the noise. It can also predict the clean image, or a combination of both. Since
# $x_t = \alpha x_0 + \sigma \varepsilon$ is known, one prediction gives the others. For a perfect network the choice
# makes no difference. For a real network it does, because the same error of the output has a different effect at each
# noise level. You compare three targets: by their loss weights, by their errors after training, and by FID.
#
# File: [`targets.py`](../src/simple_diffusion/targets.py). A target is a pair of numbers $(a, b)$, and the network
# predicts $a\,x_0 + b\,\varepsilon$:
#
# - `noise`: $(0, 1)$, the target of DDPM;
# - `x0`: $(1, 0)$, the clean image;
# - `v`: $(-\sigma, \alpha) / \sqrt{\alpha^2 + \sigma^2}$, the v-prediction of Salimans & Ho 2022;
# - `flow`: $(-1, 1)$, the target of lesson 10.

# %%
import os

import matplotlib.pyplot as plt
import torch

import simple_diffusion as sd
from simple_diffusion.denoising_error import LEVELS, model_error
from simple_diffusion.targets import TARGETS

FAST = bool(os.environ.get("FAST"))  # the tests set it: seconds instead of minutes
STEPS, COUNT = (4, 20) if FAST else (250, 512)
images, schedule = sd.load_images("digits"), sd.Cosine()

# %% [markdown]
# ## From the network output to x0
#
# $x_t = \alpha x_0 + \sigma\varepsilon$ and $\text{out} = a\,x_0 + b\,\varepsilon$ are two linear equations. Their
# solution for the clean image is the last line of `Denoiser`:
#
# $$\hat x_0 = \frac{b\,x_t - \sigma\,\text{out}}{b\,\alpha - a\,\sigma}.$$
#
# To check it, replace the network by a function that returns the correct output for each target. Each denoiser must
# then return $x_0$, to rounding.

# %%
x0 = sd.to_unit(images.pixels[:64]).double()
eps, t = torch.randn_like(x0), torch.linspace(0.01, 0.99, 64, dtype=torch.float64)
alpha, sigma = schedule.levels(t, x0)
for name, target in TARGETS.items():
    a, b = target(alpha, sigma)
    out = a * x0 + b * eps
    denoiser = sd.Denoiser(lambda x, noise_level, cond, out=out: out, schedule, target)
    error = (denoiser(schedule.add_noise(x0, t, eps), t) - x0).abs().max()
    print(f"{name:>5}: largest error of the x0 prediction {error:.0e}")

# %% [markdown]
# ## Each target implies a loss weight
#
# Suppose the output has the error $\delta$. By the formula above the error of $\hat x_0$ is
# $\sigma\delta / (b\,\alpha - a\,\sigma)$. So the loss $|\delta|^2$ equals $w\,|\hat x_0 - x_0|^2$ with the weight
#
# $$w = \left(\frac{b\,\alpha - a\,\sigma}{\sigma}\right)^2.$$
#
# It depends only on the noise level. With the signal-to-noise ratio $\text{snr} = \alpha^2/\sigma^2$ it is $\text{snr}$
# for `noise`, $1$ for `x0` and $1 + \text{snr}$ for `v`. You can also set the weight yourself, with any target. An
# example is `MinSNR`, $\min(\text{snr}, 5)$ (Hang et al. 2023), which limits the weight of low noise levels.

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
# At high noise (right) the target `noise` has almost no weight: $x_t$ is nearly the noise itself, so the noise is easy
# to predict even with a wrong image. But sampling starts at these levels. At low noise (left) the target `x0` has a
# small weight, compared with the others, although the details of an image form there. The target `v` has a sufficient
# weight at both ends: it is close to the noise at low noise levels and to the negative image at high ones.
#
# ## Training
#
# Train one network for each target, with the same initial weights, images and noise, without labels.

# %%
models = {}
for target in (sd.targets.noise, sd.targets.x0, sd.targets.v):
    torch.manual_seed(0)
    denoiser = sd.Denoiser(sd.UNet(widths=(32, 64), blocks=(1, 2)), schedule, target)
    models[target.__name__] = sd.fit(denoiser, images.without_labels(), STEPS).model

# %% [markdown]
# The figure shows the error of the x0 prediction on held-out images by noise level, relative to the error of `v`.

# %%
held_out = sd.to_unit(sd.load_images("digits", split="test").pixels[: 16 if FAST else 256])
errors = {name: model_error(model, held_out, None) for name, model in models.items()}
plt.figure(figsize=(6.5, 3.5), layout="constrained")
for name, error in errors.items():
    plt.loglog(LEVELS, error / errors["v"], ".-", label=name)
plt.gca().set(xlabel="noise level σ/α", ylabel="|x̂₀ − x₀|² / that of v")
plt.legend()
plt.show()

# %% [markdown]
# Each target has its largest error where its weight is smallest: `noise` at high noise levels, `x0` at low ones. The
# target `v` is not the best at every level, but it is never much worse than the best.
#
# ## Samples
#
# Errors at high noise levels give wrong shapes and specks. Errors at low noise levels give blurred strokes.

# %%
times = sd.karras_grid(schedule, 18)
samples = {n: sd.to_uint8(sd.sample(sd.Clipped(m), (COUNT, 1, 28, 28), times)) for n, m in models.items()}
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
# **New code since lesson 7:** another target.
#
# ```python
# sd.Denoiser(net, schedule, sd.targets.noise)
# sd.Denoiser(net, schedule, sd.targets.v)
# ```
#
# **Try.** Pass `loss=partial(sd.denoising_loss, weight=sd.MinSNR())` to `fit`. Which targets gain from it?
#
# **Exercise.** Write `x0_from_v(x_t, v, alpha, sigma)`, the x0 prediction from a v-prediction:
# `simple-diffusion check 8 my_solution.py`.
