"""Scores of samples against data: each with its extractor, its count, its error and its floor.

The floor of a score is what unseen real images get at the same count: the best that samples can honestly reach.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..augmentation import Augmentation, identity
from ..data.images import Images, to_unit
from ..randomness import permutation
from .extractors import Features
from .features import (
    GROUPS,
    NEIGHBOURS,
    PAIR_GROUPS,
    Featured,
    accuracy_of,
    check,
    featured,
    fid_and_error,
    fid_of,
    some,
)
from .memorization import NEIGHBOUR, Copies, find_copies
from .metrics import (
    FrechetByCount,
    PrecisionRecall,
    frechet_by_count,
    inception_score,
    jackknife,
    kernel_distance,
    precision_recall,
)

SPLIT = 5000  # samples behind one published inception score: a tenth of 50,000 (Salimans et al. 2016)
COPY_SAMPLES = 2000  # most samples that are searched for copies


@dataclass(frozen=True)
class Score:
    """One number and all that it needs to mean something.

    name       FID, KID, IS, precision, recall, density, coverage, accuracy
    extractor  that made the features
    n          samples behind it
    against    the real images that it compares with
    value      None where n is too small; then `note` says so in a sentence
    error      standard error of the draw of the samples; the interval is value ± 1.96 errors
    floor      the same score of unseen real images, None where there are none; `note` says where their count is another
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

    @property
    def short(self) -> str:
        """The value with its interval and floor, or the note."""
        if self.value is None:
            return self.note
        interval = "" if self.error is None else f" ± {1.96 * self.error:.2g}"
        at = f", {self.note}" if self.note else ""
        floor = "" if self.floor is None else f" (real images {self.floor:.4g}{at})"
        return f"{self.value:.4g}{interval}{floor}"

    def __str__(self) -> str:
        return f"{self.title}  {self.short}"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All scores of a set of samples.

    scores     of all samples together
    by_class   class name -> its accuracy and FID; empty without labels
    by_count   FID at n/4, n/2, n and extrapolated, None with too few samples
    copies     "pixels" and "features" -> nearest training images; empty with too few of them
    """

    scores: list[Score]
    by_class: dict[str, list[Score]] = field(default_factory=dict)
    by_count: FrechetByCount | None = None
    copies: dict[str, Copies] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [str(score) for score in self.scores]
        if self.by_count is not None:
            steps = ", ".join(
                f"{v:.4g} at {n}" for n, v in zip(self.by_count.counts, self.by_count.values, strict=True)
            )
            lines.append(f"FID by count: {steps}; extrapolated to infinity {self.by_count.limit:.4g}")
        for name, scores in self.by_class.items():
            lines.append(f"  {name:<14} " + ", ".join(f"{score.name} {score.short}" for score in scores))
        for space, copies in self.copies.items():
            n = len(copies.score)
            lines.append(
                f"copies in {space}: {copies.near} of {n} samples are nearer to one training image than 99 % of "
                f"unseen images are. By chance it would be 1 %, {n / 100:.3g} samples."
            )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "scores": [asdict(score) for score in self.scores],
            "by_class": {name: [asdict(score) for score in scores] for name, scores in self.by_class.items()},
            "by_count": None if self.by_count is None else self.by_count._asdict(),
            "copies": {
                space: {"samples": len(c.score), "near": c.near, "share": c.share, "threshold": c.threshold}
                for space, c in self.copies.items()
            },
        }


def evaluate(
    samples: Images,
    train: Images,
    test: Images | None,
    extractor: Features,
    name: str,
    views: Sequence[Augmentation] = (identity,),
) -> Evaluation:
    """Score samples against a training set.

    samples    uint8, of the data's shape; with labels, if they were asked for by class
    train      the training set, as it is: never augmented
    test       unseen images for floors and for the calibration of copies; without, half the training set stands in
    extractor  uint8 images -> (features, logits)
    name       of the extractor, printed with each number
    views      of a training image that a sample may copy, the identity first: those that the model was trained on

    Raises DataError.
    """
    check(samples, train)
    fake, real = Featured(*extractor(samples.pixels)), featured(train, extractor, name)
    unseen = None if test is None else featured(test, extractor, name)
    if unseen is None:  # two halves of the training set are unseen to each other
        floor_real, floor_fake = (real[half] for half in permutation(len(real), 0, "halves").tensor_split(2))
    else:
        floor_real, floor_fake = real, unseen
    floor_fake = floor_fake[permutation(len(floor_fake), 0, "floor")[: len(fake)]]

    scores = [fid_score(name, real, fake, floor_real, floor_fake)]
    scores += neighbour_scores(name, real, fake, floor_real, floor_fake)
    by_class: dict[str, list[Score]] = {}
    if fake.logits.shape[1] > 1:
        scores.append(label_score(name, fake, floor_fake))
    if samples.labels is not None and train.labels is not None and fake.logits.shape[1] == train.classes > 1:
        # Accuracy's floor is that of unseen images, whose labels are known; without any, of the training images.
        known, labels = (unseen, test.labels) if unseen is not None and test is not None else (real, train.labels)
        assert labels is not None
        scores.append(accuracy_score(name, fake, samples.labels, known, labels))
        by_class = class_scores(name, train, real, fake, samples.labels, known, labels)
    enough = min(len(fake), len(real)) >= 16 * real.features.shape[1]  # a quarter is four times the features
    by_count = frechet_by_count(real.features, fake.features) if enough else None
    copies = search_copies(samples, train, test, fake, real, unseen, extractor, views)
    return Evaluation(scores, by_class, by_count, copies)


def neighbour_scores(
    name: str, real: Featured, fake: Featured, floor_real: Featured, floor_fake: Featured
) -> list[Score]:
    """KID, precision, recall, density and coverage, on equally many images of both sides."""
    n = min(len(fake), len(real), NEIGHBOURS)
    if n < 50:
        note = "needs 50 samples and 50 real images to mean anything"
        return [Score(kind, name, n, "train", None, note=note) for kind in ("KID", *PrecisionRecall._fields)]

    reals, fakes = some(real, n), some(fake, n)
    few = min(n, len(floor_real), len(floor_fake))
    floor_reals, floor_fakes = some(floor_real, few), some(floor_fake, few)
    value, error = kernel_distance(reals, fakes)
    floor, _ = kernel_distance(floor_reals, floor_fakes)
    note = counted(few, n)
    scores = [Score("KID", name, n, "train", value, error, floor, note)]
    errors = jackknife(lambda keep: tuple(precision_recall(reals, fakes[keep])), n, PAIR_GROUPS).tolist()
    values, floors = precision_recall(reals, fakes), precision_recall(floor_reals, floor_fakes)
    for kind, value, error, floor in zip(PrecisionRecall._fields, values, errors, floors, strict=True):
        scores.append(Score(kind, name, n, "train", value, error, floor, note))
    return scores


def label_score(name: str, fake: Featured, floor_fake: Featured) -> Score:
    """The inception score over all samples at once, with the error of their draw."""
    n, classes = fake.logits.shape
    # The entropy of the mean prediction falls short by up to (classes - 1) / 2n nats (Miller 1955): at ten samples a
    # class the score by 5 %. Of a thousand classes half of that must do: the published scores are of 5000 samples each.
    needed = min(10 * classes, SPLIT)
    if n < needed:
        return Score("IS", name, n, "", None, note=f"needs {needed} samples to mean anything with {classes} classes")

    def of(logits: Tensor) -> float:
        return inception_score(logits, splits=1)[0]

    error = jackknife(lambda keep: of(fake.logits[keep]), n, GROUPS).item()
    note = counted(len(floor_fake), n)
    return Score("IS", name, n, "", of(fake.logits), error, of(floor_fake.logits), note)


def class_scores(
    name: str, train: Images, real: Featured, fake: Featured, asked: Tensor, known: Featured, labels: Tensor
) -> dict[str, list[Score]]:
    """Accuracy and FID of each class that has at least two samples and two real images."""
    assert train.labels is not None
    scores = {}
    for c, class_name in enumerate(train.class_names):
        mine, theirs, others = (of.eq(c) for of in (asked, train.labels, labels))
        if min(mine.sum(), theirs.sum(), others.sum()) >= 2:
            reals, fakes, floor_fakes = real[theirs], fake[mine], known[others]
            unseen = 0 if known is real else len(fakes)  # of images against themselves FID is no floor
            scores[class_name] = [
                accuracy_score(name, fakes, asked[mine], floor_fakes, labels[others]),
                fid_score(name, reals, fakes, reals, floor_fakes[slice(unseen)]),
            ]
    return scores


def counted(floor: int, n: int) -> str:
    """What is said of a floor of so many images beside a score of n."""
    return f"of n={floor}" if 1 < floor != n else ""


def fid_score(name: str, real: Featured, fake: Featured, floor_real: Featured, floor_fake: Featured) -> Score:
    """FID of fakes with error and floor, or the sentence that there are too few."""
    n, width = len(fake), real.features.shape[1]
    if n < 2 * width or len(real) < 2 * width:
        note = f"needs {2 * width} samples and real images, twice the extractor's features, to mean anything"
        return Score("FID", name, n, "train", None, note=note)
    value, error = fid_and_error(real, fake)
    floor = fid_of(floor_real, floor_fake) if len(floor_fake) > 1 else None
    return Score("FID", name, n, "train", value, error, floor, counted(len(floor_fake), n))


def accuracy_score(name: str, fake: Featured, asked: Tensor, known: Featured, labels: Tensor) -> Score:
    """How often the extractor's classifier sees the label that was asked for; floor: real images of known label."""
    hit, floor = accuracy_of(fake, asked), accuracy_of(known, labels)
    return Score("accuracy", name, len(fake), "asked labels", hit, math.sqrt(hit * (1 - hit) / len(fake)), floor)


def search_copies(
    samples: Images,
    train: Images,
    test: Images | None,
    fake: Featured,
    real: Featured,
    unseen: Featured | None,
    extractor: Features,
    views: Sequence[Augmentation],
) -> dict[str, Copies]:
    """Nearest training images, each seen in all views, of up to COPY_SAMPLES samples, in pixels and in features."""
    if len(train) < NEIGHBOUR + 2:
        return {}
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


def closest_pairs(copies: Copies, samples: Images, train: Images, n: int = 30) -> Tensor:
    """The n samples that are closest to a training image, in rows of 10 above those images: uint8 `[2n, C, H, W]`."""
    closest = copies.score.argsort()[:n]
    rows = zip(samples.pixels[closest].split(10), train.pixels[copies.nearest[closest]].split(10), strict=True)
    return torch.cat([half for row in rows for half in row])
