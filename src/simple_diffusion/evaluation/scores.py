"""Scores of samples against data, each with its extractor, its sample size, its standard error and its baseline.

The real-data baseline of a score is its mean over perfect generators, whose samples are unseen images of the data's
distribution: the best that samples of a model that does not memorize can reach (`baselines.py`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from ..augmentation import Augmentation, identity
from ..data.images import Images
from ..errors import DataError, is_out_of_memory
from ..randomness import permutation
from ..viz.grids import pairs_in_rows
from .baselines import fid_baseline, images_new_to, inception_baseline, neighbor_sets
from .extractors import Features
from .features import (
    GROUPS,
    PAIR_GROUPS,
    ImageFeatures,
    accuracy_of,
    cached_features,
    check_samples,
    fid_and_error,
    fid_needs,
    subset,
)
from .intervals import HEAVY, STUDENT, Interval, about, of_distance, of_share, share_text, tail_weight
from .memorization import NearDuplicates, find_near_duplicates
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
LEAST = 25
"""Fewest images of each set for KID, precision, recall, density and coverage."""
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
    error      standard error over samples
    baseline   the mean of the score of unseen real images, None where there are none
    note       how the baseline was measured, if not with n unseen images
    interval   95 % interval over samples; None without a spread
    """

    name: str
    extractor: str
    n: int
    against: str
    value: float | None
    error: float | None = None
    baseline: float | None = None
    note: str = ""
    interval: Interval | None = None

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
        interval = "" if self.interval is None else "{:.4g} to {:.4g}".format(*self.interval)
        at = f", {self.note}" if self.note else ""
        baseline = "" if self.baseline is None else f"baseline {self.baseline:.4g}{at}"
        about = "; ".join(filter(None, (interval, baseline)))
        return f"{self.value:.4g} ({about})" if about else f"{self.value:.4g}"

    @property
    def row(self) -> str:
        """A row of the table of `Evaluation`. KID is printed times 1000."""
        name, unit = ("KID x 1000", 1000) if self.name == "KID" else (self.name, 1)
        if self.value is None:
            return f"  {name:<10}  {self.note}"
        value, baseline = ("" if x is None else f"{unit * x:.4f}" for x in (self.value, self.baseline))
        interval = "" if self.interval is None else " to ".join(f"{unit * end:.4f}" for end in self.interval)
        return f"  {name:<10}  {value:>9}  {interval:>20}  {baseline:>9}  {self.n:>7,}"

    def __str__(self) -> str:
        return f"{self.title}  {self.short}"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All scores of a set of samples.

    scores           of all samples together
    by_class         class name -> its accuracy and FID; empty without labels
    by_count         FID at n/4, n/2, n and extrapolated; None with too few samples
    near_duplicates  "pixels" and "features" -> nearest training images; empty where they were not searched
    tails            `tail_weight` of the features of the training images
    notes            sentences: duplicates in the data, and why near-duplicates were not searched
    """

    scores: list[Score]
    by_class: dict[str, list[Score]] = field(default_factory=dict)
    by_count: FrechetByCount | None = None
    near_duplicates: dict[str, NearDuplicates] = field(default_factory=dict)
    tails: float = 0.0
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"Features of {self.scores[0].extractor}, compared with the training set:"]
        lines += [f"  {'score':<10}  {'value':>9}  {'95 % interval':>20}  {'baseline':>9}  {'n':>7}"]
        lines += [score.row for score in self.scores]
        for note in dict.fromkeys(score.note for score in self.scores if score.value is not None and score.note):
            names = [score.name for score in self.scores if score.note == note]
            lines.append(f"Baseline of {', '.join(names)}: {note}.")
        if self.tails > HEAVY:
            lines.append(
                f"The features have heavy tails ({self.tails:.1f}, images usually 1.3): a few of them decide FID and "
                "KID, and their intervals cover less than 95 %."
            )
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
            n, chance = len(found.score), f"{100 * found.expected:.2g} % expected by chance"
            lines.append(
                f"Near-duplicates of training images in {space}: {found.count:,} of {n:,} samples "
                f"({found.share:.1%}, 95 % interval {share_text(found.share, n)}; {chance})"
            )
        return "\n".join([*lines, *self.notes])

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "scores": [asdict(score) for score in self.scores],
            "by_class": {name: [asdict(score) for score in scores] for name, scores in self.by_class.items()},
            "by_count": None if self.by_count is None else self.by_count._asdict(),
            "tails": self.tails,
            "near_duplicates": {
                space: {"samples": len(found.score), "count": found.count}
                | {"share": found.share, "threshold": found.threshold, "expected": found.expected}
                for space, found in self.near_duplicates.items()
            },
            "notes": list(self.notes),
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
    test           unseen images, for the baselines and the threshold of near-duplicates; without them both come from
                   parts of the training set. Those that occur in the training set are left out
    extractor      uint8 images -> (features, logits)
    name           of the extractor
    augmentations  of a training image that a sample may resemble, the identity first

    Raises DataError.
    """
    check_samples(samples, train)
    fake, real = ImageFeatures(*extractor(samples.pixels)), cached_features(train, extractor, name)
    new = None if test is None else test.new_to(train)
    notes, test = duplicate_notes(train, test, new), new
    unseen = None if test is None else cached_features(test, extractor, name)
    scores = [fid_score(name, real, fake, unseen)]
    scores += neighbor_scores(name, real, fake, unseen)
    by_class: dict[str, list[Score]] = {}
    known, labels, note = known_images(train, real, test, unseen, extractor)
    if fake.logits.shape[1] > 1:
        scores.append(inception_score_of(name, fake, known, note))
    if samples.labels is not None and labels is not None and fake.logits.shape[1] == train.classes > 1:
        scores.append(accuracy_score(name, fake, samples.labels, known, labels, note))
        by_class = class_scores(name, train, real, fake, samples.labels, unseen, test, known, labels)
    enough = min(len(fake), len(real)) >= 16 * real.features.shape[1]  # n/4 is four times the features, or more
    by_count = frechet_by_count(real.features, fake.features) if enough else None
    near_duplicates = {}
    try:
        near_duplicates = search_near_duplicates(samples, train, test, fake, real, unseen, extractor, augmentations)
    except DataError as error:
        notes.append(f"{error}.")
    except (MemoryError, RuntimeError) as error:  # the scores are not lost
        if not is_out_of_memory(error):
            raise
        notes.append("Near-duplicates were not searched: there is not enough memory.")
    return Evaluation(scores, by_class, by_count, near_duplicates, tail_weight(real.features), tuple(notes))


