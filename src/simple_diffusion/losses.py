"""The denoising loss, densities of noise levels, and weights of noise levels.

By default the loss is the squared error of the network's output, with weight 1. This is the loss of each paper: DDPM
eq. 14 for the target noise, EDM's lambda c_out^2 = 1 for v with data_std, flow matching eq. 23 for flow without it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_callable, check_number, shown
from .denoiser import Denoiser
from .randomness import Draws
from .schedules import Discrete, Schedule

Density = Callable[[Tensor, Schedule], Tensor]
"""A density of noise levels, given by its quantile function: u in (0, 1) `[B]` float64, schedule -> t `[B]`."""

Weight = Callable[[Tensor], Tensor]
"""Weight of the squared error of the x0 prediction as a function of snr = (alpha/sigma)^2."""

Criterion = Callable[[Tensor], Tensor]
"""Elementwise penalty of an error, such as its square."""

Loss = Callable[[Denoiser, Tensor, Tensor | None, Draws], Tensor]
"""(denoiser, x0 `[B, ...]`, cond `[B]` or None, draws) -> the loss of each sample `[B]`."""


def uniform(u: Tensor, schedule: Schedule) -> Tensor:
    """Uniform times on (0.001, 1], for any schedule: u `[B]` in (0, 1) -> t `[B]` (Ho et al. 2020, algorithm 1)."""
    return 1 - 0.999 * u


def on_steps(u: Tensor, schedule: Schedule) -> Tensor:
    """Times n/T with n uniform on 1, ..., T, for a schedule of T betas (Ho et al. 2020, algorithm 1).

    u `[B]` in (0, 1) -> t `[B]`.

    Raises ValueError for a schedule in continuous time.
    """
    if not isinstance(schedule, Discrete):
        name = type(schedule).__name__
        raise ValueError(f"{name} has no table of betas: use Discrete or another density")
    steps = len(schedule.betas)
    return ((u * steps).floor() + 1).clamp(max=steps) / steps  # u can round to 1


@dataclass(frozen=True)
class LogNormal:
    """ln(sigma/alpha) ~ N(mean, std^2) (Karras et al. 2022, table 1): u `[B]` in (0, 1) -> t `[B]`, on any schedule.

    On Flow this is the logit-normal density of Esser et al. 2024 (Stable Diffusion 3).

    mean   of ln(sigma/alpha); EDM's -1.2 means sigma/alpha = 0.30, for pixels in [-1, 1]
    std    standard deviation of ln(sigma/alpha), above 0
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        check_number("mean", self.mean)
        check_number("std", self.std, 0)

    def __call__(self, u: Tensor, schedule: Schedule) -> Tensor:
        quantile = torch.special.ndtri(u.clamp(1e-9, 1 - 1e-9))  # of the standard normal
        return schedule.time_of((self.mean + self.std * quantile).exp())


