"""Noise schedules: two curves, alpha(t) and sigma(t), with x_t = alpha_t x0 + sigma_t eps.

Time runs over (0, 1]: near 0 the image is clean, at 1 it is noise. sigma/alpha, the noise-to-signal ratio, rises
strictly, so that a time is as good as a noise level and one schedule is another one with its clock changed. Both curves
are written in closed form: `sqrt(1 - alpha**2)` would be 0 or NaN in float32 near t = 0.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


class Schedule(ABC):
    """A pair of curves over t in (0, 1]. Tensors of any shape in, the same shape and dtype out."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the signal in x_t."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Scale of the noise in x_t."""

    def ratio(self, t: Tensor) -> Tensor:
        """Noise-to-signal ratio sigma/alpha: what one schedule shares with another."""
        return self.sigma(t) / self.alpha(t)

    def levels(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t), shaped to multiply the batch x `[B, ...]`; t is `[B]` or a single time."""
        t = t.to(x).expand(len(x)).reshape(-1, *[1] * (x.ndim - 1))  # [B] -> [B, 1, ..., 1]
        return self.alpha(t), self.sigma(t)

    def time_of(self, ratio: Tensor) -> Tensor:
        """The time at which sigma/alpha is `ratio`, clamped to [0, 1]: the inverse of `ratio(t)`, by bisection."""
        low, high = torch.zeros_like(ratio), torch.ones_like(ratio)
        for _ in range(60):  # halves the bracket down to float64's resolution
            middle = (low + high) / 2
            below = self.sigma(middle) < ratio * self.alpha(middle)
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


@dataclass(frozen=True)
class Linear(Schedule):
    """The linear-beta schedule of DDPM in continuous time (Song et al. 2021, eq. 32-33): variance preserving."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -(self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2) / 2

    def alpha(self, t: Tensor) -> Tensor:
        return self._log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self._log_alpha(t))).sqrt()


@dataclass(frozen=True)
class Cosine(Schedule):
    """The cosine schedule (Nichol & Dhariwal 2021, eq. 17): alpha = cos(b)/cos(a), variance preserving.

    The paper caps each beta at 0.999 to keep the last step finite; here the clock stops at 0.9999 instead.
    """

    s: float = 0.008

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
    """The straight line of flow matching and rectified flow (Lipman et al. 2023; Liu et al. 2023).

    alpha stops at 1e-4 instead of 0, so that x0 stays defined at t = 1.
    """

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - 0.9999 * t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time_of(self, ratio: Tensor) -> Tensor:
        return (ratio / (1 + 0.9999 * ratio)).clamp(0, 1)


@dataclass(frozen=True)
class Karras(Schedule):
    """Variance exploding: alpha = 1, sigma along the rho-curve (Karras et al. 2022, eq. 5)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

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
        return ((ratio ** (1 / self.rho) - low) / (high - low)).clamp(0, 1)


@dataclass(frozen=True)
class Discrete(Schedule):
    """The classic table of betas (Ho et al. 2020, eq. 2 and 4): alpha_n^2 = prod (1 - beta_i), i <= n.

    Step n of T lies at t = n/T, where the table holds exactly. Between two steps, and below the first, the logarithm
    of sigma/alpha runs straight, so that samplers with grids of their own work on it too.

    betas   T numbers in (0, 1), the first is the first noising step
    """

    betas: tuple[float, ...]

    def __init__(self, betas: Sequence[float] | Tensor):
        object.__setattr__(self, "betas", tuple(float(beta) for beta in betas))
        if len(self.betas) < 2 or not all(0 < beta < 1 for beta in self.betas):
            raise ValueError("Discrete needs at least two betas, each inside (0, 1)")

    @cached_property
    def _log_ratios(self) -> Tensor:
        log_alpha2 = torch.tensor(self.betas, dtype=torch.float64).neg().log1p().cumsum(0)
        log_ratios = (torch.log(-torch.expm1(log_alpha2)) - log_alpha2) / 2  # [T], at t = 1/T ... 1
        return torch.cat([2 * log_ratios[:1] - log_ratios[1:2], log_ratios])  # [T + 1], from t = 0

    def _log_ratio(self, t: Tensor) -> Tensor:
        table = self._log_ratios.to(t.device)
        place = t.double() * (len(table) - 1)
        left = place.floor().clamp(0, len(table) - 2).long()
        return torch.lerp(table[left], table[left + 1], place - left)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-2 * self._log_ratio(t)).sqrt().to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sigmoid(2 * self._log_ratio(t)).sqrt().to(t.dtype)


SCHEDULES: dict[str, type[Schedule]] = {"linear": Linear, "cosine": Cosine, "flow": Flow, "karras": Karras}
"""Schedules by name, each usable without arguments; `Discrete` takes the table it is made of."""
