"""Images of a model, by the sampler of its config."""

import sys
from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.images import to_uint8
from ..sampling import BATCH, sample_batches
from ..system.distributed import all_reduce, rank, world_size
from ..system.signals import Stopped
from .model_file import Model

GPU_BATCH, GPU_PIXELS = 512, 2**19
"""Images drawn together on a GPU, which a batch of 64 small ones leaves idle, and the most pixels in all of them."""


def together(device: torch.device, height: int, width: int) -> int:
    """How many images are drawn together, whatever number is asked for: BATCH on a CPU, whose cores draw one each."""
    return max(BATCH, min(GPU_BATCH, GPU_PIXELS // (height * width))) if device.type == "cuda" else BATCH


def generate_batches(model: Model, n: int, labels: Tensor | None, seed: int) -> Iterator[tuple[int, Tensor]]:
    """The batches of n images that this process draws: (number of the first image, float images about [-1, 1])."""
    denoiser, times, sampler = model.sampler()
    device, shape = next(model.denoiser.parameters()).device, (n, *model.info.shape)
    batch = together(device, *shape[-2:])
    mine = range(0, n, batch)[rank() :: world_size()]
    drawn = sample_batches(
        denoiser, shape, times, labels, sampler=sampler, seed=seed, batch=batch, device=device, firsts=mine
    )
    return zip(mine, drawn, strict=True)


def generate(
    model: Model, n: int, labels: Tensor | None, seed: int, quiet: bool = True, stopped: Stopped | None = None
) -> Tensor:
    """n images: uint8 `[n, C, H, W]` on the CPU. Processes that share a run draw a part each, and all get all.

    stopped   a signal at which to leave off; what is not drawn by then stays black
    """
    pixels = torch.zeros((n, *model.info.shape), dtype=torch.uint8)
    with tqdm(total=n, unit=" images", disable=quiet or rank() > 0 or not sys.stderr.isatty()) as bar:
        for first, x in generate_batches(model, n, labels, seed):
            pixels[first : first + len(x)] = to_uint8(x).cpu()
            bar.update(len(x) * world_size())
            if stopped is not None and stopped.number:
                break
    return all_reduce(pixels)  # where another drew, ours are 0
