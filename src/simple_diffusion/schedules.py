"""Noise schedules: two curves, alpha(t) and sigma(t), with x_t = alpha_t x0 + sigma_t eps.

The time t lies in (0, 1]: near 0 the image is clean, at 1 it is nearly pure noise. The noise-to-signal ratio
sigma/alpha, the noise level, increases strictly with t. So each time stands for one noise level, and schedules differ
only in the times at which they reach it. Both curves have a closed form, because `sqrt(1 - alpha**2)` would be 0 or NaN
in float32 near t = 0.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from .checks import check_floats, check_number, shown
from .system.device import widest_float


def check_times(t: Tensor) -> None:
    """Raise TypeError unless t, of any shape, are floats, and ValueError unless they lie in [0, 1].

    The values are checked on a CPU only, because other devices would have to wait.
    """
    check_floats("t", t, "times in (0, 1], a tensor of floats; step n of T is the time n / T")
    if t.device.type == "cpu" and t.numel() and not (t.min() >= 0 and t.max() <= 1):
        raise ValueError(f"`t` must be times in (0, 1], got values from {t.min():g} to {t.max():g}")


class Schedule(ABC):
    """The curves alpha(t) and sigma(t), t in (0, 1]. They keep the shape and the dtype of t."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the signal in x_t."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Scale of the noise in x_t."""

    def ratio(self, t: Tensor) -> Tensor:
        """Noise-to-signal ratio sigma/alpha, the noise level: it is comparable between schedules.

        Raises TypeError or ValueError unless t, of any shape, are times, as `levels` does.
        """
        check_times(t)
        return self.sigma(t) / self.alpha(t)

    def levels(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t), in a shape that broadcasts to x `[B, ...]`; t is `[B]` or a single time.

        Raises TypeError unless both are floats, and ValueError for another t (`check_times`).
        """
        check_floats("x", x, "a tensor of floats, such as sd.to_unit(pixels)")
        check_times(t)
        if t.ndim > 1 or t.numel() not in (1, len(x)):
            raise ValueError(f"`t` must be a single time or one for each of {len(x)} images, got {shown(t)}")
        t = t.to(x).expand(len(x)).reshape(-1, *[1] * (x.ndim - 1))  # [B] -> [B, 1, ..., 1]
        return self.alpha(t), self.sigma(t)

    def add_noise(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha_t x0 + sigma_t eps (Ho et al. 2020, eq. 4), like x0 `[B, ...]`; t is `[B]` or a single time.

        Raises ValueError for noise of another shape, and TypeError or ValueError as `levels` does.
        """
        if eps.shape != x0.shape:
            raise ValueError(f"`eps` must have the shape of x0, {tuple(x0.shape)}, got {shown(eps)}")
        alpha, sigma = self.levels(t, x0)
        return alpha * x0 + sigma * eps

    def time_of(self, ratio: Tensor) -> Tensor:
        """The time at which sigma/alpha is `ratio`, clamped to [0, 1]: the inverse of `ratio(t)`, by bisection.

        Raises TypeError unless the ratio is a tensor of floats, of any shape.
        """
        check_floats("ratio", ratio)
        low, high = torch.zeros_like(ratio), torch.ones_like(ratio)
        for _ in range(60):  # enough for the resolution of float64
            middle = (low + high) / 2
            below = self.sigma(middle) < ratio * self.alpha(middle)
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


@dataclass(frozen=True)
class BetaCurve(Schedule):
    """Variance preserving, with noise at a rate beta(t): alpha^2 = exp(-B) and sigma^2 = 1 - exp(-B), where B is the
    integral of beta from 0 to t (Song et al. 2021, eq. 11 and 33).

    beta_min, beta_max   ends of the rate per unit of t; the defaults are DDPM's 1e-4 and 0.02 per step times 1000 steps
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        check_number("beta_max", self.beta_max, 0)
        check_number("beta_min", self.beta_min, 0, self.beta_max, "[]")

    @abstractmethod
    def beta(self, t: Tensor) -> Tensor:
        """Rate at which noise is added at t."""

    @abstractmethod
    def integral(self, t: Tensor) -> Tensor:
        """Integral of beta from 0 to t."""

    def alpha(self, t: Tensor) -> Tensor:
        return (-self.integral(t) / 2).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(-self.integral(t))).sqrt()


@dataclass(frozen=True)
class Linear(BetaCurve):
    """DDPM's schedule: beta rises linearly from beta_min to beta_max (Ho et al. 2020, section 4)."""

    def beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def integral(self, t: Tensor) -> Tensor:
        return self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2


