"""A data set: every image in memory as one uint8 tensor, with its labels and what can be read off it."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1], any shape."""
    return pixels.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Float in [-1, 1], any shape -> uint8; rounded, and clamped first, so that nothing wraps round."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class Images:
    """Images and, where the data has classes, their labels.

    name        what the user called it
    pixels      uint8 `[N, C, H, W]`
    labels      int64 `[N]` in 0..classes-1, or None for data without classes
    class_names one name a class, in the order of the labels; empty for data without classes
    notes       one sentence for each thing a loader did that the user should know (resized, left out, ...)
    """

    name: str
    pixels: Tensor
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def classes(self) -> int:
        """Number of classes, 0 for data without classes."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    @cached_property
    def mean(self) -> float:
        """Mean of the pixels in [-1, 1]."""
        return self._moments[0]

    @cached_property
    def std(self) -> float:
        """Standard deviation of the pixels in [-1, 1], about their mean: the `data_std` of a denoiser."""
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[float, float]:
        count = torch.bincount(self.pixels.flatten(), minlength=256).double()  # exact, and no float copy of the data
        level = torch.arange(256, dtype=torch.float64) / 127.5 - 1
        mean = (count * level).sum() / count.sum()
        variance = (count * (level - mean) ** 2).sum() / count.sum()
        return mean.item(), variance.sqrt().item()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shape, pixels and labels: the identity of the data, whatever its name or place."""
        digest = hashlib.sha256(repr(tuple(self.pixels.shape)).encode())
        digest.update(self.pixels.numpy().tobytes())
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()
