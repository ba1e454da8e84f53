# %% [markdown]
# # The bug museum
#
# Mistakes that sink people who write diffusion models, each really committed here, beside the code without it. Both
# draw from the same noise, so that a column of a picture differs by the mistake alone: right above, wrong below. The
# page [`docs/bug-museum.md`](../docs/bug-museum.md) has the pictures of a full run, how to recognise each mistake,
# and its cure.
#
# Most of these cannot be made with the library as it is, so the mistakes below replace or wrap what it offers. The
# model is that of lessons 5 and 9, small and trained for a minute or two.
#
# `python lessons/bug_museum.py --out docs/images/bugs` writes the pictures into that folder; without `--out` they
# are shown.

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

FAST = bool(os.environ.get("FAST"))  # seconds instead of minutes, for the tests: its pictures teach nothing
STEPS, COUNT, LEVELS, FEW = (4, 20, 2, 2) if FAST else (350, 256, 12, 10)
OUT = Path(sys.argv[2]) if sys.argv[1:2] == ["--out"] else None

images = sd.load_images("digits")[: 500 if FAST else None]
null = images.classes
extractor = extractor_for(images)
cond = torch.arange(COUNT) % images.classes  # a class a column

# %% [markdown]
# What every exhibit needs: a model with its first weights, always the same; its images; and a place on the wall.
# A row of the table holds, for right and wrong, FID, mean ± deviation of the pixels in [−1, 1], and the share of
# images in which the classifier sees the class that was asked for.


# %%
def untrained() -> sd.Denoiser:
    """The model before its first step."""
    torch.manual_seed(0)
    net = sd.UNet(classes=images.classes, widths=(32, 64), blocks=(1, 2))
    return sd.Denoiser(net, sd.Cosine(), sd.targets.v, images.std)


def guided(denoiser) -> sd.Clipped:
    """What the library would draw from."""
    return sd.Clipped(sd.Guided(denoiser, scale=2, null=null))


def drawn(denoiser, grid=sd.karras_grid, n: int = LEVELS, cond=cond, sampler=sd.dpmpp) -> torch.Tensor:
    """COUNT images [COUNT, 1, 28, 28] from the same noise each time, as floats about [-1, 1]."""
    return sd.sample(denoiser, (COUNT, *images.shape), grid(denoiser.schedule, n), cond, sampler=sampler)


@cache
def scores(pixels: torch.Tensor) -> list[str]:
    """FID, mean and deviation of the pixels, and how often the class is the one that was asked for."""
    x, seen = sd.to_unit(pixels), extractor(pixels)[1].argmax(1)
    return [
        f"{sd.fid(pixels, images):.2f}",
        f"{x.mean():.2f} ± {x.std():.2f}",
        f"{(seen == cond).double().mean():.0%}",
    ]


shown: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}


def exhibit(name: str, right: torch.Tensor, wrong: torch.Tensor) -> None:
    """Print the row of the table, and write or show the picture: ten images, right above wrong."""
    shown[name] = right, wrong
    pairs = zip(scores(right), scores(wrong), strict=True)
    print(f"| {name} |", " | ".join(f"{good} | {bad}" for good, bad in pairs), "|", flush=True)
    sheet = sd.make_grid(torch.cat([right[:10], wrong[:10]]), columns=10)
    if OUT is not None:
        OUT.mkdir(parents=True, exist_ok=True)
        sheet.save(OUT / f"{name}.png", optimize=True)
        return
    plt.figure(figsize=(8, 1.9))
    plt.imshow(sheet)
    plt.title(f"{name}: right above, wrong below", fontsize=10)
    plt.axis("off")
    plt.tight_layout()
    plt.show()


# %% [markdown]
# ## The model without a mistake
#
# It is trained once, and two averages of its weights are kept: the library's, and a wrong one for its exhibit below.


# %%
def no_warmup(n: int) -> float:
    """How much of the average is kept at update n: the papers' 0.9999, from the first update on."""
    return 0.9999


loss = sd.drop_labels(sd.denoising_loss, null)
model = untrained()
ema, stale = sd.EMA(model), sd.EMA(model, no_warmup)
for step in sd.train(
    model,
    sd.batches(images, 64),
    sd.adamw(model),
    loss=loss,
    lr=lambda n: 3e-3 * sd.warmup_linear((n - 1) / STEPS),
):
    ema.update(model, step.n)
    stale.update(model, step.n)
    if step.n == STEPS:
        break
good = ema.model
right = sd.to_uint8(drawn(guided(good)))

print(f"FID[{extractor.name}, n={COUNT} vs train], {STEPS} steps of training")
real = sd.load_images("digits", split="test")[:COUNT]
print(f"unseen real images: FID {sd.fid(real.pixels, images):.2f}")
print("| name | FID right | FID wrong | pixels right | pixels wrong | class right | class wrong |")
print("|---|---|---|---|---|---|---|")

# %% [markdown]
# ## Images in [0, 1]
#
# The images keep the range that a loader gives them, and are drawn as if it were [−1, 1].


# %%
def zero_to_one(denoiser, x0, cond, draws):
    return loss(denoiser, (x0 + 1) / 2, cond, draws)


exhibit("zero-to-one", right, sd.to_uint8(drawn(guided(sd.fit(untrained(), images, STEPS, loss=zero_to_one).model))))

# %% [markdown]
# ## Scaled twice
#
# The data set brings images to [−1, 1], and the model does it again: they are now in [−3, 1].


# %%
def scaled_twice(denoiser, x0, cond, draws):
    return loss(denoiser, 2 * x0 - 1, cond, draws)


exhibit("scaled-twice", right, sd.to_uint8(drawn(guided(sd.fit(untrained(), images, STEPS, loss=scaled_twice).model))))

