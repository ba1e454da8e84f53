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

FAST = bool(os.environ.get("FAST"))  # seconds instead of minutes, for the tests
STEPS, COUNT, T = (20, 64, 10) if FAST else (3000, 2000, 100)
torch.manual_seed(0)

# %% [markdown]
# ## Adding noise
#
# The data are five small clouds on a circle; cloud $k$ is Gaussian, with mean $m_k$ and deviation $s = 0.1$. Noise is
# added by $x_t = \alpha_t x_0 + \sigma_t \varepsilon$, with $\varepsilon$ standard normal. A *schedule* says how
# $\alpha$ falls and $\sigma$ rises while $t$ goes from 0 (clean) to 1 (noise). With DDPM's, the clouds melt into one
# round Gaussian.

# %%
schedule = sd.Linear()
angles = torch.arange(5) * 2 * torch.pi / 5 + torch.pi / 2
means, s = torch.stack([angles.cos(), angles.sin()], 1), 0.1  # [5, 2]


def clouds(n):
    return means[torch.randint(5, (n,))] + s * torch.randn(n, 2)  # [n, 2]


def noised(x0, t):
    alpha, sigma = schedule.levels(t, x0)
    return alpha * x0 + sigma * torch.randn_like(x0)


figure, axes = plt.subplots(1, 4, figsize=(10, 2.8), sharex=True, sharey=True, layout="constrained")
for axis, t in zip(axes, torch.tensor([0.02, 0.1, 0.3, 1.0]), strict=True):
    axis.scatter(*noised(clouds(COUNT), t).T, s=1)
    axis.set_title(f"t = {t:g}: α = {schedule.alpha(t):.2f}, σ = {schedule.sigma(t):.2f}", fontsize=9)
    axis.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
plt.show()

# %% [markdown]
# ## The exact denoiser
#
# What is the mean of all clean points that may have become $x_t$? For Gaussian clouds it can be written down. Cloud
# $k$ made $x_t$ with probability $p_k \propto \exp(-|x_t - \alpha m_k|^2 / 2v)$, where $v = \alpha^2 s^2 + \sigma^2$,
# and then the clean point lay at $m_k + \frac{\alpha s^2}{v}(x_t - \alpha m_k)$ on average. The denoiser is the mean
# of these five, weighted by $p_k$.


# %%
class Exact:
    schedule = schedule

    def __call__(self, x_t, t, cond=None):
        alpha, sigma = schedule.levels(t, x_t)
        v = (alpha * s) ** 2 + sigma**2  # [B, 1]
        offset = x_t[:, None] - alpha[..., None] * means  # [B, 5, 2]
        p = (-offset.square().sum(-1) / (2 * v)).softmax(1)  # [B, 5]
        return (p[..., None] * (means + (alpha * s**2 / v)[..., None] * offset)).sum(1)


# %% [markdown]
# ## A network that learns it
#
# Nobody tells the network that formula. It sees a noisy point and the noise level, guesses the noise, and is
# corrected (algorithm 1 of Ho et al. 2020: `denoising_loss`). A guess of the noise is a guess of the clean point,
# $\hat x_0 = (x_t - \sigma_t \hat\varepsilon) / \alpha_t$: that is what `Denoiser` makes of it.


# %%
class Net(nn.Sequential):
    def forward(self, x, noise_level, cond=None):  # a point [B, 2] and, as waves, its noise level [B]
        waves = noise_level[:, None] * 2.0 ** torch.arange(6)
        return super().forward(torch.cat([x, waves.sin(), waves.cos()], 1))


def batches(size=128):
    for step in range(1, STEPS + 1):  # fresh points, each with random numbers of its own
        yield Batch(clouds(size), None, Draws(0, step, range(size), total=size))


@torch.no_grad()
def gap(guess):
    """Its distance from the exact one: root mean square over points, at noise levels up to t = 0.6."""
    t = 0.01 + 0.59 * torch.rand(COUNT)
    x_t = noised(clouds(COUNT), t)
    return (guess(x_t, t) - Exact()(x_t, t)).square().mean().sqrt().item()


net = Net(nn.Linear(14, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 2))
denoiser = sd.Denoiser(net, schedule, sd.targets.noise)
before = gap(denoiser)
for _ in sd.train(denoiser, batches(), sd.adamw(denoiser), lr=lambda n: 3e-3 * sd.warmup_linear((n - 1) / STEPS)):
    pass

# %% [markdown]
# Both denoisers as arrows that point from noisy points to the guess, at a third of their length: wide grey the exact
# one, thin blue the learned one upon it. At much noise all arrows point to the middle, since the mean of everything
# is the best guess. At little noise each point knows its cloud.

# %%
side = torch.linspace(-1.6, 1.6, 12)
lattice = torch.cartesian_prod(side, side)
figure, axes = plt.subplots(1, 3, figsize=(10, 3.5), sharex=True, sharey=True, layout="constrained")
for axis, t in zip(axes, torch.tensor([0.03, 0.1, 0.3]), strict=True):
    for guess, colour, width in ((Exact(), "0.75", 0.014), (denoiser, "tab:blue", 0.004)):
        towards = guess(lattice, t).detach() - lattice
        axis.quiver(*lattice.T, *towards.T, color=colour, width=width, angles="xy", scale_units="xy", scale=3)
    axis.set(title=f"t = {t:g}", aspect="equal")
plt.show()

# %% [markdown]
# ## Drawing
#
# Start from noise, ask for the clean point, go a little way towards it, ask again: `sd.sample`. How the steps are
# chosen is for lessons 2 and 7. No data point goes in, and the clouds come out.

# %%
figure, axes = plt.subplots(1, 2, figsize=(7, 3.5), sharex=True, sharey=True, layout="constrained")
for axis, (name, guess) in zip(axes, {"exact": Exact(), "learned": denoiser}.items(), strict=True):
    drawn = sd.sample(guess, (COUNT, 2), sd.uniform_grid(schedule, T), sampler=sd.ddpm)
    axis.scatter(*drawn.T, s=1)
    axis.set(title=f"drawn with the {name} denoiser", xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
plt.show()

# %% [markdown]
# ## The number that moved

# %%
print(f"distance from the exact denoiser: {before:.3f} untrained, {gap(denoiser):.3f} after {STEPS:,} steps")

# %% [markdown]
# **Exercise.** Write `q_sample(x0, eps, alpha, sigma)`, the first formula above, and let
# `simple-diffusion check 1 my_solution.py` say whether it is right.
