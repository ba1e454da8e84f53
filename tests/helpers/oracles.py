"""Exact denoisers: posterior means known in closed form, on any schedule, and the flows that they make."""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from simple_diffusion.schedules import SCHEDULES, Discrete, Karras, Schedule
from simple_diffusion.targets import Target

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)  # the table of DDPM
ALL: dict[str, Schedule] = {**{name: make() for name, make in SCHEDULES.items()}, "discrete": Discrete(BETAS)}
WIDE = Karras(1e-5, 1e5)  # reaches every level that the others do
VARIANCE_PRESERVING = tuple(name for name in ALL if name not in ("flow", "karras"))


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def close(got, want, tolerance=1e-12):
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@dataclass(frozen=True)
class Gaussian:
    """Data N(mean, std^2), each coordinate for itself; std = 0 is a single image."""

    schedule: Schedule
    mean: float = 0.7
    std: float = 0.4

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        alpha, sigma = self.schedule.levels(t, x_t)
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (x_t - alpha * self.mean)

    def marginal_std(self, t: Tensor, x: Tensor) -> Tensor:
        alpha, sigma = self.schedule.levels(t, x)
        return (alpha**2 * self.std**2 + sigma**2).sqrt()

    def at(self, z: Tensor, t: Tensor) -> Tensor:
        """The point z deviations from the mean of x_t: the probability-flow ODE keeps z."""
        alpha, _ = self.schedule.levels(t, z)
        return alpha * self.mean + z * self.marginal_std(t, z)


@dataclass(frozen=True)
class Mixture:
    """Data sum_k w_k N(mean_k, std^2) on the line; with cond, component cond alone. The null label: all of them."""

    schedule: Schedule
    means: tuple[float, ...] = (-0.6, 0.6)
    weights: tuple[float, ...] = (0.3, 0.7)
    std: float = 0.4

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        alpha, sigma = self.schedule.levels(t, x_t)
        means, weights = x_t.new_tensor(self.means), x_t.new_tensor(self.weights)
        variance = alpha**2 * self.std**2 + sigma**2
        offset = x_t[..., None] - alpha[..., None] * means  # [..., K]
        component = means + (alpha * self.std**2 / variance)[..., None] * offset
        logits = weights.log() - offset**2 / (2 * variance[..., None])
        if cond is not None:
            chosen = torch.nn.functional.one_hot(cond, len(means) + 1)[:, :-1].bool()
            known = chosen.any(1)[:, None]
            mask = torch.where(known, chosen, True)
            logits = logits.masked_fill(~mask[:, None, :], -torch.inf)
        weight = (logits - logits.amax(-1, keepdim=True)).exp()  # softmax would wake threads for nine numbers
        return (weight * component).sum(-1) / weight.sum(-1)


@cache
def mixture_flow(high: float, low: float, n: int = 400) -> tuple[Tensor, Tensor]:
    """(z high, where the flow of `Mixture` takes it), both x/alpha `[9, 1]`, from level `high` to level `low`.

    Classical Runge-Kutta in log(sigma/alpha): fourth order, and nothing in common with a sampler.
    """
    oracle = Mixture(Karras(low / 2, 2 * high))

    def slope(y: Tensor, log_level: Tensor) -> Tensor:
        return y - oracle(y, oracle.schedule.time_of(log_level.exp()))

    start = y = high * torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    logs = torch.linspace(math.log(high), math.log(low), n + 1, dtype=torch.float64)
    for log, h in zip(logs, logs.diff(), strict=False):
        k1 = slope(y, log)
        k2 = slope(y + h / 2 * k1, log + h / 2)
        k3 = slope(y + h / 2 * k2, log + h / 2)
        k4 = slope(y + h * k3, log + h)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return start, y


class Affine(nn.Module):
    """A network that returns gain x + shift and remembers what it was given."""

    def __init__(self, gain=0.0, shift=0.0):
        super().__init__()
        self.gain, self.shift = gain, shift

    def forward(self, x, noise_level, cond):
        self.seen = x, noise_level, cond
        return self.gain * x + self.shift


class Bayes(nn.Module):
    """The best network for a target, E[out* | x], where the oracle, on `WIDE`, knows E[z0 | x_t]."""

    def __init__(self, target: Target, oracle: Gaussian | Mixture):
        super().__init__()
        self.target, self.oracle = target, oracle

    def forward(self, x: Tensor, noise_level: Tensor, cond: Tensor | None) -> Tensor:
        t = WIDE.time_of((4 * noise_level).exp())
        alpha, sigma = WIDE.levels(t, x)
        x_t = x * (alpha**2 + sigma**2).sqrt()
        z0 = self.oracle(x_t, t, cond)
        a, b = self.target(alpha, sigma)
        return a * z0 + b * (x_t - alpha * z0) / sigma
