"""From a seed to images: batches of noise through a sampler."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from numbers import Integral

import torch
from torch import Tensor

from .checks import check_callable, check_floats, check_integer, check_number, shown
from .denoiser import PosteriorMean, check_denoiser, weights_of
from .networks.embedding import label_embedding
from .randomness import Draws
from .samplers import Sampler, dpmpp, levels_along
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

    Raises TypeError or ValueError for other noises or fractions, and for noises that are opposite.
    """
    check_floats("one", one)
    check_floats("other", other)
    if one.shape != other.shape or not len(fractions):
        raise ValueError(f"slerp needs two noises of one shape and some fractions, got {shown(one)} and {shown(other)}")
    for fraction in fractions:
        check_number("fractions", fraction, 0, 1, "[]")
    device, one, other = one.device, one.cpu(), other.cpu()
    cosine = torch.cosine_similarity(one.double().flatten(), other.double().flatten(), 0).item()
    angle = math.acos(max(-1.0, min(cosine, 1.0)))
    if angle < 1e-6:
        return torch.stack([one] * len(fractions)).to(device)
    if math.sin(angle) < 1e-6:
        raise ValueError("slerp has no way between a noise and its opposite: choose another noise")
    mixed = [
        (math.sin((1 - f) * angle) * one.double() + math.sin(f * angle) * other.double()) / math.sin(angle)
        for f in fractions
    ]
    return torch.stack(mixed).to(device, one.dtype)


def distance(x: Tensor, fine: Tensor) -> float:
    """Root mean square distance per pixel between x and the fine solution of the same noise and shape, in [-1, 1]."""
    return (x - fine).clamp(-2, 2).square().mean().sqrt().item()


def device_of(denoiser: PosteriorMean, device: torch.device | str | None = None) -> torch.device:
    """The device of the denoiser's weights; without weights the given one, by default the CPU.

    Raises ValueError if another kind of device is given.
    """
    module = weights_of(denoiser)
    weights = chain(module.parameters(), module.buffers()) if module is not None else ()
    own = next((weight.device for weight in weights), None)
    if own is not None and device is not None and torch.device(device).type != own.type:
        raise ValueError(f"the weights are on {own}, not on {device}: leave `device` out, or move the denoiser there")
    return own or torch.device(device or "cpu")


def check_shape(shape: Sequence[int], batch: int) -> None:
    """Raise ValueError unless the shape `(N, ...)` and the batch size are integers of 1 or more."""
    if (
        not isinstance(shape, Sequence)
        or len(shape) < 2
        or not all(isinstance(length, Integral) and length >= 1 for length in shape)
    ):
        raise ValueError(f"`shape` must be (N, C, H, W), integers of 1 or more, got {shown(shape)}")
    check_integer("batch", batch, 1)


def checked_labels(denoiser: PosteriorMean, cond: Tensor, n: int) -> Tensor:
    """The labels of n images as int64 `[N]`.

    Raises ValueError for another number of labels, or for labels that the network does not have; TypeError for others.
    """
    if not isinstance(cond, Tensor) or cond.is_floating_point() or cond.is_complex() or cond.dtype == torch.bool:
        raise TypeError(f"`cond` must be a tensor of integers, a label for each image, got {shown(cond)}")
    if cond.shape != (n,):
        raise ValueError(f"{n} images need {n} labels, not {len(cond) if cond.ndim == 1 else shown(cond)}")
    embedded, cond = label_embedding(weights_of(denoiser)), cond.long()
    if embedded is not None:
        embedded.check(cond)
    return cond


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
    device: torch.device | str | None = None,
    first: int = 0,
    start: Tensor | None = None,
) -> Iterator[Tensor]:
    """Every state of one batch of `sample`, from its noise to its images: float `[<= batch, ...]`, on `device`.

    The first state is the noise before the first step. The last one equals, bit for bit, the same images of `sample`.
    The arguments are those of `sample`, and

    first   number of the first image of the batch, a multiple of `batch`
    start   unit noise `[batch, ...]` to start from, instead of that of the seed

    Raises ValueError or TypeError for arguments that are not allowed.
    """
    check_denoiser(denoiser)
    check_shape(shape, batch)
    check_callable("sampler", sampler, "a function such as sd.ddim")
    n, numbers, device = shape[0], range(first, first + batch), device_of(denoiser, device)
    if not 0 <= first < n or first % batch:
        raise ValueError(f"`first` must be a multiple of {batch} from 0 to {n - 1}, got {first}")
    if start is not None and start.shape != (batch, *shape[1:]):
        raise ValueError(f"`start` must have the shape {(batch, *shape[1:])} of a batch, got {shown(start)}")
    labels = None
    if cond is not None:
        labels = checked_labels(denoiser, cond, n)[[min(number, n - 1) for number in numbers]].to(device)
    (alpha, *_), (sigma, *_) = levels_along(denoiser.schedule, times)
    level = math.hypot(alpha, sigma)

    def noise(step: int, x: Tensor) -> Tensor:
        return Draws(seed, step, numbers).normal("sampler", x.shape[1:]).to(x)

    x = level * (start_noise(seed, numbers, shape[1:]) if start is None else start).to(device)
    yield x[: n - first]
    states = sampler(denoiser, x, times, labels, noise)
    for x in on_one_thread(states) if device.type == "cpu" else states:
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
    device: torch.device | str | None = None,
    firsts: Iterable[int] | None = None,
) -> Iterator[Tensor]:
    """The images of `sample`, `batch` at a time: float `[<= batch, ...]` about [-1, 1], on `device`.

    Image i depends on (seed, i) and its label alone. For this every batch is filled up to its full size, because the
    last bits of a convolution depend on the size of the batch. On a CPU each thread computes a batch of its own.

    The arguments are those of `sample`, and

    firsts   number of the first image of each batch, multiples of `batch`; all batches if it is None

    Raises ValueError or TypeError for arguments that are not allowed.
    """
    check_shape(shape, batch)
    device = device_of(denoiser, device)

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
    device: torch.device | str | None = None,
) -> Tensor:
    """Generate images from noise: float `[N, C, H, W]` about [-1, 1], on the CPU.

    denoiser  E[x0 | x_t], and the schedule
    shape     (N, C, H, W), or any shape that the network takes
    times     a grid `[n]`, such as `karras_grid(denoiser.schedule, 10)`; the noise is at the level of the first time
    cond      labels int64 `[N]`, or None
    sampler   ddpm, ddim, heun, dpmpp, or a `functools.partial` of one
    seed      of the noise: image i depends on (seed, i) and its label alone
    batch     number of images that are computed together
    device    to compute on; the device of the denoiser's weights by default, and the CPU if it has none

    Raises ValueError or TypeError for arguments that are not allowed: the number of labels is not the number of images,
    a label is no class of the network, the times do not decrease within (0, 1], or the weights are on another device.
    """
    batches = sample_batches(denoiser, shape, times, cond, sampler=sampler, seed=seed, batch=batch, device=device)
    return torch.cat([x.cpu() for x in batches])
