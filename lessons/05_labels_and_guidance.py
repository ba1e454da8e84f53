# %% [markdown]
# # 5 · Labels and guidance
#
# So far the network draws whatever digit it likes. Now we ask for one. The label goes into the network beside the noise
# level, and *classifier-free guidance* (Ho & Salimans 2022) makes it count for more than the network learned to let it
# count. Those who come from a notebook on conditional diffusion with guidance find its content here.
#
# Files: [`guidance.py`](../src/simple_diffusion/guidance.py) has both halves, training and drawing, and `Labels` in
# [`networks/embedding.py`](../src/simple_diffusion/networks/embedding.py) turns a label into a vector.

# %%
import os

import matplotlib.pyplot as plt
import torch

import simple_diffusion as sd
from simple_diffusion.evaluation.extractors import extractor_for

FAST = bool(os.environ.get("FAST"))  # seconds instead of minutes, for the tests
STEPS, COUNT = (4, 64) if FAST else (800, 512)
torch.manual_seed(0)

images = sd.load_images("digits")
null = images.classes  # 10: the label that means "no label"

# %% [markdown]
# ## A network that is told the digit
#
# `UNet(classes=10)` has a vector for each class, which is added to that of the noise level; for "no label" it adds
# nothing. The loss stays as it was: the batches of lesson 2 had the labels in them all along, as `cond`.
#
# `drop_labels` hides one label in ten, drawn for each image by itself and not for the batch. So *one* network learns
# two answers: $\mathrm E[x_0 \mid x_t, c]$, the mean of all clean images of class c, and $\mathrm E[x_0 \mid x_t]$, the
# mean of all. The rest is lesson 4's with the cosine schedule, trained twice as long.

# %%
denoiser = sd.Denoiser(sd.UNet(classes=images.classes, widths=(32, 64), blocks=(1, 2)), sd.Cosine(), sd.targets.noise)
sd.fit(denoiser, images, STEPS, loss=sd.drop_labels(sd.denoising_loss, null, p=0.1))

# %% [markdown]
# ## Guidance
#
# When drawing, ask for both answers, and go from the one without the label past the one with it:
#
# $$\hat x_0 = \hat x_0(\text{none}) + \text{scale} \cdot (\hat x_0(c) - \hat x_0(\text{none}))$$
#
# Scale 0 is no label, 1 is the label without guidance, above 1 the label is exaggerated. Bayes' rule says in which
# direction this pushes: $\hat x_0(c) - \hat x_0(\text{none}) = \frac{\sigma^2}{\alpha} \nabla \log p(c \mid x_t)$,
# towards what a classifier of noisy images would call a clearer c. Nobody had to train that classifier. It costs a
# second evaluation of the network a step, and that is all of `Guided`.


# %%
def drawn(scale: float, labels: torch.Tensor) -> torch.Tensor:
    """Images by DDPM's sampler in 25 steps, guided: uint8."""
    guided = sd.Clipped(sd.Guided(denoiser, scale, null))
    times = sd.uniform_grid(denoiser.schedule, 3 if FAST else 25)
    return sd.to_uint8(sd.sample(guided, (len(labels), 1, 28, 28), times, labels, sampler=sd.ddpm))


labels = torch.arange(COUNT) % 10
scales = (0, 1, 1.5, 2, 3, 5)
samples = {scale: drawn(scale, labels) for scale in scales}

# %% [markdown]
# One class a row, 0 to 9. All three start from the same noise.

# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 4.4), layout="constrained")
for axis, scale in zip(axes, (1, 1.5, 3), strict=True):
    by_class = torch.cat([samples[scale][labels == c][:8] for c in range(10)])
    axis.imshow(sd.make_grid(by_class, 8))
    axis.set_title(f"scale {scale:g}", fontsize=10)
    axis.axis("off")
plt.show()

# %% [markdown]
# ## What it buys and what it costs
#
# A classifier of clean digits (the one behind FID; lesson 11 trains it) says how many samples are of the class that was
# asked for. FID says how close the samples are to the data as a whole.

# %%
extractor = extractor_for(images)
share = {scale: (extractor(pixels)[1].argmax(1) == labels).double().mean().item() for scale, pixels in samples.items()}
fid = {scale: sd.fid(pixels, images) for scale, pixels in samples.items()}

figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
axes[0].plot(scales, [100 * share[scale] for scale in scales], "o-")
axes[0].set(ylabel="of the asked class (%)", ylim=(0, 100))
axes[1].plot(scales, [fid[scale] for scale in scales], "o-")
axes[1].set(ylabel=f"FID, n = {COUNT}", ylim=(0, None))
for axis in axes:
    axis.set(xlabel="guidance scale")
    axis.grid(alpha=0.3)
plt.show()

# %% [markdown]
# The share rises with the scale and FID falls at first: clearer digits are closer to the data than the muddle of a
# young network. Beyond that FID rises again, as exaggerated digits all look alike: guidance buys clarity with variety,
# and where the best scale lies depends on the network. Kynkäänniemi et al. 2024 found that it costs variety mostly at
# high noise and does nothing at low noise: `Guided(..., interval=(0.1, 5))` guides only where $\sigma / \alpha$ lies
# between, and pays for one evaluation elsewhere.
#
# ## The number that moved

# %%
print(f"of the asked class, n={COUNT}: {share[1]:.0%} with labels alone, {share[3]:.0%} with guidance of scale 3")
print(f"FID[digits-cnn-1, n={COUNT} vs train]: {fid[1]:.2f} with labels alone, {fid[3]:.2f} with guidance of scale 3")

# %% [markdown]
# **What is new since lesson 4**, in code:
#
# ```python
# net = sd.UNet(classes=10, widths=(32, 64), blocks=(1, 2))
# sd.fit(denoiser, images, STEPS, loss=sd.drop_labels(sd.denoising_loss, null))
# sd.sample(sd.Clipped(sd.Guided(denoiser, scale, null)), shape, times, labels, sampler=sd.ddpm)
# ```
#
# **Exercise.** Write `guided(x0_null, x0_cond, scale)`: `simple-diffusion check 5 my_solution.py`.
