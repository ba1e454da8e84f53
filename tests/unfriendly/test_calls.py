"""Calls of public functions with arguments that once did something else in silence: each is refused in one sentence."""

import math
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn

import simple_diffusion as sd
from simple_diffusion.data.batches import Batch
from simple_diffusion.randomness import Draws, permutation
from simple_diffusion.samplers import SAMPLERS
from simple_diffusion.schedules import cosine_betas

torch.manual_seed(0)
PIXELS = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8)
IMAGES = sd.Images("x", PIXELS, torch.arange(12) % 3, ("a", "b", "c"))
X, SHAPE, LABELS = torch.randn(3, 1, 8, 8), (3, 1, 8, 8), torch.arange(3)
HALF, DRAWS, MASK = torch.tensor(0.5), Draws(0, 1, range(3), 3), torch.ones(8, 8, dtype=torch.bool)


def net(classes=3, **options) -> sd.UNet:
    return sd.UNet(1, classes, widths=(8,), blocks=(1,), **options)


def denoiser(classes=3, schedule=None, **options) -> sd.Denoiser:
    return sd.Denoiser(net(classes, **options), schedule or sd.Karras(), sd.targets.v)


class Own(nn.Module):
    """A network of a user, which returns whatever `function` makes of its output."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Conv2d(1, 1, 1), function

    def forward(self, x, noise_level, cond):
        return self.function(self.layer(x))


DENOISER = denoiser()
TIMES = sd.karras_grid(DENOISER.schedule, 3)
fit = partial(sd.fit, DENOISER, IMAGES, 1)


def sample(**options):
    arguments = {"denoiser": DENOISER, "shape": SHAPE, "times": TIMES, "cond": LABELS} | options
    return sd.sample(**arguments)


def fit_own(function):
    return sd.fit(sd.Denoiser(Own(function), sd.Karras(), sd.targets.v), IMAGES, 1)


def step(**options):
    arguments = {"batches": sd.batches(IMAGES, 4), "optimizer": sd.adamw(DENOISER), "lr": lambda n: 1e-3} | options
    return next(sd.train(DENOISER, **arguments))


def with_loss(loss, model=DENOISER, images=IMAGES):
    return sd.fit(model, images, 1, loss=loss)


def loss_with(**options):
    return sd.denoising_loss(DENOISER, X, LABELS, DRAWS, **options)


CALLS = {
    # fit and train
    "no steps": (lambda: sd.fit(DENOISER, IMAGES, 0), "`steps` must be an integer of at least 1, got 0"),
    "half a step": (lambda: sd.fit(DENOISER, IMAGES, 2.5), "`steps` must be an integer"),
    "fit a tensor": (lambda: sd.fit(DENOISER, PIXELS, 1), "`images` must be Images, .* got a tensor of torch.uint8"),
    "fit no images": (lambda: sd.fit(DENOISER, IMAGES[:0], 1), "number of images` must be .* at least 1, got 0"),
    "fit a network": (lambda: sd.fit(net(), IMAGES, 1), "`denoiser` needs a schedule"),
    "rate below 0": (lambda: fit(lr=-1e-3), r"`lr` must be a number in \(0, inf\), got -0.001"),
    "rate NaN": (lambda: fit(lr=math.nan), "`lr` must be a number"),
    "batch of 0": (lambda: fit(batch=0), "`batch` must be an integer of at least 1"),
    "seed as text": (lambda: fit(seed="0"), "`seed` must be an integer, got '0'"),
    "decay as number": (lambda: fit(decay=0.999), "`decay` must be a function such as sd.constant_decay"),
    "optimizer not made": (lambda: fit(optimizer=sd.muon), "`optimizer` must be an optimizer .* the function muon"),
    "optimizer of another model": (
        lambda: fit(optimizer=sd.adamw(net())),
        "`optimizer` holds no weight of the denoiser",
    ),
    "frozen weights": (lambda: sd.fit(denoiser().requires_grad_(False), IMAGES, 1), "requires a gradient: call"),
    "labels without classes": (lambda: sd.fit(denoiser(0), IMAGES, 1), "the network has no classes: build it with"),
    "more labels than classes": (lambda: sd.fit(denoiser(2), IMAGES, 1), "has 2 classes, but an image has the label 2"),
    "mean as loss": (
        lambda: with_loss(lambda *a: sd.denoising_loss(*a).mean()),
        "`loss` must return a number for each",
    ),
    "rate as number": (lambda: step(lr=1e-3), "`lr` must be a function of the number of the step"),
    "rate that climbs": (lambda: step(lr=lambda n: -1.0), r"`lr` must be a number in \[0, inf\), got -1.0"),
    "clip to 0": (lambda: step(clip=0), r"`clip` must be a number in \(0, inf\], got 0"),
    "clip below 0": (lambda: step(clip=-1.0), "`clip` must be a number"),
    "accumulate 0": (lambda: step(accumulate=0), "`accumulate` must be an integer of at least 1"),
    "images as batches": (lambda: step(batches=IMAGES), "`batches` must be an iterable of Batch"),
    "tensors as batches": (lambda: step(batches=[X]), "`batches` must be an iterable of Batch"),
    "batches of 0": (lambda: next(sd.batches(IMAGES, 0)), "`size` must be an integer of at least 1"),
    # networks
    "output of one row": (lambda: fit_own(lambda y: y.mean(0, keepdim=True)), "must return the shape of its input"),
    "output of one pixel": (lambda: fit_own(lambda y: y.mean((2, 3), keepdim=True)), "must return the shape"),
    "output without channels": (lambda: fit_own(lambda y: y[:, 0]), r"must return the shape .* got a tensor"),
    "output in a tuple": (lambda: fit_own(lambda y: (y,)), "must return the shape of its input, .* got"),
    "network of width 0": (lambda: sd.UNet(widths=(8, 0)), "`widths` must be an integer of at least 1"),
    "network without blocks": (lambda: sd.UNet(widths=(8,), blocks=(0,)), "`blocks` must be an integer of at least 1"),
    "dropout of all": (lambda: net(dropout=1.0), r"`dropout` must be a number in \[0, 1\)"),
    "other channels": (lambda: sample(cond=None, shape=(3, 3, 8, 8)), r"takes images \[B, 1, H, W\], got"),
    # denoisers and schedules
    "schedule not made": (
        lambda: sd.Denoiser(net(), sd.Karras, sd.targets.v),
        "`schedule` must be .* the class Karras",
    ),
    "target as text": (lambda: sd.Denoiser(net(), sd.Karras(), "v"), "`target` must be a function .* got 'v'"),
    "data_std 0": (lambda: sd.Denoiser(net(), sd.Karras(), sd.targets.v, 0.0), "`data_std` must be a number in"),
    "dtype as text": (lambda: sd.Denoiser(net(), sd.Karras(), sd.targets.v, dtype="bf16"), "`dtype` must be a type of"),
    "step number as time": (lambda: DENOISER(X, torch.tensor(999), LABELS), "`t` must be times .* step n of T is"),
    "time 999": (lambda: DENOISER(X, torch.tensor(999.0), LABELS), "`t` must be times .* from 999 to 999"),
    "time NaN": (lambda: DENOISER(X, torch.tensor(math.nan), LABELS), "`t` must be times"),
    "two times for three": (lambda: DENOISER(X, torch.rand(2), LABELS), "one for each of 3 images"),
    "pixels 0 to 255": (
        lambda: DENOISER(PIXELS[:3], HALF, LABELS),
        "`x` must be a tensor of floats, such as sd.to_unit",
    ),
    "one label for three": (lambda: DENOISER(X, HALF, LABELS[:1]), "`cond` must be a label for each of 3 images"),
    "label below 0": (lambda: DENOISER(X, HALF, LABELS - 1), "labels of this network are from 0 to 3, .* from -1 to 1"),
    "noise of pixels": (lambda: sd.Cosine().add_noise(PIXELS[:3], HALF, X), "`x` must be a tensor of floats"),
    "one noise for three": (lambda: sd.Cosine().add_noise(X, HALF, X[:1]), "`eps` must have the shape of x0"),
    "level of step 50": (lambda: sd.Discrete(sd.linear_betas(99)).alpha(torch.tensor([50])), "`t` must be times"),
    "ratio as integer": (lambda: sd.Cosine().time_of(torch.tensor([1])), "`ratio` must be a tensor of floats"),
    "Karras upside down": (lambda: sd.Karras(80.0, 0.002), r"`sigma_min` must be a number in \(0, 0.002\), got 80"),
    "Linear upside down": (lambda: sd.Linear(20.0, 0.1), "`beta_min` must be a number in"),
    "Cosine below 0": (lambda: sd.Cosine(-1.0), "`s` must be a number in"),
    # samplers and grids
    "no image": (lambda: sample(shape=(0, 1, 8, 8)), r"`shape` must be \(N, C, H, W\), integers of 1 or more"),
    "step numbers as grid": (lambda: sample(times=torch.arange(999, -1, -1)), "`times` must be a grid of times"),
    "rising grid": (lambda: sample(times=TIMES.flip(0)), "`times` must be a list of times that decrease"),
    "empty grid": (lambda: sample(times=TIMES[:0]), "`times` must be a list of times that decrease .* no times"),
    "grid that stops": (
        lambda: sample(times=torch.tensor([0.5, 0.5])),
        "`times` must be a list of times that decrease",
    ),
    "grid above 1": (lambda: sample(times=torch.tensor([999.0, 1.0])), "`times` must be a list of times that decrease"),
    "grid to 0": (
        lambda: sd.sample(denoiser(schedule=sd.Cosine()), SHAPE, torch.tensor([1.0, 0.0]), LABELS),
        "Cosine has no noise at the time 0",
    ),
    "sampler as text": (lambda: sample(sampler="ddim"), "`sampler` must be a function such as sd.ddim, got 'ddim'"),
    "sampler from the table": (lambda: sample(sampler=SAMPLERS["ddim"]), "`sampler` must be a function .* SamplerInfo"),
    "labels of floats": (lambda: sample(cond=LABELS.float()), "`cond` must be a tensor of integers"),
    "labels in a column": (lambda: sample(cond=LABELS[:, None]), "3 images need 3 labels"),
    "label above no label": (
        lambda: sample(cond=LABELS + 2),
        "labels of this network are from 0 to 3, where 3 means no",
    ),
    "labels for no classes": (lambda: sd.sample(denoiser(0), SHAPE, TIMES, LABELS), "the network has no classes"),
    "batch without start": (lambda: next(sd.trajectory(DENOISER, SHAPE, TIMES, LABELS, first=64)), "`first` must be"),
    "start of one row": (lambda: next(sd.trajectory(DENOISER, SHAPE, TIMES, LABELS, start=X[:1])), "`start` must have"),
    "eta below 0": (lambda: list(sd.ddim(DENOISER, X, TIMES, LABELS, eta=-0.5)), r"`eta` must be a number in \[0, 1\]"),
    "no repeats": (lambda: list(sd.repaint(DENOISER, X, TIMES, LABELS, repeats=0)), "`repeats` must be an integer"),
    "noise of integers": (lambda: list(sd.ddim(DENOISER, PIXELS[:3], TIMES, LABELS)), "`x` must be noise, a tensor of"),
    "grid of 10.5": (lambda: sd.uniform_grid(sd.Karras(), 10.5), "`n` must be an integer of at least 1, got 10.5"),
    "grid of 0": (lambda: sd.karras_grid(sd.Karras(), 0), "`n` must be an integer of at least 1"),
    "grid upside down": (lambda: sd.karras_grid(sd.Karras(), 9, 80.0, 0.01), "`sigma_min` must be a number in"),
    "grid of a name": (lambda: sd.karras_grid("karras", 9), r"`schedule` must be a schedule such as sd.Karras\(\)"),
    "grid of a class": (lambda: sd.uniform_grid(sd.Karras, 9), r"`schedule` must be a schedule such as sd.Karras\(\)"),
    "rho of 0": (lambda: sd.karras_grid(sd.Karras(), 9, rho=0), r"`rho` must be a number in \(0, inf\), got 0"),
    "grid of no noise": (lambda: sd.karras_grid(sd.Karras(), 9, 0.0, 0.0), r"`sigma_max` must be a number in \("),
    "rate of 0": (lambda: sd.Linear(0.0, 0.0), r"`beta_max` must be a number in \(0, inf\), got 0.0"),
    "rate that falls": (lambda: sd.Linear(20.0, 0.1), r"`beta_min` must be a number in \[0, 0.1\], got 20.0"),
    "betas of s below 0": (lambda: cosine_betas(9, s=-0.1), r"`s` must be a number in \[0, inf\), got -0.1"),
    "EMA of a name": (lambda: sd.EMA("model"), "`model` must be a model, an nn.Module"),
    "slerp of pixels": (lambda: sd.slerp(PIXELS[0], X[0], [0.5]), "`one` must be a tensor of floats"),
    "slerp to pixels": (lambda: sd.slerp(X[0], PIXELS[0], [0.5]), "`other` must be a tensor of floats"),
    "sampling in batches of 0": (
        lambda: sd.sample(DENOISER, SHAPE, TIMES, LABELS, batch=0),
        "`batch` must be an integer of at least 1",
    ),
    # guidance, labels, augmentation
    "null of ten classes": (lambda: sd.Guided(DENOISER, 1.5, 10), "`null` must be the number of classes .* 3, got 10"),
    "drop to a class": (
        lambda: with_loss(sd.drop_labels(sd.denoising_loss, 2)),
        "`null` must be the number of classes",
    ),
    "drop more than all": (lambda: sd.drop_labels(sd.denoising_loss, 3, 1.5), r"`p` must be a number in \[0, 1\]"),
    "scale NaN": (lambda: sd.Guided(DENOISER, math.nan, 3), "`scale` must be a number that is finite"),
    "interval upside down": (lambda: sd.Guided(DENOISER, 1.5, 3, (5.0, 0.1)), r"`interval\[0\]` must be a number in"),
    "guide of another schedule": (
        lambda: sd.AutoGuided(DENOISER, denoiser(schedule=sd.Cosine()), 2.0),
        "`guide` must have the schedule of",
    ),
    "no augmentation": (lambda: sd.augmented(sd.denoising_loss, [], 3), "number of augmentations` must be an integer"),
    "augmentation as text": (lambda: sd.augmented(sd.denoising_loss, "mirror", 3), "`augmentations` must be functions"),
    "augmentations unknown to the network": (
        lambda: with_loss(sd.augmented(sd.denoising_loss, sd.symmetries(True), 3)),
        "is conditioned on 1 augmentations and `augmentations` has 8",
    ),
    "labels as augmentations": (
        lambda: with_loss(sd.augmented(sd.denoising_loss, sd.symmetries(True), 0), denoiser(0, augmentations=8)),
        "`null` is 0, but the images have labels",
    ),
    "augmentation that crops": (
        lambda: with_loss(sd.augmented(sd.denoising_loss, [lambda x: x[..., :1]], 3, conditioned=False)),
        "augmentation 0 makes",
    ),
    "square of 28": (lambda: sd.symmetries(28), "`square` must be True or False"),
    # losses
    "draws of one": (lambda: sd.denoising_loss(DENOISER, X, LABELS, DRAWS[:1]), "3 samples need as many draws"),
    "criterion as text": (lambda: loss_with(criterion="l2"), "`criterion` must be a function"),
    "criterion of all": (lambda: loss_with(criterion=lambda e: e.square().mean()), "`criterion` must penalize each"),
    "density not made": (
        lambda: loss_with(density=sd.LogNormal),
        "`density` must be a function .* the class LogNormal",
    ),
    "density without width": (lambda: sd.LogNormal(-1.2, 0.0), "`std` must be a number in"),
    "weight of 0": (lambda: sd.MinSNR(0.0), "`gamma` must be a number in"),
    # averages, optimizers, inpainting, interpolation, pictures
    "average before the first update": (lambda: sd.EMA(DENOISER).update(DENOISER, 0), "`n` must be an integer of at"),
    "average of another model": (lambda: sd.EMA(DENOISER).update(denoiser(5), 1), "`model` must have the weights of"),
    "average that never moves": (lambda: sd.constant_decay(1.0), r"`decay` must be a number in \[0, 1\)"),
    "Muon that climbs": (lambda: sd.muon(net(), -1.0), r"`lr` must be a number in \[0, inf\)"),
    "Muon of a list": (lambda: sd.muon(list(net().parameters())), "`model` must be a module"),
    "Muon with a third group": (
        lambda: sd.muon(net()).add_param_group({"params": [nn.Parameter(torch.ones(2, 2))]}),
        "Muon has two groups",
    ),
    "known pixels 0 to 255": (lambda: sd.Inpainted(DENOISER, PIXELS[0].float(), MASK), r"`x0` must have pixels in"),
    "known uint8 pixels": (lambda: sd.Inpainted(DENOISER, PIXELS[0], MASK), "`x0` must be an image in"),
    "mask of floats": (
        lambda: sd.Inpainted(DENOISER, torch.zeros(1, 8, 8), MASK.float()),
        "`mask` must be a tensor of",
    ),
    "known colors for gray": (
        lambda: sample(denoiser=sd.Inpainted(DENOISER, torch.zeros(3, 8, 8), MASK)),
        r"`x0` \(3, 8, 8\) must be one image, or one for each image of a batch \(64, 1, 8, 8\)",
    ),
    "noises of two sizes": (lambda: sd.slerp(X, X[:1], [0.5]), "slerp needs two noises of one shape"),
    "opposite noises": (lambda: sd.slerp(X, -X, [0.5]), "slerp has no way between a noise and its opposite"),
    "beyond the other noise": (lambda: sd.slerp(X, X + 1, [1.5]), "`fractions` must be a number in"),
    "no columns": (lambda: sd.make_grid(PIXELS, 0), "`columns` must be an integer of at least 1"),
    "picture of nothing": (lambda: sd.make_grid(PIXELS[:0], 3), "a grid needs uint8 images"),
    "scale 0": (lambda: sd.make_grid(PIXELS, 3, scale=0), "`scale` must be an integer of at least 1"),
    "seed of floats": (lambda: permutation(3, 1.0, "order"), "`seed` must be an integer"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_makes_no_sense_is_refused_in_one_sentence(name):
    call, said = CALLS[name]
    weights = deepcopy(DENOISER.state_dict())
    with pytest.raises((ValueError, TypeError), match=said) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 200
    assert " at 0x" not in message
    assert all(torch.equal(value, weights[key]) for key, value in DENOISER.state_dict().items())


def test_sensible_neighbors_of_these_calls_work():
    """Labels of any integer type, no label, one image, batches larger than the data, a tensor as number."""
    uint8 = sample(cond=LABELS.to(torch.uint8))
    assert torch.equal(uint8, sample(cond=LABELS.int()))
    assert sample(cond=torch.full((3,), 3)).shape == X.shape
    assert sd.sample(DENOISER, X.shape, TIMES, LABELS).shape == X.shape
    assert sd.fit(deepcopy(DENOISER), IMAGES[:1], 1, batch=64).model
    assert sd.fit(denoiser(0), IMAGES.without_labels(), 1).model
    assert with_loss(sd.drop_labels(sd.denoising_loss, 3), denoiser()).model
    assert sd.Denoiser(net(), sd.Karras(), sd.targets.v, torch.tensor(0.5)).data_std == 0.5
    assert sd.slerp(X, X + 1, torch.linspace(0, 1, 3)).shape == (3, *X.shape)
    assert DENOISER(X, torch.tensor([0.5]), LABELS.int()).shape == X.shape
    trained = denoiser()
    assert next(sd.train(trained, [Batch(X, None, DRAWS)], sd.adamw(trained), lr=lambda n: 0.0)).finite