@dataclass(frozen=True)
class Quadratic(BetaCurve):
    """The square root of beta rises linearly, as in the code of Song et al. 2021 (DDIM)."""

    @property
    def _roots(self) -> tuple[float, float]:
        """The square root of beta at t = 0, and its slope."""
        return math.sqrt(self.beta_min), math.sqrt(self.beta_max) - math.sqrt(self.beta_min)

    def beta(self, t: Tensor) -> Tensor:
        low, slope = self._roots
        return (low + slope * t) ** 2

    def integral(self, t: Tensor) -> Tensor:
        low, slope = self._roots
        return low**2 * t + low * slope * t**2 + slope**2 * t**3 / 3


@dataclass(frozen=True)
class Sigmoid(BetaCurve):
    """beta rises along the logistic curve from -6 to 6, as in the code of Song et al. 2021 (DDIM).

    beta(0) and beta(1) lie inside beta_min and beta_max, by 0.25 % of their difference.
    """

    def beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * torch.sigmoid(12 * t - 6)

    def integral(self, t: Tensor) -> Tensor:
        # This is softplus(12 t - 6) - softplus(-6), without cancellation near t = 0.
        rise = torch.log1p(torch.expm1(12 * t) / (1 + math.exp(6)))
        return self.beta_min * t + (self.beta_max - self.beta_min) * rise / 12


@dataclass(frozen=True)
class Cosine(Schedule):
    """The cosine schedule (Nichol & Dhariwal 2021, eq. 17): alpha = cos(b)/cos(a), variance preserving.

    The paper limits each beta to 0.999 to keep the last step finite; here t is scaled by 0.9999 instead.

    s   offset of the time, which keeps the noise near t = 0 from becoming too small
    """

    s: float = 0.008

    def __post_init__(self) -> None:
        check_number("s", self.s, 0, ends="[)")

    def _angles(self, t: Tensor) -> tuple[float, Tensor]:
        """a and b - a."""
        quarter = math.pi / 2 / (1 + self.s)
        return quarter * self.s, quarter * 0.9999 * t

    def alpha(self, t: Tensor) -> Tensor:
        a, turn = self._angles(t)
        return (a + turn).cos() / math.cos(a)

    def sigma(self, t: Tensor) -> Tensor:
        a, turn = self._angles(t)
        # cos(a)^2 - cos(b)^2 = sin(b - a) sin(b + a): no cancellation near t = 0.
        return (turn.sin() * (2 * a + turn).sin()).sqrt() / math.cos(a)


@dataclass(frozen=True)
class Flow(Schedule):
    """The straight line of flow matching (Lipman et al. 2023, eq. 22-23) and rectified flow (Liu et al. 2023, eq. 1).

    alpha ends at 1e-4 instead of 0, so that x0 is defined at t = 1.
    """

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - 0.9999 * t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time_of(self, ratio: Tensor) -> Tensor:
        return (ratio / (1 + 0.9999 * ratio)).clamp(max=1)