# %% [markdown]
# ## `data_std` applied twice
#
# A `Denoiser` gives images at the data's own scale. Here they are brought there once more.

# %%
exhibit("data-std-twice", right, sd.to_uint8(images.std * drawn(guided(good))))

# %% [markdown]
# ## Labels dropped for whole batches
#
# One coin for the batch, where `drop_labels` tosses one for each image.


# %%
def drop_batches(loss, null: int, p: float = 0.1):
    """`drop_labels`, but a batch loses all its labels or none."""

    def dropped(denoiser, x0, cond, draws):
        if Draws(draws.seed, draws.step, [0]).uniform("drop label") < p:
            cond = torch.full_like(cond, null)
        return loss(denoiser, x0, cond, draws)

    return dropped


by_batch = sd.fit(untrained(), images, STEPS, loss=drop_batches(sd.denoising_loss, null)).model
exhibit("whole-batches", right, sd.to_uint8(drawn(guided(by_batch))))

# %% [markdown]
# ## An average of the wrong age
#
# A decay of 0.9999 remembers ten thousand updates. After a few hundred it still holds mostly the weights before the
# first one.

# %%
exhibit("average-too-old", right, sd.to_uint8(drawn(guided(stale.model))))

# %% [markdown]
# ## Cosine betas clipped at 0.02
#
# The bound of the linear table on the cosine one. The last level still shows the image, and drawing starts from
# noise without one. Right: the same table, with the paper's bound of 0.999.


# %%
def on(schedule, denoiser) -> sd.Denoiser:
    """The same network on another schedule: it is told the noise level, and so knows what it sees."""
    return sd.Denoiser(denoiser.net, schedule, denoiser.target, denoiser.data_std).eval()


cosine = sd.Discrete(sd.cosine_betas(100))
clipped = sd.Discrete(sd.cosine_betas(100).clamp(max=0.02))
exhibit("clipped-cosine", sd.to_uint8(drawn(guided(on(cosine, good)))), sd.to_uint8(drawn(guided(on(clipped, good)))))

# %% [markdown]
# ## Another schedule for drawing than for training
#
# A network that is told the step's number takes x_t for what that step was in training, on the cosine schedule,
# while the sampler is on the linear one. Right: the sampler on the linear one as well, and the network told the
# noise level.


# %%
class ToldTheStep(sd.Denoiser):
    """A network that knows the level only by the number of the step, as in training on `Cosine`."""

    def predict(self, x_t, t, cond=None):
        return sd.Denoiser(self.net, sd.Cosine(), self.target, self.data_std).predict(x_t, t, cond)


told_the_level = on(sd.Linear(), good)
told_the_step = ToldTheStep(good.net, sd.Linear(), good.target, good.data_std).eval()
exhibit(
    "other-schedule",
    sd.to_uint8(drawn(guided(told_the_level), sd.uniform_grid)),
    sd.to_uint8(drawn(guided(told_the_step), sd.uniform_grid)),
)

# %% [markdown]
# ## Too few steps for ddpm
#
# Ten steps instead of a thousand, on the linear schedule, each with noise of variance beta as most code has it.
# Right: `dpmpp` in the same ten.

# %%
beta = partial(sd.ddpm, variance="beta")
exhibit(
    "too-few-steps",
    sd.to_uint8(drawn(guided(told_the_level), sd.uniform_grid, FEW)),
    sd.to_uint8(drawn(guided(told_the_level), sd.uniform_grid, FEW, sampler=beta)),
)

# %% [markdown]
# ## Noise added at the last step
#
# Every step of ddpm adds noise but the last one, behind which nothing takes it away again.


# %%
def noisy_to_the_end(denoiser, x, times, cond, noise):
    """`ddpm`, and noise after its last step too: of variance beta, which down to the clean image is sigma squared."""
    for state in sd.ddpm(denoiser, x, times, cond, noise):
        yield state
    _, sigma = denoiser.schedule.levels(times[-1], state)
    yield state + sigma * noise(len(times), state)


exhibit(
    "noise-at-the-end",
    sd.to_uint8(drawn(guided(told_the_level), sd.uniform_grid, FEW, sampler=sd.ddpm)),
    sd.to_uint8(drawn(guided(told_the_level), sd.uniform_grid, FEW, sampler=noisy_to_the_end)),
)

# %% [markdown]
# ## Labels never passed
#
# The model was trained with labels, and nobody hands it any.

# %%
exhibit("no-labels", right, sd.to_uint8(drawn(sd.Clipped(good), cond=None)))

# %% [markdown]
# ## No clamp before uint8
#
# The same floats through `to_uint8`, and through a bare cast, which wraps round: 256 becomes 0 and −1 becomes 255.
# They are drawn without `Clipped`, which would keep them in range.


# %%
def wrapped(x: torch.Tensor) -> torch.Tensor:
    """`to_uint8` without its clamp; by way of int64, as what a cast from a float too large gives is up to the CPU."""
    return ((x + 1) * 127.5).round().to(torch.int64).to(torch.uint8)


unclipped = drawn(sd.Guided(good, scale=2, null=null))
exhibit("no-clamp", sd.to_uint8(unclipped), wrapped(unclipped))

# %% [markdown]
# ## Each image stretched to its own range
#
# Black is the darkest pixel of each image and white its brightest, wherever these lie.


# %%
def stretched(x: torch.Tensor) -> torch.Tensor:
    """Each image [C, H, W] from its own least value to its own largest, as uint8."""
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return sd.to_uint8(2 * (x - low) / (high - low) - 1)


exhibit("own-range", sd.to_uint8(unclipped), stretched(unclipped))
