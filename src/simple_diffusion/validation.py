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
    """Split images at random into (training images, `share` of all). Raises DataError if one part would be empty."""
    count = round(share * len(images))
    if not 1 <= count < len(images):
        raise DataError(f"{share:g} of {len(images)} images can't be held out: use more images or another held_out")
    order = permutation(len(images), seed, purpose)
    return images[order[count:]], images[order[:count]]


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
