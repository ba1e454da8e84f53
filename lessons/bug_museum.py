# %% [markdown]
# # The bug museum
#
# Common bugs of diffusion code. Each one is implemented here, next to the correct code. Both versions sample from the
# same noise, so the images of one column differ only because of the bug: correct on top, with the bug below. The page
# [`docs/bug-museum.md`](../docs/bug-museum.md) shows the pictures of a full run and explains symptom, cause and fix of
# each bug.
#
# The library prevents most of these bugs, so the code below replaces or wraps parts of it. The model is that of lessons
# 5 and 9; its training takes a minute or two.
#
# `python lessons/bug_museum.py --out docs/images/bugs` writes the pictures into that folder. Without `--out` it shows
# them.

# %%
import os
import sys
from functools import cache, partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import simple_diffusion as sd
from simple_diffusion.evaluation.extractors import extractor_for
from simple_diffusion.randomness import Draws

FAST = bool(os.environ.get("FAST"))  # the tests set it: seconds instead of minutes, with meaningless pictures
STEPS, COUNT, SAMPLER_STEPS, FEW = (4, 20, 2, 2) if FAST else (350, 256, 12, 10)
OUT = Path(sys.argv[2]) if sys.argv[1:2] == ["--out"] else None

images = sd.load_images("digits")[: 500 if FAST else None]
null = images.classes
extractor = extractor_for(images)
cond = torch.arange(COUNT) % images.classes  # one class per column

# %% [markdown]
# ## Model, samples and scores
#
# Each bug is shown with the same initial weights and the same noise. A row of the table has three scores, with and
# without the bug: FID, mean ± standard deviation of the pixels in [−1, 1], and class accuracy, the share of images that
# the classifier assigns to the requested class.


# %%
def untrained() -> sd.Denoiser:
    """The model with its initial weights."""
    torch.manual_seed(0)
    net = sd.UNet(classes=images.classes, widths=(32, 64), blocks=(1, 2))
    return sd.Denoiser(net, sd.Cosine(), sd.targets.v, images.std)


def guided(denoiser) -> sd.Clipped:
    """The denoiser with guidance, clipped to [-1, 1]: how the library samples."""
    return sd.Clipped(sd.Guided(denoiser, scale=2, null=null))


def sample(denoiser, grid=sd.karras_grid, n: int = SAMPLER_STEPS, cond=cond, sampler=sd.dpmpp) -> torch.Tensor:
    """COUNT images from the same noise in each call: float [COUNT, 1, 28, 28], about [-1, 1]."""
    return sd.sample(denoiser, (COUNT, *images.shape), grid(denoiser.schedule, n), cond, sampler=sampler)


@cache
def scores(pixels: torch.Tensor) -> list[str]:
    """FID, mean ± standard deviation of the pixels, and class accuracy."""
    x, predicted = sd.to_unit(pixels), extractor(pixels)[1].argmax(1)
    return [
        f"{sd.fid(pixels, images):.2f}",
        f"{x.mean():.2f} ± {x.std():.2f}",
        f"{(predicted == cond).double().mean():.0%}",
    ]


shown: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}


def exhibit(name: str, correct: torch.Tensor, wrong: torch.Tensor) -> None:
    """Print the row of the table, and write or show the picture: ten correct images above ten with the bug."""
    shown[name] = correct, wrong
    pairs = zip(scores(correct), scores(wrong), strict=True)
    print(f"| {name} |", " | ".join(f"{good} | {bad}" for good, bad in pairs), "|", flush=True)
    sheet = sd.make_grid(torch.cat([correct[:10], wrong[:10]]), columns=10)
    if OUT is not None:
        OUT.mkdir(parents=True, exist_ok=True)
        sheet.save(OUT / f"{name}.png", optimize=True)
        return
    plt.figure(figsize=(8, 1.9))
    plt.imshow(sheet)
    plt.title(f"{name}: correct above, with the bug below", fontsize=10)
    plt.axis("off")
    plt.tight_layout()
    plt.show()


