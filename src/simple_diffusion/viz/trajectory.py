"""Denoising trajectories as pixels: x_t and x0_hat at a few steps of sampling; and the forward process on images.

Only the steps that are shown are kept, as uint8, so memory does not grow with the number of steps.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.images import to_uint8
from ..denoiser import PosteriorMean
from ..randomness import Draws
from ..samplers import Sampler, dpmpp, levels_along
from ..sampling import BATCH, trajectory
from ..schedules import Schedule

FRACTIONS = (0.0, 0.402, 0.802, 0.902, 0.962, 1.0)
"""Fractions of the trajectory that are shown by default: steps 1, 201, 401, 451, 481 and 500 of 500. On a uniform grid
of times most visible change happens near the end."""

MAX_IMAGES = BATCH
"""Images of one recorded trajectory: one batch of `sample`, so that image i is bit-exact with image i of `sample`."""


class Recorder:
    """A denoiser that keeps its last prediction as `x0_hat`. Called as `PosteriorMean` is."""

    x0_hat: Tensor

    def __init__(self, denoiser: PosteriorMean):
        self.denoiser, self.schedule = denoiser, denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        self.x0_hat = self.denoiser(x_t, t, cond)
        return self.x0_hat


def steps_shown(fractions: Sequence[float], n: int) -> list[int]:
    """The steps, of 1 ... n, that a trajectory of n steps shows: sorted, without duplicates.

    Fraction 0 is step 1 rather than the initial noise, because there is no x0_hat before the first step. Raises
    ValueError for a fraction outside [0, 1].
    """
    if not fractions or not all(0 <= fraction <= 1 for fraction in fractions):
        raise ValueError(f"the fractions of a trajectory must be numbers from 0 to 1, got {fractions}")
    return sorted({max(1, round(fraction * n)) for fraction in fractions})


def to_pixels(x: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
    """States at noise level (alpha, sigma), any shape, as uint8: divided by sqrt(alpha^2 + sigma^2) and clamped.

    The division makes noise look the same on every schedule; a clean image, (1, 0), stays as it is. Raises
    DivergedError for NaN.
    """
    return to_uint8(x / math.hypot(alpha, sigma))


def record_trajectory(
    denoiser: PosteriorMean,
    shape: Sequence[int],
    times: Tensor,
    cond: Tensor | None = None,
    *,
    sampler: Sampler = dpmpp,
    seed: int = 0,
    fractions: Sequence[float] = FRACTIONS,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """(x_t, x0_hat) at some steps of sampling: two uint8 tensors `[P, N, C, H, W]` on the CPU.

    Panel p shows the state after a step, and the last prediction that the step used, which is x0_hat at the state
    before it (with `heun`, at the second evaluation of the step). The last panel of x_t is bit-exact with `sample` for
    the same arguments.

    shape      (N, C, H, W), N at most `MAX_IMAGES`
    device     as for `sample`
    fractions  of the trajectory, each in [0, 1]; P is smaller than their number if two fall on one step (`steps_shown`)

    Raises ValueError for more images or fractions outside [0, 1]; DivergedError for NaN.
    """
    if shape[0] > MAX_IMAGES:
        raise ValueError(f"a trajectory can have at most {MAX_IMAGES} images, got {shape[0]}")
    shown, recorder, schedule = steps_shown(fractions, len(times)), Recorder(denoiser), denoiser.schedule
    alphas, sigmas = levels_along(schedule, times)
    noisy, clean = [], []
    states = trajectory(recorder, shape, times, cond, sampler=sampler, seed=seed, batch=MAX_IMAGES, device=device)
    for step, x in enumerate(states):
        if step in shown:
            noisy.append(to_pixels(x, alphas[step], sigmas[step]).cpu())
            clean.append(to_pixels(recorder.x0_hat[: len(x)]).cpu())
    return torch.stack(noisy), torch.stack(clean)


def noise_images(x0: Tensor, schedule: Schedule, times: Tensor, seed: int = 0) -> Tensor:
    """The forward process, x_t = alpha_t x0 + sigma_t eps (Ho et al. 2020, eq. 4), as uint8 `[P, N, C, H, W]`.

    Each image keeps one eps at all times, so that panels differ in the noise level only.

    x0       float `[N, C, H, W]` in [-1, 1]
    times    `[P]`, each in [0, 1]
    """
    eps = Draws(seed, 0, range(len(x0))).normal("noising", x0.shape[1:]).to(x0)
    states = [schedule.add_noise(x0, t, eps) for t in times]
    levels = zip(schedule.alpha(times.double()).tolist(), schedule.sigma(times.double()).tolist(), strict=True)
    return torch.stack([to_pixels(x, alpha, sigma) for x, (alpha, sigma) in zip(states, levels, strict=True)])