@dataclass(frozen=True)
class Karras(Schedule):
    """Variance exploding: alpha = 1, and the rho-th root of sigma rises linearly (Karras et al. 2022, eq. 5).

    sigma_min, sigma_max   standard deviation of the noise at t = 0 and 1, for pixels in [-1, 1]
    rho                    at 1 sigma rises linearly; a larger rho keeps sigma small for longer
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        check_number("sigma_max", self.sigma_max, 0)
        check_number("sigma_min", self.sigma_min, 0, self.sigma_max)
        check_number("rho", self.rho, 0)

    @property
    def _ends(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        low, high = self._ends
        return (low + t * (high - low)) ** self.rho

    def time_of(self, ratio: Tensor) -> Tensor:
        low, high = self._ends
        return ((ratio.clamp(min=0) ** (1 / self.rho) - low) / (high - low)).clamp(0, 1)


@dataclass(frozen=True)
class Discrete(Schedule):
    """The table of betas of DDPM (Ho et al. 2020, eq. 2 and 4): alpha_n^2 = prod (1 - beta_i), i <= n.

    Step n of T lies at t = n/T, where the levels are exactly those of the table. Elsewhere the logarithm of sigma/alpha
    is interpolated linearly, and extrapolated below the first step, so that samplers can use any grid.

    betas   T numbers in (0, 1); the first belongs to the first noising step

    Raises ValueError for fewer than two betas, or for one outside (0, 1).
    """

    betas: tuple[float, ...]

    def __init__(self, betas: Sequence[float] | Tensor):
        object.__setattr__(self, "betas", tuple(float(beta) for beta in betas))
        if len(self.betas) < 2 or not all(0 < beta < 1 for beta in self.betas):
            raise ValueError("Discrete needs at least two betas, each inside (0, 1)")

    @cached_property
    def _log_ratios(self) -> Tensor:
        log_alpha2 = torch.tensor(self.betas, dtype=torch.float64).neg().log1p().cumsum(0)
        return (torch.log(-torch.expm1(log_alpha2)) - log_alpha2) / 2  # [T], at t = 1/T ... 1

    def _log_ratio(self, t: Tensor) -> Tensor:
        check_times(t)
        dtype = widest_float(t.device)
        table = self._log_ratios.to(t.device, dtype)
        place = t.to(dtype) * len(table) - 1
        left = place.floor().clamp(0, len(table) - 2).long()  # below the first step this extrapolates
        return torch.lerp(table[left], table[left + 1], place - left)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-2 * self._log_ratio(t)).sqrt().to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sigmoid(2 * self._log_ratio(t)).sqrt().to(t.dtype)


SCHEDULES: dict[str, type[Schedule]] = {
    "linear": Linear,
    "quadratic": Quadratic,
    "sigmoid": Sigmoid,
    "cosine": Cosine,
    "flow": Flow,
    "karras": Karras,
}
"""Schedules by name, without arguments. `Discrete` is not among them, because it needs a table of betas."""


# --- tables of betas for `Discrete`: float64 `[T]`, in the order of the noising steps

MAX_BETA = 0.999  # of a table (Nichol & Dhariwal 2021, section 3.2)


def linear_betas(T: int, scaled: bool = True) -> Tensor:
    """Linear from 1e-4 to 0.02 (Ho et al. 2020, section 4), times 1000/T if `scaled`: float64 `[T]`.

    Without scaling, a table of fewer than about 1000 steps does not end in noise: at T = 500, 8 % of the amplitude of
    the image is left. Raises ValueError if T is so small that a scaled beta would exceed 0.999.
    """
    return _along(Linear(), T, scaled)


def quadratic_betas(T: int, scaled: bool = True) -> Tensor:
    """From 1e-4 to 0.02, linear in the square root (the code of Song et al. 2021, DDIM): float64 `[T]`.

    Times 1000/T if `scaled`. Raises ValueError if T is so small that a scaled beta would exceed 0.999.
    """
    return _along(Quadratic(), T, scaled)


def sigmoid_betas(T: int, scaled: bool = True) -> Tensor:
    """From 1e-4 to 0.02 along the logistic curve from -6 to 6 (the code of Song et al. 2021, DDIM): float64 `[T]`.

    Times 1000/T if `scaled`. Raises ValueError if T is so small that a scaled beta would exceed 0.999.
    """
    return _along(Sigmoid(), T, scaled)


def cosine_betas(T: int, s: float = 0.008) -> Tensor:
    """1 - abar_n / abar_(n-1), at most 0.999, with abar_n = f(n/T) / f(0) (Nichol & Dhariwal 2021, eq. 17).

    T steps, s as in `Cosine`: float64 `[T]`. Raises ValueError if T is below 2.
    """
    _require(T, 2, "cosine")
    check_number("s", s, 0, ends="[)")
    angle = (torch.arange(T + 1, dtype=torch.float64) / T + s) / (1 + s) * math.pi / 2
    # cos(a)^2 - cos(b)^2 = sin(b - a) sin(b + a): no cancellation near t = 0.
    betas = angle.diff().sin() * (angle[:-1] + angle[1:]).sin() / angle[:-1].cos() ** 2
    return betas.clamp(max=MAX_BETA)


def _along(curve: BetaCurve, T: int, scaled: bool) -> Tensor:
    """The rates of a curve at T times, per step of length 1/T if `scaled`, else 1/1000."""
    end = curve.beta(torch.tensor(1.0)).item()
    _require(T, math.ceil(end / MAX_BETA) if scaled else 2, type(curve).__name__.lower())
    return curve.beta(torch.linspace(0, 1, T, dtype=torch.float64)) / (T if scaled else 1000)


def _require(T: int, least: int, name: str) -> None:
    if not isinstance(T, int) or least > T:
        raise ValueError(f"the {name} table of betas needs at least {least} steps, got {shown(T)}")


BETAS: dict[str, Callable[[int], Tensor]] = {
    "linear": linear_betas,
    "quadratic": quadratic_betas,
    "sigmoid": sigmoid_betas,
    "linear-unscaled": partial(linear_betas, scaled=False),
    "quadratic-unscaled": partial(quadratic_betas, scaled=False),
    "sigmoid-unscaled": partial(sigmoid_betas, scaled=False),
    "cosine": cosine_betas,
}
"""Tables of betas by name, each a function of the number of steps T that returns float64 `[T]`."""
