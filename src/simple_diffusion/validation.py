"""The loss on images that are kept out of the training: whether it still learns, and when to stop."""

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

ROWS = 256  # draws of noise behind each measurement: images are repeated, or left out, to come to so many
BATCH = 64


def keep_out(images: Images, share: float, seed: int, purpose: str = "held out") -> tuple[Images, Images]:
    """(the images to train on, a random share of all). Raises DataError where either would be empty."""
    count = round(share * len(images))
    if not 1 <= count < len(images):
        raise DataError(f"{share:g} of {len(images)} images can't be held out: give more images or another held_out")
    order = permutation(len(images), seed, purpose)
    return images[order[count:]], images[order[:count]]


@dataclass
class HeldOut:
    """The held-out loss of a run, with the same images, noise and levels each time, and the weights of its lowest.

    images  uint8
    loss    without augmentation and dropped labels
    """

    images: Images
    loss: Loss
    seed: int
    memory_format: torch.memory_format = torch.channels_last
    best: float = math.inf
    best_progress: float = 0.0
    weights: dict[str, Tensor] | None = None

    def measure(self, denoiser: Denoiser) -> float:
        """The mean loss of ROWS draws; processes that share a run measure a part each."""
        device = next(denoiser.parameters()).device

        @torch.no_grad()
        def of_batch(first: int) -> float:
            rows = torch.arange(first, first + BATCH) % len(self.images)
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
        """Measure, and keep the weights if the loss is the lowest so far."""
        loss = self.measure(denoiser)
        if loss < self.best:
            self.best, self.best_progress = loss, progress
            self.weights = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
        return loss
