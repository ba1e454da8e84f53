"""Scores of samples against data: each with its extractor, its count, its error and its floor.

The floor of a score is what unseen real images get at the same count: the best that samples can honestly reach.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from .copies import Copies, find_copies, identity, symmetries
from .data.images import Images, to_unit
from .errors import DataError, ResourceError
from .extractors import Features
from .files import cache_folder, write_atomic
from .metrics import (
    FrechetByCount,
    Moments,
    frechet_by_count,
    frechet_distance,
    inception_score,
    jackknife,
    kernel_distance,
    precision_recall,
)
from .randomness import permutation

NEIGHBOURS = 5000  # most images a side for precision, recall and KID, whose cost grows with the square of the count
GROUPS = 20  # of the jackknife of FID and the inception score; PAIR_GROUPS of the costlier ones
PAIR_GROUPS = 10
COPY_SAMPLES = 2000  # most samples that are searched for copies
FEW_IMAGES = 5000  # up to here a training set is searched under all symmetries of its images, beyond as it is


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


@dataclass(frozen=True)
class Score:
    """One number and all that it needs to mean something.

    name       FID, KID, IS, precision, recall, density, coverage, accuracy
    extractor  that made the features
    n          samples behind it
    against    the real images that it compares with
    value      None where n is too small; then `note` says so in a sentence
    error      standard error of the draw of the samples; the interval is value ± 1.96 errors
    floor      the same score of unseen real images at the same count, None where there are none
    """

    name: str
    extractor: str
    n: int
    against: str
    value: float | None
    error: float | None = None
    floor: float | None = None
    note: str = ""

    @property
    def title(self) -> str:
        """`FID[fashion-mnist-cnn-1, n=10000 vs train]`: a score is never named without these."""
        versus = f" vs {self.against}" if self.against else ""
        return f"{self.name}[{self.extractor}, n={self.n}{versus}]"

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.title}  {self.note}"
        interval = "" if self.error is None else f" ± {1.96 * self.error:.2g}"
        floor = "" if self.floor is None else f"   real images: {self.floor:.4g}"
        return f"{self.title}  {self.value:.4g}{interval}{floor}"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All scores of a set of samples.

    scores     of all samples together
    by_class   class name -> its accuracy and FID; empty without labels
    by_count   FID at n/4, n/2, n and extrapolated, None with too few samples
    copies     "pixels" and "features" -> nearest training images
    """

    scores: list[Score]
    by_class: dict[str, list[Score]] = field(default_factory=dict)
    by_count: FrechetByCount | None = None
    copies: dict[str, Copies] = field(default_factory=dict)


def featured(images: Images, extractor: Features, name: str) -> Featured:
    """Real images through an extractor, kept in the user's cache under the identity of both."""
    path = cache_folder() / "features" / f"{name}-{images.fingerprint[:16]}.safetensors"
    try:
        tensors = load_file(path)
        if len(tensors["features"]) == len(images):
            return Featured(tensors["features"], tensors["logits"])
    except (OSError, SafetensorError, KeyError):
        pass  # not there, or damaged: made anew
    made = Featured(*extractor(images.pixels))
    try:
        write_atomic(path, to_bytes({"features": made.features.contiguous(), "logits": made.logits.contiguous()}))
    except ResourceError:
        pass  # a cache that can't be written costs time alone
    return made


def check(samples: Images, train: Images) -> None:
    """Raise DataError unless the samples are of the data's shape and have labels that the data knows."""
    if samples.shape != train.shape:
        given, wanted = (" x ".join(map(str, shape)) for shape in (samples.shape, train.shape))
        raise DataError(f"the samples are {given} (channels, height, width) and the data {wanted}: bring one to the other")
    if len(samples) < 2:
        raise DataError("one sample has no distribution: draw more with --n")
    if samples.labels is not None and train.classes and samples.labels.max() >= train.classes:
        raise DataError(f"the samples hold the label {samples.labels.max()} and the data has {train.classes} classes")