def duplicate_notes(train: Images, test: Images | None, new: Images | None) -> list[str]:
    """Sentences about training images that occur again, among themselves or in the test set.

    new   the images of the test set that are no training images, None if there are none
    """
    notes = []
    if train.duplicates:
        notes.append(
            f"Of the {len(train):,} training images, {train.duplicates:,} are exact duplicates of earlier ones."
        )
    if test is not None and (seen := len(test) - len(new or ())):
        notes.append(f"Of the {len(test):,} images of the test set, {seen:,} are training images and were left out.")
    return notes


def known_images(
    train: Images, real: ImageFeatures, test: Images | None, unseen: ImageFeatures | None, extractor: Features
) -> tuple[ImageFeatures, Tensor | None, str]:
    """(images that the extractor was not trained on, their labels, a note): the test set, or a part of the training
    set."""
    if test is not None and unseen is not None and (test.labels is not None or train.labels is None):
        return unseen, test.labels, ""
    new = images_new_to(extractor, train)
    labels = None if train.labels is None else train.labels[new]
    return real[new], labels, f"of {len(new):,} training images, new to the classifier"


def neighbor_scores(name: str, real: ImageFeatures, fake: ImageFeatures, unseen: ImageFeatures | None) -> list[Score]:
    """KID, precision, recall, density and coverage, on the same number of samples and real images."""
    reals, others, note = neighbor_sets(real, unseen, len(fake))
    if (n := len(reals)) < LEAST:
        note = f"needs at least {LEAST} samples and {2 * LEAST} real images, those of the test set included"
        return [Score(kind, name, n, "train", None, note=note) for kind in ("KID", *PrecisionRecall._fields)]

    fakes = subset(fake, n)
    value, error = kernel_distance(reals, fakes)
    baseline, _ = kernel_distance(reals, others)
    scores = [Score("KID", name, n, "train", value, error, baseline, note, about(value, error))]
    errors = jackknife(lambda keep: tuple(precision_recall(reals, fakes[keep])), n, PAIR_GROUPS).tolist()
    values, baselines = precision_recall(reals, fakes), precision_recall(reals, others)
    for kind, value, error, baseline in zip(PrecisionRecall._fields, values, errors, baselines, strict=True):
        quantile = STUDENT[PAIR_GROUPS]
        interval = of_distance(value, error, quantile) if kind == "density" else of_share(value, n, error, quantile)
        scores.append(Score(kind, name, n, "train", value, error, baseline, note, interval))
    return scores


