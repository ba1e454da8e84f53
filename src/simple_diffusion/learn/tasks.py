"""The functions that the exercises ask for, written as calls to the library."""

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

# --- schedules, denoisers and networks with a fixed answer


@dataclass(frozen=True)
class TwoLevels(Schedule):
    """A schedule that is linear from one level (alpha, sigma), at t = 0, to another one, at t = 1."""

    start: tuple[float, float]
    end: tuple[float, float]

    def alpha(self, t: Tensor) -> Tensor:
        return self.start[0] + (self.end[0] - self.start[0]) * t

    def sigma(self, t: Tensor) -> Tensor:
        return self.start[1] + (self.end[1] - self.start[1]) * t


@dataclass(frozen=True)
class FixedDenoiser:
    """A denoiser that always predicts the same x0_hat."""

    schedule: Schedule
    x0_hat: Tensor

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.x0_hat


class FixedNetwork(nn.Module):
    """A network that always has the same output."""

    def __init__(self, out: Tensor):
        super().__init__()
        self.out = out

    def forward(self, x: Tensor, noise_level: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.out


def sampler_step(sampler: samplers.Sampler, x_t, x0_hat, noise, alpha_t, sigma_t, alpha_s, sigma_s) -> Tensor:
    """One step of a sampler, from level t to level s."""
    denoiser = FixedDenoiser(TwoLevels((alpha_s, sigma_s), (alpha_t, sigma_t)), x0_hat)
    return next(sampler(denoiser, x_t, torch.tensor([1.0, 0.0]), None, lambda number, x: noise))


def x0_from_output(target: Target, x_t: Tensor, out: Tensor, alpha: float, sigma: float) -> Tensor:
    """The x0 prediction that follows from the output of a network for this target."""
    return Denoiser(FixedNetwork(out), TwoLevels((alpha, sigma), (alpha, sigma)), target)(x_t, torch.tensor(1.0))


# --- the functions: a learner sees the arguments and the docstring


def q_sample(x0: Tensor, eps: Tensor, alpha: float, sigma: float) -> Tensor:
    """Add noise to images: x_t = alpha x0 + sigma eps.

    x0, eps       clean images and standard normal noise, float `[B, C, H, W]`
    alpha, sigma  scale of the image and of the noise
    returns       x_t, float `[B, C, H, W]`
    """
    return ddim_step(eps, x0, 0.0, 1.0, alpha, sigma)  # from pure noise to this level


def ddpm_step(
    x_t: Tensor, x0_hat: Tensor, noise: Tensor, alpha_t: float, sigma_t: float, alpha_s: float, sigma_s: float
) -> Tensor:
    """One step of DDPM, from level t to the cleaner level s (Ho et al. 2020, algorithm 2, eq. 6-7).

    mean = (alpha_ts sigma_s^2 x_t + alpha_s beta x0_hat) / sigma_t^2 and variance = beta sigma_s^2 / sigma_t^2,
    with alpha_ts = alpha_t / alpha_s and beta = sigma_t^2 - alpha_ts^2 sigma_s^2.

    x_t, x0_hat       noisy images and the x0 prediction, float `[B, C, H, W]`
    noise             standard normal noise for this step, float `[B, C, H, W]`
    alpha_t, sigma_t  level of x_t; alpha^2 + sigma^2 = 1
    alpha_s, sigma_s  level of the result; 1 and 0 in the last step
    returns           x_s, float `[B, C, H, W]`
    """
    return sampler_step(samplers.ddpm, x_t, x0_hat, noise, alpha_t, sigma_t, alpha_s, sigma_s)


def receptive_field(layers: list[tuple[int, int]]) -> int:
    """The receptive field of a stack of convolutions: the side of the input square that one output pixel depends on.

    A layer adds (kernel - 1) steps. One step is as long as the product of the strides of all earlier layers.

    layers   (kernel, stride) of each layer, the first layer first
    returns  the side in pixels; 1 without layers
    """
    pixels = torch.ones(1, 1, 1)  # spread one output pixel back over the input
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
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6, where scale - 1 is called w).

    The result is on the line through x0_null, at scale = 0, and x0_cond, at scale = 1.

    x0_null, x0_cond  x0 predictions without and with the label, float `[B, C, H, W]`
    scale             0 unconditional, 1 no guidance, above 1 guidance
    returns           the guided x0 prediction, float `[B, C, H, W]`
    """
    return guidance.extrapolated(x0_null, x0_cond, scale, torch.tensor([True]))


def ema_update(average: Tensor, weight: Tensor, decay: float) -> Tensor:
    """One update of an exponential moving average (EMA): decay times the average plus (1 - decay) times the weight.

    average, weight  the average so far and the weight after this training step, float, of any shape
    decay            in [0, 1]
    returns          the new average; the arguments do not change
    """
    moving = ema.EMA(nn.ParameterList([average]), lambda n: decay)
    moving.update(nn.ParameterList([weight]), 1)
    return moving.model[0].detach()


def ddim_step(x_t: Tensor, x0_hat: Tensor, alpha_t: float, sigma_t: float, alpha_s: float, sigma_s: float) -> Tensor:
    """One deterministic step of DDIM, from level t to the cleaner level s (Song et al. 2021, eq. 12 with sigma = 0).

    eps_hat is the noise for which x_t = alpha_t x0_hat + sigma_t eps_hat. x_s has the same image and the same noise at
    level s.

    x_t, x0_hat       noisy images and the x0 prediction, float `[B, C, H, W]`
    alpha_t, sigma_t  level of x_t
    alpha_s, sigma_s  level of the result; 1 and 0 in the last step
    returns           x_s, float `[B, C, H, W]`
    """
    return sampler_step(samplers.ddim, x_t, x0_hat, None, alpha_t, sigma_t, alpha_s, sigma_s)


def x0_from_v(x_t: Tensor, v: Tensor, alpha: float, sigma: float) -> Tensor:
    """The x0 prediction that follows from the v prediction of a network (Salimans & Ho 2022, section 4).

    Solve v = alpha eps - sigma x0 and x_t = alpha x0 + sigma eps for x0.

    x_t, v        noisy images and the output of the network, float `[B, C, H, W]`
    alpha, sigma  level of x_t; alpha^2 + sigma^2 = 1
    returns       x0_hat, float `[B, C, H, W]`
    """
    return x0_from_output(targets.v, x_t, v, alpha, sigma)


def karras_levels(n: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """Noise levels from sigma_max down to sigma_min whose rho-th roots are evenly spaced (Karras et al. 2022, eq. 5).

    sigma_i = (sigma_max^(1/rho) + i / (n - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho for i = 0 ... n - 1,
    without the level 0 that the paper appends.

    n        number of levels, at least 2
    returns  float `[n]`, the largest level first
    """
    schedule = Karras(sigma_min, sigma_max, rho)
    return schedule.sigma(samplers.karras_grid(schedule, n, sigma_min, sigma_max, rho))


def flow_x0(x_t: Tensor, velocity: Tensor, t: float) -> Tensor:
    """The x0 prediction that follows from the velocity of flow matching (Liu et al. 2023, eq. 1).

    Solve x_t = (1 - t) x0 + t eps and velocity = eps - x0 for x0.

    x_t, velocity  noisy images and the output of the network, float `[B, C, H, W]`
    t              time in (0, 1], where 1 is noise
    returns        x0_hat, float `[B, C, H, W]`
    """
    return x0_from_output(targets.flow, x_t, velocity, 1 - t, t)


def fid(real: Tensor, fake: Tensor) -> float:
    """The Fréchet distance between two sets of features (Heusel et al. 2017, eq. 6).

    |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)), where m, m' are the means and S, S' the covariances (divided by N - 1).
    The root is a matrix whose square is S S'. Its trace is the sum of the square roots of the eigenvalues of S S'.

    real, fake  features, float64 `[N, F]` and `[M, F]`
    returns     the distance, one number
    """
    return metrics.frechet_distance(Moments.of(real), Moments.of(fake))


def nearest(samples: Tensor, data: Tensor) -> Tensor:
    """The nearest training image of each sample, by the sum of the squared pixel differences.

    samples, data  images as rows of pixels, float `[N, D]` and `[M, D]`
    returns        the index of the image in data, int64 `[N]`
    """
    return memorization.nearest(samples, [data], 1)[1][:, 0]