def evaluate(
    samples: Images,
    train: Images,
    test: Images | None,
    extractor: Features,
    name: str,
    *,
    report: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Score samples against a training set.

    samples    uint8, of the data's shape; with labels, if they were asked for by class
    train      the training set, as it is: never augmented
    test       unseen images for floors and for the calibration of copies; without, half the training set stands in
    extractor  uint8 images -> (features, logits)
    name       of the extractor, printed with each number
    report     is told what is being done

    Raises DataError.
    """
    check(samples, train)
    report("features")
    fake = Featured(*extractor(samples.pixels))
    real = featured(train, extractor, name)
    unseen = featured(test, extractor, name) if test is not None else None
    if unseen is None:  # two halves of the training set are unseen to each other
        halves = permutation(len(real), 0, "halves").tensor_split(2)
        floor_real, floor_fake = real[halves[0]], real[halves[1]]
    else:
        floor_real, floor_fake = real, unseen
    n, classes = len(samples), samples.classes or train.classes
    floor_fake = floor_fake[permutation(len(floor_fake), 0, "floor")[:n]]

    def score(kind: str, count: int, value: float, error: float | None, floor: float | None, against: str) -> Score:
        return Score(kind, name, count, against, value, error, floor)

    scores = []
    report("FID")
    width = real.features.shape[1]
    scores.append(fid_score(name, real, fake, floor_real, floor_fake))
    by_count = frechet_by_count(real.features, fake.features) if n >= 16 * width else None

    report("KID, precision and recall")
    few = min(n, len(real), NEIGHBOURS)
    if few < 50:
        scores.append(Score("KID", name, few, "train", None, note="needs 50 samples and 50 real images to mean anything"))
    else:
        some_real = real.features[permutation(len(real), 0, "neighbours")[:few]]
        some_fake = fake.features[permutation(n, 0, "neighbours")[:few]]
        rest = floor_fake.features[: min(few, len(floor_fake))]
        less_real = floor_real.features[permutation(len(floor_real), 0, "neighbours")[: len(rest)]]
        value, error = kernel_distance(some_real, some_fake)
        floor, _ = kernel_distance(less_real, rest)
        scores.append(score("KID", few, value, error, floor, "train"))
        values, floors = precision_recall(some_real, some_fake), precision_recall(less_real, rest)
        errors = jackknife(lambda keep: tuple(precision_recall(some_real, some_fake[keep])), few, PAIR_GROUPS)
        for kind, one, wrong, best in zip(values._fields, values, errors.tolist(), floors, strict=True):
            scores.append(score(kind, few, one, wrong, best, "train"))

    report("inception score and accuracy")
    if train.classes > 1 and fake.logits.shape[1] == train.classes:
        if n < 10 * train.classes:
            note = f"needs {10 * train.classes} samples, ten a class, to mean anything"
            scores.append(Score("IS", name, n, "", None, note=note))
        else:
            value, _ = inception_score(fake.logits, splits=1)
            error = jackknife(lambda keep: inception_score(fake.logits[keep], splits=1)[0], n, GROUPS).item()
            floor, _ = inception_score(floor_fake.logits, splits=1)
            scores.append(score("IS", n, value, error, floor, ""))
    by_class: dict[str, list[Score]] = {}
    if samples.labels is not None and classes and fake.logits.shape[1] == train.classes:
        known = test if test is not None else train
        known_featured = unseen if unseen is not None else real
        scores.append(accuracy_score(name, fake, samples.labels, known_featured, known.labels))
        assert train.labels is not None
        for c, class_name in enumerate(train.class_names):
            mine, theirs, others = samples.labels == c, train.labels == c, known.labels == c
            if mine.sum() < 2 or theirs.sum() < 2:
                continue
            by_class[class_name] = [
                accuracy_score(name, fake[mine], samples.labels[mine], known_featured[others], known.labels[others]),
                fid_score(name, real[theirs], fake[mine], real[theirs], known_featured[others][: int(mine.sum())]),
            ]

    report("copies")
    copies = search_copies(samples, train, test, fake, real, unseen, extractor)
    return Evaluation(scores, by_class, by_count, copies)


def fid_score(name: str, real: Featured, fake: Featured, floor_real: Featured, floor_fake: Featured) -> Score:
    """FID of fakes with error and floor, or the sentence that there are too few."""
    n, width = len(fake), real.features.shape[1]
    if n < 2 * width or len(real) < 2 * width:
        note = f"needs {2 * width} samples and real images, twice the extractor's features, to mean anything"
        return Score("FID", name, n, "train", None, note=note)
    value = frechet_distance(real.moments, fake.moments)
    error = jackknife(lambda keep: frechet_distance(real.moments, Moments.of(fake.features[keep])), n, GROUPS).item()
    floor = frechet_distance(floor_real.moments, floor_fake.moments) if len(floor_fake) > 1 else None
    note = "" if len(floor_fake) == n else f"floor at n={len(floor_fake)}"
    return Score("FID", name, n, "train", value, error, floor, note)


def accuracy_score(name: str, fake: Featured, asked: Tensor, known: Featured, labels: Tensor | None) -> Score:
    """How often the extractor's classifier sees the label that was asked for; floor: real images of known label."""
    hit = (fake.logits.argmax(1) == asked).double().mean().item()
    error = math.sqrt(hit * (1 - hit) / len(fake))  # binomial
    floor = None if labels is None else (known.logits.argmax(1) == labels).double().mean().item()
    return Score("accuracy", name, len(fake), "asked labels", hit, error, floor)


def search_copies(
    samples: Images,
    train: Images,
    test: Images | None,
    fake: Featured,
    real: Featured,
    unseen: Featured | None,
    extractor: Features,
) -> dict[str, Copies]:
    """Nearest training images of up to COPY_SAMPLES samples, in pixels and in features."""
    _, height, width = train.shape
    views = symmetries(height == width) if len(train) <= FEW_IMAGES else [identity]
    pixels = [to_unit(view(train.pixels)).flatten(1) for view in views]
    features = [real.features, *(extractor(view(train.pixels).contiguous())[0] for view in views[1:])]
    some = samples.pixels[:COPY_SAMPLES]
    return {
        "pixels": find_copies(
            to_unit(some).flatten(1), pixels, None if test is None else to_unit(test.pixels[:COPY_SAMPLES]).flatten(1)
        ),
        "features": find_copies(
            fake.features[:COPY_SAMPLES], features, None if unseen is None else unseen.features[:COPY_SAMPLES]
        ),
    }
