"""95 % intervals of scores, from their standard errors.

An interval covers the expectation of a score over other samples of the same model. How often it does so was measured
with features of several distributions (docs/evaluation.md). It covers less if a few outlying samples decide the value.
"""

import math

import torch
from torch import Tensor

Interval = tuple[float, float]
"""(low, high)."""

NORMAL = 1.96
"""The 97.5 % quantile of the normal distribution."""
STUDENT = {10: 2.262, 20: 2.093}
"""Number of groups of a jackknife -> the 97.5 % quantile of Student's t with one degree of freedom less."""
ROUNDING = 1e-12
"""An error below this share of the value is rounding."""
HEAVY = 4.0
"""A `tail_weight` above which the intervals of FID cover clearly less than 95 %."""


def about(value: float, error: float, quantile: float = NORMAL) -> Interval | None:
    """The value ± quantile errors; None where the samples show no spread but rounding."""
    return (value - quantile * error, value + quantile * error) if error > ROUNDING * abs(value) else None


def of_distance(value: float, error: float, quantile: float) -> Interval | None:
    """The interval of a value >= 0, symmetric on a logarithmic scale; None without an error.

    A set without outlying samples has too low a FID and too low an error. So the upper end must lie farther away than
    the lower end. Where the error exceeds the value, the logarithm has no meaning and the interval grows linearly.
    """
    if error <= ROUNDING * value:
        return None
    ratio = min(error / value, 1.0) if value > 0 else 1.0
    beyond = quantile * max(error - value, 0.0)
    return max(value * math.exp(-quantile * ratio) - beyond, 0.0), value * math.exp(quantile * ratio) + beyond


def of_share(share: float, n: int, error: float | None = None, quantile: float = NORMAL) -> Interval:
    """The score interval of a share in [0, 1] of n samples (Wilson 1927), which has a width at 0 and 1, too.

    error   standard error from a jackknife; None for independent samples. A larger error than theirs means that the n
            samples are worth fewer independent ones.
    """
    spread, inner = share * (1 - share), (n * share + 2) / (n + 4)  # the inner share is never 0 or 1
    count = min(n, inner * (1 - inner) / error**2) if error else n
    shift = quantile**2 / count
    center = (share + shift / 2) / (1 + shift)
    half = math.sqrt(spread * shift + shift**2 / 4) / (1 + shift)
    return max(center - half, 0.0), min(center + half, 1.0)


def share_text(share: float, n: int) -> str:
    """The interval of a share of n independent samples, in percent."""
    low, high = of_share(share, n)
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def tail_weight(features: Tensor) -> float:
    """How heavy the tails of features `[N, D]` are: mean |d|^4 over (mean |d|^2)^2, d the difference from the mean.

    It is 1 + 2/D for independent normal features, and 1.3 for images through the extractors of this package.
    """
    square = (features - features.mean(0)).double().square().sum(1)
    return (square.square().mean() / square.mean().square().clamp(min=torch.finfo(torch.float64).tiny)).item()
