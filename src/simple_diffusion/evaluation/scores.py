"""Scores of samples against data, each with its extractor, its sample size, its standard error and its baseline.

The real-data baseline of a score is the score of unseen real images at the same sample size: the best that samples of a
model that does not memorize can reach.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from ..augmentation import Augmentation, identity
from ..data.images import Images, to_unit
from ..randomness import permutation
from ..viz.grids import pairs_in_rows
from .extractors import Features
from .features import (
    GROUPS,
    NEIGHBORS,
    PAIR_GROUPS,
    ImageFeatures,
    accuracy_of,
    cached_features,
    check_samples,
    fid_and_error,
    fid_of,
    subset,
)
from .memorization import NEIGHBOR, NearDuplicates, find_near_duplicates
from .metrics import (
    FrechetByCount,
    PrecisionRecall,
    frechet_by_count,
    inception_score,
    jackknife,
    kernel_distance,
    precision_recall,
)

SPLIT = 5000
"""Samples behind one published inception score: a tenth of 50,000 (Salimans et al. 2016)."""
SEARCHED_SAMPLES = 2000
"""Most samples that are searched for near-duplicates."""


@dataclass(frozen=True)
class Score:
    """One number with the information that is needed to compare it.

    name       FID, KID, IS, precision, recall, density, coverage, accuracy
    extractor  name of the extractor of the features
    n          number of samples
    against    the real images that it compares with
    value      None where n is too small; then `note` says what is needed
    error      standard error over samples; the 95 % interval is value ± 1.96 errors
    baseline   the same score of unseen real images, None where there are none; `note` says where their number is not n
    """

    name: str
    extractor: str
    n: int
    against: str
    value: float | None
    error: float | None = None
    baseline: float | None = None
    note: str = ""

    @property
    def title(self) -> str:
        """Such as `FID[fashion-mnist-cnn-1, n=10000 vs train]`."""
        versus = f" vs {self.against}" if self.against else ""
        return f"{self.name}[{self.extractor}, n={self.n}{versus}]"

    @property
    def short(self) -> str:
        """The value with its interval and baseline, or the note."""
        if self.value is None:
            return self.note
        interval = "" if self.error is None else f" ± {1.96 * self.error:.2g}"
        at = f", {self.note}" if self.note else ""
        baseline = "" if self.baseline is None else f" (baseline {self.baseline:.4g}{at})"
        return f"{self.value:.4g}{interval}{baseline}"

    @property
    def row(self) -> str:
        """A row of the table of `Evaluation`. KID is printed times 1000."""
        name, unit = ("KID x 1000", 1000) if self.name == "KID" else (self.name, 1)
        if self.value is None:
            return f"  {name:<10}  {self.note}"
        numbers = (self.value, None if self.error is None else 1.96 * self.error, self.baseline)
        cells = ["" if number is None else f"{unit * number:.4f}" for number in numbers]
        return f"  {name:<10}  {cells[0]:>9}  {cells[1]:>9}  {cells[2]:>9}  {self.n:>7,}"

    def __str__(self) -> str:
        return f"{self.title}  {self.short}"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All scores of a set of samples.

    scores           of all samples together
    by_class         class name -> its accuracy and FID; empty without labels
    by_count         FID at n/4, n/2, n and extrapolated; None with too few samples
    near_duplicates  "pixels" and "features" -> nearest training images; empty with too few of them
    """

    scores: list[Score]
    by_class: dict[str, list[Score]] = field(default_factory=dict)
    by_count: FrechetByCount | None = None
    near_duplicates: dict[str, NearDuplicates] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"Features of {self.scores[0].extractor}, compared with the training set:"]
        lines += [f"  {'score':<10}  {'value':>9}  {'± 95 %':>9}  {'baseline':>9}  {'n':>7}"]
        lines += [score.row for score in self.scores]
        for note in dict.fromkeys(score.note for score in self.scores if score.value is not None and score.note):
            names = [score.name for score in self.scores if score.note == note]
            lines.append(f"The baseline is {note} for {', '.join(names)}.")
        if self.by_count is not None:
            pairs = zip(self.by_count.counts, self.by_count.values, strict=True)
            values = ", ".join(f"{value:.4f} at n={n:,}" for n, value in pairs)
            lines.append(f"FID by sample size: {values}; extrapolated to infinity {self.by_count.limit:.4f}")
        if self.by_class:
            lines.append("By class:")
        width = max(map(len, self.by_class), default=0)
        for name, scores in self.by_class.items():
            known = [f"{score.name} {score.short}" for score in scores if score.value is not None]
            lines.append(f"  {name:<{width}}  {', '.join(known)}")
        missing = [score for scores in self.by_class.values() for score in scores if score.value is None]
        lines += dict.fromkeys(f"  {score.name} of a class {score.note}" for score in missing)
        for space, found in self.near_duplicates.items():
            n = len(found.score)
            lines.append(
                f"Near-duplicates of training images in {space}: {found.count:,} of {n:,} samples "
                f"({found.share:.1%}; 1 % expected by chance)"
            )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "scores": [asdict(score) for score in self.scores],
            "by_class": {name: [asdict(score) for score in scores] for name, scores in self.by_class.items()},
            "by_count": None if self.by_count is None else self.by_count._asdict(),
            "near_duplicates": {
                space: {"samples": len(found.score), "count": found.count}
                | {"share": found.share, "threshold": found.threshold}
                for space, found in self.near_duplicates.items()
            },
        }


