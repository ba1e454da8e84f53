# %% [markdown]
# # 1 · Noise, and the way back
#
# A diffusion model learns one thing: given a noisy image, what was the clean one, *on average*? Everything else
# (drawing, guidance, fast samplers) is done with that answer. Here an "image" is a point in the plane, so that all of
# it can be seen, and the right answer is known in closed form, so that all of it can be checked.
#
# The library does the work; this lesson calls it. The files to read beside it are
# [`schedules.py`](../src/simple_diffusion/schedules.py), [`denoiser.py`](../src/simple_diffusion/denoiser.py) and
# [`losses.py`](../src/simple_diffusion/losses.py).

# %%
import os

import matplotlib.pyplot as plt
import torch
from torch import nn

import simple_diffusion as sd
from simple_diffusion.data.batches import Batch
from simple_diffusion.randomness import Draws

FAST = bool(os.environ.get("FAST"))  # seconds instead of minutes, for the tests: its pictures teach nothing
STEPS, POINTS = (20, 64) if FAST else (3000, 2000)
torch.manual_seed(0)

# %% [markdown]
# ## The data
#
# Five small clouds on a circle, in equal parts. Cloud $k$ is Gaussian, with mean $m_k$ and deviation 0.1.

# %%
angles = torch.arange(5) * 2 * torch.pi / 5 + torch.pi / 2
means, std = torch.stack([angles.cos(), angles.sin()], 1), 0.1  # [5, 2]


def clouds(n: int) -> torch.Tensor:
    """Points of the data: [n, 2]."""
    return means[torch.randint(5, (n,))] + std * torch.randn(n, 2)


# %% [markdown]
# ## Adding noise
#
# $x_t = \alpha_t x_0 + \sigma_t \varepsilon$, with $\varepsilon$ standard normal noise. A *schedule* says how
# $\alpha$ falls and $\sigma$ rises while $t$ goes from 0 (clean) to 1 (noise). With DDPM's, the clouds melt into one
# round Gaussian.

# %%
schedule = sd.Linear()
x0, eps = clouds(POINTS), torch.randn(POINTS, 2)
figure, axes = plt.subplots(1, 4, figsize=(10, 2.8), sharex=True, sharey=True)
for axis, t in zip(axes, (0.02, 0.2, 0.5, 1.0), strict=True):
    alpha, sigma = schedule.levels(torch.tensor(t), x0)
    x_t = alpha * x0 + sigma * eps
    axis.scatter(*x_t.T, s=1)
    axis.set(
        title=f"t = {t:g}: α = {alpha[0].item():.2f}, σ = {sigma[0].item():.2f}",
        xlim=(-3, 3),
        ylim=(-3, 3),
        aspect="equal",
    )
    axis.title.set_fontsize(9)
plt.tight_layout()
plt.show()

# %% [markdown]
# ## The exact denoiser
#
# What is the mean of all clean points that may have become $x_t$? For Gaussian clouds it can be written down. Cloud
# $k$ made $x_t$ with probability $p_k \propto \exp(-|x_t - \alpha m_k|^2 / 2v)$, where $v = \alpha^2 0.1^2 +
# \sigma^2$, and then the clean point lay at $m_k + \frac{\alpha\, 0.1^2}{v}(x_t - \alpha m_k)$ on average. The
# denoiser is the mean of these, weighted by $p_k$.


# %%
class Exact:
    """E[x0 | x_t] of the clouds."""

    schedule = schedule

    def __call__(self, x_t, t, cond=None):
        alpha, sigma = schedule.levels(t, x_t)
        v = (alpha * std) ** 2 + sigma**2  # [B, 1]
        offset = x_t[:, None] - alpha[..., None] * means  # [B, 5, 2]
        p = (-offset.square().sum(-1) / (2 * v)).softmax(1)  # [B, 5]
        return (p[..., None] * (means + (alpha * std**2 / v)[..., None] * offset)).sum(1)


