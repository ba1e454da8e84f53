"""Samplers: from noise to images along a grid of times, by means of E[x0 | x_t] alone.

A sampler is a generator `(denoiser, x, times, cond, noise)` that yields every state; the last one is the image. The
grid is not the schedule: on the same noise levels all schedules give the same images, so grids are chosen by level.
The coefficients of a step are Python floats, exact in float64 whatever the images' dtype.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .denoiser import PosteriorMean
from .schedules import Schedule

Noise = Callable[[int, Tensor], Tensor]
"""(number of the step, x) -> unit noise like x."""

Sampler = Callable[[PosteriorMean, Tensor, Tensor, Tensor | None, Noise], Iterator[Tensor]]


def unit_noise(step: int, x: Tensor) -> Tensor:
    """Unit noise like x, of any shape, from torch's global generator, whatever the number of the step."""
    return torch.randn_like(x)


# --- grids: n times from noise to (nearly) clean, float64 `[n]`; the step after the last one ends at the clean image


def uniform_grid(schedule: Schedule, n: int) -> Tensor:
    """Evenly spaced times 1, (n-1)/n, ..., 1/n: float64 `[n]`, the same on any schedule.

    On a table of T betas with n = T they are every step of the table (Ho et al. 2020, algorithm 2).
    """
    return torch.arange(n, 0, -1, dtype=torch.float64) / n


