# %% [markdown]
# # 7 · Fast samplers, and how fast they are
#
# DDPM's sampler walks from noise to image in many small steps, and adds a little noise at each. Song et al. 2021 found
# that the same denoiser also serves a walk without added noise. Then noise and image hang together by a differential
# equation, and to draw is to solve it:
#
# $$\frac{d\,(x / \alpha)}{d\,(\sigma / \alpha)} = \hat\varepsilon, \qquad
# \hat\varepsilon = \frac{x - \alpha\,\hat x_0(x)}{\sigma}.$$
#
# Solvers of such equations are an old art, and the library has three:
#
# - `ddim`: Euler's method, straight on along the slope at the start of the step;
# - `heun`: looks at the end of that step too and goes along the mean of both slopes (Karras et al. 2022), which takes
#   two evaluations of the network;
# - `dpmpp`: remembers the guess of the step before, and so gets the second slope for nothing (Lu et al. 2022).
#
# All of them, and `ddpm`, are in [`samplers.py`](../src/simple_diffusion/samplers.py), about ten lines each. The model
# and its training stay as they are.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import torch

import simple_diffusion as sd

FAST = bool(os.environ.get("FAST"))  # seconds instead of minutes, for the tests
STEPS, COUNT = (4, 64) if FAST else (400, 512)
torch.manual_seed(0)

# %% [markdown]
# ## Orders of convergence
#
# A solver's error is the distance between where it ends and where the exact solution ends. It falls as $1/n^p$ with the
# number of steps $n$, and $p$ is the *order* of the solver. To measure it we need a denoiser without errors of its own,
# as in lesson 1. Here the data are numbers: 30 % lie around $-0.6$, 70 % around $0.6$, with the deviation 0.2. In
# float64, so that roundings do not count.


# %%
class Exact:
    """E[x0 | x_t] of two Gaussians on the line: [N, 1] -> [N, 1]."""

    schedule = sd.Karras()

    def __call__(self, x_t, t, cond=None):
        alpha, sigma = self.schedule.levels(t, x_t)
        means, shares, std = x_t.new_tensor([-0.6, 0.6]), x_t.new_tensor([0.3, 0.7]), 0.2
        v = (alpha * std) ** 2 + sigma**2
        offset = x_t - alpha * means  # [N, 2]
        p = (shares.log() - offset**2 / (2 * v)).softmax(1)
        return (p * (means + alpha * std**2 / v * offset)).sum(1, keepdim=True)


start = 80 * torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]  # noise at the first level, sigma = 80


def end(sampler, n: int) -> torch.Tensor:
    """Where the sampler comes out after n steps."""
    *_, x = sampler(Exact(), start, sd.karras_grid(Exact.schedule, n))
    return x


exact = end(sd.heun, 1280)  # so fine that its own error does not count
counts = np.array([20, 40, 80, 160])
plt.figure(figsize=(6, 4), layout="constrained")
for sampler in (sd.ddim, sd.heun, sd.dpmpp):
    errors = [(end(sampler, n) - exact).square().mean().sqrt().item() for n in counts]
    order = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    plt.loglog(counts, errors, "o-", label=f"{sampler.__name__}: order {order:.2f}")
plt.xticks(counts, counts)
plt.minorticks_off()
plt.xlabel("steps")
plt.ylabel("error (root mean square)")
plt.legend()
plt.show()

# %% [markdown]
# `ddim` is of order 1: twice the steps, half the error. `heun` and `dpmpp` are of order 2: twice the steps, a quarter
# of it. These two are about as exact at equal steps, but a step of `heun` costs twice as much. `ddpm` is not in the
# figure: it ends somewhere else each time, and only the distribution of its ends is right, if the steps are many.
#
# ## On images
#
# A network is not exact, and errors of the solver come on top of its own. One model, trained as in lesson 5; the
# averaged weights of lesson 6.

# %%
images = sd.load_images("digits")
schedule = sd.Cosine()
denoiser = sd.Denoiser(sd.UNet(classes=images.classes, widths=(32, 64), blocks=(1, 2)), schedule, sd.targets.noise)
model = sd.Clipped(sd.fit(denoiser, images, STEPS).model)

# %% [markdown]
# What costs time is asking the network. So the samplers are compared at equal *evaluations*: `heun` gets half as many
# steps (its last one, to the clean image, needs one evaluation only, which makes 9 and 19). All begin with the same
# noise and take their levels from `karras_grid`.

# %%
labels = torch.arange(COUNT) % 10
samplers = {"ddpm": sd.ddpm, "ddim": sd.ddim, "heun": sd.heun, "dpmpp": sd.dpmpp}
drawn = {}
for evaluations in (10, 20):
    for name, sampler in samplers.items():
        times = sd.karras_grid(schedule, evaluations // 2 if name == "heun" else evaluations)
        drawn[name, evaluations] = sd.to_uint8(sd.sample(model, (COUNT, 1, 28, 28), times, labels, sampler=sampler))

figure, axes = plt.subplots(4, 1, figsize=(9, 3), layout="constrained")
for axis, name in zip(axes, samplers, strict=True):
    axis.imshow(sd.make_grid(drawn[name, 10][:14], 14))
    axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    axis.set(xticks=[], yticks=[])
plt.suptitle("the same noise, 10 evaluations of the network", fontsize=10)
plt.show()

# %% [markdown]
# ## The number that moved

# %%
scores = {key: sd.fid(pixels, images) for key, pixels in drawn.items()}
for name in samplers:
    print(f"{name:>6}: FID {scores[name, 10]:6.2f} at 10 evaluations, {scores[name, 20]:6.2f} at 20")
print(
    f"FID[digits-cnn-1, n={COUNT} vs train], 10 evaluations: "
    f"{scores['ddpm', 10]:.2f} with ddpm, {scores['dpmpp', 10]:.2f} with dpmpp"
)

# %% [markdown]
# At 10 evaluations `dpmpp` leads. At 20 `heun` has caught up, now that its steps are no longer too long. `ddim` does
# not beat `ddpm` here, as it does with a [better model](../docs/ladder.md). The likely reason is the short training:
# fresh noise also covers up errors of the steps before (Karras et al. 2022, section 4), and this network makes many.
# And `dpmpp` scores no better in 20 steps than in 10: a little error of the solver sharpens what a blurred model draws.
#
# **What is new since lesson 6**, in code: another function, and fewer steps.
#
# ```python
# times = sd.karras_grid(schedule, 10)
# sd.sample(model, (COUNT, 1, 28, 28), times, labels, sampler=sd.ddpm)  # noise at each step
# sd.sample(model, (COUNT, 1, 28, 28), times, labels, sampler=sd.dpmpp)  # an equation, in second order
# ```
#
# **Exercise.** Write `ddim_step(x_t, x0_hat, alpha_t, sigma_t, alpha_s, sigma_s)`, a step from t to s:
# `simple-diffusion check 7 my_solution.py`.
