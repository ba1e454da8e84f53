# %% [markdown]
# # 12 · Few images: learnt, or learnt by heart?
#
# A diffusion model that is trained long enough on few images draws these images. That is no accident: the denoiser with
# the lowest training loss knows nothing else (`memorised_error` in
# [`denoising_error.py`](../src/simple_diffusion/denoising_error.py)). Here we watch a network become it, find its
# copies, and then keep it from that.
#
# Files: [`evaluation/memorization.py`](../src/simple_diffusion/evaluation/memorization.py) finds copies,
# [`validation.py`](../src/simple_diffusion/validation.py) measures a loss on unseen images,
# [`augmentation.py`](../src/simple_diffusion/augmentation.py) has the cure.

# %%
import math
import os
from functools import partial
from itertools import islice

import matplotlib.pyplot as plt
import torch

import simple_diffusion as sd
from simple_diffusion.evaluation.memorization import Copies, find_copies
from simple_diffusion.validation import HeldOut

FAST = bool(os.environ.get("FAST"))  # seconds instead of minutes, for the tests
STEPS, LOOKS, COUNT = (4, 2, 64) if FAST else (1600, 8, 128)

few = sd.Images("few", sd.load_images("digits").pixels[:50])
unseen = sd.Images("unseen", sd.load_images("digits", split="test").pixels[:2000])
loss = partial(sd.denoising_loss, density=sd.LogNormal(math.log(few.std) - 0.5, 1.2))


def show(rows: dict[str, torch.Tensor], columns: int = 16) -> None:
    _, axes = plt.subplots(len(rows), 1, figsize=(9, 0.55 * len(rows)), squeeze=False, layout="constrained")
    for axis, (name, pixels) in zip(axes[:, 0], rows.items(), strict=True):
        axis.imshow(sd.make_grid(pixels[:columns], columns))
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        axis.set(xticks=[], yticks=[])
    plt.show()


# %% [markdown]
# ## A long training
#
# Fifty digits, EDM as in lesson 9, batches of 16, and Muon, the optimiser that learns most in little time. A few times
# on the way, and at the end, we keep the averaged model.


# %%
def training(net: sd.UNet, loss) -> list[sd.Denoiser]:
    denoiser = sd.Denoiser(net, sd.Karras(), sd.targets.v, few.std)
    ema, kept = sd.EMA(denoiser), []
    stream = islice(sd.batches(few, 16), STEPS)
    rate = lambda n: 3e-3 * sd.warmup_linear((n - 1) / STEPS)  # noqa: E731
    for step in sd.train(denoiser, stream, sd.muon(denoiser), loss=loss, lr=rate):
        ema.update(denoiser, step.n)
        if step.n % (STEPS // LOOKS) == 0:
            kept.append(ema.snapshot())
    return kept


torch.manual_seed(0)
plain = training(sd.UNet(widths=(32, 64), blocks=(1, 2)), loss)

# %% [markdown]
# ## Copies
#
# A copy lies much nearer to one training image than to the others. So take the distance of a sample to the nearest
# training image, over that to the tenth nearest. What is small? Unseen digits tell: one in a hundred of them has a
# ratio below some threshold, by chance. A sample below it is called a near copy (`find_copies`), and a model that
# copies nothing has 1 % of them.


# %%
def looked_at(model: sd.Denoiser, views=(lambda x: x,)) -> tuple[torch.Tensor, Copies]:
    x0 = sd.sample(sd.Clipped(model), (COUNT, 1, 28, 28), sd.karras_grid(model.schedule, 10))
    seen = [sd.to_unit(view(few.pixels)).flatten(1) for view in views]
    return sd.to_uint8(x0), find_copies(x0.flatten(1), seen, sd.to_unit(unseen.pixels).flatten(1))


samples, copies = looked_at(plain[-1])
closest = copies.score.argsort()[:16]
nearest = few.pixels[copies.nearest[closest]]
show({"samples, the closest": samples[closest], "nearest training image": nearest, "samples, any": samples})

# %% [markdown]
# ## The cure: more views, and the network is told
#
# Turned and mirrored, each of the fifty images becomes eight. But a turned 4 is no digit, and a model that has seen it
# would draw it. Unless it is told: `augmented` picks a view for each sample and writes its number into the label
# (Karras et al. 2022, appendix F.2). The network learns from all views what strokes are like, and asked for the plain
# view, label 0 or none, it draws them upright. Nothing else changes, not even the number of steps.

# %%
views = sd.symmetries(square=True)
torch.manual_seed(0)
told = training(sd.UNet(widths=(32, 64), blocks=(1, 2), augmentations=len(views)), sd.augmented(loss, views, null=0))

turned = sd.sample(sd.Clipped(told[-1]), (16, 1, 28, 28), sd.karras_grid(sd.Karras(), 10), torch.full((16,), 1))
show({"asked for plain": looked_at(told[-1])[0], "asked for a turn": sd.to_uint8(turned)})

# %% [markdown]
# ## Two losses
#
# None of that is copied, and much of it is no digit yet: to the eye the copies are the better pictures. The loss on the
# training images prefers them too, and falls to the end. What tells learning from learning by heart is the loss on
# unseen images, with the same noise each time (`HeldOut`): where it rises, the rest of the training is for the worse.
# At its lowest point lies another cure, the cheapest: stop there.

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
results = {}
steps = [STEPS // LOOKS * (k + 1) for k in range(LOOKS)]
for k, (name, models, known) in enumerate((("plain", plain, views[:1]), ("views told", told, views))):
    on_few, on_unseen = ([HeldOut(part, loss, 0).measure(model) for model in models] for part in (few, unseen))
    shares = [looked_at(model, known)[1].share for model in models]
    axes[0].plot(steps, on_unseen, color=f"C{k}", label=f"{name}, unseen images")
    axes[0].plot(steps, on_few, "--", color=f"C{k}", label=f"{name}, training images")
    axes[1].plot(steps, [100 * share for share in shares], "o-", color=f"C{k}", label=name)
    best = on_unseen.index(min(on_unseen))
    results[name] = f"{shares[-1]:.0%} and {on_unseen[-1]:.3f}"
    results[f"{name}, stopped after {steps[best]} steps"] = f"{shares[best]:.0%} and {on_unseen[best]:.3f}"
axes[0].set(xlabel="steps", ylabel="loss")
axes[1].set(xlabel="steps", ylabel="near copies (%)")
axes[1].axhline(1, color="0.5", linewidth=1, label="by chance")
for axis in axes:
    axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## The number that moved

# %%
print(f"near copies among {COUNT} samples, and loss on unseen images:")
print(*(f"  {numbers} with {name}" for name, numbers in results.items()), sep="\n")

# %% [markdown]
# With photographs in colour, or some hundred images, all this takes longer to show; the means are the same.
# `simple-diffusion train FOLDER --preset few-images` puts them together, with dropout as one more, and
# `simple-diffusion evaluate RUN` looks for copies.
#
# **What is new since lesson 11**, in code: copies looked for, views told.
#
# ```python
# find_copies(samples, [training_images], unseen_images).share
# net = sd.UNet(widths=(32, 64), blocks=(1, 2), augmentations=8)
# loss = sd.augmented(loss, sd.symmetries(square=True), null=0)
# ```
#
# **Exercise.** Write `nearest(samples, data)`, indices of images: `simple-diffusion check 12 my_solution.py`.
