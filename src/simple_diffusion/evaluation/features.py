"""Images as features of an extractor, and the scores that compare two such sets."""

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..data.images import Images
from ..errors import CheckpointError, DataError, ResourceError
from ..randomness import permutation
from ..system.files import cache_folder, read_tensors, write_tensors
from .extractors import Features, extractor_for
from .metrics import Moments, frechet_distance, jackknife

NEIGHBOURS = 5000  # most images a side for precision, recall and KID, whose cost grows with the square of the count
GROUPS = 20  # of the jackknife of FID and the inception score; PAIR_GROUPS of the costlier ones
PAIR_GROUPS = 10


@dataclass(frozen=True, eq=False)
class Featured:
    """Images through an extractor: features `[N, F]` and logits `[N, K]`, float32."""

    features: Tensor
    logits: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, chosen: Tensor | slice) -> "Featured":
        return Featured(self.features[chosen], self.logits[chosen])

    @cached_property
    def moments(self) -> Moments:
        return Moments.of(self.features)


def fid_of(real: Featured, fake: Featured) -> float:
    """FID of fakes against real images, from two of each on."""
    return frechet_distance(real.moments, fake.moments)


def fid_and_error(real: Featured, fake: Featured) -> tuple[float, float]:
    """FID of fakes, and its standard error by the draw of the fakes."""
    return fid_of(real, fake), jackknife(lambda keep: fid_of(real, fake[keep]), len(fake), GROUPS).item()


def some(side: Featured, n: int) -> Tensor:
    """Features of n of the images, always the same `[n, F]`."""
    return side.features[permutation(len(side), 0, "neighbours")[:n]]


def accuracy_of(side: Featured, labels: Tensor) -> float:
    """The share of samples in which the extractor's classifier sees the label `[N]`."""
    return (side.logits.argmax(1) == labels).double().mean().item()


def featured(images: Images, extractor: Features, name: str) -> Featured:
    """Real images through an extractor, kept in the user's cache under the identity of both."""
    path = cache_folder() / "features" / f"{name}-{images.fingerprint[:16]}.safetensors"
    if path.is_file():
        with suppress(CheckpointError):  # damaged: made anew
            return read_features(path, len(images))
    made = Featured(*extractor(images.pixels))
    with suppress(ResourceError):  # a cache that can't be written costs time alone
        write_tensors(
            path, {"features": made.features, "logits": made.logits}, {"extractor": name, "data": images.fingerprint}
        )
    return made


def fid(pixels: Tensor, images: Images) -> float:
    """FID of pixels uint8 `[N, C, H, W]` against images, a data set, in the features of the data's own extractor.

    Compare at one N only: the fewer images, the higher it is (`FrechetByCount`). `evaluate` gives its error and floor.
    Raises DataError where the shapes differ.
    """
    check(replace(images, pixels=pixels, labels=None, class_names=()), images)
    extractor = extractor_for(images)
    return frechet_distance(featured(images, extractor, extractor.name).moments, Moments.of(extractor(pixels)[0]))


def read_features(path: Path, n: int) -> Featured:
    """The features of n images from a file. Raises CheckpointError unless it holds them."""
    tensors, _ = read_tensors(path)
    if set(tensors) != {"features", "logits"} or not all(
        t.dtype == torch.float32 and t.ndim == 2 and len(t) == n and t.isfinite().all() for t in tensors.values()
    ):
        raise CheckpointError(f"{path} does not hold the features of {n} images: remove it")
    return Featured(**tensors)


def check(samples: Images, train: Images) -> None:
    """Raise DataError unless the samples are of the data's shape and have labels that the data knows."""
    if samples.shape != train.shape:
        given, wanted = (" x ".join(map(str, shape)) for shape in (samples.shape, train.shape))
        raise DataError(
            f"the samples are {given} (channels, height, width) and the data {wanted}: bring one to the other"
        )
    if len(samples) < 2:
        raise DataError("one sample has no distribution: draw more with --n")
    if samples.labels is not None and train.classes and samples.labels.max() >= train.classes:
        raise DataError(f"the samples hold the label {samples.labels.max()} and the data has {train.classes} classes")
