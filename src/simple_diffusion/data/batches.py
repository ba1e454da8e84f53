"""An endless stream of batches whose order is a pure function of (seed, epoch)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_integer, check_type
from ..randomness import Draws, permutation
from .images import Images, to_unit


@dataclass(frozen=True)
class Batch:
    """x0 float `[B, C, H, W]` in [-1, 1], cond int64 `[B]` or None, and the random numbers of these samples."""

    x0: Tensor
    cond: Tensor | None
    draws: Draws

    def __getitem__(self, rows: slice) -> "Batch":
        """Some of the samples, with their own labels and random numbers."""
        return Batch(self.x0[rows], None if self.cond is None else self.cond[rows], self.draws[rows])


def order(start: int, count: int, n: int, seed: int) -> Tensor:
    """The indices of the images at positions start .. start + count - 1 of the stream: int64 `[count]`.

    Position p belongs to epoch p // n. Each epoch has every image once, in its own order.
    """
    pieces = []
    for epoch in range(start // n, (start + count - 1) // n + 1):
        low, high = max(start - epoch * n, 0), min(start + count - epoch * n, n)
        pieces.append(permutation(n, seed, "order", epoch)[low:high])
    return torch.cat(pieces)


def batches(
    images: Images, size: int, *, seed: int = 0, start: int = 0, device: torch.device | str = "cpu"
) -> Iterator[Batch]:
    """An endless stream of the batches for steps start + 1, start + 2, ...: x0 float `[size, C, H, W]` in [-1, 1].

    images  the data set, which is kept on `device` as uint8
    size    images in a batch; it may be larger than the data set
    seed    of the order of the images, and of the random numbers of each sample
    start   completed steps; a stream that resumes here is equal to one that never stopped
    device  of the batches

    Raises TypeError or ValueError for an argument that is not allowed.
    """
    check_type("images", images, Images, "Images, as sd.load_images returns them")
    check_integer("the number of images", len(images), 1)
    check_integer("size", size, 1)
    check_integer("start", start, 0)
    pixels = images.pixels.to(device)
    labels = None if images.labels is None else images.labels.to(device)
    step, ahead = start, 64  # many steps at once, because a permutation costs more than a batch
    while True:
        for chosen in order(step * size, ahead * size, len(images), seed).view(ahead, size):
            step += 1
            index = chosen.to(device)
            cond = None if labels is None else labels[index]
            yield Batch(to_unit(pixels[index]), cond, Draws(seed, step, range(size), total=size))
