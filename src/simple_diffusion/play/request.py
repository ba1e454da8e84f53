"""Requests of the page, and arrays as base64."""

import base64
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..errors import UsageError
from ..samplers import SAMPLERS

MAX_IMAGES, MAX_PIXELS = 64, 2**20
"""Largest number of images in a request, and of pixels in all of them."""

MAX_STEPS = 1000
MAX_SEED = 2**53 - 1
"""The largest integer that JavaScript represents exactly."""


@dataclass(frozen=True)
class SampleRequest:
    """A request for samples. Raises UsageError for values that no model accepts.

    n, labels     number of images, and the classes that they take in turn
    to_seed       interpolates (slerp) from the first noise of `seed` to that of this seed
    image, mask   inpaints: the bytes of the pixels `[C, H, W]` and of the packed bits `[H W]`, both as base64; the
                  model generates where a bit is set, with the sampler `repaint` in place of `sampler`
    measure       whether to measure the distance to the reference solution
    """

    seed: int
    n: int
    labels: tuple[int, ...]
    guidance: float
    sampler: str
    steps: int
    to_seed: int | None = None
    image: str | None = None
    mask: str | None = None
    measure: bool = False

    def __post_init__(self) -> None:
        ranges = [("n", 1, MAX_IMAGES), ("steps", 1, MAX_STEPS), ("guidance", 0, 100), ("seed", 0, MAX_SEED)]
        if self.to_seed is not None:
            ranges.append(("to_seed", 0, MAX_SEED))
        for name, low, high in ranges:
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"`{name}` must be from {low} to {high:,}, got {getattr(self, name)}")
        if self.sampler not in SAMPLERS:
            raise UsageError(f"there is no sampler {self.sampler!r}: use one of {', '.join(SAMPLERS)}")
        if self.interpolates and not SAMPLERS[self.sampler].solves_ode:
            deterministic = ", ".join(name for name, info in SAMPLERS.items() if info.solves_ode)
            raise UsageError(f"{self.sampler} is stochastic, but interpolation needs one of {deterministic}")
        if (self.image is None) != (self.mask is None):
            raise UsageError("`image` and `mask` must be given together")
        if self.interpolates and self.inpaints:
            raise UsageError("`to_seed` interpolates and `image` inpaints: give only one of them")

    @property
    def interpolates(self) -> bool:
        return self.to_seed is not None

    @property
    def inpaints(self) -> bool:
        return self.image is not None


def decode(text: str | None, count: int, name: str) -> np.ndarray:
    """The bytes of a base64 text as uint8 `[count]`. Raises UsageError."""
    try:
        content = base64.b64decode(text or "", validate=True)
    except ValueError:
        content = b""
    if len(content) != count:
        raise UsageError(f"`{name}` must be {count:,} bytes in base64")
    return np.frombuffer(content, np.uint8).copy()


def encode(pixels: Tensor) -> str:
    """A uint8 tensor as base64."""
    return base64.b64encode(pixels.contiguous().cpu().numpy().tobytes()).decode()
