"""The exercises of the lessons: which function to write, and how typical mistakes change its results.

The right solution of an exercise calls the library. A mistake is usually the right solution with other arguments.
`learn/judge.py` compares a learner's solution with both.
"""

import ast
import inspect
import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ema, guidance, samplers, targets
from ..errors import UsageError
from ..evaluation import memorization, metrics
from ..evaluation.metrics import Moments
from ..networks.unet import UNet
from ..schedules import Cosine, Linear, Schedule
from .explain import file_of
from .tasks import (
    cosine,
    ddim_step,
    ddpm_step,
    ema_update,
    fid,
    flow_x0,
    guided,
    karras_levels,
    nearest,
    q_sample,
    receptive_field,
    sampler_step,
    x0_from_output,
    x0_from_v,
)


@dataclass(frozen=True)
class Exercise:
    """A function to write.

    solution   the right solution; its docstring is the task
    reading    the function or class of the library to read
    cases      description, such as "with scale = 0" -> arguments
    mistakes   description -> the function with that mistake
    tolerance  relative and absolute tolerance of a result; it allows float32, and the 1e-4 by which the library moves
               the ends of some schedules
    """

    solution: Callable[..., Any]
    reading: Callable[..., Any]
    cases: dict[str, tuple]
    mistakes: dict[str, Callable[..., Any]]
    tolerance: float = 1e-4

    @property
    def name(self) -> str:
        return self.solution.__name__

    @property
    def arguments(self) -> list[str]:
        return list(inspect.signature(self.solution).parameters)


def normal(*shape: int, seed: int) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def level(t: float) -> tuple[float, float]:
    """(alpha, sigma) of the schedule of DDPM at time t."""
    time = torch.tensor(t, dtype=torch.float64)
    return Linear().alpha(time).item(), Linear().sigma(time).item()


X, Y, Z = (normal(3, 2, 5, 4, seed=seed) for seed in (1, 2, 3))  # images [B, C, H, W]
STEPS = {
    "from t = 0.9 to s = 0.6": (*level(0.9), *level(0.6)),
    "from t = 0.3 to s = 0.2": (*level(0.3), *level(0.2)),
    "at the last step, where alpha_s = 1 and sigma_s = 0": (*level(0.1), 1.0, 0.0),
}
TIMES = torch.tensor([0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 1.0])
REALS = normal(90, 5, seed=4).double()
FAKES = normal(70, 5, seed=5).double() @ normal(5, 5, seed=6).double() + torch.arange(5) / 2


def ddpm_mean(x: Tensor, x0: Tensor, noise: Tensor, *levels: float) -> Tensor:
    """A DDPM step without its noise."""
    return ddpm_step(x, x0, 0 * noise, *levels)


def ddpm_std(x: Tensor, x0: Tensor, noise: Tensor, *levels: float) -> Tensor:
    """The standard deviation of the noise that a DDPM step adds."""
    return ddpm_step(0 * x, 0 * x0, torch.ones_like(noise), *levels)


def ddim_with(x: Tensor, x0: Tensor, a: float, s: float, a2: float, s2: float) -> Tensor:
    """A DDIM step with any levels."""
    return a2 * x0 + s2 * ((x - a * x0) / s)


