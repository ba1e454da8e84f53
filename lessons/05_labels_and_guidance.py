# %% [markdown]
# # 5 · Class labels and guidance
#
# So far the model samples any digit. In this lesson you choose the digit. The label becomes a second input of the
# network (*conditioning*), and *classifier-free guidance* (Ho & Salimans 2022) strengthens its effect in sampling. You
# measure how often the samples have the requested class, and what guidance does to FID. This lesson replaces notebooks
# on conditional diffusion with guidance.
#
# Files: [`guidance.py`](../src/simple_diffusion/guidance.py) has both parts, training and sampling. `Labels` in
# [`networks/embedding.py`](../src/simple_diffusion/networks/embedding.py) turns a label into an embedding.

# %%
import os

import matplotlib.pyplot as plt
import torch

import simple_diffusion as sd
from simple_diffusion.evaluation.extractors import extractor_for

FAST = bool(os.environ.get("FAST"))  # the tests set it: seconds instead of minutes
STEPS, COUNT = (4, 20) if FAST else (800, 512)
torch.manual_seed(0)

images = sd.load_images("digits")
null = images.classes  # 10: the label that means "no label"

# %% [markdown]
# ## A conditional network
#
# `UNet(classes=10)` has an embedding for each class and adds it to the embedding of the noise level. For "no label" it
# adds nothing. The batches contain the labels (`cond`); the loss of lesson 2 ignored them.
#
# `drop_labels` replaces 10 % of the labels by "no label", independently for each image. So *one* network learns two
# predictions: the conditional $\mathrm E[x_0 \mid x_t, c]$ for class $c$, and the unconditional
# $\mathrm E[x_0 \mid x_t]$. The rest is as in lesson 4 with the cosine schedule, with twice the training steps.

# %%
denoiser = sd.Denoiser(sd.UNet(classes=images.classes, widths=(32, 64), blocks=(1, 2)), sd.Cosine(), sd.targets.noise)
ema = sd.fit(denoiser, images, STEPS, loss=sd.drop_labels(sd.denoising_loss, null, p=0.1))

# %% [markdown]
# ## Classifier-free guidance
#
# In each sampling step compute both predictions and extrapolate from the unconditional one through the conditional one:
#
# $$\hat x_0 = \hat x_0(\text{none}) + \text{scale} \cdot (\hat x_0(c) - \hat x_0(\text{none}))$$
#
# Scale 0 ignores the label. Scale 1 is conditional sampling without guidance. A scale above 1 strengthens the label. By
# Bayes' rule $\hat x_0(c) - \hat x_0(\text{none}) = \frac{\sigma^2}{\alpha} \nabla \log p(c \mid x_t)$: guidance moves
# the sample towards images that a classifier would assign to $c$ with more confidence, but no classifier is trained.
# `Guided` needs two network evaluations per step instead of one.


# %%
def sample(scale: float, labels: torch.Tensor) -> torch.Tensor:
    """One uint8 image for each label, with guidance, in 25 steps of DDPM's sampler."""
    guided = sd.Clipped(sd.Guided(denoiser, scale, null))
    times = sd.uniform_grid(denoiser.schedule, 3 if FAST else 25)
    return sd.to_uint8(sd.sample(guided, (len(labels), 1, 28, 28), times, labels, sampler=sd.ddpm))


labels = torch.arange(COUNT) % 10
scales = (0, 1, 1.5, 2, 3, 5)
samples = {scale: sample(scale, labels) for scale in scales}

# %% [markdown]
# Each row shows one class, from 0 to 9. The three pictures start from the same noise.

# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 4.4), layout="constrained")
for axis, scale in zip(axes, (1, 1.5, 3), strict=True):
    by_class = torch.cat([samples[scale][labels == c][:8] for c in range(10)])
    axis.imshow(sd.make_grid(by_class, 8))
    axis.set_title(f"scale {scale:g}", fontsize=10)
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Class accuracy and FID
#
# *Class accuracy* is the share of samples that a classifier of clean digits assigns to the requested class. Lesson 11
# trains such a classifier. FID measures the distance of all samples from the data.

# %%
extractor = extractor_for(images)
accuracy = {s: (extractor(pixels)[1].argmax(1) == labels).double().mean().item() for s, pixels in samples.items()}
fid = {scale: sd.fid(pixels, images) for scale, pixels in samples.items()}

figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
axes[0].plot(scales, [100 * accuracy[scale] for scale in scales], "o-")
axes[0].set(ylabel="class accuracy (%)", ylim=(0, 100))
axes[1].plot(scales, [fid[scale] for scale in scales], "o-")
axes[1].set(ylabel=f"FID, n = {COUNT}", ylim=(0, None))
for axis in axes:
    axis.set(xlabel="guidance scale")
    axis.grid(alpha=0.3)
plt.show()

# %% [markdown]
# Class accuracy rises with the scale. FID falls at first, because the clear digits are closer to the data than the
# unclear ones of a short training. At larger scales FID rises again: strong guidance reduces diversity. The best scale
# depends on the model. Kynkäänniemi et al. 2024 find that guidance reduces diversity mostly at high noise levels and
# has no effect at low ones. `Guided(..., interval=(0.1, 5))` applies it only where $\sigma / \alpha$ is between 0.1 and
# 5; elsewhere a step needs one evaluation.
#
# ## Result

# %%
print(f"class accuracy, n={COUNT}: {accuracy[1]:.0%} with labels alone, {accuracy[3]:.0%} with guidance of scale 3")
print(f"FID[digits-cnn-1, n={COUNT} vs train]: {fid[1]:.2f} with labels alone, {fid[3]:.2f} with guidance of scale 3")

# %% [markdown]
# **New code since lesson 4:** a conditional network, dropped labels, and guidance.
#
# ```python
# net = sd.UNet(classes=10, widths=(32, 64), blocks=(1, 2))
# sd.fit(denoiser, images, STEPS, loss=sd.drop_labels(sd.denoising_loss, null))
# sd.sample(sd.Clipped(sd.Guided(denoiser, scale, null)), shape, times, labels, sampler=sd.ddpm)
# ```
#
# **Try.** Use `interval=(0.1, 5)` with scale 3. How do class accuracy and FID change?
#
# **Exercise.** Write `guided(x0_null, x0_cond, scale)`: `simple-diffusion check 5 my_solution.py`.