def inception_score_of(name: str, fake: ImageFeatures, known: ImageFeatures, note: str = "") -> Score:
    """The inception score in one split, with its standard error over samples; the baseline is that of real images."""
    n, classes = fake.logits.shape
    # The entropy of the mean prediction is biased by up to -(classes - 1) / 2n nats (Miller 1955): with ten samples a
    # class the score is 5 % too low. 5000 samples are always enough, because published scores are of 5000 each.
    needed = min(10 * classes, SPLIT)
    if n < needed:
        return Score("IS", name, n, "", None, note=f"needs at least {needed} samples with {classes} classes")

    def of(logits: Tensor) -> float:
        return inception_score(logits, splits=1)[0]

    value, error = of(fake.logits), jackknife(lambda keep: of(fake.logits[keep]), n, GROUPS).item()
    enough = len(known) >= needed
    baseline = inception_baseline(known.logits, n) if enough else None
    note = note if enough else f"none, because it needs {needed} images that the classifier was not trained on"
    interval = about(value, error, STUDENT[GROUPS])
    if interval is not None:
        interval = max(interval[0], 1.0), min(interval[1], float(classes))
    return Score("IS", name, n, "", value, error, baseline, note, interval)


def class_scores(
    name: str,
    train: Images,
    real: ImageFeatures,
    fake: ImageFeatures,
    asked: Tensor,
    unseen: ImageFeatures | None,
    test: Images | None,
    known: ImageFeatures,
    labels: Tensor,
) -> dict[str, list[Score]]:
    """Accuracy and FID of each class that has at least two samples and two real images."""
    assert train.labels is not None
    scores = {}
    for c, class_name in enumerate(train.class_names):
        mine, theirs, others = (of.eq(c) for of in (asked, train.labels, labels))
        if min(mine.sum(), theirs.sum()) >= 2:
            spare = None if unseen is None or test is None or test.labels is None else unseen[test.labels.eq(c)]
            scores[class_name] = [
                accuracy_score(name, fake[mine], asked[mine], known[others], labels[others]),
                fid_score(name, real[theirs], fake[mine], spare),
            ]
    return scores


def fid_score(name: str, real: ImageFeatures, fake: ImageFeatures, unseen: ImageFeatures | None) -> Score:
    """FID of samples with error and baseline, or a note that there are too few."""
    n, needed = len(fake), fid_needs(real)
    if min(n, len(real)) < needed:
        note = f"needs at least {needed} samples and real images, twice the number of features"
        return Score("FID", name, n, "train", None, note=note)
    value, error = fid_and_error(real, fake)
    baseline, note = fid_baseline(real, unseen, n)
    interval = of_distance(value, error, STUDENT[GROUPS])
    return Score("FID", name, n, "train", value, error, baseline, note, interval)


def accuracy_score(
    name: str, fake: ImageFeatures, asked: Tensor, known: ImageFeatures, labels: Tensor, note: str = ""
) -> Score:
    """Share of samples for which the classifier predicts the requested label; the baseline is that of real images."""
    n, hit = len(fake), accuracy_of(fake, asked)
    baseline = accuracy_of(known, labels) if len(known) else None
    interval, error = of_share(hit, n), (hit * (1 - hit) / n) ** 0.5
    return Score("accuracy", name, n, "requested labels", hit, error, baseline, note, interval)


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
    features. Raises DataError for too few training images."""
    rows, some = train.distinct, searched(len(samples))
    pixels = train.pixels if len(rows) == len(train) else train.pixels[rows]
    views = [augment(pixels).contiguous() for augment in augmentations]
    found = {
        "pixels": find_near_duplicates(
            samples.pixels[some].flatten(1),
            [view.flatten(1) for view in views],
            None if test is None else test.pixels.flatten(1),
        ),
        "features": find_near_duplicates(
            fake.features[some],
            [real.features[rows], *(extractor(view)[0] for view in views[1:])],
            None if unseen is None else unseen.features,
        ),
    }
    return {space: replace(result, nearest=rows[result.nearest]) for space, result in found.items()}


def searched(n: int) -> Tensor:
    """Which of n samples are searched for near-duplicates: int64, a random part, always the same."""
    return permutation(n, 0, "searched samples")[:SEARCHED_SAMPLES]


def closest_pairs(found: NearDuplicates, samples: Images, train: Images, n: int = 30) -> Tensor:
    """The n samples that are closest to a training image, in rows of 10 above those images: uint8 `[2n, C, H, W]`."""
    closest = found.score.argsort()[:n]
    above = samples.pixels[searched(len(samples))[closest]]
    return pairs_in_rows(above, train.pixels[found.nearest[closest]])