def evaluate(
    samples: Images,
    train: Images,
    test: Images | None,
    extractor: Features,
    name: str,
    augmentations: Sequence[Augmentation] = (identity,),
) -> Evaluation:
    """Score samples against a training set.

    samples        uint8, of the data's shape; with labels, if they were generated for labels
    train          the training set, not augmented
    test           unseen images, for the baselines and the threshold of near-duplicates; without them the baselines
                   compare two halves of the training set
    extractor      uint8 images -> (features, logits)
    name           of the extractor
    augmentations  of a training image that a sample may resemble, the identity first

    Raises DataError.
    """
    check_samples(samples, train)
    fake, real = ImageFeatures(*extractor(samples.pixels)), cached_features(train, extractor, name)
    unseen = None if test is None else cached_features(test, extractor, name)
    if unseen is None:  # two halves of the training set share no image
        baseline_real, baseline_fake = (real[half] for half in permutation(len(real), 0, "halves").tensor_split(2))
    else:
        baseline_real, baseline_fake = real, unseen
    baseline_fake = baseline_fake[permutation(len(baseline_fake), 0, "floor")[: len(fake)]]

    scores = [fid_score(name, real, fake, baseline_real, baseline_fake)]
    scores += neighbor_scores(name, real, fake, baseline_real, baseline_fake)
    by_class: dict[str, list[Score]] = {}
    if fake.logits.shape[1] > 1:
        scores.append(inception_score_of(name, fake, baseline_fake))
    if samples.labels is not None and train.labels is not None and fake.logits.shape[1] == train.classes > 1:
        # The baseline of the accuracy is that of unseen images; without any, that of the training images.
        known, labels = (unseen, test.labels) if unseen is not None and test is not None else (real, train.labels)
        assert labels is not None
        scores.append(accuracy_score(name, fake, samples.labels, known, labels))
        by_class = class_scores(name, train, real, fake, samples.labels, known, labels)
    enough = min(len(fake), len(real)) >= 16 * real.features.shape[1]  # n/4 is four times the features, or more
    by_count = frechet_by_count(real.features, fake.features) if enough else None
    near_duplicates = search_near_duplicates(samples, train, test, fake, real, unseen, extractor, augmentations)
    return Evaluation(scores, by_class, by_count, near_duplicates)


def neighbor_scores(
    name: str, real: ImageFeatures, fake: ImageFeatures, baseline_real: ImageFeatures, baseline_fake: ImageFeatures
) -> list[Score]:
    """KID, precision, recall, density and coverage, on the same number of samples and real images."""
    n = min(len(fake), len(real), NEIGHBORS)
    if n < 50:
        note = "needs at least 50 samples and 50 real images"
        return [Score(kind, name, n, "train", None, note=note) for kind in ("KID", *PrecisionRecall._fields)]

    reals, fakes = subset(real, n), subset(fake, n)
    few = min(n, len(baseline_real), len(baseline_fake))
    baseline_reals, baseline_fakes = subset(baseline_real, few), subset(baseline_fake, few)
    value, error = kernel_distance(reals, fakes)
    baseline, _ = kernel_distance(baseline_reals, baseline_fakes)
    note = count_note(few, n)
    scores = [Score("KID", name, n, "train", value, error, baseline, note)]
    errors = jackknife(lambda keep: tuple(precision_recall(reals, fakes[keep])), n, PAIR_GROUPS).tolist()
    values, baselines = precision_recall(reals, fakes), precision_recall(baseline_reals, baseline_fakes)
    for kind, value, error, baseline in zip(PrecisionRecall._fields, values, errors, baselines, strict=True):
        scores.append(Score(kind, name, n, "train", value, error, baseline, note))
    return scores