@dataclass(frozen=True)
class MinSNR:
    """The weight min(snr, gamma), for snr = (alpha/sigma)^2 of any shape (Hang et al. 2023, section 3.4).

    gamma   largest weight; 5 in the paper
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        check_number("gamma", self.gamma, 0, math.inf, "(]")

    def __call__(self, snr: Tensor) -> Tensor:
        return snr.clamp(max=self.gamma)


def huber(error: Tensor) -> Tensor:
    """e^2/2 where |e| <= 1, else |e| - 1/2, for each element e of the error (Huber 1964, with delta = 1)."""
    return F.huber_loss(error, torch.zeros_like(error), reduction="none")


CRITERIA: dict[str, Criterion] = {"l2": torch.square, "l1": torch.abs, "huber": huber}
"""Criteria by name. Only with l2 is the ideal network the posterior mean; with l1 it is the posterior median."""


def denoising_loss(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Tensor | None,
    draws: Draws,
    *,
    density: Density = uniform,
    weight: Weight | None = None,
    criterion: Criterion = torch.square,
) -> Tensor:
    """The mean squared error of the network's output, for each sample: `[B]` (Ho et al. 2020, algorithm 1, eq. 14).

    denoiser   its schedule, target, data_std and data_mean define the output that the network is trained for
    x0         clean data `[B, ...]` in [-1, 1]
    cond       labels `[B]` int64, or None
    draws      random numbers of these samples, for the noise and the times
    density    density of the noise levels, as its quantile function
    weight     weight of |z0_hat - z0|^2 as a function of the SNR, in place of weight 1 on the output; the error is
               multiplied by its square root before the criterion
    criterion  elementwise penalty of the error, by default its square

    Raises ValueError unless there are a label and random numbers for each sample, and a penalty for each element, and
    TypeError for a density, weight or criterion that is no function.
    """
    if len(draws.samples) != len(x0) or (cond is not None and cond.shape != (len(x0),)):
        labels = "no labels" if cond is None else f"labels {tuple(cond.shape)}"
        raise ValueError(f"{len(x0)} samples need as many draws and labels, got {len(draws.samples)} and {labels}")
    check_callable("density", density, "a function such as sd.uniform or sd.LogNormal()")
    check_callable("weight", weight or MinSNR(), "a function such as sd.MinSNR()")
    check_callable("criterion", criterion, "a function such as torch.square")
    t = density(draws.stratified("time"), denoiser.schedule).to(x0)
    eps = draws.normal("noise", x0.shape[1:]).to(x0)
    alpha, sigma, a, b = denoiser.coefficients(t, x0)
    z0 = denoiser.normalize(x0)
    error = denoiser.predict(alpha * z0 + sigma * eps, t, cond) - (a * z0 + b * eps)
    if weight is not None:
        # z0_hat - z0 = -sigma / (b alpha - a sigma) * (out - out*), from Denoiser.forward.
        error = error * weight((alpha / sigma) ** 2).sqrt() * sigma / (b * alpha - a * sigma)
    penalty = criterion(error)
    if penalty.shape != error.shape:
        raise ValueError(f"`criterion` must penalize each element of {tuple(error.shape)}, got {shown(penalty)}")
    return penalty.flatten(1).mean(1)


def loss_of_error(denoiser: Denoiser, ratios: Tensor, errors: Tensor, weight: Weight | None = None) -> Tensor:
    """The denoising loss with the square as criterion, from the error of the x0 prediction: float64 `[L]`.

    ratios  noise levels sigma/alpha `[L]` float64, within the range of the schedule
    errors  mean squared errors per pixel of the x0 prediction `[L]`, for pixels in [-1, 1]
    weight  as in `denoising_loss`
    """
    alpha, sigma, a, b = denoiser.coefficients(denoiser.schedule.time_of(ratios), ratios)
    # z0_hat - z0 = -sigma / (b alpha - a sigma) * (out - out*), from Denoiser.forward.
    factor = ((b * alpha - a * sigma) / sigma) ** 2 if weight is None else weight((alpha / sigma) ** 2)
    return factor * errors / denoiser.data_std**2


def loss_by_level(losses: Tensor, density: Density, schedule: Schedule, most: int = 16) -> list[tuple[float, float]]:
    """(sigma/alpha, mean loss) in the order of rising noise.

    The times are stratified: sample i of B lies in the i-th of B quantiles of the density.

    losses    of the samples `[B]`, averaged over steps
    density   density of the noise levels in training
    schedule  the schedule in training
    most      largest number of points; each averages the same number of neighboring samples
    """
    parts = losses.detach().cpu().double().tensor_split(min(most, len(losses)))
    middles = torch.arange(len(parts), dtype=torch.float64).add(0.5).div(len(parts))
    ratios = schedule.ratio(density(middles, schedule).double())
    return sorted(zip(ratios.tolist(), (part.mean().item() for part in parts), strict=True))
