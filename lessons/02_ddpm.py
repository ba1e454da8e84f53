# %% [markdown]
# # 2 · DDPM: images out of noise
#
# Lesson 1 with images in place of points. Nothing else changes: noise is added by a schedule, a network guesses it,
# and a guess of the noise is a guess of the clean image. This is Ho et al. 2020, "Denoising Diffusion Probabilistic
# Models". Those who come from a notebook that trains such a model without labels find its content here.
#
# Files: [`losses.py`](../src/simple_diffusion/losses.py) has algorithm 1 (training) and
# [`samplers.py`](../src/simple_diffusion/samplers.py) algorithm 2 (drawing).

# %%
import os

import matplotlib.pyplot as plt
import torch

import simple_diffusion as sd

FAST = bool(os.environ.get("FAST"))  # seconds instead of minutes, for the tests
STEPS, COUNT = (4, 64) if FAST else (400, 512)
torch.manual_seed(0)

# %% [markdown]
# ## Data
#
# 60,000 handwritten digits that the library draws itself, so that nothing has to be downloaded. Networks like numbers
# around 0, so pixels go from 0 … 255 to −1 … 1 on the way in (`to_unit`) and back on the way out (`to_uint8`).

# %%
images = sd.load_images("digits")


def show(pixels, columns: int = 16, title: str = "") -> None:
    """A grid of uint8 images."""
    plt.figure(figsize=(8, 8 * -(-len(pixels) // columns) / columns + 0.3), layout="constrained")
    plt.imshow(sd.make_grid(pixels, columns))
    plt.title(title, fontsize=10)
    plt.axis("off")
    plt.show()


show(images.pixels[:32], title=f"{len(images):,} images of {images.shape[1]} × {images.shape[2]} pixels")

# %% [markdown]
# ## Adding noise, in steps
#
# DDPM thinks of noise as added in $T$ small steps; step $n$ adds noise of variance $\beta_n$. All steps up to $n$
# together are one leap, $x_n = \sqrt{\bar\alpha_n}\, x_0 + \sqrt{1 - \bar\alpha_n}\, \varepsilon$ with
# $\bar\alpha_n = \prod_{i \le n} (1 - \beta_i)$ (eq. 4): lesson 1's formula, read off a table. `Discrete` makes a
# schedule of such a table. The paper takes 1,000 steps and we take 100, each ten times as large, to draw ten times as
# fast.

# %%
T = 100
schedule = sd.Discrete(sd.linear_betas(T))

x0 = sd.to_unit(images.pixels[:8])
rows = []
for t in (0.01, 0.1, 0.2, 0.4, 0.7, 1.0):
    alpha, sigma = schedule.levels(torch.tensor(t), x0)
    rows.append(sd.to_uint8(alpha * x0 + sigma * torch.randn_like(x0)))
show(torch.cat(rows), columns=8, title="steps 1, 10, 20, 40, 70 and 100 of 100")

# %% [markdown]
# ## Learning to guess the noise
#
# Algorithm 1: take an image, a random step and random noise; let the network guess the noise in the mixture; correct
# it by the squared error. That is `denoising_loss` with times on the table's steps (`on_steps`). The network is a
# small U-Net, lesson 3's subject. `fit` is a loop around it, ten lines long:
# [`training.py`](../src/simple_diffusion/training.py).


# %%
def loss(denoiser, x0, cond, draws):
    return sd.denoising_loss(denoiser, x0, cond=None, draws=draws, density=sd.on_steps)


denoiser = sd.Denoiser(sd.UNet(widths=(32, 64), blocks=(1, 2)), schedule, sd.targets.noise)

# %% [markdown]
# ## Drawing
#
# Algorithm 2: start from noise. At each step guess the clean image and draw $x_{n-1}$ from what then lies between it
# and $x_n$ (eq. 6 and 7), which takes some noise away and adds a little fresh noise. The samples below come from one
# call before training and one after.


# %%
def drawn(denoiser) -> torch.Tensor:
    """Images by DDPM's own sampler, uint8."""
    return sd.to_uint8(
        sd.sample(sd.Clipped(denoiser), (COUNT, 1, 28, 28), sd.uniform_grid(schedule, T), sampler=sd.ddpm)
    )


before = sd.fid(drawn(denoiser), images)
sd.fit(denoiser, images, STEPS, loss=loss)
samples = drawn(denoiser)
show(samples[:64], title=f"after {STEPS} steps of training")

# %% [markdown]
# The way there, for eight of them: every tenth state, from noise at the top to the image below.

# %%
states = sd.trajectory(sd.Clipped(denoiser), (8, 1, 28, 28), sd.uniform_grid(schedule, T), sampler=sd.ddpm)
show(torch.cat([sd.to_uint8(x) for x in list(states)[::20]]), columns=8, title="from noise to images")

# %% [markdown]
# ## The number that moved
#
# FID, the Fréchet distance of lesson 11: how far the samples are from the data, seen through a classifier of digits.
# 0 would be perfect.

# %%
after = sd.fid(samples, images)
print(f"FID[digits-cnn-1, n={COUNT} vs train]: {before:.2f} untrained, {after:.2f} after {STEPS} steps")

# %% [markdown]
# **What is new since lesson 1**, in code: images for points, and the paper's table for a curve.
#
# ```python
# images = sd.load_images("digits")
# schedule = sd.Discrete(sd.linear_betas(T))
# denoiser = sd.Denoiser(sd.UNet(widths=(32, 64), blocks=(1, 2)), schedule, sd.targets.noise)
# sd.sample(sd.Clipped(denoiser), (COUNT, 1, 28, 28), sd.uniform_grid(schedule, T), sampler=sd.ddpm)
# ```
#
# **Exercise.** Write one step of algorithm 2, `ddpm_step(x_t, x0_hat, noise, alpha_t, sigma_t, alpha_s, sigma_s)`,
# and let `simple-diffusion check 2 my_solution.py` look at it.
