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
from torch import Tensor, nn

from . import copies, ema, guidance, losses, metrics, samplers, targets
from .denoiser import Denoiser
from .errors import UsageError
from .explain import code_of
from .metrics import Moments
from .networks.unet import UNet
from .schedules import Cosine, Karras, Linear, Schedule
from .targets import Target

# --- a world in which every answer is known


@dataclass(frozen=True)
class Between(Schedule):
    """Straight from one level (alpha, sigma), at t = 0, to another one, at t = 1."""

    clean: tuple[float, float]
    noisy: tuple[float, float]

    def alpha(self, t: Tensor) -> Tensor:
        return self.clean[0] + (self.noisy[0] - self.clean[0]) * t

    def sigma(self, t: Tensor) -> Tensor:
        return self.clean[1] + (self.noisy[1] - self.clean[1]) * t


@dataclass(frozen=True)
class Knows:
    """A posterior mean that is told what to say."""

    schedule: Schedule
    x0_hat: Tensor

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.x0_hat


class Says(nn.Module):
    """A network that is told what to say."""

    def __init__(self, out: Tensor):
        super().__init__()
        self.out = out

    def forward(self, x: Tensor, noise_level: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.out


def step(sampler: samplers.Sampler, x_t, x0_hat, noise, alpha_t, sigma_t, alpha_s, sigma_s) -> Tensor:
    """One step of a sampler, from level t to level s."""
    denoiser = Knows(Between((alpha_s, sigma_s), (alpha_t, sigma_t)), x0_hat)
    return next(sampler(denoiser, x_t, torch.tensor([1.0, 0.0]), None, lambda number, x: noise))


def denoised(target: Target, x_t: Tensor, out: Tensor, alpha: float, sigma: float) -> Tensor:
    """The clean image, from a network's output for this target."""
    return Denoiser(Says(out), Between((alpha, sigma), (alpha, sigma)), target)(x_t, torch.tensor(1.0))


# --- the functions to write: docstring and arguments are what the learner is shown


def q_sample(x0: Tensor, eps: Tensor, alpha: float, sigma: float) -> Tensor:
    """Images with noise: x_t = alpha x0 + sigma eps.

    x0, eps       clean images and unit noise, float `[B, C, H, W]`
    alpha, sigma  how much is left of the image, and how much noise there is
    returns       x_t, float `[B, C, H, W]`
    """
    return ddim_step(eps, x0, 0.0, 1.0, alpha, sigma)  # from pure noise to this level


def ddpm_step(
    x_t: Tensor, x0_hat: Tensor, noise: Tensor, alpha_t: float, sigma_t: float, alpha_s: float, sigma_s: float
) -> Tensor:
    """One step of DDPM, from level t to the cleaner level s (Ho et al. 2020, algorithm 2, eq. 6-7).

    mean = (alpha_ts sigma_s^2 x_t + alpha_s beta x0_hat) / sigma_t^2 and variance = beta sigma_s^2 / sigma_t^2,
    with alpha_ts = alpha_t / alpha_s and beta = sigma_t^2 - alpha_ts^2 sigma_s^2.

    x_t, x0_hat       noisy images, and the guess of the clean ones, float `[B, C, H, W]`
    noise             fresh unit noise for this step, float `[B, C, H, W]`
    alpha_t, sigma_t  the level of x_t; alpha^2 + sigma^2 = 1
    alpha_s, sigma_s  the next level; at the last step 1 and 0
    returns           x_s, float `[B, C, H, W]`
    """
    return step(samplers.ddpm, x_t, x0_hat, noise, alpha_t, sigma_t, alpha_s, sigma_s)


def receptive_field(layers: list[tuple[int, int]]) -> int:
    """How many pixels a side of its input a stack of convolutions sees from one pixel of its output.

    A layer adds kernel - 1 steps, and one step is as long as the product of the strides before it.

    layers   (kernel, stride) of each layer, the first one first
    returns  pixels a side; 1 for no layers
    """
    pixels = torch.ones(1, 1, 1)  # by experiment: one output pixel, spread back over the input
    for kernel, stride in reversed(layers):
        pixels = F.conv_transpose1d(pixels, torch.ones(1, 1, kernel), stride=stride)
    return pixels.shape[-1]


def cosine(t: Tensor) -> tuple[Tensor, Tensor]:
    """The cosine schedule (Nichol & Dhariwal 2021, eq. 17), with s = 0.008.

    alpha^2 = f(t) / f(0) with f(t) = cos((t + s) / (1 + s) pi / 2)^2, and sigma^2 = 1 - alpha^2.

    t        times in (0, 1], float `[B]`
    returns  (alpha, sigma), each float `[B]`
    """
    return Cosine().alpha(t), Cosine().sigma(t)


def guided(x0_null: Tensor, x0_cond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6, whose w is scale - 1).

    On the line from x0_null, where scale = 0, through x0_cond, where scale = 1.

    x0_null, x0_cond  guesses of the clean image without and with its label, float `[B, C, H, W]`
    scale             0 unconditional, 1 no guidance, above 1 stronger
    returns           the guided guess, float `[B, C, H, W]`
    """
    return guidance.pushed(x0_null, x0_cond, scale, torch.tensor([True]))


def ema_update(average: Tensor, weight: Tensor, decay: float) -> Tensor:
    """One update of an exponential moving average: it keeps `decay` of itself, the rest is new.

    average, weight  the average so far and the weight after this step of training, float, any shape
    decay            in [0, 1]
    returns          the new average; the arguments stay as they are
    """
    moving = ema.EMA(nn.ParameterList([average]), lambda n: decay)
    moving.update(nn.ParameterList([weight]), 1)
    return moving.model[0].detach()


def ddim_step(x_t: Tensor, x0_hat: Tensor, alpha_t: float, sigma_t: float, alpha_s: float, sigma_s: float) -> Tensor:
    """One step of DDIM, from level t to the cleaner level s (Song et al. 2021, eq. 12, without fresh noise).

    eps_hat is the noise that x_t = alpha_t x0_hat + sigma_t eps_hat implies; x_s has the same image and noise at
    level s.

    x_t, x0_hat       noisy images, and the guess of the clean ones, float `[B, C, H, W]`
    alpha_t, sigma_t  the level of x_t
    alpha_s, sigma_s  the next level; at the last step 1 and 0
    returns           x_s, float `[B, C, H, W]`
    """
    return step(samplers.ddim, x_t, x0_hat, None, alpha_t, sigma_t, alpha_s, sigma_s)


def x0_from_velocity(x_t: Tensor, out: Tensor, alpha: float, sigma: float) -> Tensor:
    """The clean image, from a network that was trained to say the velocity (Salimans & Ho 2022, section 4).

    out = alpha eps - sigma x0 and x_t = alpha x0 + sigma eps, to be solved for x0.

    x_t, out      noisy images and what the network says of them, float `[B, C, H, W]`
    alpha, sigma  the level of x_t; alpha^2 + sigma^2 = 1
    returns       x0_hat, float `[B, C, H, W]`
    """
    return denoised(targets.velocity, x_t, out, alpha, sigma)


def karras_levels(n: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """Noise levels from sigma_max down to sigma_min, their rho-th roots evenly spaced (Karras et al. 2022, eq. 5).

    sigma_i = (sigma_max^(1/rho) + i / (n - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho for i = 0 ... n - 1;
    the paper's last level, 0, stays out.

    n        how many levels, at least 2
    returns  float `[n]`, the largest first
    """
    schedule = Karras(sigma_min, sigma_max, rho)
    return schedule.sigma(samplers.karras_grid(schedule, n, sigma_min, sigma_max, rho))


def flow_x0(x_t: Tensor, velocity: Tensor, t: float) -> Tensor:
    """The clean image, from the velocity of flow matching (Liu et al. 2023, eq. 1).

    x_t = (1 - t) x0 + t eps and velocity = eps - x0, to be solved for x0.

    x_t, velocity  noisy images and what the network says of them, float `[B, C, H, W]`
    t              in (0, 1], 1 is noise
    returns        x0_hat, float `[B, C, H, W]`
    """
    return denoised(targets.flow, x_t, velocity, 1 - t, t)


def fid(real: Tensor, fake: Tensor) -> float:
    """The Fréchet distance of two sets of features (Heusel et al. 2017, eq. 6).

    |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)), of the means m, m' and covariances S, S' (divided by N - 1). The root
    is a matrix whose square is S S'; its trace is the sum of the roots of the eigenvalues of S S'.

    real, fake  features, float64 `[N, F]` and `[M, F]`
    returns     the distance, a number
    """
    return metrics.frechet_distance(Moments.of(real), Moments.of(fake))


def nearest(samples: Tensor, data: Tensor) -> Tensor:
    """The nearest training image of each sample, by the sum of squared differences of pixels.

    samples, data  images as rows of pixels, float `[N, D]` and `[M, D]`
    returns        its index in data, int64 `[N]`
    """
    return copies.nearest(samples, [data], 1)[1][:, 0]


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
                partial(step, samplers.SAMPLERS["ddpm-beta"])
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
        targets.velocity,
        {f"at t = {t}": (X, Y, *level(t)) for t in (0.1, 0.3, 1.0)},
        {
            "out has the wrong sign": lambda x, out, a, s: x0_from_velocity(x, -out, a, s),
            "alpha and sigma are swapped": lambda x, out, a, s: x0_from_velocity(x, out, s, a),
            "it is eps_hat, not the clean image": lambda x, out, a, s: x0_from_velocity(x, -out, s, a),
            "out is taken for the noise": partial(denoised, targets.noise),
            "out is taken for the clean image": partial(denoised, targets.clean),
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
        copies.nearest,
        {"for 20 samples among 60 images": (normal(20, 7, seed=7), 0.5 + normal(60, 7, seed=8))},
        {
            "it is the farthest image": lambda samples, data: torch.cdist(samples, data).argmax(1),
            "it is the second nearest image": lambda samples, data: copies.nearest(samples, [data], 2)[1][:, 1],
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
