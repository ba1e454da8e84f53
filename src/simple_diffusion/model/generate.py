"""Samples of a model, by the sampler of its configuration."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..data.images import to_uint8
from ..sampling import BATCH, sample_batches
from ..system.distributed import all_reduce, rank, world_size
from ..system.memory import require_memory
from ..system.signals import Stopped
from ..system.terminal import progress_bar
from .model_file import Model

GPU_BATCH, GPU_PIXELS = 512, 2**19
"""Largest batch on a GPU, in images and in pixels: a batch of BATCH small images does not use a GPU fully."""


def sampling_batch(device: torch.device, height: int, width: int) -> int:
    """The batch size of sampling for images of a size: BATCH on a CPU, larger on a GPU.

    It does not depend on how many images are generated, so that an image does not depend on it either.
    """
    return max(BATCH, min(GPU_BATCH, GPU_PIXELS // (height * width))) if device.type == "cuda" else BATCH


def generate_batches(model: Model, n: int, labels: Tensor | None, seed: int) -> Iterator[tuple[int, Tensor]]:
    """The batches of n images that this process generates: (number of the first image, images).

    labels   int64 `[n]`, or None for a model without classes

    The images are float `[<= batch, C, H, W]`, about in [-1, 1].
    """
    denoiser, times, sampler = model.sampler()
    device, shape = next(model.denoiser.parameters()).device, (n, *model.info.shape)
    batch = sampling_batch(device, *shape[-2:])
    firsts = range(0, n, batch)[rank() :: world_size()]
    images = sample_batches(
        denoiser, shape, times, labels, sampler=sampler, seed=seed, batch=batch, device=device, firsts=firsts
    )
    return zip(firsts, images, strict=True)


def generate(
    model: Model, n: int, labels: Tensor | None, seed: int, quiet: bool = True, stopped: Stopped | None = None
) -> Tensor:
    """Generate n images, uint8 `[n, C, H, W]` on the CPU. All processes share the work, and each gets all images.

    labels    int64 `[n]`, or None for a model without classes
    quiet     show no progress bar
    stopped   a signal that stops the work; the images that are missing by then are black
    """
    require_memory(n * math.prod(model.info.shape), f"{n:,} images of this size", "generate fewer with --n")
    pixels = torch.zeros((n, *model.info.shape), dtype=torch.uint8)
    with progress_bar(total=n, unit=" images", hidden=quiet or rank() > 0) as bar:
        for first, x in generate_batches(model, n, labels, seed):
            pixels[first : first + len(x)] = to_uint8(x).cpu()
            bar.update(len(x) * world_size())
            if stopped is not None and stopped.number:
                break
    return all_reduce(pixels)  # the images of other processes are 0 here
