"""From a seed to images: batches of noise through a sampler."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from .denoiser import PosteriorMean
from .randomness import Draws
from .samplers import Sampler, dpmpp
from .system.threads import on_one_thread, parallel_map

BATCH = 64
"""Images that are sampled together, however many are asked for: the last bits of a convolution depend on the batch."""


def start_noise(seed: int, numbers: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The unit noise from which the images of a seed are generated: float32 `[N, *shape]`.

    numbers   of the images, 0 or more
    shape     (C, H, W) of one image
    """
    return Draws(seed, 0, numbers).normal("start", shape)


def slerp(one: Tensor, other: Tensor, fractions: Sequence[float]) -> Tensor:
    """Spherical interpolation between two noises (Shoemake 1985; Song et al. 2021, "DDIM", eq. 67): `[N, *shape]`.

    All results have about the norm of noise; those of a linear interpolation would be shorter. A deterministic sampler
    turns them into images that lead from one image to the other.

    one, other   unit noise of the same shape
    fractions    of the way, each in [0, 1]; both ends are exact
    """
    cosine = torch.cosine_similarity(one.double().flatten(), other.double().flatten(), 0).item()
    angle = math.acos(max(-1.0, min(cosine, 1.0)))
    if angle < 1e-6:
        return torch.stack([one] * len(fractions))
    mixed = [
        (math.sin((1 - f) * angle) * one.double() + math.sin(f * angle) * other.double()) / math.sin(angle)
        for f in fractions
    ]
    return torch.stack(mixed).to(one)


def distance(x: Tensor, fine: Tensor) -> float:
    """Root mean square distance per pixel between x and the fine solution of the same noise and shape, in [-1, 1]."""
    return (x - fine).clamp(-2, 2).square().mean().sqrt().item()


@torch.no_grad()
def trajectory(
    denoiser: PosteriorMean,
    shape: Sequence[int],
    times: Tensor,
    cond: Tensor | None = None,
    *,
    sampler: Sampler = dpmpp,
    seed: int = 0,
    batch: int = BATCH,
    device: torch.device | str = "cpu",
    first: int = 0,
    start: Tensor | None = None,
) -> Iterator[Tensor]:
    """Every state of one batch of `sample`, from its noise to its images: float `[<= batch, ...]`, on `device`.

    The first state is the noise before the first step. The last one equals, bit for bit, the same images of `sample`.
    The arguments are those of `sample`, and

    first   number of the first image of the batch, a multiple of `batch`
    start   unit noise `[batch, ...]` to start from, instead of that of the seed

    Raises ValueError if the number of labels is not the number of images.
    """
    n, numbers = shape[0], range(first, first + batch)
    if cond is not None and len(cond) != n:
        raise ValueError(f"{n} images need {n} labels, not {len(cond)}")
    labels = None if cond is None else cond[[min(number, n - 1) for number in numbers]].to(device)
    begin = times[:1].double()
    level = math.hypot(denoiser.schedule.alpha(begin).item(), denoiser.schedule.sigma(begin).item())

    def noise(step: int, x: Tensor) -> Tensor:
        return Draws(seed, step, numbers).normal("sampler", x.shape[1:]).to(x)

    x = level * (start_noise(seed, numbers, shape[1:]) if start is None else start).to(device)
    yield x[: n - first]
    states = sampler(denoiser, x, times, labels, noise)
    for x in on_one_thread(states) if torch.device(device).type == "cpu" else states:
        yield x[: n - first]


def sample_batches(
    denoiser: PosteriorMean,
    shape: Sequence[int],
    times: Tensor,
    cond: Tensor | None = None,
    *,
    sampler: Sampler = dpmpp,
    seed: int = 0,
    batch: int = BATCH,
    device: torch.device | str = "cpu",
    firsts: Iterable[int] | None = None,
) -> Iterator[Tensor]:
    """The images of `sample`, `batch` at a time: float `[<= batch, ...]` about [-1, 1], on `device`.

    Image i depends on (seed, i) and its label alone. For this every batch is filled up to its full size, because the
    last bits of a convolution depend on the size of the batch. On a CPU each thread computes a batch of its own.

    The arguments are those of `sample`, and

    firsts   number of the first image of each batch, multiples of `batch`; all batches if it is None

    Raises ValueError if the number of labels is not the number of images.
    """

    def sample_batch(first: int) -> Tensor:
        states = trajectory(
            denoiser, shape, times, cond, sampler=sampler, seed=seed, batch=batch, device=device, first=first
        )
        return deque(states, maxlen=1).pop()  # the last state, without the others in memory

    return parallel_map(sample_batch, range(0, shape[0], batch) if firsts is None else firsts, device)


def sample(
    denoiser: PosteriorMean,
    shape: Sequence[int],
    times: Tensor,
    cond: Tensor | None = None,
    *,
    sampler: Sampler = dpmpp,
    seed: int = 0,
    batch: int = BATCH,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Generate images from noise: float `[N, C, H, W]` about [-1, 1], on the CPU.

    denoiser  E[x0 | x_t], and the schedule
    shape     (N, C, H, W), or any shape that the network takes
    times     a grid `[n]`, such as `karras_grid(denoiser.schedule, 10)`; the noise is at the level of the first time
    cond      labels int64 `[N]`, or None
    sampler   ddpm, ddim, heun, dpmpp, or a `functools.partial` of one
    seed      of the noise: image i depends on (seed, i) and its label alone
    batch     number of images that are computed together
    device    of the denoiser's weights

    Raises ValueError if the number of labels is not the number of images.
    """
    batches = sample_batches(denoiser, shape, times, cond, sampler=sampler, seed=seed, batch=batch, device=device)
    return torch.cat([x.cpu() for x in batches])
