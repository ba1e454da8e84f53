"""The exercises of the lessons: the function to write, and what its typical wrong answers look like.

The truth is the library, which every exercise calls. A mistake is mostly the truth with other arguments. `judging.py`
compares a solution with both.
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

from .. import ema, guidance, losses, samplers, targets
from ..errors import UsageError
from ..evaluation import memorization, metrics
from ..evaluation.metrics import Moments
from ..networks.unet import UNet
from ..schedules import Cosine, Linear
from .explain import code_of
from .tasks import (
    cosine,
    ddim_step,
    ddpm_step,
    denoised,
    ema_update,
    fid,
    flow_x0,
    guided,
    karras_levels,
    nearest,
    q_sample,
    receptive_field,
    step,
    x0_from_velocity,
)

# --- the registry


@dataclass(frozen=True)
class Exercise:
    """A function to write.

    truth      the function itself, made of calls to the library; its docstring is the task
    reads      what to read in the library
    cases      in words, such as "with scale = 0" -> arguments
    mistakes   in words -> the function with that mistake
    tolerance  of an answer, relative and absolute: room for float32, and for ends that the library moves by 1e-4
    """

    truth: Callable[..., Any]
    reads: Callable[..., Any]
    cases: dict[str, tuple]
    mistakes: dict[str, Callable[..., Any]]
    tolerance: float = 1e-4

    @property
    def name(self) -> str:
        return self.truth.__name__

    @property
    def arguments(self) -> list[str]:
        return list(inspect.signature(self.truth).parameters)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def level(t: float) -> tuple[float, float]:
    """(alpha, sigma) of DDPM's schedule."""
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
    """A step of DDPM without its noise."""
    return ddpm_step(x, x0, 0 * noise, *levels)


def ddpm_std(x: Tensor, x0: Tensor, noise: Tensor, *levels: float) -> Tensor:
    """How much noise a step of DDPM adds."""
    return ddpm_step(0 * x, 0 * x0, torch.ones_like(noise), *levels)


def moved(x: Tensor, x0: Tensor, a: float, s: float, a2: float, s2: float) -> Tensor:
    """A step of DDIM, with any levels put in."""
    return a2 * x0 + s2 * ((x - a * x0) / s)


