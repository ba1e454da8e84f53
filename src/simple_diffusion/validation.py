"""The held-out loss, measured on images that are not trained on. It shows when to stop."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .data.images import Images, to_unit
from .denoiser import Denoiser
from .errors import DataError
from .losses import Loss
from .randomness import Draws, permutation
from .system.distributed import all_reduce, rank, world_size
from .system.threads import parallel_map

ROWS = 256
"""Noisy images in each measurement. Images are repeated or left out to reach this number."""

BATCH = 64


def keep_out(images: Images, share: float, seed: int, purpose: str = "held out") -> tuple[Images, Images]:
    """Split images at random into (training images, `share` of all). Raises DataError if one part would be empty.

    Of equal images one counts. If it is held out, the others are in neither part: the held-out loss is that of unseen
    images.
    """
    rest, held = split_rows(images, share, seed, purpose)
    if not len(rest) or not len(held):
        count = f"{len(images)} images" + (f", {len(images.distinct)} of them different," if images.duplicates else "")
        raise DataError(f"{share:g} of {count} can't be held out: use more images or another held_out")
    return images[rest], images[held]


def split_rows(images: Images, share: float, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
    """The numbers of the images in both parts of `keep_out`, int64, in random order."""
    first = images.distinct
    order = first[permutation(len(first), seed, purpose)]
    rest, held = order[round(share * len(first)) :], order[: round(share * len(first))]
    again = torch.isin(images.originals, rest)
    again[rest] = False
    return torch.cat([rest, again.nonzero().squeeze(1)]), held


@dataclass
class HeldOut:
    """The held-out loss of a run, and the weights with the lowest. Each measurement uses the same images and noise.

    images         uint8
    loss           without augmentation and dropped labels
    seed           of the noise
    memory_format  layout of the images
    best           lowest loss so far, reached at `best_progress` with `weights`
    """

    images: Images
    loss: Loss
    seed: int
    memory_format: torch.memory_format = torch.channels_last
    best: float = math.inf
    best_progress: float = 0.0
    weights: dict[str, Tensor] | None = None

    def measure(self, denoiser: Denoiser) -> float:
        """The mean loss of ROWS noisy images. The processes of a run share the work."""
        device, count = next(denoiser.parameters()).device, len(self.images)
        some = torch.arange(count) if count <= ROWS else permutation(count, self.seed, "measured")[:ROWS]

        @torch.no_grad()
        def of_batch(first: int) -> float:
            rows = some[torch.arange(first, first + BATCH) % len(some)]
            x0 = to_unit(self.images.pixels[rows].to(device)).contiguous(memory_format=self.memory_format)
            cond = None if self.images.labels is None else self.images.labels[rows].to(device)
            draws = Draws(self.seed, 0, range(first, first + BATCH), total=ROWS)
            return self.loss(denoiser, x0, cond, draws).sum().item()

        firsts = range(0, ROWS, BATCH)[rank() :: world_size()]
        sums = torch.zeros(ROWS // BATCH, dtype=torch.float64)
        measured = parallel_map(of_batch, firsts, device)
        for first, total in zip(firsts, measured, strict=True):
            sums[first // BATCH] = total
        return sum(all_reduce(sums).tolist()) / ROWS

    def check(self, denoiser: Denoiser, progress: float) -> float:
        """Measure the loss, and keep a copy of the weights if it is the lowest so far."""
        loss = self.measure(denoiser)
        if loss < self.best:
            self.best, self.best_progress = loss, progress
            self.weights = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
        return loss
