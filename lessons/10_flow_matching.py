# %% [markdown]
# # 10 · Flow matching
#
# Flow matching (Lipman et al. 2023) and rectified flow (Liu et al. 2023) define a model without diffusion: connect each
# image with a noise vector by a straight line, train a network to predict the velocity along these lines, and follow
# the velocity from noise back to an image. You show that this is the same model: the EDM network of lesson 9 follows
# the flow without further training. Then you train with the flow target and compare. Files: `Flow` in
# [`schedules.py`](../src/simple_diffusion/schedules.py), `flow` in [`targets.py`](../src/simple_diffusion/targets.py).

# %%
import math
import os
from functools import partial
from itertools import pairwise

import matplotlib.pyplot as plt
import torch

import simple_diffusion as sd

FAST = bool(os.environ.get("FAST"))  # the tests set it: seconds instead of minutes
STEPS, COUNT = (4, 20) if FAST else (800, 512)
images = sd.load_images("digits")
s = images.std
loss = partial(sd.denoising_loss, density=sd.LogNormal(math.log(s) - 0.5, 1.2))


def train(schedule, target, seed: int = 0) -> sd.Denoiser:
    torch.manual_seed(seed)  # of the initial weights; the seed of fit sets the order of the images and the noise
    denoiser = sd.Denoiser(sd.UNet(widths=(32, 64), blocks=(1, 2)), schedule, target, s)
    return sd.fit(denoiser, images.without_labels(), STEPS, loss=loss, batch=16, seed=seed).model


edm = train(sd.Karras(), sd.targets.v)

# %% [markdown]
# ## A change of time and scale
#
# On the straight line $x_t = (1 - t)\, x_0 + t\, \varepsilon$ the noise level $\sigma / \alpha$ is $t / (1 - t)$. On
# EDM's schedule $x = x_0 + \sigma\varepsilon$ it is $\sigma$. At $\sigma = t / (1 - t)$ the two noisy images differ
# only by a factor, $x_t = (1 - t)\, x$. So a denoiser for one is a denoiser for the other. In code: put the same
# network into a `Denoiser` with another schedule.

# %%
flow = sd.Denoiser(edm.net, sd.Flow(), sd.targets.v, s)

x0 = sd.to_unit(images.pixels[:64])
sigma = torch.linspace(-3, 3, 64).exp()  # a noise level for each image
eps = torch.randn_like(x0)
edm_t, flow_t = edm.schedule.time_of(sigma), flow.schedule.time_of(sigma)
with torch.no_grad():
    by_edm = edm(edm.schedule.add_noise(x0, edm_t, eps), edm_t)
    by_flow = flow(flow.schedule.add_noise(x0, flow_t, eps), flow_t)
print(f"x0 predictions of edm and flow: largest pixel difference {(by_edm - by_flow).abs().max():.0e}")

# %% [markdown]
# ## The velocity from the x0 prediction
#
# Along its line a point moves with the velocity $\varepsilon - x_0$. Many lines pass through one $x_t$, and a network
# trained with the squared error learns their mean velocity $v = E[\varepsilon - x_0 \mid x_t]$. The equation of the
# line gives $\varepsilon - x_0 = (x_t - x_0) / t$, and therefore $v = (x_t - \hat x_0) / t$. Sampling solves
# $dx/dt = v$ from $t = 1$ to $0$. You implement Euler's method for this equation in three lines, and compare it with
# `ddim` on the same schedule and with `ddim` on EDM's schedule.

# %%
times, shape = sd.karras_grid(flow.schedule, 30), (8, 1, 28, 28)
noise, *_, by_ddim = sd.trajectory(flow, shape, times, sampler=sd.ddim, batch=8)
*_, by_edm = sd.trajectory(edm, shape, sd.karras_grid(edm.schedule, 30), sampler=sd.ddim, batch=8)

x = noise
with torch.no_grad():
    for t, next_t in pairwise([*times.to(x), torch.tensor(0.0)]):
        x = x + (next_t - t) * (x - flow(x, t)) / t

differences = [(x - other).abs().max() for other in (by_ddim, by_edm)]
print("largest pixel difference from ddim: {:.0e} on Flow, {:.0e} on EDM's schedule".format(*differences))
plt.figure(figsize=(8, 2.3), layout="constrained")
plt.imshow(sd.make_grid(sd.to_uint8(torch.cat([by_edm, x])), 8))
plt.title("top: ddim on EDM's schedule; bottom: Euler's method in three lines, same noise", fontsize=10)
plt.axis("off")
plt.show()

# %% [markdown]
# The differences are rounding errors: `ddim` is Euler's method for the flow. Each training line is straight, but the
# mean velocity of many lines gives curved sampling paths. This is why the sampler needs several steps. The figure shows
# six pixels of one image.

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
axes[0].set(xlabel="t", ylabel="pixel", title="training: lines from an image to noise")
axes[1].set(xlabel="t", title="sampling: curved paths (dotted: straight)")
plt.show()

# %% [markdown]
# ## The remaining difference: a loss weight
#
# The target `flow` measures the error of $\varepsilon - z_0$, where $z_0 = x_0 / s$; EDM measures the error of the
# v-prediction. By lesson 8 both are the error of $\hat x_0$ times a weight that depends on the noise level. Here both
# train on the same density of noise levels. (On `Flow`, `LogNormal` is the logit-normal density of Stable Diffusion 3.)
# So only the weights differ, and by at most a factor of 2.

# %%
level = torch.logspace(-2, 2, 100, dtype=torch.float64)[:, None]
plt.figure(figsize=(6, 3.2), layout="constrained")
for name, denoiser in {"EDM": edm, "flow": sd.Denoiser(edm.net, sd.Flow(), sd.targets.flow, s)}.items():
    alpha, sigma, a, b = denoiser.coefficients(denoiser.schedule.time_of(level).flatten(), level)
    plt.loglog(level, ((b * alpha - a * sigma) / (sigma * s)) ** 2, label=name)
plt.gca().set(xlabel="noise level σ/α", ylabel="weight of |x̂₀ − x₀|²")
plt.legend()
plt.show()

# %% [markdown]
# ## Training with the flow target
#
# Train with the same steps, noise levels and images, and train EDM again with another seed. The difference between the
# two seeds of EDM shows the random variation. [Three seeds on Fashion-MNIST](../docs/ladder.md) find no significant
# difference between flow matching and EDM.

# %%
models = {"EDM": edm, "flow matching": train(sd.Flow(), sd.targets.flow)}
models["EDM, another seed"] = train(sd.Karras(), sd.targets.v, seed=1)
scores = {}
for name, model in models.items():
    samples = sd.sample(sd.Clipped(model), (COUNT, 1, 28, 28), sd.karras_grid(model.schedule, 18))
    scores[name] = sd.fid(sd.to_uint8(samples), images)

# %% [markdown]
# ## Result

# %%
fids = ", ".join(f"{score:.2f} with {name}" for name, score in scores.items())
print(f"FID[digits-cnn-1, n={COUNT} vs train]: {fids}")

# %% [markdown]
# **New code since lesson 9:** another schedule and another target.
#
# ```python
# denoiser = sd.Denoiser(net, sd.Flow(), sd.targets.flow, images.std)
# x = x + (next_t - t) * (x - denoiser(x, t)) / t  # Euler's method, the same step as ddim
# ```
#
# **Exercise.** Write `flow_x0(x_t, velocity, t)`, the x0 prediction: `simple-diffusion check 10 my_solution.py`.
