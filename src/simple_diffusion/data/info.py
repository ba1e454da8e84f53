"""`DataInfo`: what a model must know about its data set."""

from dataclasses import dataclass, replace

from ..errors import DataError
from .images import Images

MAX_SIDE = 4096
"""Pixels of an image's height and width: a batch of 64 such images, as the sampler draws them, takes 13 GB."""


@dataclass(frozen=True)
class DataInfo:
    """What a model knows of the data it was made for. Raises DataError for what no network can be made for."""

    name: str
    count: int
    channels: int
    height: int
    width: int
    class_names: tuple[str, ...]
    mean: float
    std: float
    fingerprint: str

    def __post_init__(self) -> None:
        if self.count < 1 or self.channels not in (1, 3):
            raise DataError(f"{self.name} has {self.count} images of {self.channels} channels: use some of 1 or 3")
        if not all(1 <= side <= MAX_SIDE for side in (self.height, self.width)):
            raise DataError(
                f"{self.name} has images of {self.height} x {self.width} pixels, and {MAX_SIDE} a side are the most: "
                "add --size 64"
            )
        if not (-1 <= self.mean <= 1 and 0 < self.std <= 1):
            raise DataError(
                f"{self.name} has pixels of mean {self.mean:g} and deviation {self.std:g} in [-1, 1]: "
                "there is nothing to learn from images of one grey"
            )

    @classmethod
    def of(cls, images: Images) -> "DataInfo":
        channels, height, width = images.shape
        return cls(
            images.name,
            len(images),
            channels,
            height,
            width,
            images.class_names,
            images.mean,
            images.std,
            images.fingerprint,
        )

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width

    def in_own_classes(self, images: Images) -> Images:
        """The images, without labels where these are of other classes and would mean something else to the model."""
        return images if images.class_names == self.class_names else replace(images, labels=None, class_names=())