def inception_score_of(name: str, fake: ImageFeatures, baseline_fake: ImageFeatures) -> Score:
    """The inception score in one split, with its standard error over samples."""
    n, classes = fake.logits.shape
    # The entropy of the mean prediction is biased by up to -(classes - 1) / 2n nats (Miller 1955): with ten samples a
    # class the score is 5 % too low. 5000 samples are always enough, because published scores are of 5000 each.
    needed = min(10 * classes, SPLIT)
    if n < needed:
        return Score("IS", name, n, "", None, note=f"needs at least {needed} samples with {classes} classes")

    def of(logits: Tensor) -> float:
        return inception_score(logits, splits=1)[0]

    error = jackknife(lambda keep: of(fake.logits[keep]), n, GROUPS).item()
    note = count_note(len(baseline_fake), n)
    return Score("IS", name, n, "", of(fake.logits), error, of(baseline_fake.logits), note)


def class_scores(
    name: str,
    train: Images,
    real: ImageFeatures,
    fake: ImageFeatures,
    asked: Tensor,
    known: ImageFeatures,
    labels: Tensor,
) -> dict[str, list[Score]]:
    """Accuracy and FID of each class that has at least two samples and two real images."""
    assert train.labels is not None
    scores = {}
    for c, class_name in enumerate(train.class_names):
        mine, theirs, others = (of.eq(c) for of in (asked, train.labels, labels))
        if min(mine.sum(), theirs.sum(), others.sum()) >= 2:
            reals, fakes, baseline_fakes = real[theirs], fake[mine], known[others]
            unseen = 0 if known is real else len(fakes)  # the FID of images to themselves is no baseline
            scores[class_name] = [
                accuracy_score(name, fakes, asked[mine], baseline_fakes, labels[others]),
                fid_score(name, reals, fakes, reals, baseline_fakes[slice(unseen)]),
            ]
    return scores


def count_note(baseline: int, n: int) -> str:
    """The note on a baseline whose number of images is not that of the score."""
    return f"of n={baseline}" if 1 < baseline != n else ""


def fid_score(
    name: str, real: ImageFeatures, fake: ImageFeatures, baseline_real: ImageFeatures, baseline_fake: ImageFeatures
) -> Score:
    """FID of samples with error and baseline, or a note that there are too few."""
    n, width = len(fake), real.features.shape[1]
    if n < 2 * width or len(real) < 2 * width:
        note = f"needs at least {2 * width} samples and real images, twice the number of features"
        return Score("FID", name, n, "train", None, note=note)
    value, error = fid_and_error(real, fake)
    baseline = fid_of(baseline_real, baseline_fake) if len(baseline_fake) > 1 else None
    return Score("FID", name, n, "train", value, error, baseline, count_note(len(baseline_fake), n))


def accuracy_score(name: str, fake: ImageFeatures, asked: Tensor, known: ImageFeatures, labels: Tensor) -> Score:
    """Share of samples for which the classifier predicts the requested label; the baseline is that of real images."""
    hit, baseline = accuracy_of(fake, asked), accuracy_of(known, labels)
    return Score("accuracy", name, len(fake), "requested labels", hit, math.sqrt(hit * (1 - hit) / len(fake)), baseline)


def search_near_duplicates(
    samples: Images,
    train: Images,
    test: Images | None,
    fake: ImageFeatures,
    real: ImageFeatures,
    unseen: ImageFeatures | None,
    extractor: Features,
    augmentations: Sequence[Augmentation],
) -> dict[str, NearDuplicates]:
    """The nearest training images of up to SEARCHED_SAMPLES samples under all augmentations, in pixels and in
    features."""
    if len(train) < NEIGHBOR + 2:
        return {}
    pixels = [to_unit(augment(train.pixels)).flatten(1) for augment in augmentations]
    features = [real.features, *(extractor(augment(train.pixels).contiguous())[0] for augment in augmentations[1:])]
    searched = samples.pixels[:SEARCHED_SAMPLES]
    return {
        "pixels": find_near_duplicates(
            to_unit(searched).flatten(1),
            pixels,
            None if test is None else to_unit(test.pixels[:SEARCHED_SAMPLES]).flatten(1),
        ),
        "features": find_near_duplicates(
            fake.features[:SEARCHED_SAMPLES], features, None if unseen is None else unseen.features[:SEARCHED_SAMPLES]
        ),
    }


def closest_pairs(found: NearDuplicates, samples: Images, train: Images, n: int = 30) -> Tensor:
    """The n samples that are closest to a training image, in rows of 10 above those images: uint8 `[2n, C, H, W]`."""
    closest = found.score.argsort()[:n]
    return pairs_in_rows(samples.pixels[closest], train.pixels[found.nearest[closest]])
