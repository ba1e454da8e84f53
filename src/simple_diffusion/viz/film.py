"""Films: how images come out of noise, and how noise goes over images, at a few moments of the way.

Only the moments that are shown are kept, as uint8: a film of 1000 steps takes the memory of one of 10.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.images import to_uint8
from ..denoiser import PosteriorMean
from ..randomness import Draws
from ..samplers import Sampler, dpmpp, levels_along
from ..sampling import trajectory
from ..schedules import Schedule

SHARES = (0.0, 0.402, 0.802, 0.902, 0.962, 1.0)
"""Shares of the way that a film shows: steps 1, 201, 401, 451, 481 and 500 of 500. On a uniform grid of times most that
can be seen happens at the end."""

MOST = 64
"""Images of one film: a batch of `samples`, so that image i of a film is image i of `samples`."""


class Recorder:
    """A posterior mean that remembers its last answer."""

    x0_hat: Tensor

    def __init__(self, denoiser: PosteriorMean):
        self.denoiser, self.schedule = denoiser, denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        self.x0_hat = self.denoiser(x_t, t, cond)
        return self.x0_hat


def steps_shown(shares: Sequence[float], n: int) -> list[int]:
    """The steps, out of 1 ... n, after which a film of n steps shows its state: rising, none of them twice.

    It begins with step 1, not with the noise before it, of which there is no x0_hat yet. Raises ValueError for a share
    outside [0, 1].
    """
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"a film shows shares of the way, each from 0 to 1, not {shares}")
    return sorted({max(1, round(share * n)) for share in shares})


def visible(x: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
    """States at levels (alpha, sigma), any shape, as uint8 pixels: divided by sqrt(alpha^2 + sigma^2), and clamped.

    So the noise looks the same on every schedule, and a clean image, (1, 0), is left as it is. Raises DivergedError for
    NaN (`to_uint8`).
    """
    return to_uint8(x / math.hypot(alpha, sigma))


def film(
    denoiser: PosteriorMean,
    shape: Sequence[int],
    times: Tensor,
    cond: Tensor | None = None,
    *,
    sampler: Sampler = dpmpp,
    seed: int = 0,
    shares: Sequence[float] = SHARES,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """(x_t, x0_hat) at some steps of the way from noise to images: two uint8 `[P, N, C, H, W]` on the CPU.

    Panel p shows the state that a step leaves, and the last answer that the step was given on the way: x0_hat at the
    state before it (`heun`'s last answer comes from the second point). The last panel of x_t is, to the bit, what
    `samples` draws with the same arguments.

    shape    (N, C, H, W), N at most `MOST`
    shares   of the way, each in [0, 1]; P is smaller than their number where two fall on one step (`steps_shown`)

    Raises ValueError for more images, or shares outside [0, 1]; DivergedError for NaN.
    """
    if shape[0] > MOST:
        raise ValueError(f"a film shows at most {MOST} images, not {shape[0]}: ask for fewer")
    shown, recorder, schedule = steps_shown(shares, len(times)), Recorder(denoiser), denoiser.schedule
    alphas, sigmas = levels_along(schedule, times)
    noisy, clean = [], []
    path = trajectory(recorder, shape, times, cond, sampler=sampler, seed=seed, batch=MOST, device=device)
    for step, x in enumerate(path):
        if step in shown:
            noisy.append(visible(x, alphas[step], sigmas[step]).cpu())
            clean.append(visible(recorder.x0_hat[: len(x)]).cpu())
    return torch.stack(noisy), torch.stack(clean)


def noising(x0: Tensor, schedule: Schedule, times: Tensor, seed: int = 0) -> Tensor:
    """Images on their way into noise, x_t = alpha_t x0 + sigma_t eps (Ho et al. 2020, eq. 4): uint8 `[P, N, C, H, W]`.

    One eps an image all the way, so that what changes from panel to panel is the level alone.

    x0       float `[N, C, H, W]` in [-1, 1]
    times    `[P]`, each in [0, 1]
    """
    eps = Draws(seed, 0, range(len(x0))).normal("noising", x0.shape[1:]).to(x0)
    levels = zip(schedule.alpha(times.double()).tolist(), schedule.sigma(times.double()).tolist(), strict=True)
    return torch.stack([visible(alpha * x0 + sigma * eps, alpha, sigma) for alpha, sigma in levels])
