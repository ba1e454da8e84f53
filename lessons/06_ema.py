# %% [markdown]
# # 6 · EMA: the moving average of the weights
#
# Each training step uses a batch of 64 images, so its gradient is noisy, and the weights fluctuate from step to step.
# An *exponential moving average* (EMA) removes most of this noise. After each step it updates a second copy of the
# weights, $\bar\theta \leftarrow d\,\bar\theta + (1 - d)\,\theta$, and you sample with the copy. EMA costs almost no
# time. It has one setting, the decay $d$: how many steps does the average remember? You train once with five decays and
# compare them. File: [`ema.py`](../src/simple_diffusion/ema.py).

# %%
import os
from itertools import islice

import matplotlib.pyplot as plt
import torch

import simple_diffusion as sd
from simple_diffusion.training import warmup_constant
from simple_diffusion.validation import HeldOut

FAST = bool(os.environ.get("FAST"))  # the tests set it: seconds instead of minutes
STEPS, COUNT = (4, 20) if FAST else (400, 512)
_ = torch.manual_seed(0)

# %% [markdown]
# ## Decays
#
# $d$ may depend on the number $n$ of the update:
#
# - `lambda n: 0.9999`: the same value for all updates;
# - `constant_decay(0.9999)`: $\min(0.9999, \frac{n-1}{n+9})$, smaller in the first updates, so the average forgets the
#   untrained weights;
# - `power_decay(0.05)`: $(1 - 1/n)^{\gamma+1}$ (Karras et al. 2024). The argument is the *EMA length*, which sets
#   $\gamma$: the standard deviation of the averaging profile, relative to the number of updates so far.

# %%
decays = {
    "0.9999 from the start": lambda n: 0.9999,
    "constant_decay(0.99)": sd.constant_decay(0.99),
    "constant_decay(0.9999)": sd.constant_decay(0.9999),
    "power_decay(0.2)": sd.power_decay(0.2),
    "power_decay(0.05)": sd.power_decay(0.05),
}

# %% [markdown]
# After $n$ updates the average is a weighted sum of the initial weights and of the weights after updates 1 to $n$. The
# weights after update $k$ enter with the factor $1 - d(k)$, and each later update $j$ multiplies them by $d(j)$. The
# figure shows these factors, the *averaging profile*. The legend shows the share of the initial weights after 400.


# %%
def profile(decay, n: int) -> torch.Tensor:
    """Factors of the weights after update k = 0 ... n, where k = 0 is the initial ones. They sum to 1: [n + 1]."""
    decay_at = torch.tensor([decay(j) for j in range(1, n + 1)], dtype=torch.float64)
    remaining = decay_at.flip(0).cumprod(0).flip(0)  # factor of the average before update k = 1 ... n
    return torch.cat([torch.zeros(1), remaining, torch.ones(1)]).diff()


lines = dict(zip(decays, (":", "-", "--", "-", "-"), strict=True))
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained", sharey=True)
for axis, n in zip(axes, (400, 4000), strict=True):
    for name, decay in decays.items():
        factor = profile(decay, n)
        label = f"{name}: {factor[0]:.0%} of the start" if n == 400 else None
        axis.plot(torch.arange(1, n + 1) / n, n * factor[1:], lines[name], label=label)
    axis.set(title=f"after {n:,} updates", xlabel="update / number of updates", ylim=(0, 20))
axes[0].set_ylabel("factor in the average\n(1: plain mean)")
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# The decay 0.9999 averages over about 10,000 updates. After 400 updates such an average still contains 96 % of the
# initial weights. `constant_decay` avoids this: it starts small, and at 400 updates 0.99 and 0.9999 give the same
# profile. At 4,000 updates `constant_decay(0.99)` averages over its last 100. The profile of `power_decay` has the same
# shape for every number of updates, so you need not adapt it to the length of the training run.
#
# ## One training run, five averages
#
# EMA does not change the training, so one training run can update five averages. `fit` keeps one; here is its loop with
# five. The learning rate stays constant after the warm-up, where EMA helps most. The network is conditioned on labels.

# %%
images = sd.load_images("digits")
schedule = sd.Cosine()
denoiser = sd.Denoiser(sd.UNet(classes=images.classes, widths=(32, 64), blocks=(1, 2)), schedule, sd.targets.noise)
averages = {name: sd.EMA(denoiser, decay) for name, decay in decays.items()}
models = {"last weights": denoiser} | {name: average.model for name, average in averages.items()}

held_out = HeldOut(sd.load_images("digits", split="test"), sd.denoising_loss, seed=0)
losses = {"last weights": [], "power_decay(0.05)": []}
stream = islice(sd.batches(images, 64), STEPS)
for step in sd.train(denoiser, stream, sd.adamw(denoiser), lr=lambda n: 3e-3 * warmup_constant((n - 1) / STEPS)):
    for average in averages.values():
        average.update(denoiser, step.n)
    if step.n > STEPS // 2 and step.n % max(STEPS // 40, 1) == 0:
        for name, curve in losses.items():
            curve.append((step.n, held_out.measure(models[name])))

# %% [markdown]
# The figure shows the held-out loss in the second half of the training run. Each measurement uses the same 256 images
# and the same noise, so only the weights cause the fluctuation. The EMA weights fluctuate less and have a lower loss.

# %%
plt.figure(figsize=(7, 3.2), layout="constrained")
for name, curve in losses.items():
    plt.plot(*zip(*curve, strict=True), ".-", label=name)
plt.gca().set(xlabel="step", ylabel="held-out loss")
plt.legend()
plt.show()

# %% [markdown]
# ## Samples
#
# Samples of the last weights and of each average, from the same noise, with the sampler of lesson 7 in 10 steps.

# %%
labels = torch.arange(COUNT) % 10
samples, times = {}, sd.karras_grid(schedule, 10)
for name, model in models.items():
    samples[name] = sd.to_uint8(sd.sample(sd.Clipped(model), (COUNT, 1, 28, 28), times, labels))
figure, axes = plt.subplots(len(samples), 1, figsize=(9, 3.2), layout="constrained")
for axis, (name, pixels) in zip(axes, samples.items(), strict=True):
    axis.imshow(sd.make_grid(pixels[:14], 14))
    axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    axis.set(xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## Result

# %%
scores = ", ".join(f"{sd.fid(pixels, images):.2f} with {name}" for name, pixels in samples.items())
print(f"FID[digits-cnn-1, n={COUNT} vs train]: {scores}")

# %% [markdown]
# This run ends at the full learning rate. Where the rate falls to 0, as in `fit`, the last weights fluctuate less, and
# [a longer measurement](../docs/ladder.md) finds no significant gain. `fit` returns the EMA weights as `.model`.
#
# **New code since lesson 5:** an average of the weights, and samples of it.
#
# ```python
# average = sd.EMA(denoiser, sd.power_decay(0.05))
# average.update(denoiser, step.n)  # after each training step
# sd.sample(sd.Clipped(average.model), (COUNT, 1, 28, 28), sd.karras_grid(schedule, 10), labels)
# ```
#
# **Exercise.** Write `ema_update(average, weight, decay)`, one update: `simple-diffusion check 6 my_solution.py`.
