"""Samplers: from noise to images along a grid of times, given E[x0 | x_t].

A sampler is a generator `(denoiser, x, times, cond, noise)` that yields the state after every step; the last one is the
image. On the same noise levels all schedules give the same images up to rounding, so a grid is best chosen by noise
levels. The coefficients of a step are Python floats, so they have float64 precision for images of any dtype.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .checks import check_floats, check_integer, check_number, check_type, shown
from .denoiser import PosteriorMean
from .schedules import Schedule

Noise = Callable[[int, Tensor], Tensor]
"""(number of the step, x) -> unit noise like x."""

Sampler = Callable[[PosteriorMean, Tensor, Tensor, Tensor | None, Noise], Iterator[Tensor]]
"""(denoiser, x, times, cond, noise) -> the states after each step."""


def unit_noise(step: int, x: Tensor) -> Tensor:
    """Unit noise like x, of any shape, from torch's global generator; the number of the step is not used."""
    return torch.randn_like(x)


# --- grids: n times in decreasing order, float64 `[n]`; the last step goes from the last time to the clean image


def uniform_grid(schedule: Schedule, n: int) -> Tensor:
    """Evenly spaced times 1, (n-1)/n, ..., 1/n: float64 `[n]`, the same for every schedule.

    For a table of T betas and n = T they are all steps of the table (Ho et al. 2020, algorithm 2).

    Raises ValueError unless n is an integer of 1 or more.
    """
    check_type("schedule", schedule, Schedule, "a schedule such as sd.Karras()")
    check_integer("n", n, 1)
    return torch.arange(n, 0, -1, dtype=torch.float64) / n