def karras_grid(
    schedule: Schedule, n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    """Times `[n]` whose noise-to-signal ratios are evenly spaced after the rho-th root (Karras et al. 2022, eq. 5).

    sigma_min, sigma_max   ends of sigma/alpha, for pixels in [-1, 1]; cut to what the schedule reaches
    rho                    1 spaces them evenly; the larger, the closer they stand at the clean end
    """
    reach = schedule.ratio(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    low, high = max(sigma_min, reach[0]), min(sigma_max, reach[1])
    roots = torch.linspace(high ** (1 / rho), low ** (1 / rho), n, dtype=torch.float64)
    return schedule.time_of(roots**rho)


GRIDS: dict[str, Callable[..., Tensor]] = {"karras": karras_grid, "uniform": uniform_grid}


# --- samplers


@dataclass(frozen=True)
class GridStep:
    """One step of the grid, from time t to the next one, s; at the end s is None and the level clean: (1, 0).

    number             of the step, from 0
    t, s               times in (0, 1], each a tensor of shape `[]` like the images
    alpha_t, sigma_t   levels of signal and noise at t
    alpha_s, sigma_s   the levels at s
    """

    number: int
    t: Tensor
    s: Tensor | None
    alpha_t: float
    sigma_t: float
    alpha_s: float
    sigma_s: float


def levels_along(schedule: Schedule, times: Tensor) -> tuple[list[float], list[float]]:
    """(alpha, sigma) at each of `times` `[n]` and at the clean end, n + 1 each."""
    return [*schedule.alpha(times.double()).tolist(), 1.0], [*schedule.sigma(times.double()).tolist(), 0.0]


def grid_steps(schedule: Schedule, times: Tensor, x: Tensor) -> Iterator[GridStep]:
    """The steps along `times` `[n]` on a schedule, for images like x."""
    alphas, sigmas = levels_along(schedule, times)
    ts: list[Tensor | None] = [*times.to(x), None]
    for i in range(len(times)):
        t = ts[i]
        assert t is not None
        yield GridStep(i, t, ts[i + 1], alphas[i], sigmas[i], alphas[i + 1], sigmas[i + 1])


VARIANCES: dict[str, Callable[[GridStep], float]] = {
    "posterior": lambda i: (i.sigma_s / i.sigma_t) ** 2,
    "beta": lambda i: (i.alpha_s**2 + i.sigma_s**2) / (i.alpha_t**2 + i.sigma_t**2),  # 1 where variance is preserved
}
"""Variance of an ancestral step in units of beta, between its bounds (Ho et al. 2020, section 3.2; Nichol & Dhariwal
2021, section 3.1): the posterior's is exact where all data are one image, beta where they have unit variance."""


def ddpm(
    denoiser: PosteriorMean,
    x: Tensor,
    times: Tensor,
    cond: Tensor | None = None,
    noise: Noise = unit_noise,
    *,
    variance: str = "posterior",
) -> Iterator[Tensor]:
    """Ancestral sampling from the posterior q(x_s | x_t, x0_hat) (Ho et al. 2020, algorithm 2, eq. 6-7).

    denoiser   E[x0 | x_t], and the schedule
    x          noise `[B, ...]` at the level of the first time
    times      a grid `[n]`, falling
    cond       labels int64 `[B]`, or None
    noise      (number of the step, x) -> unit noise like x
    variance   of a step: a name in VARIANCES

    Yields x after each of the n steps, `[B, ...]`. Raises ValueError for another name.
    """
    if variance not in VARIANCES:
        raise ValueError(f"the variance of a ddpm step is one of {', '.join(VARIANCES)}, not {variance!r}")
    for i in grid_steps(denoiser.schedule, times, x):
        x0_hat = denoiser(x, i.t, cond)
        alpha_ts = i.alpha_t / i.alpha_s  # sqrt(1 - beta) between s and t
        beta = i.sigma_t**2 - (alpha_ts * i.sigma_s) ** 2
        mean = (alpha_ts * i.sigma_s**2 * x + i.alpha_s * beta * x0_hat) / i.sigma_t**2
        std = math.sqrt(beta * VARIANCES[variance](i))
        x = mean if i.s is None else mean + std * noise(i.number, x)
        yield x


def renoised(i: GridStep, x: Tensor, x0_hat: Tensor, eta: float, noise: Noise) -> Tensor:
    """x at the level of s: x0_hat, and the noise that it implies in x at t, of which eta exchanges a share for fresh
    noise (Song et al. 2021, eq. 12 and 16). x, x0_hat `[B, ...]`; eta in [0, 1], at 1 the noise of `ddpm`."""
    eps_hat = (x - i.alpha_t * x0_hat) / i.sigma_t
    new = eta * i.sigma_s * math.sqrt(1 - (i.alpha_t * i.sigma_s / (i.alpha_s * i.sigma_t)) ** 2)
    x = i.alpha_s * x0_hat + math.sqrt(i.sigma_s**2 - new**2) * eps_hat
    return x + new * noise(i.number, x) if new > 0 else x


def ddim(
    denoiser: PosteriorMean,
    x: Tensor,
    times: Tensor,
    cond: Tensor | None = None,
    noise: Noise = unit_noise,
    *,
    eta: float = 0.0,
) -> Iterator[Tensor]:
    """Keep x0_hat and the noise it implies, move to the next level (Song et al. 2021, eq. 12 and 16).

    eta   share of fresh noise, in [0, 1]: 0 the ODE in first order, 1 `ddpm`

    Takes and yields what `ddpm` does: x `[B, ...]`, times `[n]`, cond `[B]`; noise is drawn where eta is above 0.
    """
    for i in grid_steps(denoiser.schedule, times, x):
        x = renoised(i, x, denoiser(x, i.t, cond), eta, noise)
        yield x


def heun(
    denoiser: PosteriorMean, x: Tensor, times: Tensor, cond: Tensor | None = None, noise: Noise = unit_noise
) -> Iterator[Tensor]:
    """Heun's method on d(x/alpha)/d(sigma/alpha) = eps_hat (Karras et al. 2022, algorithm 1): two evaluations a step.

    A solver of the ODE: draws no noise. Takes and yields what `ddpm` does: x `[B, ...]`, times `[n]`, cond `[B]`.
    """
    for i in grid_steps(denoiser.schedule, times, x):
        x0_hat = denoiser(x, i.t, cond)
        eps_hat = (x - i.alpha_t * x0_hat) / i.sigma_t
        x_s = i.alpha_s * x0_hat + i.sigma_s * eps_hat
        if i.s is not None:
            eps_s = (x_s - i.alpha_s * denoiser(x_s, i.s, cond)) / i.sigma_s
            climb = i.sigma_s / i.alpha_s - i.sigma_t / i.alpha_t
            x_s = i.alpha_s * (x / i.alpha_t + climb * (eps_hat + eps_s) / 2)
        x = x_s
        yield x


def dpmpp(
    denoiser: PosteriorMean,
    x: Tensor,
    times: Tensor,
    cond: Tensor | None = None,
    noise: Noise = unit_noise,
    *,
    eta: float = 0.0,
) -> Iterator[Tensor]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order from one evaluation a step and the one before.

    A step of `ddim`, from the guess half a step ahead.

    eta   share of fresh noise, in [0, 1], as in `ddim`: 0 solves the ODE, and 1 is SDE-DPM-Solver++(2M)

    Takes and yields what `ddpm` does: x `[B, ...]`, times `[n]`, cond `[B]`; noise is drawn where eta is above 0.
    """
    before: tuple[Tensor, float] | None = None
    for i in grid_steps(denoiser.schedule, times, x):
        x0_hat = denoiser(x, i.t, cond)
        lam = math.log(i.alpha_t / i.sigma_t)
        ahead = x0_hat
        if before is not None and i.s is not None:  # x0_hat half a step ahead, on the line through the last two
            h = math.log(i.alpha_s / i.sigma_s) - lam
            ahead = x0_hat + (x0_hat - before[0]) * (h / (lam - before[1]) / 2)
        x = renoised(i, x, ahead, eta, noise)
        before = x0_hat, lam
        yield x


@dataclass(frozen=True)
class SamplerInfo:
    """A sampler and its properties.

    function       the sampler
    nfe_per_step   evaluations of the network in a step; the last step of every sampler takes one
    solves_ode     whether it is deterministic: the same noise gives the same image, and more steps bring that image
                   closer to the exact solution. The other samplers add noise in every step.
    usual_steps    number of steps that is enough for most models
    """

    function: Sampler
    nfe_per_step: int = 1
    solves_ode: bool = False
    usual_steps: int = 20

    def nfe(self, steps: int) -> int:
        """Number of function evaluations (NFE): how often n steps evaluate the network for an image."""
        return self.nfe_per_step * (steps - 1) + 1


SAMPLERS: dict[str, SamplerInfo] = {
    "ddpm": SamplerInfo(ddpm, usual_steps=250),
    "ddpm-beta": SamplerInfo(partial(ddpm, variance="beta"), usual_steps=500),
    "ddim": SamplerInfo(ddim, solves_ode=True, usual_steps=50),
    "heun": SamplerInfo(heun, nfe_per_step=2, solves_ode=True),
    "dpmpp": SamplerInfo(dpmpp, solves_ode=True),
    "dpmpp-sde": SamplerInfo(partial(dpmpp, eta=0.6)),
}
"""Samplers by name."""

FINE = ("heun", 50)
"""The sampler and the number of steps whose solution of the ODE stands for the exact one."""