# %% [markdown]
# ## A network that learns it
#
# Nobody tells the network that formula. It sees a noisy point and the noise level, guesses the noise, and is
# corrected (algorithm 1 of Ho et al. 2020, `denoising_loss`). A guess of the noise is a guess of the clean point,
# since $\hat x_0 = (x_t - \sigma_t \hat\varepsilon) / \alpha_t$: that is what `Denoiser` does with it.


# %%
class Net(nn.Module):
    """Three layers that are told a point [B, 2] and its noise level [B]."""

    def __init__(self, width: int = 128):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 + 8, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )

    def forward(self, x, noise_level, cond=None):
        waves = noise_level[:, None] * 2.0 ** torch.arange(4)  # so that close levels look different
        return self.layers(torch.cat([x, waves.sin(), waves.cos()], 1))


denoiser = sd.Denoiser(Net(), schedule, sd.noise)


def batches(size: int = 256):
    """Endless fresh points, each with random numbers of its own."""
    step = 0
    while True:
        step += 1
        yield Batch(clouds(size), None, Draws(0, step, range(size), total=size))


def gap(denoiser) -> float:
    """How far its guess is from the exact one: root mean square over points, at noise levels up to t = 0.6."""
    x0, t = clouds(POINTS), 0.01 + 0.59 * torch.rand(POINTS)
    alpha, sigma = schedule.levels(t, x0)
    x_t = alpha * x0 + sigma * torch.randn_like(x0)
    with torch.no_grad():
        return (denoiser(x_t, t) - Exact()(x_t, t)).square().mean().sqrt().item()


before = gap(denoiser)
for step in sd.train(denoiser, batches(), sd.adamw(denoiser), lr=lambda n: 3e-3 * sd.warmup_linear((n - 1) / STEPS)):
    if step.n == STEPS:
        break
after = gap(denoiser)

# %% [markdown]
# Both denoisers as arrows, from noisy points to their guess. Grey the exact one, blue the learned one upon it. At
# much noise all arrows point to the middle: the mean of everything is the best guess. At little noise each point
# knows its cloud.

# %%
side = torch.linspace(-1.8, 1.8, 13)
lattice = torch.cartesian_prod(side, side)
figure, axes = plt.subplots(1, 3, figsize=(10, 3.5), sharex=True, sharey=True)
for axis, t in zip(axes, (0.1, 0.3, 0.6), strict=True):
    with torch.no_grad():
        for guess, colour, width in ((Exact(), "0.75", 0.012), (denoiser, "tab:blue", 0.004)):
            towards = guess(lattice, torch.tensor(t)) - lattice
            axis.quiver(*lattice.T, *towards.T, color=colour, width=width, angles="xy", scale_units="xy", scale=2)
    axis.set(title=f"t = {t:g}", aspect="equal")
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Drawing
#
# Start from noise, ask for the clean point, go a little way towards it, ask again: `sd.sample`. How the steps are
# chosen is for lessons 2 and 7. No data point goes in, and the clouds come out.

# %%
grid = sd.uniform_grid(schedule, 10 if FAST else 100)
figure, axes = plt.subplots(1, 2, figsize=(7, 3.5), sharex=True, sharey=True)
for axis, (name, guess) in zip(axes, {"exact": Exact(), "learned": denoiser}.items(), strict=True):
    drawn = sd.sample(guess, (POINTS, 2), grid, sampler=sd.ddpm)
    axis.scatter(*drawn.T, s=1)
    axis.set(title=f"drawn with the {name} denoiser", xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
plt.tight_layout()
plt.show()

# %% [markdown]
# ## The number that moved
#
# The distance between the network's guess and the right one.

# %%
print(f"distance from the exact denoiser: {before:.3f} untrained, {after:.3f} after {STEPS:,} steps")

# %% [markdown]
# **Exercise.** Write `q_sample(x0, eps, alpha, sigma)`, the first formula above, and let `simple-diffusion check 1
# my_solution.py` tell you whether it is right.
