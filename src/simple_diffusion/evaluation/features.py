"""Features of images, cached on disk, and the scores that compare two sets of them."""

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..data.images import Images, distinct
from ..errors import CheckpointError, DataError, ResourceError
from ..randomness import permutation
from ..system.files import cache_folder, read_tensors, write_tensors
from .extractors import Features, extractor_for
from .metrics import Moments, frechet_distance, jackknife

NEIGHBORS = 5000
"""Most images of each set for precision, recall and KID, whose cost grows with the square of the count."""
GROUPS = 20
"""Groups of the jackknife of FID and the inception score."""
PAIR_GROUPS = 10
"""Groups of the jackknife of precision and recall, which cost more."""
PROBED = 16
"""Images whose features are computed again to check those in the cache."""
SAME = 1e-4
"""Largest difference of equal features, relative to the largest: float32 on other processors stays below, bf16 not."""


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Images through an extractor: features `[N, F]` and logits `[N, K]`, float32."""

    features: Tensor
    logits: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, chosen: Tensor | slice) -> "ImageFeatures":
        return ImageFeatures(self.features[chosen], self.logits[chosen])

    def equals(self, other: "ImageFeatures") -> bool:
        """Whether the numbers are the same up to the rounding of float32."""
        pairs = ((self.features, other.features), (self.logits, other.logits))
        return all(
            a.shape == b.shape and (not a.numel() or bool((a - b).abs().max() <= SAME * b.abs().max()))
            for a, b in pairs
        )

    @cached_property
    def once(self) -> "ImageFeatures":
        """Without duplicates, so that two parts share no image."""
        return self[distinct([self.features])]

    @cached_property
    def moments(self) -> Moments:
        return Moments.of(self.features)


def fid_of(real: ImageFeatures, fake: ImageFeatures) -> float:
    """FID of samples against real images; needs at least two of each."""
    return frechet_distance(real.moments, fake.moments)


def fid_needs(real: ImageFeatures) -> int:
    """The least number of samples, and of real images, for FID and its error."""
    return max(2 * real.features.shape[1], GROUPS)


def fid_and_error(real: ImageFeatures, fake: ImageFeatures) -> tuple[float, float]:
    """(FID of samples, its standard error over samples)."""
    return fid_of(real, fake), jackknife(lambda keep: fid_of(real, fake[keep]), len(fake), GROUPS).item()


def subset(side: ImageFeatures, n: int) -> Tensor:
    """Features `[n, F]` of n of the images: a random subset, always the same."""
    return side.features[permutation(len(side), 0, "neighbours")[:n]]


def accuracy_of(side: ImageFeatures, labels: Tensor) -> float:
    """Share of samples for which the extractor's classifier predicts the label, int64 `[N]`."""
    return (side.logits.argmax(1) == labels).double().mean().item()


def cached_features(images: Images, extractor: Features, name: str) -> ImageFeatures:
    """The features of real images, computed once and kept in the user's cache under a name of the extractor.

    A few images are computed each time, so that features of other weights, or of another arithmetic, are not taken for
    those of this extractor: they are replaced.
    """
    path = cache_folder() / "features" / f"{name}-{images.fingerprint[:16]}.safetensors"
    if os.path.isfile(path):  # false also where the cache must not be read
        some = permutation(len(images), 0, "probe")[:PROBED]
        with suppress(CheckpointError):  # a damaged file is replaced
            cached = read_features(path, len(images))
            if cached[some].equals(ImageFeatures(*extractor(images.pixels[some]))):
                return cached
    made = ImageFeatures(*extractor(images.pixels))
    with suppress(ResourceError):  # without a cache only time is lost
        write_tensors(
            path, {"features": made.features, "logits": made.logits}, {"extractor": name, "data": images.fingerprint}
        )
    return made


def fid(pixels: Tensor, images: Images) -> float:
    """FID of pixels uint8 `[N, C, H, W]` against images, a data set, in the features of the data's own extractor.

    Compare values at the same N only, because FID is higher for fewer images (`FrechetByCount`). `evaluate` adds its
    standard error and its real-data baseline.

    Raises DataError where the shapes differ.
    """
    check_samples(replace(images.without_labels(), pixels=pixels), images)
    extractor = extractor_for(images)
    return frechet_distance(
        cached_features(images, extractor, extractor.name).moments, Moments.of(extractor(pixels)[0])
    )


def read_features(path: Path, n: int) -> ImageFeatures:
    """The features of n images from a file. Raises CheckpointError unless it holds them."""
    tensors, _ = read_tensors(path)
    if set(tensors) != {"features", "logits"} or not all(
        t.dtype == torch.float32 and t.ndim == 2 and len(t) == n and t.isfinite().all() for t in tensors.values()
    ):
        raise CheckpointError(f"{path} does not hold the features of {n} images: remove it")
    return ImageFeatures(**tensors)


def check_samples(samples: Images, train: Images) -> None:
    """Raise DataError unless the samples have the shape of the data, and only labels of its classes."""
    if samples.shape != train.shape:
        given, wanted = (" x ".join(map(str, shape)) for shape in (samples.shape, train.shape))
        raise DataError(
            f"the samples are {given} (channels, height, width) and the data {wanted}: use samples of the data's shape"
        )
    if len(samples) < 2:
        raise DataError("scores need at least two samples, got one sample: generate more with --n")
    if samples.labels is not None and train.classes and samples.labels.max() >= train.classes:
        raise DataError(
            f"the samples have the label {samples.labels.max()}, but the data has only {train.classes} classes"
        )
