"""From a seed to images: batches of noise through a sampler."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor

from .denoiser import PosteriorMean
from .randomness import Draws
from .samplers import Sampler, dpmpp
from .system.threads import on_one_thread, parallel_map


def start_noise(seed: int, numbers: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The unit noise that images of a seed are drawn from: float32 `[N, *shape]`.

    numbers   of the images, 0 or more
    shape     (C, H, W) of one
    """
    return Draws(seed, 0, numbers).normal("start", shape)


BATCH = 64
"""Images drawn together, whatever number is asked for: the last bits of a convolution depend on how many share it."""


def distance(x: Tensor, fine: Tensor) -> float:
    """Root mean square distance a pixel from x to the fine solution of the same noise, of one shape, in [-1, 1]."""
    return (x - fine).clamp(-2, 2).square().mean().sqrt().item()


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
    """Every state of one batch of `samples`, from its noise to its images: float `[<= batch, ...]`, on `device`.

    There is one state more than a sampler yields, the noise before the first step. The last one is, to the bit, the
    batch that `samples` draws. Arguments are those of `samples` (denoiser, shape, times, cond, sampler, seed), and

    first   number of the batch's first image, a multiple of `batch`
    start   unit noise `[batch, ...]` to start from instead of the seed's

    Raises ValueError where there is not a label for each image.
    """
    n, numbers = shape[0], range(first, first + batch)
    if cond is not None and len(cond) != n:
        raise ValueError(f"{n} images need {n} labels, not {len(cond)}")
    labels = None if cond is None else cond[[min(number, n - 1) for number in numbers]].to(device)
    begin = times[:1].double()
    level = math.hypot(denoiser.schedule.alpha(begin).item(), denoiser.schedule.sigma(begin).item())

    def noise(step: int, x: Tensor) -> Tensor:
        return Draws(seed, step, numbers).normal("sampler", x.shape[1:]).to(x)

    @torch.no_grad()
    def run() -> Iterator[Tensor]:
        x = level * (start_noise(seed, numbers, shape[1:]) if start is None else start).to(device)
        for state in chain([x], sampler(denoiser, x, times, labels, noise)):
            yield state[: n - first]

    return on_one_thread(run()) if torch.device(device).type == "cpu" else run()


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
    """Draw images from noise, `batch` at a time: float `[<= batch, ...]` about [-1, 1], on `device`.

    Image i of a seed depends on (seed, i) and its label alone: every batch is filled up to the full size, because
    the last bits of a convolution depend on how many images share it. On a CPU each core draws a batch of its own.

    denoiser E[x0 | x_t], and the schedule
    shape    (N, C, H, W), or any shape that the network takes
    times    a grid `[n]`; x starts at its first level
    cond     labels `[N]` int64, or None
    sampler  a function like `ddpm`
    seed     of the noise
    batch    images drawn together
    device   of the denoiser's weights
    firsts   the first image's number of each batch to draw, multiples of `batch`; all of them if it is None

    Raises ValueError where there is not a label for each image.
    """

    def drawn(first: int) -> Tensor:
        path = trajectory(
            denoiser, shape, times, cond, sampler=sampler, seed=seed, batch=batch, device=device, first=first
        )
        (x,) = deque(path, maxlen=1)  # the last state is the image
        return x

    firsts = range(0, shape[0], batch) if firsts is None else firsts
    return parallel_map(drawn, firsts, device)


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
    """`samples`, all at once: float `[N, C, H, W]` on the CPU, about [-1, 1].

    shape    (N, C, H, W), or any shape that the network takes
    times    a grid `[n]`, such as `karras_grid(denoiser.schedule, 10)`
    cond     labels `[N]` int64, or None
    sampler  ddpm, ddim, heun, dpmpp, or a `functools.partial` of one
    seed     of the noise: image i depends on (seed, i) and its label alone
    batch    images drawn together
    device   of the denoiser's weights

    Raises ValueError where there is not a label for each image.
    """
    drawn = sample_batches(denoiser, shape, times, cond, sampler=sampler, seed=seed, batch=batch, device=device)
    return torch.cat([x.cpu() for x in drawn])
