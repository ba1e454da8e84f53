"""The functions that the exercises ask for, each made of calls to the library."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ema, guidance, samplers, targets
from ..denoiser import Denoiser
from ..evaluation import memorization, metrics
from ..evaluation.metrics import Moments
from ..schedules import Cosine, Karras, Schedule
from ..targets import Target

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
    return guidance.extrapolated(x0_null, x0_cond, scale, torch.tensor([True]))


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
    return denoised(targets.v, x_t, out, alpha, sigma)


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
    return memorization.nearest(samples, [data], 1)[1][:, 0]
