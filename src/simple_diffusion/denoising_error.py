"""The denoising error at each noise level, and the two bounds between which it should lie.

The upper bound is the error of the linear denoiser, which uses nothing but the mean and the covariance of the data. A
model that learns falls below it on unseen images. The lower bound, for the training images alone, is the error of the
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


def level_noise(x0: Tensor, number: int) -> Tensor:
    """Unit noise like x0 `[N, ...]` for the level of this number in LEVELS, the same in every measurement."""
    return Draws(0, number, range(len(x0))).normal("level", x0.shape[1:]).to(x0)


@torch.no_grad()
def model_error(denoiser: PosteriorMean, x0: Tensor, cond: Tensor | None) -> Tensor:
    """Mean squared error a pixel of the x0 prediction, at each of LEVELS: float64 `[13]`.

    x0 `[N, C, H, W]` in [-1, 1] and cond int64 `[N]` or None, on the denoiser's device
    """
    schedule, errors = denoiser.schedule, []
    for number, level in enumerate(LEVELS):
        t = schedule.time_of(level[None]).to(x0)
        total = 0.0
        x_t = schedule.add_noise(x0, t, level_noise(x0, number))
        for i in range(0, len(x0), BATCH):
            labels = None if cond is None else cond[i : i + BATCH]
            x0_hat = denoiser(x_t[i : i + BATCH], t, labels)
            total += (x0_hat - x0[i : i + BATCH]).to(widest_float(x0.device)).square().sum().item()
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
    norms, errors = train.square().sum(1), []
    for number, level in enumerate(LEVELS.tolist()):
        total = 0.0
        x = train[chosen] + level * level_noise(train[chosen], number)
        for i in range(0, len(chosen), BATCH):
            logits = torch.addmm(norms, x[i : i + BATCH], train.T, alpha=-2).mul_(-1 / (2 * level**2))
            if labels is not None:
                logits.masked_fill_(labels != labels[chosen[i : i + BATCH], None], -torch.inf)
            x0_hat = logits.softmax(1) @ train
            total += (x0_hat - train[chosen[i : i + BATCH]]).double().square().sum().item()
        errors.append(total / (len(chosen) * train.shape[1]))
    return torch.tensor(errors, dtype=torch.float64)


def linear_error(train: Tensor, labels: Tensor | None = None) -> Tensor:
    """Error of the linear denoiser, the best one for data N(mean, covariance), at each of LEVELS: float64 `[13]`.

    It is the mean of l s^2 / (l + s^2) over the eigenvalues l of the covariance, s = sigma/alpha. If it is conditioned
    on the label, each label has its own mean and covariance, and the errors are averaged over the images.

    train   `[M, D]`
    labels  int64 `[M]` to condition on, or None
    """
    if labels is not None:
        parts = [train[labels == label] for label in labels.unique()]
        return torch.stack([len(part) / len(train) * linear_error(part) for part in parts]).sum(0)
    centered = train.double() - train.double().mean(0)
    values = torch.linalg.eigvalsh(centered.T @ centered / len(train)).clamp(min=0)  # [D]
    square = LEVELS[:, None] ** 2
    return (values * square / (values + square)).mean(1)


def wiener_error(train: Tensor) -> Tensor:
    """Error of the Wiener denoiser, at each of LEVELS: float64 `[13]`. train `[N, C, H, W]`

    It is the best linear filter that treats all pixels alike (Wiener 1949): the mean of P s^2 / (P + s^2) over the
    frequencies, P the power of the differences from the mean image, s = sigma/alpha. Unlike the covariance of
    `linear_error`, the power can be estimated from a few hundred images.
    """
    power = torch.fft.fft2(train - train.mean(0), norm="ortho").abs().double().square().mean(0).flatten()
    square = LEVELS[:, None] ** 2
    return (power * square / (power + square)).mean(1)


def points_of(levels: Tensor, errors: Tensor) -> list[tuple[float, float]]:
    """The points of an `ErrorCurve`: levels and errors `[L]`."""
    return list(zip(levels.tolist(), errors.tolist(), strict=True))


def error_curves(denoiser: Denoiser, train: Images, test: Images | None, n: int = 500) -> list[ErrorCurve]:
    """The model's error on n training images and, if there are any, n unseen ones, with both bounds."""
    device = next(denoiser.parameters()).device
    chosen = permutation(len(train), 0, "levels")[:n]

    def of_model(images: Images, some: Tensor) -> Tensor:
        labels = None if images.labels is None else images.labels[some].to(device)
        return model_error(denoiser, to_unit(images.pixels[some]).to(device), labels)

    flat = to_unit(train.pixels).flatten(1)
    curves = [
        ErrorCurve("linear denoiser", points_of(LEVELS, linear_error(flat, train.labels)), "upper bound"),
        ErrorCurve("model, training images", points_of(LEVELS, of_model(train, chosen))),
        ErrorCurve("ideal denoiser", points_of(LEVELS, ideal_error(flat, chosen, train.labels)), "lower bound"),
    ]
    if test is not None:
        unseen = of_model(test, permutation(len(test), 0, "levels")[:n])
        curves.append(ErrorCurve("model, unseen images", points_of(LEVELS, unseen)))
    return curves


def loss_bounds(denoiser: Denoiser, images: Images, weight: Weight | None = None, n: int = 1000) -> list[ErrorCurve]:
    """The bounds of the squared-error loss by noise level, from n images at most, so that they take about a second.

    The Wiener denoiser stands for the linear one: n images are too few for a covariance.

    weight  as in `denoising_loss`
    """
    some = permutation(len(images), 0, "levels")[:n]
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
