"""`DataInfo`: what a model file records about its data set."""

from dataclasses import dataclass

from ..errors import DataError
from .images import Images, in_nfc

MAX_SIDE = 4096
"""Largest height and width in pixels: a batch of 64 such images, as in sampling, takes 13 GB."""


@dataclass(frozen=True)
class DataInfo:
    """What a model records about its training data. Raises DataError for data that no network can be built for.

    name         the source as the user typed it
    count        number of images
    class_names  in Unicode's NFC; empty for data without classes
    mean, std    of the pixels in [-1, 1]
    fingerprint  SHA-256 of shape, pixels and labels
    """

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
        object.__setattr__(self, "class_names", in_nfc(self.class_names))
        if self.count < 1 or self.channels not in (1, 3):
            raise DataError(
                f"{self.name} must have images of 1 or 3 channels, got {self.count} images of {self.channels} channels"
            )
        if not all(1 <= side <= MAX_SIDE for side in (self.height, self.width)):
            raise DataError(
                f"images of {self.name} must have sides from 1 to {MAX_SIDE} pixels, got {self.height} x {self.width}: "
                "add --size 64"
            )
        if not (-1 <= self.mean <= 1 and 0 < self.std <= 1):
            raise DataError(
                f"the pixels of {self.name} have mean {self.mean:g} and standard deviation {self.std:g} in [-1, 1]: "
                "use images that are not all of one gray"
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
        """The images, without their labels if their classes are not those of the model."""
        return images if images.class_names == self.class_names else images.without_labels()