def karras_grid(
    schedule: Schedule, n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    """Times `[n]` at which the rho-th root of the noise level is evenly spaced (Karras et al. 2022, eq. 5).

    sigma_min, sigma_max   ends of sigma/alpha, for pixels in [-1, 1]; limited to the range of the schedule
    rho                    at 1 the noise levels are evenly spaced; a larger rho makes the steps at low noise smaller

    Raises ValueError unless n is an integer of 1 or more, and the ends are in order and within reach of the schedule.
    """
    check_type("schedule", schedule, Schedule, "a schedule such as sd.Karras()")
    check_integer("n", n, 1)
    check_number("rho", rho, 0)
    reach = schedule.ratio(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    check_number("sigma_max", sigma_max, reach[0], math.inf, "(]")
    check_number("sigma_min", sigma_min, 0, min(sigma_max, reach[1]))
    low, high = max(sigma_min, reach[0]), min(sigma_max, reach[1])
    roots = torch.linspace(high ** (1 / rho), low ** (1 / rho), n, dtype=torch.float64)
    return schedule.time_of(roots**rho)


GRIDS: dict[str, Callable[..., Tensor]] = {"karras": karras_grid, "uniform": uniform_grid}
"""Grids by name, each a function of the schedule and the number of steps."""


# --- samplers


@dataclass(frozen=True)
class GridStep:
    """A step from time t to time s. In the last step s is None, and (alpha_s, sigma_s) is (1, 0), the clean image.

    number             of the step, from 0
    t, s               times in (0, 1], tensors of shape `[]` with the dtype and device of the images
    alpha_t, sigma_t   scales of signal and noise at t
    alpha_s, sigma_s   scales of signal and noise at s
    """

    number: int
    t: Tensor
    s: Tensor | None
    alpha_t: float
    sigma_t: float
    alpha_s: float
    sigma_s: float


def levels_along(schedule: Schedule, times: Tensor) -> tuple[list[float], list[float]]:
    """(alpha, sigma) at each of `times` `[n]` and at the clean image, n + 1 numbers each.

    Raises TypeError unless the times are a tensor of floats, and ValueError unless they decrease within (0, 1].
    """
    check_floats("times", times, "a grid of times, such as sd.karras_grid(schedule, 10)")
    times = times.detach().cpu().double()
    if times.ndim != 1 or not len(times) or not (times[-1] >= 0 and times[0] <= 1 and (times.diff() < 0).all()):
        text = ", ".join(f"{t:g}" for t in times.flatten()[:3]) or "no times"
        raise ValueError(f"`times` must be a list of times that decrease within (0, 1], got {shown(times)}: {text} ...")
    return [*schedule.alpha(times).tolist(), 1.0], [*schedule.sigma(times).tolist(), 0.0]


def grid_steps(schedule: Schedule, times: Tensor, x: Tensor) -> Iterator[GridStep]:
    """The n steps along `times` `[n]`, for images like x.

    Raises TypeError or ValueError for x that are not floats, and for times that are no grid or end without noise.
    """
    check_floats("x", x, "noise, a tensor of floats")
    alphas, sigmas = levels_along(schedule, times)
    ts: list[Tensor | None] = [*times.to(x), None]
    for i in range(len(times)):
        t = ts[i]
        assert t is not None
        if not sigmas[i]:  # samplers divide by it
            raise ValueError(f"{type(schedule).__name__} has no noise at the time {t:g}: end `times` above it")
        yield GridStep(i, t, ts[i + 1], alphas[i], sigmas[i], alphas[i + 1], sigmas[i + 1])


VARIANCES: dict[str, Callable[[GridStep], float]] = {
    "posterior": lambda i: (i.sigma_s / i.sigma_t) ** 2,
    "beta": lambda i: (i.alpha_s**2 + i.sigma_s**2) / (i.alpha_t**2 + i.sigma_t**2),  # 1 where variance is preserved
}
"""Variance of an ancestral step in units of beta. The two choices are the bounds of the true variance (Ho et al. 2020,
section 3.2; Nichol & Dhariwal 2021, section 3.1): "posterior" is exact if all data are the same image, "beta" if the
data have unit variance."""


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
    times      a grid `[n]`, in decreasing order
    cond       labels int64 `[B]`, or None
    noise      (number of the step, x) -> unit noise like x
    variance   of a step: "posterior" or "beta", see VARIANCES

    Yields x after each of the n steps, `[B, ...]`. Raises ValueError for another variance or other times, and TypeError
    unless x and the times are floats.
    """
    if variance not in VARIANCES:
        raise ValueError(f"`variance` must be one of {', '.join(VARIANCES)}, got {variance!r}")
    for i in grid_steps(denoiser.schedule, times, x):
        x0_hat = denoiser(x, i.t, cond)
        alpha_ts = i.alpha_t / i.alpha_s  # sqrt(1 - beta) between s and t
        beta = i.sigma_t**2 - (alpha_ts * i.sigma_s) ** 2
        mean = (alpha_ts * i.sigma_s**2 * x + i.alpha_s * beta * x0_hat) / i.sigma_t**2
        std = math.sqrt(beta * VARIANCES[variance](i))
        x = mean if i.s is None else mean + std * noise(i.number, x)
        yield x


def renoised(i: GridStep, x: Tensor, x0_hat: Tensor, eta: float, noise: Noise) -> Tensor:
    """x at the level of s: the x0 prediction, plus the noise that it implies in x at t, partly replaced by new noise
    (Song et al. 2021, eq. 12 and 16).

    x, x0_hat   `[B, ...]`
    eta         stochasticity in [0, 1]: 0 adds no noise, 1 adds as much as `ddpm`

    Raises ValueError for another eta.
    """
    check_number("eta", eta, 0, 1, "[]")
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
    """DDIM: keep the x0 prediction and the noise that it implies, at the next level (Song et al. 2021, eq. 12 and 16).

    eta   stochasticity, in [0, 1]: 0 solves the ODE in first order, 1 is `ddpm`

    Takes and yields the same as `ddpm`: x `[B, ...]`, times `[n]`, cond `[B]`. Calls `noise` only if eta is above 0.
    Raises ValueError for another eta or other times.
    """
    for i in grid_steps(denoiser.schedule, times, x):
        x = renoised(i, x, denoiser(x, i.t, cond), eta, noise)
        yield x


def heun(
    denoiser: PosteriorMean, x: Tensor, times: Tensor, cond: Tensor | None = None, noise: Noise = unit_noise
) -> Iterator[Tensor]:
    """Heun's method on d(x/alpha)/d(sigma/alpha) = eps_hat (Karras et al. 2022, algorithm 1), of second order.

    It evaluates the network twice in each step but the last. Takes and yields the same as `ddpm`: x `[B, ...]`, times
    `[n]`, cond `[B]`. It is deterministic and never calls `noise`. Raises ValueError for other times.
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
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order with one evaluation of the network in a step.

    Each step is one of `ddim`, with the x0 prediction extrapolated to the middle of the step from the last two.

    eta   stochasticity, in [0, 1], as in `ddim`: 0 solves the ODE, 1 is SDE-DPM-Solver++(2M)

    Takes and yields the same as `ddpm`: x `[B, ...]`, times `[n]`, cond `[B]`. Calls `noise` only if eta is above 0.
    Raises ValueError for another eta or other times.
    """
    before: tuple[Tensor, float] | None = None
    for i in grid_steps(denoiser.schedule, times, x):
        x0_hat = denoiser(x, i.t, cond)
        lam = math.log(i.alpha_t / i.sigma_t)
        ahead = x0_hat
        if before is not None and i.s is not None:  # linear extrapolation in lam = log(alpha/sigma)
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
    order          of convergence to the solution of the ODE; None for a stochastic sampler, which adds noise in each
                   step
    usual_steps    a number of steps to begin with
    """

    function: Sampler
    nfe_per_step: int = 1
    order: int | None = None
    usual_steps: int = 20

    @property
    def solves_ode(self) -> bool:
        """Whether it is deterministic: the same noise gives the same image."""
        return self.order is not None

    def nfe(self, steps: int) -> int:
        """Number of function evaluations (NFE): how often n steps evaluate the network for an image."""
        return self.nfe_per_step * (steps - 1) + 1


SAMPLERS: dict[str, SamplerInfo] = {
    "ddpm": SamplerInfo(ddpm, usual_steps=250),
    "ddpm-beta": SamplerInfo(partial(ddpm, variance="beta"), usual_steps=500),
    "ddim": SamplerInfo(ddim, order=1, usual_steps=50),
    "heun": SamplerInfo(heun, nfe_per_step=2, order=2),
    "dpmpp": SamplerInfo(dpmpp, order=2),
    "dpmpp-sde": SamplerInfo(partial(dpmpp, eta=0.6)),
}
"""Samplers by name."""

FINE = ("heun", 50)
"""The sampler and the number of steps whose solution of the ODE stands for the exact one."""
