# %% [markdown]
# # 6 · EMA: draw from the average, not from the last step
#
# Each step of training sees 64 images, and pushes the weights towards what these 64 would like. The next 64 would like
# something else. So the weights do not come to rest: they jump about the place where they should be, and the last ones
# are as good or bad as the last jump. The cure costs nothing in training: keep a second copy of the weights that
# follows slowly, $\bar\theta \leftarrow d\,\bar\theta + (1 - d)\,\theta$ after each step, and draw from it. That is the
# *exponential moving average*, EMA. How far back should it remember? File: [`ema.py`](../src/simple_diffusion/ema.py).

# %%
import os
from itertools import islice

import matplotlib.pyplot as plt
import torch

import simple_diffusion as sd
from simple_diffusion.training import warmup_constant
from simple_diffusion.validation import HeldOut

FAST = bool(os.environ.get("FAST"))  # seconds instead of minutes, for the tests
STEPS, COUNT = (4, 64) if FAST else (400, 512)
torch.manual_seed(0)

# %% [markdown]
# ## Decays
#
# Three ways to choose $d$, the share that is kept at update $n$:
#
# - always the same: `lambda n: 0.9999`;
# - `constant_decay(0.9999)`: the same in the end, but reached from below, $\min(0.9999, \frac{n-1}{n+9})$, so that the
#   untrained weights are forgotten;
# - `power_decay(0.05)`: $(1 - 1/n)^{\gamma+1}$ for all $n$ (Karras et al. 2024). 0.05 is the width of its memory as a
#   share of the run so far, and sets $\gamma$.

# %%
decays = {
    "0.9999, always": lambda n: 0.9999,
    "constant_decay(0.99)": sd.constant_decay(0.99),
    "constant_decay(0.9999)": sd.constant_decay(0.9999),
    "power_decay(0.2)": sd.power_decay(0.2),
    "power_decay(0.05)": sd.power_decay(0.05),
}

# %% [markdown]
# An average after $n$ updates is a sum: so much of the weights after update 1, so much of those after update 2, and so
# on to $n$; and so much of the weights that it began with, which have learnt nothing. Update $k$ went in with
# $1 - d(k)$, and each later update $j$ left $d(j)$ of it.


# %%
def profile(decay, n: int) -> torch.Tensor:
    """Weight of update k = 0 ... n in the average after n; k = 0 is the start. They sum to 1: [n + 1]."""
    kept = torch.tensor([decay(j) for j in range(1, n + 1)], dtype=torch.float64)
    since = kept.flip(0).cumprod(0).flip(0)  # what is left at n of the average before update k = 1 ... n
    return torch.cat([torch.zeros(1), since, torch.ones(1)]).diff()


lines = dict(zip(decays, (":", "-", "--", "-", "-"), strict=True))
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained", sharey=True)
for axis, n in zip(axes, (400, 4000), strict=True):
    for name, decay in decays.items():
        weight = profile(decay, n)
        label = f"{name}: {weight[0]:.0%} of the start" if n == 400 else None
        axis.plot(torch.arange(1, n + 1) / n, n * weight[1:], lines[name], label=label)
    axis.set(title=f"after {n:,} updates", xlabel="update, as a share of the run", ylim=(0, 20))
axes[0].set_ylabel("weight in the average\n(1: as in a plain mean)")
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# Always 0.9999 is a memory of 10,000 updates. After 400 it still consists of the start, nearly all of it. While $d$ is
# on the way up this cannot happen: `constant_decay` then forgets at the same pace whatever it leads to, which is why
# the curves of 0.99 and 0.9999 are one on the left. On the right 0.99 has arrived, and remembers its 100 updates, a
# smaller and smaller share. The two power functions look the same on both sides: the longer the run, the longer their
# memory. So there is nothing to fit to the length of a run.
#
# ## One training, several averages
#
# An average does not act on the training, so one training serves all. `fit` keeps one average. Here is its loop written
# out, with five. The learning rate goes up and stays there, which is when an average is worth most. Labels are told as
# in lesson 5, without guidance.

# %%
images = sd.load_images("digits")
schedule = sd.Cosine()
denoiser = sd.Denoiser(sd.UNet(classes=images.classes, widths=(32, 64), blocks=(1, 2)), schedule, sd.targets.noise)
averages = {name: sd.EMA(denoiser, decay) for name, decay in decays.items()}
models = {"last weights": denoiser} | {name: average.model for name, average in averages.items()}

unseen = HeldOut(sd.load_images("digits", split="test"), sd.denoising_loss, seed=0)
losses = {"last weights": [], "power_decay(0.05)": []}
stream = islice(sd.batches(images, 64), STEPS)
for step in sd.train(denoiser, stream, sd.adamw(denoiser), lr=lambda n: 3e-3 * warmup_constant((n - 1) / STEPS)):
    for average in averages.values():
        average.update(denoiser, step.n)
    if step.n > STEPS // 2 and step.n % max(STEPS // 40, 1) == 0:
        for name, curve in losses.items():
            curve.append((step.n, unseen.measure(models[name])))

# %% [markdown]
# The loss in the second half of the training, always on the same 256 images that the training does not see, with the
# same noise. What jumps is the weights alone. Their average does not jump, and it is lower all along.

# %%
plt.figure(figsize=(7, 3.2), layout="constrained")
for name, curve in losses.items():
    plt.plot(*zip(*curve, strict=True), ".-", label=name)
plt.gca().set(xlabel="step", ylabel="loss on unseen images")
plt.legend()
plt.show()

# %% [markdown]
# ## Drawing
#
# From the last weights and from each average, the same starting noise each time, by lesson 7's sampler in 10 steps.

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
# ## The number that moved

# %%
scores = ", ".join(f"{sd.fid(pixels, images):.2f} with {name}" for name, pixels in samples.items())
print(f"FID[digits-cnn-1, n={COUNT} vs train]: {scores}")

# %% [markdown]
# This training ended in full swing. Where the learning rate falls to 0, as in `fit`, the jumps get smaller by
# themselves and the average gains less: [a longer measurement](../docs/ladder.md) could not tell it from nothing. It
# costs nothing either, and `fit` returns it as `.model`.
#
# **What is new since lesson 5**, in code: a copy that trails, and drawing from it.
#
# ```python
# average = sd.EMA(denoiser, sd.power_decay(0.05))
# average.update(denoiser, step.n)  # after each step
# sd.sample(sd.Clipped(average.model), (COUNT, 1, 28, 28), sd.karras_grid(schedule, 10), labels)
# ```
#
# **Exercise.** Write `ema_update(average, weight, decay)`, one update: `simple-diffusion check 6 my_solution.py`.
