"""The denoising loss, where its training times fall, and how its levels are weighted.

The error is measured in the space of the network's output with weight 1: that is each paper's own loss (DDPM eq. 14 for
noise, EDM's lambda c_out^2 = 1 for velocity with data_std, flow matching eq. 23 for flow).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .denoiser import Denoiser
from .randomness import Draws
from .schedules import Schedule

Times = Callable[[Tensor, Schedule], Tensor]
"""A density of training times as its quantile function: u in (0, 1) `[B]` float64 -> t `[B]`."""

Weight = Callable[[Tensor], Tensor]
"""Weight of the squared error of z0_hat, as a function of snr = (alpha/sigma)^2."""

Loss = Callable[[Denoiser, Tensor, Tensor | None, Draws], Tensor]
"""(denoiser, x0 `[B, ...]`, cond `[B]` or None, draws) -> the loss of each sample `[B]`."""


def uniform(u: Tensor, schedule: Schedule) -> Tensor:
    """Times spread evenly over (0, 1] (Ho et al. 2020, algorithm 1)."""
    return 1 - 0.999 * u


@dataclass(frozen=True)
class LogNormal:
    """ln(sigma/alpha) ~ N(mean, std^2) (Karras et al. 2022, table 1). For Flow this is the logit-normal of SD3."""

    mean: float = -1.2
    std: float = 1.2

    def __call__(self, u: Tensor, schedule: Schedule) -> Tensor:
        quantile = torch.special.ndtri(u.clamp(1e-9, 1 - 1e-9))  # of the standard normal
        return schedule.time_of((self.mean + self.std * quantile).exp())


@dataclass(frozen=True)
class MinSNR:
    """min(snr, gamma) (Hang et al. 2023, section 3.4)."""

    gamma: float = 5.0

    def __call__(self, snr: Tensor) -> Tensor:
        return snr.clamp(max=self.gamma)


def denoising_loss(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Tensor | None,
    draws: Draws,
    *,
    times: Times = uniform,
    weight: Weight | None = None,
) -> Tensor:
    """The mean squared error of the network's output, for each sample: `[B]` (Ho et al. 2020, algorithm 1).

    x0      clean data `[B, ...]` in [-1, 1]
    cond    labels `[B]` int64, or None
    draws   random numbers of these samples: the noise and the times
    times   density of the training times
    weight  weight of |z0_hat - z0|^2 as a function of the SNR instead of weight 1 on the output
    """
    t = times(draws.stratified("time"), denoiser.schedule).to(x0)
    eps = draws.normal("noise", x0.shape[1:]).to(x0)
    alpha, sigma, a, b = denoiser.coefficients(t, x0)
    z0 = x0 / denoiser.data_std
    error = denoiser.predict(alpha * z0 + sigma * eps, t, cond) - (a * z0 + b * eps)
    if weight is not None:
        # z0_hat - z0 = -sigma / (b alpha - a sigma) * (out - out*), from Denoiser.forward.
        error = error * weight((alpha / sigma) ** 2).sqrt() * sigma / (b * alpha - a * sigma)
    return error.square().flatten(1).mean(1)