def with_sigma(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) with alpha^2 + sigma^2 = 1."""
    return alpha, (1 - alpha**2).clamp(min=0).sqrt()


def wrong_fid(formula: Callable[[Moments, Moments, float, float, float], Any]) -> Callable[[Tensor, Tensor], float]:
    """FID by another formula of both moments and of m = |m - m'|^2, v = tr(S + S') and r = tr((S S')^(1/2))."""

    def wrong(real: Tensor, fake: Tensor) -> float:
        a, b = Moments.of(real), Moments.of(fake)
        m, v = (a.mean - b.mean).square().sum().item(), (a.cov + b.cov).trace().item()
        return float(formula(a, b, m, v, (m + v - metrics.frechet_distance(a, b)) / 2))

    return wrong


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        q_sample,
        Schedule.add_noise,
        {f"at t = {t}": (X, Y, *level(t)) for t in (0.1, 0.5, 1.0)},
        {
            "alpha and sigma are swapped": lambda x0, eps, a, s: q_sample(x0, eps, s, a),
            "sigma is squared": lambda x0, eps, a, s: q_sample(x0, eps, a, s**2),
            "alpha and sigma are squared": lambda x0, eps, a, s: q_sample(x0, eps, a**2, s**2),
            "alpha is used as if it were alpha_bar, but it is the square root of alpha_bar": (
                lambda x0, eps, a, s: q_sample(x0, eps, math.sqrt(a), math.sqrt(1 - a))
            ),
            "1 - alpha is used in place of sigma": lambda x0, eps, a, s: q_sample(x0, eps, a, 1 - a),
            "x0 is not scaled by alpha": lambda x0, eps, a, s: q_sample(x0, eps, 1.0, s),
            "eps is not scaled by sigma": lambda x0, eps, a, s: q_sample(x0, eps, a, 1.0),
            "the noise is missing": lambda x0, eps, a, s: q_sample(x0, eps, a, 0.0),
            "the noise is subtracted": lambda x0, eps, a, s: q_sample(x0, -eps, a, s),
        },
    ),
    Exercise(
        ddpm_step,
        samplers.ddpm,
        {case: (X, Y, Z, *levels) for case, levels in STEPS.items()},
        {
            "the noise is missing": ddpm_mean,
            "the noise is scaled by the variance, not by the standard deviation": (
                lambda x, x0, z, *levels: ddpm_step(x, x0, ddpm_std(x, x0, z, *levels) * z, *levels)
            ),
            "the variance is beta, without the factor sigma_s^2 / sigma_t^2, so that the last step adds noise": (
                partial(sampler_step, samplers.SAMPLERS["ddpm-beta"].function)
            ),
            "the noise is scaled by sigma_s": lambda x, x0, z, *levels: ddpm_mean(x, x0, z, *levels) + levels[3] * z,
            "the noise is not scaled": lambda x, x0, z, *levels: ddpm_mean(x, x0, z, *levels) + z,
            "the two coefficients of the mean are swapped": lambda x, x0, z, *levels: ddpm_step(x0, x, z, *levels),
            "alpha_t is used in place of alpha_ts = alpha_t / alpha_s": (
                lambda x, x0, z, a, s, a2, s2: ddpm_step(x, a2 * x0, z, a, s, 1.0, s2)
            ),
            "x0_hat is noised to level s, and x_t is not used": lambda x, x0, z, *levels: q_sample(x0, z, *levels[2:]),
            "this is a DDIM step": lambda x, x0, z, *levels: ddim_step(x, x0, *levels),
        },
    ),
    Exercise(
        receptive_field,
        UNet,
        {
            f"for {layers}": (layers,)
            for layers in (
                [(3, 1)],
                [(3, 1), (3, 1), (5, 1)],
                [(3, 2), (3, 1)],
                [(4, 2), (3, 2), (1, 1), (5, 3), (3, 1)],
                [],
            )
        },
        {
            "the strides are ignored": lambda layers: receptive_field([(k, 1) for k, _ in layers]),
            "a stride changes the step length of its own layer, but it must change that of later layers only": (
                lambda layers: receptive_field([part for k, s in layers for part in ((1, s), (k, 1))])
            ),
            "the layers are processed from last to first": lambda layers: receptive_field(layers[::-1]),
            "the output pixel itself is not counted": lambda layers: receptive_field(layers) - 1,
            "the result is the area of the square, not its side": lambda layers: receptive_field(layers) ** 2,
            "the result is the radius, not the side": lambda layers: receptive_field(layers) // 2,
            "the sum is over kernel, not kernel - 1": lambda layers: sum(k for k, _ in layers),
        },
    ),
    Exercise(
        cosine,
        Cosine,
        {"for t from 0.001 to 1": (TIMES,)},
        {
            "alpha and sigma are swapped": lambda t: cosine(t)[::-1],
            "the square roots of alpha and sigma are missing": lambda t: tuple(x**2 for x in cosine(t)),
            "the square root of alpha is missing": lambda t: (cosine(t)[0] ** 2, cosine(t)[1]),
            "the square root of sigma is missing": lambda t: (cosine(t)[0], cosine(t)[1] ** 2),
            "sigma is 1 - alpha": lambda t: (cosine(t)[0], 1 - cosine(t)[0]),
            "the offset s is missing": lambda t: (Cosine(s=0).alpha(t), Cosine(s=0).sigma(t)),
            "f(t) is not divided by f(0)": lambda t: with_sigma(((t + 0.008) / 1.008 * math.pi / 2).cos()),
            "the factor pi / 2 is missing": lambda t: with_sigma(((t + 0.008) / 1.008).cos()),
            "pi is used in place of pi / 2": lambda t: with_sigma(((t + 0.008) / 1.008 * math.pi).cos()),
            "time runs backwards": lambda t: cosine(1 - t),
        },
        tolerance=1e-3,
    ),
    Exercise(
        guided,
        guidance.Guided,
        {f"with scale = {scale}": (X, Y, scale) for scale in (0.0, 1.0, 1.5, 4.0)},
        {
            "scale is used as if it were the w of the paper, but w = scale - 1": lambda null, cond, scale: guided(
                null, cond, scale + 1
            ),
            "x0_null and x0_cond are swapped": lambda null, cond, scale: guided(cond, null, scale),
            "x0_null is missing before the difference": lambda null, cond, scale: guided(0 * null, cond - null, scale),
            "x0_cond is added, not x0_cond - x0_null": lambda null, cond, scale: null + scale * cond,
            "x0_null has the wrong sign": lambda null, cond, scale: guided(-null, cond, scale),
            "the difference has the wrong sign": lambda null, cond, scale: guided(null, cond, -scale),
            "scale is not used": lambda null, cond, scale: cond,
        },
    ),
    Exercise(
        ema_update,
        ema.EMA,
        {f"with decay = {decay}": (X, Y, decay) for decay in (0.0, 0.9, 0.3, 1.0)},
        {
            "decay and 1 - decay are swapped": lambda average, weight, decay: ema_update(average, weight, 1 - decay),
            "the weight is not scaled by 1 - decay": lambda average, weight, decay: decay * average + weight,
            "the average is not scaled by decay": lambda average, weight, decay: average + (1 - decay) * weight,
            "the update has the wrong sign": lambda average, weight, decay: ema_update(average, weight, 2 - decay),
            "the old average is returned": lambda average, weight, decay: average,
            "the weight is returned": lambda average, weight, decay: weight,
            "decay is not used": lambda average, weight, decay: ema_update(average, weight, 0.5),
        },
    ),
    Exercise(
        ddim_step,
        samplers.ddim,
        {case: (X, Y, *levels) for case, levels in STEPS.items()},
        {
            "eps_hat is not divided by sigma_t": lambda x, x0, a, s, a2, s2: ddim_with(x, x0, a, 1.0, a2, s2),
            "eps_hat is computed with the levels of s, but x_t is at level t": (
                lambda x, x0, a, s, a2, s2: ddim_with(x, x0, a2, s2, a2, s2)
            ),
            "eps_hat is computed with alpha_s, not alpha_t": lambda x, x0, a, s, a2, s2: ddim_with(
                x, x0, a2, s, a2, s2
            ),
            "eps_hat is divided by sigma_s, not sigma_t": lambda x, x0, a, s, a2, s2: ddim_with(x, x0, a, s2, a2, s2),
            "x_t is used in place of eps_hat": lambda x, x0, a, s, a2, s2: a2 * x0 + s2 * x,
            "alpha_s and sigma_s are swapped": lambda x, x0, a, s, a2, s2: ddim_with(x, x0, a, s, s2, a2),
            "eps_hat is missing": lambda x, x0, a, s, a2, s2: ddim_with(x, x0, a, s, a2, 0.0),
            "eps_hat has the wrong sign": lambda x, x0, a, s, a2, s2: ddim_with(x, x0, a, s, a2, -s2),
            "x0_hat is not scaled by alpha_s": lambda x, x0, a, s, a2, s2: ddim_with(x, x0, a, s, 1.0, s2),
            "sigma_s is squared": lambda x, x0, a, s, a2, s2: ddim_with(x, x0, a, s, a2, s2**2),
            "alpha is used as if it were alpha_bar, but it is the square root of alpha_bar": (
                lambda x, x0, a, s, a2, s2: ddim_with(x, x0, *(math.sqrt(level) for level in (a, 1 - a, a2, 1 - a2)))
            ),
            "this is the mean of a DDPM step": lambda x, x0, *levels: ddpm_mean(x, x0, x, *levels),
        },
    ),
    Exercise(
        x0_from_v,
        targets.v,
        {f"at t = {t}": (X, Y, *level(t)) for t in (0.1, 0.3, 1.0)},
        {
            "v has the wrong sign": lambda x, v, a, s: x0_from_v(x, -v, a, s),
            "alpha and sigma are swapped": lambda x, v, a, s: x0_from_v(x, v, s, a),
            "the result is eps_hat, not x0_hat": lambda x, v, a, s: x0_from_v(x, -v, s, a),
            "v is used as if it were eps": partial(x0_from_output, targets.noise),
            "v is used as if it were x0": partial(x0_from_output, targets.x0),
            "v is used as if it were eps - x0, the target of flow matching": partial(x0_from_output, targets.flow),
            "x_t is not scaled by alpha": lambda x, v, a, s: x - s * v,
            "v is not scaled by sigma": lambda x, v, a, s: a * x - v,
        },
    ),
    Exercise(
        karras_levels,
        samplers.karras_grid,
        {
            f"for n = {n}, sigma_max = {high:g}, rho = {rho:g}": (n, 0.002, high, rho)
            for n, high, rho in ((2, 80.0, 7.0), (5, 80.0, 7.0), (12, 20.0, 3.0))
        },
        {
            "the levels are in ascending order": lambda n, low, high, rho: karras_levels(n, low, high, rho).flip(0),
            "rho and 1 / rho are swapped": lambda n, low, high, rho: karras_levels(n, low, high, 1 / rho),
            "rho is not used": lambda n, low, high, rho: karras_levels(n, low, high, 1.0),
            "the roots are not raised to the power rho": lambda n, low, high, rho: (
                karras_levels(n, low, high, rho) ** (1 / rho)
            ),
            "the logarithms of the levels are evenly spaced": lambda n, low, high, rho: karras_levels(
                n, low, high, 1e6
            ),
            "i is divided by n, not n - 1": lambda n, low, high, rho: karras_levels(n + 1, low, high, rho)[:-1],
            "the level 0 is appended": lambda *args: F.pad(karras_levels(*args), (0, 1)),
        },
    ),
    Exercise(
        flow_x0,
        targets.flow,
        {f"at t = {t}": (X, Y, t) for t in (0.2, 0.7, 1.0)},
        {
            "the velocity has the wrong sign": lambda x, v, t: flow_x0(x, -v, t),
            "1 - t is used in place of t": lambda x, v, t: flow_x0(x, v, 1 - t),
            "the result is eps_hat, not x0_hat": lambda x, v, t: flow_x0(x, -v, 1 - t),
            "t is not used": lambda x, v, t: flow_x0(x, v, 1.0),
            "the velocity is used as if it were eps": lambda x, v, t: x0_from_output(targets.noise, x, v, 1 - t, t),
            "the velocity is used as if it were x0": lambda x, v, t: v,
        },
    ),
    Exercise(
        fid,
        metrics.frechet_distance,
        {
            "for 90 and 70 samples of 5 features": (REALS, FAKES),
            "for a set and itself": (FAKES, FAKES),
            "for fewer samples than features": (REALS[:4], FAKES[:3]),
        },
        {
            "the means are missing": wrong_fid(lambda a, b, m, v, r: v - 2 * r),
            "the distance between the means is not squared": wrong_fid(lambda a, b, m, v, r: math.sqrt(m) + v - 2 * r),
            "the squares of m - m' are averaged, not summed": wrong_fid(
                lambda a, b, m, v, r: m / len(a.mean) + v - 2 * r
            ),
            "the term with (S S')^(1/2) is missing": wrong_fid(lambda a, b, m, v, r: m + v),
            "the factor 2 of (S S')^(1/2) is missing": wrong_fid(lambda a, b, m, v, r: m + v - r),
            "the square root of S S' is missing": wrong_fid(lambda a, b, m, v, r: m + v - 2 * (a.cov @ b.cov).trace()),
            "the square root of S S' is elementwise, not a matrix square root": wrong_fid(
                lambda a, b, m, v, r: m + v - 2 * (a.cov @ b.cov).sqrt().trace()
            ),
            "the square root is that of S + S', not of S S'": wrong_fid(
                lambda a, b, m, v, r: m + v - 2 * torch.linalg.eigvalsh(a.cov + b.cov).clamp(min=0).sqrt().sum()
            ),
            "the square root of S S' is not the product of the two square roots": wrong_fid(
                lambda a, b, m, v, r: m + v - 2 * (a.root @ b.root).trace()
            ),
            "only the diagonals of S and S' are used": wrong_fid(
                lambda a, b, m, v, r: m + (a.cov.diag().sqrt() - b.cov.diag().sqrt()).square().sum()
            ),
            "S and S' are divided by N, not N - 1": wrong_fid(
                lambda a, b, *_: metrics.frechet_distance(*(Moments(x.count + 1, x.mean, x.scatter) for x in (a, b)))
            ),
            "the result is the square root of the distance": lambda real, fake: math.sqrt(fid(real, fake)),
        },
        tolerance=1e-3,
    ),
    Exercise(
        nearest,
        memorization.nearest,
        {"for 20 samples among 60 images": (normal(20, 7, seed=7), 0.5 + normal(60, 7, seed=8))},
        {
            "the result is the farthest image": lambda samples, data: torch.cdist(samples, data).argmax(1),
            "the result is the second nearest image": lambda samples, data: memorization.nearest(samples, [data], 2)[1][
                :, 1
            ],
            "the result is the distance, not the index": lambda samples, data: torch.cdist(samples, data).amin(1),
            "the result is the squared distance, not the index": lambda samples, data: (
                torch.cdist(samples, data).amin(1) ** 2
            ),
            "the result is the image, not its index": lambda samples, data: data[nearest(samples, data)],
            "the result is the nearest sample of each image": lambda samples, data: nearest(data, samples),
            "the result is the image with the largest inner product": lambda samples, data: (samples @ data.T).argmax(
                1
            ),
            "the differences are not squared": lambda samples, data: torch.cdist(samples, data, p=1).argmin(1),
        },
    ),
)
"""In the order of the lessons: exercise n belongs to lesson n."""


def exercise(number: int) -> Exercise:
    """The exercise of a lesson. Raises UsageError if there is none."""
    if not 1 <= number <= len(EXERCISES):
        raise UsageError(f"the exercise must be a number from 1 to {len(EXERCISES)}, got {number}")
    return EXERCISES[number - 1]


def describe(number: int) -> str:
    """The task of an exercise, what to read, and how to check a solution. Raises UsageError if there is none."""
    task = exercise(number)
    lines = inspect.getsource(task.solution).splitlines()
    (function,) = ast.parse("\n".join(lines)).body
    end = function.body[0].end_lineno  # pyrefly: ignore[missing-attribute]
    stub = "\n".join(["from torch import Tensor", "", "", *lines[:end]])
    return f"""Exercise {number}: {task.name}

Write this function in a file of your own:

{textwrap.indent(stub, "    ")}

Read lesson {number}, `lessons/{number:02}_*.py`, and `{task.reading.__name__}` in `{file_of(task.reading)}`.
Then check your file:

    simple-diffusion check {number} my_solution.py"""
