# %% [markdown]
# # 1 · Noise and denoising
#
# A diffusion model learns one function: from a noisy image, it computes the *mean* of the clean images that can lie
# behind it. This function is the *denoiser*, and sampling uses nothing else.
#
# In this lesson an "image" is a point in the plane, so you can plot every step and compare the network with the exact
# answer. You add noise to the data, write down the exact denoiser, train a network, and generate new points with both.
#
# Files: [`schedules.py`](../src/simple_diffusion/schedules.py), [`denoiser.py`](../src/simple_diffusion/denoiser.py),
# [`losses.py`](../src/simple_diffusion/losses.py).

# %%
import os

import matplotlib.pyplot as plt
import torch
from torch import nn

import simple_diffusion as sd
from simple_diffusion.data.batches import Batch
from simple_diffusion.randomness import Draws

FAST = bool(os.environ.get("FAST"))  # the tests set it: seconds instead of minutes
STEPS, COUNT, SAMPLER_STEPS = (20, 64, 10) if FAST else (3000, 2000, 100)
_ = torch.manual_seed(0)

# %% [markdown]
# ## The forward process
#
# The data are five Gaussian clusters on a circle. Cluster $k$ has the mean $m_k$ and the standard deviation $s = 0.1$.
# The forward process adds noise: $x_t = \alpha_t x_0 + \sigma_t \varepsilon$ with $\varepsilon \sim N(0, I)$. A
# *noise schedule* sets $\alpha_t$ and $\sigma_t$ for each time $t$ from 0 (clean) to 1 (noise). Below you see DDPM's
# schedule: at $t = 1$ the five clusters have become one Gaussian.

# %%
schedule = sd.Linear()
angles = torch.arange(5) * 2 * torch.pi / 5 + torch.pi / 2
means, s = torch.stack([angles.cos(), angles.sin()], 1), 0.1  # [5, 2]


def sample_data(n):
    return means[torch.randint(5, (n,))] + s * torch.randn(n, 2)  # [n, 2]


def add_noise(x0, t):
    alpha, sigma = schedule.levels(t, x0)
    return alpha * x0 + sigma * torch.randn_like(x0)


figure, axes = plt.subplots(1, 4, figsize=(10, 2.8), sharex=True, sharey=True, layout="constrained")
for axis, t in zip(axes, torch.tensor([0.02, 0.1, 0.3, 1.0]), strict=True):
    axis.scatter(*add_noise(sample_data(COUNT), t).T, s=1)
    axis.set_title(f"t = {t:g}: α = {schedule.alpha(t):.2f}, σ = {schedule.sigma(t):.2f}", fontsize=9)
    axis.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
plt.show()

# %% [markdown]
# ## The exact denoiser
#
# The denoiser is $E[x_0 \mid x_t]$. For these data it has a closed form. The point $x_t$ comes from cluster $k$ with
# probability $p_k \propto \exp(-|x_t - \alpha m_k|^2 / 2v)$, $v = \alpha^2 s^2 + \sigma^2$. If so, the mean of $x_0$ is
# $m_k + \frac{\alpha s^2}{v}(x_t - \alpha m_k)$. The denoiser is the mean of these five points, weighted by $p_k$.


# %%
class ExactDenoiser:
    schedule = schedule

    def __call__(self, x_t, t, cond=None):
        alpha, sigma = schedule.levels(t, x_t)
        v = (alpha * s) ** 2 + sigma**2  # [B, 1]
        offset = x_t[:, None] - alpha[..., None] * means  # [B, 5, 2]
        p = (-offset.square().sum(-1) / (2 * v)).softmax(1)  # [B, 5]
        return (p[..., None] * (means + (alpha * s**2 / v)[..., None] * offset)).sum(1)


# %% [markdown]
# ## The trained denoiser
#
# For real data nobody can write down the denoiser, so you train a network (Ho et al. 2020, algorithm 1). It predicts
# the noise $\hat\varepsilon$ from a noisy point and the noise level. The loss is the squared error. `Denoiser` computes
# the x0 prediction from the noise prediction: $\hat x_0 = (x_t - \sigma_t \hat\varepsilon) / \alpha_t$.


# %%
class Network(nn.Sequential):
    def forward(self, x, noise_level, cond=None):  # x [B, 2]; the noise level [B] as sines and cosines
        phases = noise_level[:, None] * 2.0 ** torch.arange(6)
        return super().forward(torch.cat([x, phases.sin(), phases.cos()], 1))


def batches(size=128):
    for step in range(1, STEPS + 1):  # new points in each step; Draws holds the random numbers of the step
        yield Batch(sample_data(size), None, Draws(0, step, range(size), total=size))


@torch.no_grad()
def distance_from_exact(denoiser):
    """Root mean square distance from the exact denoiser, over points and noise levels up to t = 0.6."""
    t = 0.01 + 0.59 * torch.rand(COUNT)
    x_t = add_noise(sample_data(COUNT), t)
    return (denoiser(x_t, t) - ExactDenoiser()(x_t, t)).square().mean().sqrt().item()


net = Network(nn.Linear(14, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 2))
trained = sd.Denoiser(net, schedule, sd.targets.noise)
before = distance_from_exact(trained)
for _ in sd.train(trained, batches(), sd.adamw(trained), lr=lambda n: 3e-3 * sd.warmup_linear((n - 1) / STEPS)):
    pass  # one turn is one update of the weights

# %% [markdown]
# The arrows point from a noisy point to its x0 prediction, at a third of the length: wide gray the exact denoiser, thin
# blue the network. At high noise all point to the mean of the data, at low noise each points to the nearest cluster.

# %%
side = torch.linspace(-1.6, 1.6, 12)
points = torch.cartesian_prod(side, side)
figure, axes = plt.subplots(1, 3, figsize=(10, 3.5), sharex=True, sharey=True, layout="constrained")
for axis, t in zip(axes, torch.tensor([0.03, 0.1, 0.3]), strict=True):
    for denoiser, color, width in ((ExactDenoiser(), "0.75", 0.014), (trained, "tab:blue", 0.004)):
        arrows = denoiser(points, t).detach() - points
        axis.quiver(*points.T, *arrows.T, color=color, width=width, angles="xy", scale_units="xy", scale=3)
    axis.set(title=f"t = {t:g}", aspect="equal")
plt.show()

# %% [markdown]
# ## Sampling
#
# A sampler starts from pure noise. In each step it predicts the clean point and moves a little towards the prediction.
# `sd.sample` runs this loop. Lessons 2 and 7 explain how samplers choose their steps.

# %%
figure, axes = plt.subplots(1, 2, figsize=(7, 3.5), sharex=True, sharey=True, layout="constrained")
for axis, (name, denoiser) in zip(axes, {"exact": ExactDenoiser(), "trained": trained}.items(), strict=True):
    samples = sd.sample(denoiser, (COUNT, 2), sd.uniform_grid(schedule, SAMPLER_STEPS), sampler=sd.ddpm)
    axis.scatter(*samples.T, s=1)
    axis.set(title=f"samples of the {name} denoiser", xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
plt.show()

# %% [markdown]
# ## Result

# %%
print(f"distance from the exact denoiser: {before:.3f} untrained, {distance_from_exact(trained):.3f} trained")

# %% [markdown]
# **Try.** Set `s = 0.3`. Is the trained denoiser still close to the exact one?
#
# **Exercise.** Write `q_sample(x0, eps, alpha, sigma)`, the forward process: `simple-diffusion check 1 my_solution.py`.
