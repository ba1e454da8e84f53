"""The denoising error at each noise level, and the two curves it lies between.

Below runs the optimal denoiser of the training set, which knows every image by heart; above, the best denoiser of data
of the same mean and covariance, which knows nothing else. A model that learns falls below the upper curve on unseen
images; one that hugs the lower curve on training images alone memorises.
"""

import math

import torch
from torch import Tensor

from .denoiser import Denoiser
from .randomness import Draws

LEVELS = torch.logspace(math.log10(0.02), math.log10(20), 13, dtype=torch.float64)
"""Noise-to-signal ratios sigma/alpha, for images in [-1, 1]."""


def noised(x0: Tensor, level: float, number: int, seed: int = 0) -> Tensor:
    """x0 + level eps, the noise derived from (seed, number of the level, row): `[N, ...]`."""
    eps = Draws(seed, number, range(len(x0))).normal("level", x0.shape[1:])
    return x0 + level * eps.to(x0)


@torch.no_grad()
def model_error(denoiser: Denoiser, x0: Tensor, cond: Tensor | None, batch: int = 250) -> Tensor:
    """Mean squared error of x0_hat for each pixel, at each of LEVELS: float64 `[13]`.

    x0 `[N, C, H, W]` in [-1, 1] and cond `[N]` or None, on the denoiser's device
    """
    schedule, errors = denoiser.schedule, []
    for number, level in enumerate(LEVELS):
        t = schedule.time_of(level[None])
        alpha = schedule.alpha(t).to(x0).item()
        total = 0.0
        x = noised(x0, schedule.ratio(t).item(), number)
        for i in range(0, len(x0), batch):
            labels = None if cond is None else cond[i : i + batch]
            x0_hat = denoiser(alpha * x[i : i + batch], t.to(x0), labels)
            total += (x0_hat - x0[i : i + batch]).double().square().sum().item()
        errors.append(total / x0.numel())
    return torch.tensor(errors, dtype=torch.float64)


def ideal_error(train: Tensor, chosen: Tensor, labels: Tensor | None = None) -> Tensor:
    """Error of the optimal denoiser of the training set on its own images, at each of LEVELS: float64 `[13]`.

    The denoiser is sum_i w_i x_i with w = softmax(-|x - x_i|^2 / (2 sigma^2)), in closed form; told the label, the sum
    runs over the images of that label.

    train   `[M, D]`, all training images
    chosen  int64 `[N]`: those that are noised
    labels  int64 `[M]` for the denoiser that is told them
    """
    norms, errors = train.square().sum(1), []
    for number, level in enumerate(LEVELS.tolist()):
        total = 0.0
        x = noised(train[chosen], level, number)
        for i in range(0, len(chosen), 250):
            logits = torch.addmm(norms, x[i : i + 250], train.T, alpha=-2).mul_(-1 / (2 * level**2))
            if labels is not None:
                logits.masked_fill_(labels != labels[chosen[i : i + 250], None], -torch.inf)
            x0_hat = logits.softmax(1) @ train
            total += (x0_hat - train[chosen[i : i + 250]]).double().square().sum().item()
        errors.append(total / (len(chosen) * train.shape[1]))
    return torch.tensor(errors, dtype=torch.float64)


def gaussian_error(train: Tensor, labels: Tensor | None = None) -> Tensor:
    """Error of the best denoiser of N(mean, covariance of the data), at each of LEVELS: float64 `[13]`.

    The mean over the eigenvalues l of the covariance of l s^2 / (l + s^2). train `[M, D]`; with labels `[M]`, the mean
    over the images of what the best denoiser of each label's own mean and covariance leaves.
    """
    if labels is not None:
        parts = [train[labels == label] for label in labels.unique()]
        return torch.stack([len(part) / len(train) * gaussian_error(part) for part in parts]).sum(0)
    centred = train.double() - train.double().mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred / len(train)).clamp(min=0)  # [D]
    square = LEVELS[:, None] ** 2
    return (values * square / (values + square)).mean(1)


def wiener_error(train: Tensor) -> Tensor:
    """Error of the best blur about the mean image (Wiener 1949), at each of LEVELS: float64 `[13]`.

    Of all filters that do to each pixel the same: the mean over the frequencies of P s^2 / (P + s^2), P the power of
    the images' differences from their mean. Few images suffice, unlike for the covariance. train `[N, C, H, W]`.
    """
    power = torch.fft.fft2(train - train.mean(0), norm="ortho").abs().double().square().mean(0).flatten()
    square = LEVELS[:, None] ** 2
    return (power * square / (power + square)).mean(1)