# %% [markdown]
# ## The correct model
#
# It is trained once. Two averages of its weights are updated: the EMA of the library, and a wrong one for the bug
# "EMA without warm-up" below.


# %%
def no_warmup(n: int) -> float:
    """The decay 0.9999 of many papers, from the first update on."""
    return 0.9999


loss = sd.drop_labels(sd.denoising_loss, null)
model = untrained()
ema, stale_ema = sd.EMA(model), sd.EMA(model, no_warmup)
for step in sd.train(
    model,
    sd.batches(images, 64),
    sd.adamw(model),
    loss=loss,
    lr=lambda n: 3e-3 * sd.warmup_linear((n - 1) / STEPS),
):
    ema.update(model, step.n)
    stale_ema.update(model, step.n)
    if step.n == STEPS:
        break
trained = ema.model
correct = sd.to_uint8(sample(guided(trained)))

print(f"FID[{extractor.name}, n={COUNT} vs train], {STEPS} steps of training")
real = sd.load_images("digits", split="test")[:COUNT]
print(f"real-data baseline: FID {sd.fid(real.pixels, images):.2f}")
print("| bug | FID correct | FID wrong | pixels correct | pixels wrong | class correct | class wrong |")
print("|---|---|---|---|---|---|---|")

# %% [markdown]
# ## Images in [0, 1]
#
# The training images are in [0, 1], as many data loaders return them. The samples are converted as if they were in
# [−1, 1].


# %%
def zero_to_one(denoiser, x0, cond, draws):
    return loss(denoiser, (x0 + 1) / 2, cond, draws)


wrong = sd.fit(untrained(), images, STEPS, loss=zero_to_one).model
exhibit("zero-to-one", correct, sd.to_uint8(sample(guided(wrong))))

# %% [markdown]
# ## Images scaled twice
#
# The data set scales images to [−1, 1], and the model scales them again. The network sees images in [−3, 1].


# %%
def scaled_twice(denoiser, x0, cond, draws):
    return loss(denoiser, 2 * x0 - 1, cond, draws)


wrong = sd.fit(untrained(), images, STEPS, loss=scaled_twice).model
exhibit("scaled-twice", correct, sd.to_uint8(sample(guided(wrong))))

# %% [markdown]
# ## `data_std` applied twice
#
# A `Denoiser` returns images at the scale of the data. The bug multiplies them by the standard deviation once more.

# %%
exhibit("data-std-twice", correct, sd.to_uint8(images.std * sample(guided(trained))))

# %% [markdown]
# ## Labels dropped for whole batches
#
# The bug uses one random number for the whole batch. `drop_labels` uses one for each image.


# %%
def drop_batches(loss, null: int, p: float = 0.1):
    """Like `drop_labels`, but a batch loses all its labels or none."""

    def dropped(denoiser, x0, cond, draws):
        if Draws(draws.seed, draws.step, [0]).uniform("drop label") < p:
            cond = torch.full_like(cond, null)
        return loss(denoiser, x0, cond, draws)

    return dropped


wrong = sd.fit(untrained(), images, STEPS, loss=drop_batches(sd.denoising_loss, null)).model
exhibit("whole-batches", correct, sd.to_uint8(sample(guided(wrong))))

# %% [markdown]
# ## EMA without warm-up
#
# A decay of 0.9999 averages over about ten thousand updates. After a few hundred, the average consists mostly of the
# initial weights.

# %%
exhibit("average-too-old", correct, sd.to_uint8(sample(guided(stale_ema.model))))

# %% [markdown]
# ## Cosine betas clipped at 0.02
#
# The largest beta of the linear table is used as a bound for the cosine table. The last noise level then still contains
# the image, but sampling starts from pure noise. Correct: the same table with the bound of the paper, 0.999.


# %%
def on(schedule, denoiser) -> sd.Denoiser:
    """The same network on another schedule. It still works, because its input is the noise level, not the time."""
    return sd.Denoiser(denoiser.net, schedule, denoiser.target, denoiser.data_std).eval()