def curves(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) of a schedule that keeps the variance."""
    return alpha, (1 - alpha**2).clamp(min=0).sqrt()


def fid_but(mistaken: Callable[[Moments, Moments, float, float, float], Any]) -> Callable[[Tensor, Tensor], float]:
    """FID put together wrongly from both moments, m = |m - m'|^2, v = tr(S + S') and r = tr((S S')^(1/2))."""

    def wrong(real: Tensor, fake: Tensor) -> float:
        a, b = Moments.of(real), Moments.of(fake)
        m, v = (a.mean - b.mean).square().sum().item(), (a.cov + b.cov).trace().item()
        return float(mistaken(a, b, m, v, (m + v - metrics.frechet_distance(a, b)) / 2))

    return wrong


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        q_sample,
        losses.denoising_loss,
        {f"at t = {t}": (X, Y, *level(t)) for t in (0.1, 0.5, 1.0)},
        {
            "alpha and sigma are swapped": lambda x0, eps, a, s: q_sample(x0, eps, s, a),
            "sigma is squared": lambda x0, eps, a, s: q_sample(x0, eps, a, s**2),
            "alpha and sigma are squared": lambda x0, eps, a, s: q_sample(x0, eps, a**2, s**2),
            "alpha is the root of alpha_bar, and it is taken for alpha_bar itself": (
                lambda x0, eps, a, s: q_sample(x0, eps, math.sqrt(a), math.sqrt(1 - a))
            ),
            "1 - alpha stands for sigma": lambda x0, eps, a, s: q_sample(x0, eps, a, 1 - a),
            "x0 is not scaled by alpha": lambda x0, eps, a, s: q_sample(x0, eps, 1.0, s),
            "eps is not scaled by sigma": lambda x0, eps, a, s: q_sample(x0, eps, a, 1.0),
            "the noise is left out": lambda x0, eps, a, s: q_sample(x0, eps, a, 0.0),
            "the noise is subtracted": lambda x0, eps, a, s: q_sample(x0, -eps, a, s),
        },
    ),
    Exercise(
        ddpm_step,
        samplers.ddpm,
        {case: (X, Y, Z, *levels) for case, levels in STEPS.items()},
        {
            "the fresh noise is left out": ddpm_mean,
            "the noise is scaled by the variance, not by its root": (
                lambda x, x0, z, *levels: ddpm_step(x, x0, ddpm_std(x, x0, z, *levels) * z, *levels)
            ),
            "its variance is beta, without sigma_s^2 / sigma_t^2, so that the last step adds noise": (
                partial(step, samplers.SAMPLERS["ddpm-beta"].function)
            ),
            "the noise is scaled by sigma_s": lambda x, x0, z, *levels: ddpm_mean(x, x0, z, *levels) + levels[3] * z,
            "the noise is not scaled": lambda x, x0, z, *levels: ddpm_mean(x, x0, z, *levels) + z,
            "the two coefficients of the mean are swapped": lambda x, x0, z, *levels: ddpm_step(x0, x, z, *levels),
            "alpha_t stands for alpha_ts = alpha_t / alpha_s": (
                lambda x, x0, z, a, s, a2, s2: ddpm_step(x, a2 * x0, z, a, s, 1.0, s2)
            ),
            "x0_hat is noised to level s, and x_t is forgotten": lambda x, x0, z, *levels: q_sample(x0, z, *levels[2:]),
            "it is a step of DDIM": lambda x, x0, z, *levels: ddim_step(x, x0, *levels),
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
            "the strides are left out": lambda layers: receptive_field([(k, 1) for k, _ in layers]),
            "a stride lengthens the steps of its own layer, and it should those of later layers only": (
                lambda layers: receptive_field([part for k, s in layers for part in ((1, s), (k, 1))])
            ),
            "the layers are taken from last to first": lambda layers: receptive_field(layers[::-1]),
            "the pixel to start with is not counted": lambda layers: receptive_field(layers) - 1,
            "it counts the pixels of the square": lambda layers: receptive_field(layers) ** 2,
            "it is the radius": lambda layers: receptive_field(layers) // 2,
            "the kernels are added, not kernel - 1": lambda layers: sum(k for k, _ in layers),
        },
    ),
    Exercise(
        cosine,
        Cosine,
        {"for t from 0.001 to 1": (TIMES,)},
        {
            "alpha and sigma are swapped": lambda t: cosine(t)[::-1],
            "alpha and sigma are squared: their roots are left out": lambda t: tuple(x**2 for x in cosine(t)),
            "alpha is squared: its root is left out": lambda t: (cosine(t)[0] ** 2, cosine(t)[1]),
            "sigma is squared: its root is left out": lambda t: (cosine(t)[0], cosine(t)[1] ** 2),
            "sigma is 1 - alpha": lambda t: (cosine(t)[0], 1 - cosine(t)[0]),
            "the offset s is left out": lambda t: (Cosine(s=0).alpha(t), Cosine(s=0).sigma(t)),
            "f(t) is not divided by f(0)": lambda t: curves(((t + 0.008) / 1.008 * math.pi / 2).cos()),
            "pi / 2 is left out": lambda t: curves(((t + 0.008) / 1.008).cos()),
            "pi stands for pi / 2": lambda t: curves(((t + 0.008) / 1.008 * math.pi).cos()),
            "time runs backwards": lambda t: cosine(1 - t),
        },
        tolerance=1e-3,
    ),
    Exercise(
        guided,
        guidance.Guided,
        {f"with scale = {scale}": (X, Y, scale) for scale in (0.0, 1.0, 1.5, 4.0)},
        {
            "scale is taken for the paper's w, one less": lambda null, cond, scale: guided(null, cond, scale + 1),
            "x0_null and x0_cond are swapped": lambda null, cond, scale: guided(cond, null, scale),
            "the difference is added to nothing": lambda null, cond, scale: guided(0 * null, cond - null, scale),
            "x0_cond is added, not x0_cond - x0_null": lambda null, cond, scale: null + scale * cond,
            "x0_null has the wrong sign": lambda null, cond, scale: guided(-null, cond, scale),
            "the difference has the wrong sign": lambda null, cond, scale: guided(null, cond, -scale),
            "scale is left out": lambda null, cond, scale: cond,
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
            "the step has the wrong sign": lambda average, weight, decay: ema_update(average, weight, 2 - decay),
            "the old average is returned": lambda average, weight, decay: average,
            "the weight is returned": lambda average, weight, decay: weight,
            "decay is left out": lambda average, weight, decay: ema_update(average, weight, 0.5),
        },
    ),
    Exercise(
        ddim_step,
        samplers.ddim,
        {case: (X, Y, *levels) for case, levels in STEPS.items()},
        {
            "eps_hat is not divided by sigma_t": lambda x, x0, a, s, a2, s2: moved(x, x0, a, 1.0, a2, s2),
            "eps_hat is taken at level s, and x_t is at level t": (
                lambda x, x0, a, s, a2, s2: moved(x, x0, a2, s2, a2, s2)
            ),
            "eps_hat is taken with alpha_s, not alpha_t": lambda x, x0, a, s, a2, s2: moved(x, x0, a2, s, a2, s2),
            "eps_hat is divided by sigma_s, not sigma_t": lambda x, x0, a, s, a2, s2: moved(x, x0, a, s2, a2, s2),
            "x_t stands for eps_hat": lambda x, x0, a, s, a2, s2: a2 * x0 + s2 * x,
            "alpha_s and sigma_s are swapped": lambda x, x0, a, s, a2, s2: moved(x, x0, a, s, s2, a2),
            "eps_hat is left out": lambda x, x0, a, s, a2, s2: moved(x, x0, a, s, a2, 0.0),
            "eps_hat has the wrong sign": lambda x, x0, a, s, a2, s2: moved(x, x0, a, s, a2, -s2),
            "x0_hat is not scaled by alpha_s": lambda x, x0, a, s, a2, s2: moved(x, x0, a, s, 1.0, s2),
            "sigma_s is squared": lambda x, x0, a, s, a2, s2: moved(x, x0, a, s, a2, s2**2),
            "alpha is the root of alpha_bar, and it is taken for alpha_bar itself": (
                lambda x, x0, a, s, a2, s2: moved(x, x0, *(math.sqrt(level) for level in (a, 1 - a, a2, 1 - a2)))
            ),
            "it is the mean of a step of DDPM": lambda x, x0, *levels: ddpm_mean(x, x0, x, *levels),
        },
    ),
    Exercise(
        x0_from_velocity,
        targets.v,
        {f"at t = {t}": (X, Y, *level(t)) for t in (0.1, 0.3, 1.0)},
        {
            "out has the wrong sign": lambda x, out, a, s: x0_from_velocity(x, -out, a, s),
            "alpha and sigma are swapped": lambda x, out, a, s: x0_from_velocity(x, out, s, a),
            "it is eps_hat, not the clean image": lambda x, out, a, s: x0_from_velocity(x, -out, s, a),
            "out is taken for the noise": partial(denoised, targets.noise),
            "out is taken for the clean image": partial(denoised, targets.x0),
            "out is taken for eps - x0, the target of flow matching": partial(denoised, targets.flow),
            "x_t is not scaled by alpha": lambda x, out, a, s: x - s * out,
            "out is not scaled by sigma": lambda x, out, a, s: a * x - out,
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
            "the levels rise": lambda n, low, high, rho: karras_levels(n, low, high, rho).flip(0),
            "rho and 1 / rho are swapped": lambda n, low, high, rho: karras_levels(n, low, high, 1 / rho),
            "rho is left out": lambda n, low, high, rho: karras_levels(n, low, high, 1.0),
            "the roots are not raised to rho": lambda n, low, high, rho: karras_levels(n, low, high, rho) ** (1 / rho),
            "their logarithms are evenly spaced": lambda n, low, high, rho: karras_levels(n, low, high, 1e6),
            "i is divided by n, not n - 1": lambda n, low, high, rho: karras_levels(n + 1, low, high, rho)[:-1],
            "the level 0 belongs to the end": lambda *args: F.pad(karras_levels(*args), (0, 1)),
        },
    ),
    Exercise(
        flow_x0,
        targets.flow,
        {f"at t = {t}": (X, Y, t) for t in (0.2, 0.7, 1.0)},
        {
            "the velocity has the wrong sign": lambda x, v, t: flow_x0(x, -v, t),
            "1 - t stands for t": lambda x, v, t: flow_x0(x, v, 1 - t),
            "it is eps_hat, not the clean image": lambda x, v, t: flow_x0(x, -v, 1 - t),
            "t is left out": lambda x, v, t: flow_x0(x, v, 1.0),
            "the velocity is taken for the noise": lambda x, v, t: denoised(targets.noise, x, v, 1 - t, t),
            "the velocity is taken for the clean image": lambda x, v, t: v,
        },
    ),
    Exercise(
        fid,
        metrics.frechet_distance,
        {
            "for 90 and 70 samples of 5 features": (REALS, FAKES),
            "of a set and itself": (FAKES, FAKES),
            "for fewer samples than features": (REALS[:4], FAKES[:3]),
        },
        {
            "the means are left out": fid_but(lambda a, b, m, v, r: v - 2 * r),
            "the distance of the means is not squared": fid_but(lambda a, b, m, v, r: math.sqrt(m) + v - 2 * r),
            "the squares of m - m' are averaged, not added": fid_but(lambda a, b, m, v, r: m / len(a.mean) + v - 2 * r),
            "(S S')^(1/2) is left out": fid_but(lambda a, b, m, v, r: m + v),
            "(S S')^(1/2) lacks its factor 2": fid_but(lambda a, b, m, v, r: m + v - r),
            "S S' lacks its root": fid_but(lambda a, b, m, v, r: m + v - 2 * (a.cov @ b.cov).trace()),
            "the root of S S' is taken number by number, not as that of a matrix": fid_but(
                lambda a, b, m, v, r: m + v - 2 * (a.cov @ b.cov).sqrt().trace()
            ),
            "the root is that of S + S', not of S S'": fid_but(
                lambda a, b, m, v, r: m + v - 2 * torch.linalg.eigvalsh(a.cov + b.cov).clamp(min=0).sqrt().sum()
            ),
            "the root of S S' is not the product of two roots": fid_but(
                lambda a, b, m, v, r: m + v - 2 * (a.root @ b.root).trace()
            ),
            "S and S' are taken for deviations of single features, without what lies beside their diagonals": fid_but(
                lambda a, b, m, v, r: m + (a.cov.diag().sqrt() - b.cov.diag().sqrt()).square().sum()
            ),
            "S and S' are divided by N, not N - 1": fid_but(
                lambda a, b, *_: metrics.frechet_distance(*(Moments(x.count + 1, x.mean, x.scatter) for x in (a, b)))
            ),
            "it is the root of the distance": lambda real, fake: math.sqrt(fid(real, fake)),
        },
        tolerance=1e-3,
    ),
    Exercise(
        nearest,
        memorization.nearest,
        {"for 20 samples among 60 images": (normal(20, 7, seed=7), 0.5 + normal(60, 7, seed=8))},
        {
            "it is the farthest image": lambda samples, data: torch.cdist(samples, data).argmax(1),
            "it is the second nearest image": lambda samples, data: memorization.nearest(samples, [data], 2)[1][:, 1],
            "it is the distance, not the index": lambda samples, data: torch.cdist(samples, data).amin(1),
            "it is the squared distance, not the index": lambda samples, data: torch.cdist(samples, data).amin(1) ** 2,
            "it is the image, not its index": lambda samples, data: data[nearest(samples, data)],
            "it is the nearest sample of each image": lambda samples, data: nearest(data, samples),
            "it is the image of the largest product": lambda samples, data: (samples @ data.T).argmax(1),
            "the differences are not squared": lambda samples, data: torch.cdist(samples, data, p=1).argmin(1),
        },
    ),
)
"""Exercise n belongs to lesson n, from 1 on."""


def exercise(number: int) -> Exercise:
    """The exercise of a lesson. Raises UsageError."""
    if not 1 <= number <= len(EXERCISES):
        raise UsageError(f"there is no exercise {number}: choose a number from 1 to {len(EXERCISES)}")
    return EXERCISES[number - 1]


def described(number: int) -> str:
    """What an exercise asks for, where to read, and how it is checked. Raises UsageError."""
    asked = exercise(number)
    lines = inspect.getsource(asked.truth).splitlines()
    (function,) = ast.parse("\n".join(lines)).body
    end = function.body[0].end_lineno  # pyrefly: ignore[missing-attribute]
    stub = "\n".join(["from torch import Tensor", "", "", *lines[:end]])
    return f"""Exercise {number}: {asked.name}

Write this function into a file of your own:

{textwrap.indent(stub, "    ")}

Read lesson {number}, `lessons/{number:02}_*.py`, and `{asked.reads.__name__}` in `{code_of(asked.reads)[0]}`. Then

    simple-diffusion check {number} my_solution.py"""
