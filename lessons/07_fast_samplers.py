# %% [markdown]
# # 7 · Fast samplers and their order of convergence
#
# DDPM's sampler needs many small steps and adds noise in each. Song et al. 2021 show that the same denoiser also
# defines a *deterministic* sampler: the image is the solution of an ordinary differential equation (ODE),
#
# $$\frac{d\,(x / \alpha)}{d\,(\sigma / \alpha)} = \hat\varepsilon, \qquad
# \hat\varepsilon = \frac{x - \alpha\,\hat x_0(x)}{\sigma}.$$
#
# Any ODE solver can then sample. The library has three:
#
# - `ddim`: Euler's method, which uses the slope at the start of the step;
# - `heun`: the mean of the slopes at the start and the end of the step (Karras et al. 2022), two network evaluations;
# - `dpmpp`: estimates the second slope from the x0 prediction of the step before, one evaluation (Lu et al. 2022).
#
# You measure their order of convergence on a known ODE, then their FID at equal cost. The model and its training stay
# the same. File: [`samplers.py`](../src/simple_diffusion/samplers.py), about ten lines for each sampler.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import torch

import simple_diffusion as sd

FAST = bool(os.environ.get("FAST"))  # the tests set it: seconds instead of minutes
STEPS, COUNT = (4, 20) if FAST else (400, 512)
_ = torch.manual_seed(0)

# %% [markdown]
# ## Order of convergence
#
# The error of a solver is the distance of its result from the exact solution. With $n$ steps the error is proportional
# to $1/n^p$, and $p$ is the *order* of the solver. To measure it you need an exact denoiser, as in lesson 1. The data
# are numbers: 30 % have the mean $-0.6$ and 70 % the mean $0.6$, with a standard deviation of 0.2. The computation is
# in float64 to avoid rounding errors.


# %%
class ExactDenoiser:
    """E[x0 | x_t] for a mixture of two Gaussians on the line: [N, 1] -> [N, 1]."""

    schedule = sd.Karras()

    def __call__(self, x_t, t, cond=None):
        alpha, sigma = self.schedule.levels(t, x_t)
        means, weights, std = x_t.new_tensor([-0.6, 0.6]), x_t.new_tensor([0.3, 0.7]), 0.2
        v = (alpha * std) ** 2 + sigma**2
        offset = x_t - alpha * means  # [N, 2]
        p = (weights.log() - offset**2 / (2 * v)).softmax(1)
        return (p * (means + alpha * std**2 / v * offset)).sum(1, keepdim=True)


start = 80 * torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]  # noise at the first level, sigma = 80


def solve(sampler, n: int) -> torch.Tensor:
    """The result of the sampler after n steps."""
    *_, x = sampler(ExactDenoiser(), start, sd.karras_grid(ExactDenoiser.schedule, n))
    return x


exact = solve(sd.heun, 1280)  # its own error is negligible
counts = np.array([20, 40, 80, 160])
plt.figure(figsize=(6, 4), layout="constrained")
for sampler in (sd.ddim, sd.heun, sd.dpmpp):
    errors = [(solve(sampler, n) - exact).square().mean().sqrt().item() for n in counts]
    order = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    plt.loglog(counts, errors, "o-", label=f"{sampler.__name__}: order {order:.2f}")
plt.xticks(counts, counts)
plt.minorticks_off()
plt.xlabel("steps")
plt.ylabel("error (root mean square)")
plt.legend()
plt.show()

# %% [markdown]
# `ddim` has order 1: twice the steps give half the error. `heun` and `dpmpp` have order 2: twice the steps give a
# quarter of the error. At equal steps `heun` and `dpmpp` have similar errors, but a step of `heun` costs twice as much.
# `ddpm` is not in the figure, because a stochastic sampler gives a different result in each run.
#
# ## Samplers on images
#
# A trained network has errors of its own, and the error of the solver adds to them. You train one model as in lesson 5
# and sample with its EMA weights.

# %%
images = sd.load_images("digits")
schedule = sd.Cosine()
denoiser = sd.Denoiser(sd.UNet(classes=images.classes, widths=(32, 64), blocks=(1, 2)), schedule, sd.targets.noise)
model = sd.Clipped(sd.fit(denoiser, images, STEPS).model)

# %% [markdown]
# Sampling time is proportional to the number of function evaluations (NFE), where the function is the network. So you
# compare samplers at equal NFE: `heun` has half as many steps. Its last step needs one evaluation only, so its NFE is 9
# and 19. All samplers start from the same noise and use the noise levels of `karras_grid`.

# %%
labels = torch.arange(COUNT) % 10
samplers = {"ddpm": sd.ddpm, "ddim": sd.ddim, "heun": sd.heun, "dpmpp": sd.dpmpp}
samples = {}
for nfe in (10, 20):
    for name, sampler in samplers.items():
        times = sd.karras_grid(schedule, nfe // 2 if name == "heun" else nfe)
        samples[name, nfe] = sd.to_uint8(sd.sample(model, (COUNT, 1, 28, 28), times, labels, sampler=sampler))

figure, axes = plt.subplots(4, 1, figsize=(9, 3), layout="constrained")
for axis, name in zip(axes, samplers, strict=True):
    axis.imshow(sd.make_grid(samples[name, 10][:14], 14))
    axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    axis.set(xticks=[], yticks=[])
plt.suptitle("samples from the same noise, NFE 10", fontsize=10)
plt.show()

# %% [markdown]
# ## Result

# %%
scores = {key: sd.fid(pixels, images) for key, pixels in samples.items()}
print(f"FID[digits-cnn-1, n={COUNT} vs train]")
for name in samplers:
    print(f"{name:>6}: {scores[name, 10]:6.2f} at NFE 10, {scores[name, 20]:6.2f} at NFE 20")

# %% [markdown]
# At NFE 10 `dpmpp` is best; at NFE 20 `heun` is, since its steps are now small enough. `ddim` does not beat `ddpm`
# here, but it does with a [better model](../docs/ladder.md). A likely reason is the short training: the noise that a
# stochastic sampler adds corrects earlier errors (Karras et al. 2022, section 4), and this network makes large ones.
# `dpmpp` is no better at NFE 20 than at 10, probably because its solver error sharpens the samples of a weak model.
#
# **New code since lesson 6:** another sampler function, and fewer steps.
#
# ```python
# times = sd.karras_grid(schedule, 10)
# sd.sample(model, (COUNT, 1, 28, 28), times, labels, sampler=sd.ddpm)  # stochastic
# sd.sample(model, (COUNT, 1, 28, 28), times, labels, sampler=sd.dpmpp)  # deterministic, second order
# ```
#
# **Exercise.** Write `ddim_step(x_t, x0_hat, alpha_t, sigma_t, alpha_s, sigma_s)`, a step from t to s:
# `simple-diffusion check 7 my_solution.py`.