cosine = sd.Discrete(sd.cosine_betas(100))
clipped = sd.Discrete(sd.cosine_betas(100).clamp(max=0.02))
exhibit(
    "clipped-cosine",
    sd.to_uint8(sample(guided(on(cosine, trained)))),
    sd.to_uint8(sample(guided(on(clipped, trained)))),
)

# %% [markdown]
# ## Different schedules in training and sampling
#
# The network is conditioned on the step number. It was trained on the cosine schedule, but the sampler uses the linear
# one, where the same step number has another noise level. Correct: the sampler uses the linear schedule too, but the
# network is conditioned on the noise level.


# %%
class ConditionedOnStep(sd.Denoiser):
    """A denoiser that computes the noise level from the step number, as in its training on `Cosine`."""

    def predict(self, x_t, t, cond=None):
        return sd.Denoiser(self.net, sd.Cosine(), self.target, self.data_std).predict(x_t, t, cond)


on_level = on(sd.Linear(), trained)
on_step = ConditionedOnStep(trained.net, sd.Linear(), trained.target, trained.data_std).eval()
exhibit(
    "other-schedule",
    sd.to_uint8(sample(guided(on_level), sd.uniform_grid)),
    sd.to_uint8(sample(guided(on_step), sd.uniform_grid)),
)

# %% [markdown]
# ## Too few steps for DDPM
#
# DDPM's sampler runs in 10 steps instead of 1,000, on the linear schedule, with noise of variance beta as in most code.
# Correct: `dpmpp` in the same 10 steps.

# %%
ddpm_beta = partial(sd.ddpm, variance="beta")
exhibit(
    "too-few-steps",
    sd.to_uint8(sample(guided(on_level), sd.uniform_grid, FEW)),
    sd.to_uint8(sample(guided(on_level), sd.uniform_grid, FEW, sampler=ddpm_beta)),
)

# %% [markdown]
# ## Noise added in the last step
#
# DDPM's sampler adds noise in each step except the last one, because no later step removes it.


# %%
def noise_in_last_step(denoiser, x, times, cond, noise):
    """`ddpm` with noise in the last step too: its variance beta, down to the clean image, is sigma squared."""
    for state in sd.ddpm(denoiser, x, times, cond, noise):
        yield state
    _, sigma = denoiser.schedule.levels(times[-1], state)
    yield state + sigma * noise(len(times), state)


exhibit(
    "noise-at-the-end",
    sd.to_uint8(sample(guided(on_level), sd.uniform_grid, FEW, sampler=sd.ddpm)),
    sd.to_uint8(sample(guided(on_level), sd.uniform_grid, FEW, sampler=noise_in_last_step)),
)

# %% [markdown]
# ## Labels not passed to the sampler
#
# The model is trained with labels, but the sampler gets none.

# %%
exhibit("no-labels", correct, sd.to_uint8(sample(sd.Clipped(trained), cond=None)))

# %% [markdown]
# ## No clamp before uint8
#
# The same floats are converted by `to_uint8` and by a cast without a clamp. The cast wraps around: 256 becomes 0 and −1
# becomes 255. These images are sampled without `Clipped`, which would keep them in range.


# %%
def without_clamp(x: torch.Tensor) -> torch.Tensor:
    """`to_uint8` without its clamp. The int64 step makes the result of the cast equal on all CPUs."""
    return ((x + 1) * 127.5).round().to(torch.int64).to(torch.uint8)


unclipped = sample(sd.Guided(trained, scale=2, null=null))
exhibit("no-clamp", sd.to_uint8(unclipped), without_clamp(unclipped))

# %% [markdown]
# ## Each image scaled to its own range
#
# The darkest pixel of each image becomes black and its brightest white, whatever their values.


# %%
def own_range(x: torch.Tensor) -> torch.Tensor:
    """uint8 images; each image [C, H, W] is scaled from its own minimum and maximum to 0 and 255."""
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return sd.to_uint8(2 * (x - low) / (high - low) - 1)


exhibit("own-range", sd.to_uint8(unclipped), own_range(unclipped))
