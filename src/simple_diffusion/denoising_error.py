"""The denoising error at each noise level, and the two bounds between which it should lie.

The upper bound is the error of the linear denoiser, which uses nothing but the mean and the covariance of the data. It
is measured on unseen images, too: each image is left out in turn, in closed form. A model that learns falls below it on
unseen images. The lower bound, for the training images alone, is the error of the
ideal denoiser of the training set, the posterior mean over all training images. A model that comes close to it on the
training images, but not on unseen ones, memorizes.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .data.images import Images, to_unit
from .denoiser import Denoiser, PosteriorMean
from .losses import Weight, loss_of_error
from .randomness import Draws, permutation
from .system.device import widest_float

LEVELS = torch.logspace(math.log10(0.02), math.log10(20), 13, dtype=torch.float64)
"""Noise levels sigma/alpha, for images in [-1, 1]."""

BATCH = 250
PIXELS = 2**18
"""Most pixels in a batch of the network: images of more than 32 x 32 pixels get smaller batches than BATCH."""
NUMBERS = 2**26
"""Most numbers of a set of float images in memory: 256 MiB. Of a larger set a random part is measured."""
SHRINKAGES = torch.tensor([0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0], dtype=torch.float64)
"""Shares of the identity in the covariance of the linear denoiser, of which the best is chosen at each level."""


@dataclass(frozen=True)
class ErrorCurve:
    """An error, or a loss, at several noise levels.

    name    what is measured, for a legend
    points  pairs of the noise level sigma/alpha and the error
    kind    "model" for a measured error, "upper bound" or "lower bound" for a reference
    """

    name: str
    points: list[tuple[float, float]]
    kind: Literal["model", "upper bound", "lower bound"] = "model"


def level_noise(x0: Tensor, number: int, first: int = 0) -> Tensor:
    """Unit noise like x0 `[N, ...]` for the level of this number in LEVELS, the same in every measurement.

    first   number of the first image, if x0 is a part of the measured images
    """
    return Draws(0, number, range(first, first + len(x0))).normal("level", x0.shape[1:]).to(x0)


def chosen_from(images: Images, most: int | None = None) -> Tensor:
    """The numbers of `most` images, or all, in random order; fewer where they have more than NUMBERS numbers."""
    fits = max(NUMBERS // math.prod(images.shape), 1)
    return permutation(len(images), 0, "levels")[: fits if most is None else min(most, fits)]


@torch.no_grad()
def model_error(denoiser: PosteriorMean, x0: Tensor, cond: Tensor | None) -> Tensor:
    """Mean squared error a pixel of the x0 prediction, at each of LEVELS: float64 `[13]`.

    x0 `[N, C, H, W]` in [-1, 1] and cond int64 `[N]` or None, on the denoiser's device
    """
    schedule, errors = denoiser.schedule, []
    batch = max(min(BATCH, PIXELS // math.prod(x0.shape[2:])), 1)
    for number, level in enumerate(LEVELS):
        t = schedule.time_of(level[None]).to(x0)
        total = 0.0
        for i in range(0, len(x0), batch):
            x, labels = x0[i : i + batch], None if cond is None else cond[i : i + batch]
            x0_hat = denoiser(schedule.add_noise(x, t, level_noise(x, number, i)), t, labels)
            total += (x0_hat - x).to(widest_float(x.device)).square().sum().item()
        errors.append(total / x0.numel())
    return torch.tensor(errors, dtype=torch.float64)


def ideal_error(train: Tensor, chosen: Tensor, labels: Tensor | None = None) -> Tensor:
    """Error of the ideal denoiser of the training set on training images, at each of LEVELS: float64 `[13]`.

    It is the posterior mean over the training images (Karras et al. 2022, appendix B.3): sum_i w_i x_i with weights
    w = softmax(-|x - x_i|^2 / (2 sigma^2)). Conditioned on the label, the sum runs over the images of that label.

    train   `[M, D]`, all training images
    chosen  int64 `[N]`: the numbers of the images to which noise is added
    labels  int64 `[M]` to condition on, or None
    """
    norms, errors = torch.linalg.vector_norm(train, dim=1).square(), []
    for number, level in enumerate(LEVELS.tolist()):
        total = 0.0
        for i in range(0, len(chosen), BATCH):
            some = chosen[i : i + BATCH]
            x = train[some] + level * level_noise(train[some], number, i)
            logits = torch.addmm(norms, x, train.T, alpha=-2).mul_(-1 / (2 * level**2))
            if labels is not None:
                logits.masked_fill_(labels != labels[some, None], -torch.inf)
            x0_hat = logits.softmax(1) @ train
            total += (x0_hat - train[some]).double().square().sum().item()
        errors.append(total / (len(chosen) * train.shape[1]))
    return torch.tensor(errors, dtype=torch.float64)


def linear_error(train: Tensor, labels: Tensor | None = None) -> Tensor:
    """Error on unseen images of the linear denoiser that is fitted to these, at each of LEVELS: float64 `[13]`.

    It is the best denoiser of data N(mean, covariance). The covariance is shrunk towards a multiple of the identity
    (Ledoit & Wolf 2004), because with few images the nearest subspace holds every training image and no other. If it is
    conditioned on the label, each label has its own mean and covariance unless those of all images do better, and the
    errors are averaged over the images. An error above sigma^2, that of the noisy image itself, counts as sigma^2.

    train   `[M, D]`; a random part of a large set is used, so that it takes a few seconds
    labels  int64 `[M]` to condition on, or None
    """
    most = 3000 if train.shape[1] <= 1024 else 1000
    some = permutation(len(train), 0, "linear")[:most]
    shared = leave_one_out(train[some])
    if labels is None:
        return torch.minimum(shared.mean(1), LEVELS**2)
    total = torch.zeros_like(LEVELS)
    for label in labels.unique():
        mine, theirs = (labels == label).nonzero()[:, 0], labels[some] == label
        error = (shared[:, theirs] if theirs.any() else shared).mean(1)
        if len(mine) > 1:
            own = mine[permutation(len(mine), 0, "linear")[:most]]
            error = torch.minimum(error, leave_one_out(train[own]).mean(1))
        total += len(mine) / len(train) * torch.minimum(error, LEVELS**2)
    return total


def leave_one_out(x: Tensor) -> Tensor:
    """Error on each image of the linear denoiser that is fitted to all others, at each of LEVELS: float64 `[13, N]`.

    With covariance C, the denoiser is mean + (I - s^2 Q)(x_t - mean), where Q = (C + s^2 I)^-1. Its expected error on
    x is s^4 |Q (x - mean)|^2 + s^2 tr (I - s^2 Q)^2. Leaving out an image subtracts from C a multiple of d d^T, where d
    is its difference from the mean. So the formula of Sherman and Morrison gives each Q from one decomposition: of the
    D x D covariance, or of the N x N Gram matrix if that is smaller.

    x   `[N, D]`; a single image has the error infinity
    """
    n, width = x.shape
    if n < 2:
        return torch.full((len(LEVELS), n), torch.inf, dtype=torch.float64)
    d = x.double()
    d -= d.mean(0)
    if n <= width:
        values, vectors = torch.linalg.eigh(d @ d.T / (n - 1))
        along = vectors.square() * values.clamp(min=0) * (n - 1)
    else:
        values, vectors = torch.linalg.eigh(d.T @ d / (n - 1))
        along = (d @ vectors).square()  # [N, R]: the squared part of d in each direction
    values = values.clamp(min=0)  # [R]
    square = LEVELS[:, None] ** 2
    floor = (SHRINKAGES * values.sum() / width + square).flatten()  # [K] for each level and shrinkage
    kept = (1 - SHRINKAGES).repeat(len(LEVELS))
    square = square.expand(-1, len(SHRINKAGES)).flatten()
    q = 1 / (kept * values[:, None] + floor)  # [R, K]: the eigenvalues of Q with all images
    c = kept * n / (n - 1) ** 2
    first, second, third = (along @ q**power for power in (1, 2, 3))  # [N, K]: d^T Q^p d
    gain = 1 / (1 - c * first).clamp(min=1e-12)
    trace = [(q**p).sum(0) + (width - len(values)) / floor**p for p in (1, 2)]
    trace_q = trace[0] + c * gain * second
    trace_q2 = trace[1] + 2 * c * gain * third + (c * gain * second) ** 2
    blur = (square * n / (n - 1) * gain) ** 2 * second
    noise = square * (width - 2 * square * trace_q + square**2 * trace_q2)
    errors = ((blur + noise) / width).reshape(n, len(LEVELS), len(SHRINKAGES))
    best = errors.mean(0).argmin(1)  # [13]
    return errors[:, torch.arange(len(LEVELS)), best].T


def wiener_error(train: Tensor) -> Tensor:
    """Error on unseen images of the Wiener denoiser fitted to these, at each of LEVELS: float64 `[13]`.

    It is the best linear filter that treats all pixels alike (Wiener 1949): P / (P + s^2) at each frequency, P the mean
    power of the differences from the mean image, s = sigma/alpha. Each image is left out in turn. Unlike the covariance
    of `linear_error`, the power can be estimated from a few hundred images. An error above sigma^2 counts as sigma^2.

    train `[N, C, H, W]` in random order, because the error is measured on the first four million numbers
    """
    n, square = len(train), LEVELS**2
    if n < 2:
        return square
    mean = train.mean(0)

    def powers(block: Tensor) -> Tensor:
        return torch.fft.fft2(block - mean, norm="ortho").abs().double().square().flatten(1)

    blocks = train.split(max(2**20 // mean.numel(), 1))
    total = torch.stack([powers(block).sum(0) for block in blocks]).sum(0)
    errors, measured = torch.zeros_like(LEVELS), 0
    for block in blocks[:4]:  # enough, and slower than the power of all
        measured += block.numel()
        own = powers(block)
        others = ((total - own * n / (n - 1)) / (n - 1)).clamp(min=0)
        for number, s2 in enumerate(square.tolist()):
            noise = s2 / (others + s2)
            errors[number] += (noise.square() * own * (n / (n - 1)) ** 2 + s2 * (1 - noise).square()).sum().item()
    return torch.minimum(errors / measured, square)


def points_of(levels: Tensor, errors: Tensor) -> list[tuple[float, float]]:
    """The points of an `ErrorCurve`: levels and errors `[L]`."""
    return list(zip(levels.tolist(), errors.tolist(), strict=True))


def error_curves(denoiser: Denoiser, train: Images, test: Images | None, n: int = 500) -> list[ErrorCurve]:
    """The model's error on n training images and, if there are any, n unseen ones, with both bounds.

    Of large images there are fewer, and the bounds are those of a part of the training set (`NUMBERS`).
    """
    device = next(denoiser.parameters()).device

    def of_model(images: Images) -> Tensor:
        some = images[chosen_from(images, n)]
        labels = None if some.labels is None else some.labels.to(device)
        return model_error(denoiser, to_unit(some.pixels).to(device), labels)

    known = chosen_from(train)
    flat, labels = to_unit(train.pixels[known]).flatten(1), None if train.labels is None else train.labels[known]
    lower = "ideal denoiser" if len(known) == len(train) else f"ideal denoiser of {len(known):,} images"
    curves = [
        ErrorCurve("linear denoiser", points_of(LEVELS, linear_error(flat, labels)), "upper bound"),
        ErrorCurve("model, training images", points_of(LEVELS, of_model(train))),
        ErrorCurve(lower, points_of(LEVELS, ideal_error(flat, torch.arange(len(known))[:n], labels)), "lower bound"),
    ]
    if test is not None and (unseen := test.new_to(train)):
        curves.append(ErrorCurve("model, unseen images", points_of(LEVELS, of_model(unseen))))
    return curves


def loss_bounds(denoiser: Denoiser, images: Images, weight: Weight | None = None, n: int = 1000) -> list[ErrorCurve]:
    """The bounds of the squared-error loss by noise level, from n images at most, so that they take about a second.

    The Wiener denoiser stands for the linear one: n images are too few for a covariance.

    weight  as in `denoising_loss`
    """
    some = chosen_from(images, n)
    x0 = to_unit(images.pixels[some]).cpu()
    labels = None if images.labels is None else images.labels[some].cpu()
    low, high = denoiser.schedule.ratio(torch.tensor([0.0, 1.0], dtype=torch.float64))
    reached = (low <= LEVELS) & (high >= LEVELS)

    def loss(error: Tensor) -> list[tuple[float, float]]:
        return points_of(LEVELS[reached], loss_of_error(denoiser, LEVELS[reached], error[reached], weight))

    ideal = ideal_error(x0.flatten(1), torch.arange(min(len(x0), 64)), labels)
    return [
        ErrorCurve("Wiener denoiser", loss(wiener_error(x0)), "upper bound"),
        ErrorCurve(f"ideal denoiser of {len(x0):,} images", loss(ideal), "lower bound"),
    ]
