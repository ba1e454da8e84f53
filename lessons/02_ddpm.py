# %% [markdown]
# # 2 · DDPM on images
#
# You train a diffusion model on images of digits: Ho et al. 2020, "Denoising Diffusion Probabilistic Models" (DDPM).
# The method is that of lesson 1. A schedule adds noise, a network predicts the noise, and the noise prediction gives an
# x0 prediction. The data are now images, and the network is a U-Net. This lesson replaces notebooks that train a DDPM
# without labels.
#
# Files: [`losses.py`](../src/simple_diffusion/losses.py) has algorithm 1 (training) and
# [`samplers.py`](../src/simple_diffusion/samplers.py) has algorithm 2 (sampling).

# %%
import os

import matplotlib.pyplot as plt
import torch

import simple_diffusion as sd

FAST = bool(os.environ.get("FAST"))  # the tests set it: seconds instead of minutes
STEPS, COUNT = (4, 20) if FAST else (400, 512)
_ = torch.manual_seed(0)

# %% [markdown]
# ## Data
#
# `digits` is a data set of 60,000 handwritten-looking digits that the library generates, so you need no download.
# Networks train best on numbers around 0. `to_unit` maps pixels from 0 … 255 to −1 … 1, and `to_uint8` maps them back.

# %%
images = sd.load_images("digits")


def show(pixels, columns: int = 16, title: str = "") -> None:
    """Plot uint8 images as a grid."""
    plt.figure(figsize=(8, 8 * -(-len(pixels) // columns) / columns + 0.3), layout="constrained")
    plt.imshow(sd.make_grid(pixels, columns))
    plt.title(title, fontsize=10)
    plt.axis("off")
    plt.show()


show(images.pixels[:32], title=f"{len(images):,} images of {images.shape[1]} × {images.shape[2]} pixels")

# %% [markdown]
# ## The forward process
#
# DDPM adds noise in $T$ small steps. Step $n$ adds noise of variance $\beta_n$. The first $n$ steps together have a
# closed form (eq. 4): $x_n = \sqrt{\bar\alpha_n}\, x_0 + \sqrt{1 - \bar\alpha_n}\, \varepsilon$ with
# $\bar\alpha_n = \prod_{i \le n} (1 - \beta_i)$. This is the formula of lesson 1 with
# $\alpha = \sqrt{\bar\alpha_n}$ and $\sigma = \sqrt{1 - \bar\alpha_n}$. `Discrete` makes a schedule from a table of
# $\beta_n$. The paper uses $T = 1000$. Here $T = 100$ with ten times larger $\beta_n$, so sampling is ten times faster.

# %%
T = 100
schedule = sd.Discrete(sd.linear_betas(T))

x0 = sd.to_unit(images.pixels[:8])
rows = []
for t in (0.01, 0.1, 0.2, 0.4, 0.7, 1.0):
    x_t = schedule.add_noise(x0, torch.tensor(t), torch.randn_like(x0))
    rows.append(sd.to_uint8(x_t))
show(torch.cat(rows), columns=8, title="steps 1, 10, 20, 40, 70 and 100 of 100")

# %% [markdown]
# ## Training
#
# Algorithm 1: take an image, a random step $n$ and random noise. Compute $x_n$. Let the network predict the noise, and
# minimize the squared error. `denoising_loss` does this, and `on_steps` picks the random step. The network is a small
# U-Net, the subject of lesson 3. `fit` is a training loop of ten lines in
# [`training.py`](../src/simple_diffusion/training.py).


# %%
def loss(denoiser, x0, cond, draws):
    return sd.denoising_loss(denoiser, x0, cond=None, draws=draws, density=sd.on_steps)


denoiser = sd.Denoiser(sd.UNet(widths=(32, 64), blocks=(1, 2)), schedule, sd.targets.noise)

# %% [markdown]
# ## Sampling
#
# Algorithm 2: start from noise. In each step predict the clean image, then sample $x_{n-1}$ from the Gaussian
# $q(x_{n-1} \mid x_n, \hat x_0)$ (eq. 6 and 7). A step removes some noise and adds a smaller amount of new noise.
# `Clipped` keeps each x0 prediction in [−1, 1]. We sample once before the training and once after it.


# %%
def sample(denoiser) -> torch.Tensor:
    """COUNT uint8 images, sampled with DDPM's sampler."""
    times = sd.uniform_grid(schedule, T)
    return sd.to_uint8(sd.sample(sd.Clipped(denoiser), (COUNT, 1, 28, 28), times, sampler=sd.ddpm))


before = sd.fid(sample(denoiser), images)
ema = sd.fit(denoiser, images, STEPS, loss=loss)  # `denoiser` has the last weights; lesson 6 explains `ema`
samples = sample(denoiser)
show(samples[:64], title=f"samples after {STEPS} steps of training")

# %% [markdown]
# The denoising trajectories of eight images. Each row is twenty sampler steps after the row above it.

# %%
states = list(sd.trajectory(sd.Clipped(denoiser), (8, 1, 28, 28), sd.uniform_grid(schedule, T), sampler=sd.ddpm))
show(torch.cat([sd.to_uint8(x) for x in states[::20]]), columns=8, title="from noise (top) to images (bottom)")

# %% [markdown]
# ## Result
#
# The Fréchet distance (FID) measures how far the samples are from the data, in the feature space of a digit classifier.
# Lower is better. Lesson 11 explains it.

# %%
after = sd.fid(samples, images)
print(f"FID[digits-cnn-1, n={COUNT} vs train]: {before:.2f} untrained, {after:.2f} after {STEPS} steps")

# %% [markdown]
# **New code since lesson 1:** images instead of points, and DDPM's table of betas instead of a curve.
#
# ```python
# images = sd.load_images("digits")
# schedule = sd.Discrete(sd.linear_betas(T))
# denoiser = sd.Denoiser(sd.UNet(widths=(32, 64), blocks=(1, 2)), schedule, sd.targets.noise)
# sd.sample(sd.Clipped(denoiser), (COUNT, 1, 28, 28), sd.uniform_grid(schedule, T), sampler=sd.ddpm)
# ```
#
# **Try.** Train for 100 and for 1,600 steps. How does FID change? Sample without `Clipped`: what happens?
#
# **Exercise.** Write `ddpm_step(x_t, x0_hat, noise, alpha_t, sigma_t, alpha_s, sigma_s)`, one step of algorithm 2.
# Check it with `simple-diffusion check 2 my_solution.py`.
