# %% [markdown]
# # 12 · Few images: memorization and augmentation
#
# A diffusion model that trains for long on few images generates copies of these images (*memorization*). The reason is
# the loss: the denoiser with the lowest training loss, the *ideal denoiser*, generates only training images
# (`ideal_error` in [`denoising_error.py`](../src/simple_diffusion/denoising_error.py)). You train on 50 images, count
# near-duplicates, and then prevent them with augmentation and with early stopping.
#
# Files: [`evaluation/memorization.py`](../src/simple_diffusion/evaluation/memorization.py),
# [`validation.py`](../src/simple_diffusion/validation.py), [`augmentation.py`](../src/simple_diffusion/augmentation.py)

# %%
import math
import os
from functools import partial
from itertools import islice

import matplotlib.pyplot as plt
import torch

import simple_diffusion as sd
from simple_diffusion.evaluation.memorization import NearDuplicates, find_near_duplicates
from simple_diffusion.validation import HeldOut

FAST = bool(os.environ.get("FAST"))  # the tests set it: seconds instead of minutes
STEPS, SNAPSHOTS, COUNT = (4, 2, 20) if FAST else (1600, 8, 128)

few = sd.Images("few", sd.load_images("digits").pixels[:50])
held_out = sd.Images("held out", sd.load_images("digits", split="test").pixels[:2000])
loss = partial(sd.denoising_loss, density=sd.LogNormal(math.log(few.std) - 0.5, 1.2))


def show(rows: dict[str, torch.Tensor], columns: int = 16) -> None:
    _, axes = plt.subplots(len(rows), 1, figsize=(9, 0.55 * len(rows)), squeeze=False, layout="constrained")
    for axis, (name, pixels) in zip(axes[:, 0], rows.items(), strict=True):
        axis.imshow(sd.make_grid(pixels[:columns], columns))
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        axis.set(xticks=[], yticks=[])
    plt.show()


# %% [markdown]
# ## Training on 50 images
#
# You train EDM as in lesson 9, with batches of 16 and the optimizer Muon, which learns faster than AdamW here. Eight
# times in the run you keep a snapshot of the EMA weights.


# %%
def train(net: sd.UNet, loss) -> list[sd.Denoiser]:
    denoiser = sd.Denoiser(net, sd.Karras(), sd.targets.v, few.std)
    ema, snapshots = sd.EMA(denoiser), []
    stream = islice(sd.batches(few, 16), STEPS)
    lr = lambda n: 3e-3 * sd.warmup_linear((n - 1) / STEPS)  # noqa: E731
    for step in sd.train(denoiser, stream, sd.muon(denoiser), loss=loss, lr=lr):
        ema.update(denoiser, step.n)
        if step.n % (STEPS // SNAPSHOTS) == 0:
            snapshots.append(ema.snapshot())
    return snapshots


torch.manual_seed(0)
plain = train(sd.UNet(widths=(32, 64), blocks=(1, 2)), loss)

# %% [markdown]
# ## Near-duplicates
#
# A copy lies much closer to one training image than to the others. So the score of a sample is its distance to the
# nearest training image, divided by its distance to the tenth nearest. `find_near_duplicates` calibrates a threshold on
# held-out images: 1 % of them have a lower score. A sample below the threshold is a *near-duplicate*. A model without
# memorization has about 1 % of them.


# %%
def sample_and_score(model: sd.Denoiser, augmentations=(lambda x: x,)) -> tuple[torch.Tensor, NearDuplicates]:
    x0 = sd.sample(sd.Clipped(model), (COUNT, 1, 28, 28), sd.karras_grid(model.schedule, 10))
    training = [sd.to_unit(change(few.pixels)).flatten(1) for change in augmentations]
    return sd.to_uint8(x0), find_near_duplicates(x0.flatten(1), training, sd.to_unit(held_out.pixels).flatten(1))


samples, near = sample_and_score(plain[-1])
lowest = near.score.argsort()[:16]
nearest = few.pixels[near.nearest[lowest]]
show({"lowest scores": samples[lowest], "nearest training image": nearest, "first samples": samples})

# %% [markdown]
# ## Augmentation with conditioning
#
# With rotations and flips each of the 50 images gives eight. But a rotated 4 is not a digit, and the model must not
# generate it. So the network is conditioned on the augmentation (Karras et al. 2022, appendix F.2). `augmented` applies
# a random augmentation to each image and encodes its number in the label. The network learns from all eight versions.
# With label 0 or without a label it generates upright digits. The number of training steps stays the same.

# %%
augmentations = sd.symmetries(square=True)
torch.manual_seed(0)
net = sd.UNet(widths=(32, 64), blocks=(1, 2), augmentations=len(augmentations))
augmented = train(net, sd.augmented(loss, augmentations, null=0))

rotated = sd.sample(sd.Clipped(augmented[-1]), (16, 1, 28, 28), sd.karras_grid(sd.Karras(), 10), torch.full((16,), 1))
show({"upright": sample_and_score(augmented[-1])[0], "rotated by 90°": sd.to_uint8(rotated)})

# %% [markdown]
# ## Training loss and held-out loss
#
# These samples are no near-duplicates, but many are not yet digits: to the eye the memorized samples look better. The
# training loss does not show memorization, because it falls until the end. The *held-out loss* (`HeldOut`), measured
# with the same noise each time, shows it: where it rises, further training makes the model worse. *Early stopping*
# takes the snapshot with the lowest held-out loss.

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
results = []
steps = [STEPS // SNAPSHOTS * (k + 1) for k in range(SNAPSHOTS)]
runs = (("plain", plain, augmentations[:1]), ("augmented", augmented, augmentations))
for k, (name, models, used) in enumerate(runs):
    on_few, on_held_out = ([HeldOut(part, loss, 0).measure(model) for model in models] for part in (few, held_out))
    shares = [sample_and_score(model, used)[1].share for model in models]
    axes[0].plot(steps, on_held_out, color=f"C{k}", label=f"{name}, held-out loss")
    axes[0].plot(steps, on_few, "--", color=f"C{k}", label=f"{name}, training loss")
    axes[1].plot(steps, [100 * share for share in shares], "o-", color=f"C{k}", label=name)
    best = on_held_out.index(min(on_held_out))
    results += [(f"{name}, {steps[i]} steps", shares[i], on_held_out[i]) for i in (-1, best)]
axes[0].set(xlabel="steps", ylabel="loss")
axes[1].set(xlabel="steps", ylabel="near-duplicates (%)")
axes[1].axhline(1, color="0.5", linewidth=1, label="without memorization")
for axis in axes:
    axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Result

# %%
print("\n".join(f"{name}: {share:.0%} near-duplicates of {COUNT}, held-out loss {x:.3f}" for name, share, x in results))

# %% [markdown]
# With color photographs or a few hundred images memorization takes longer, and the same methods help:
# `simple-diffusion train FOLDER --preset few-images` combines them with dropout, and `simple-diffusion evaluate RUN`
# counts near-duplicates.
#
# **New code since lesson 11:** a count of near-duplicates, and augmentation with conditioning.
#
# ```python
# find_near_duplicates(samples, [training_images], held_out_images).share
# net = sd.UNet(widths=(32, 64), blocks=(1, 2), augmentations=8)
# loss = sd.augmented(loss, sd.symmetries(square=True), null=0)
# ```
#
# **Exercise.** Write `nearest(samples, data)`, indices of images: `simple-diffusion check 12 my_solution.py`.
