"""Two sets of samples of the same noise and labels: how their scores differ, and whether that is more than chance.

The samples are pairs: image i of both begins in the same noise and is asked for the same label. What both have in
common leaves their difference, whose interval is narrower than those of the two scores: the jackknife leaves out pairs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..errors import DataError
from .features import GROUPS, NEIGHBORS, PAIR_GROUPS, ImageFeatures, accuracy_of, fid_of, subset
from .metrics import inception_score, jackknife, precision_recall

Score = Callable[[ImageFeatures, Tensor | slice], float]
"""(samples, which of them to keep) -> a number."""

EVERY = slice(None)

MOST = 10**6
"""Images beyond which no one would draw to tell a difference."""


@dataclass(frozen=True)
class Difference:
    """One score of both sets.

    name     FID, IS, accuracy, precision or recall
    n        images of each set behind it
    a, b     the two values
    error    standard error of b - a
    lower    whether lower is better
    """

    name: str
    n: int
    a: float
    b: float
    error: float
    lower: bool = False

    @property
    def margin(self) -> float:
        """Half the interval of 95 %."""
        return 1.96 * self.error

    @property
    def verdict(self) -> str:
        """ "A", "B", or "" where it cannot be told which is better."""
        if abs(self.b - self.a) <= self.margin:
            return ""
        return "B" if (self.b < self.a) == self.lower else "A"

    @property
    def needed(self) -> float:
        """About how many images would tell a difference of this size from nothing."""
        gap = abs(self.b - self.a)
        return self.n * (self.margin / gap) ** 2 if gap else math.inf

    def __str__(self) -> str:
        told = f"{self.verdict} is better" if self.verdict else "cannot tell"
        gap = f"{self.b - self.a:+.3g} ± {self.margin:.2g}"
        return f"{self.name:<9}  {self.a:.4g} -> {self.b:.4g}  difference {gap}: {told}"


def check_count(n: int, real: ImageFeatures) -> None:
    """Raise DataError for fewer pairs than FID needs."""
    needed = 2 * real.features.shape[1]
    if min(n, len(real)) < needed:
        raise DataError(f"FID needs {needed} samples and real images, twice the extractor's features: use a larger --n")


def differences(a: ImageFeatures, b: ImageFeatures, real: ImageFeatures, labels: Tensor | None) -> list[Difference]:
    """FID first, then what the extractor allows: inception score, accuracy, precision and recall.

    a, b    samples through an extractor, in pairs
    real    the training set through the same
    labels  int64 `[N]` that were asked for, where the extractor's logits stand for them

    Raises DataError for fewer than twice as many pairs as features.
    """
    n = len(a)
    check_count(n, real)
    found = [difference_of("FID", lambda side, keep: fid_of(real, side[keep]), a, b, lower=True)]
    if a.logits.shape[1] > 1 and n >= 10 * a.logits.shape[1]:
        found.append(difference_of("IS", lambda side, keep: inception_score(side.logits[keep], splits=1)[0], a, b))
    if labels is not None:
        found.append(difference_of("accuracy", lambda side, keep: accuracy_of(side[keep], labels[keep]), a, b))
    few = min(n, len(real), NEIGHBORS)
    reals, a_few, b_few = (subset(side, few) for side in (real, a, b))

    def neighbours(fakes: Tensor) -> tuple[float, float]:
        return tuple(precision_recall(reals, fakes))[:2]

    of_a, of_b = neighbours(a_few), neighbours(b_few)
    errors = jackknife(
        lambda keep: tuple(y - x for x, y in zip(neighbours(a_few[keep]), neighbours(b_few[keep]), strict=True)),
        few,
        PAIR_GROUPS,
    ).tolist()
    for name, x, y, error in zip(("precision", "recall"), of_a, of_b, errors, strict=True):
        found.append(Difference(name, few, x, y, error))
    return found


def difference_of(name: str, score: Score, a: ImageFeatures, b: ImageFeatures, lower: bool = False) -> Difference:
    """The difference of one score of two sides that are pairs."""
    error = jackknife(lambda keep: score(b, keep) - score(a, keep), len(a), GROUPS).item()
    return Difference(name, len(a), score(a, EVERY), score(b, EVERY), error, lower)


def conclusion(fid: Difference) -> str:
    """The answer to "did it help?" in a sentence, by FID."""
    gap = f"{abs(fid.b - fid.a):.3g} ± {fid.margin:.2g}"
    if fid.verdict:
        return f"{fid.verdict} is better: its FID is lower by {gap}"
    if fid.a == fid.b:
        return "cannot tell: both draw the same images"
    needed = fid.needed
    more = f"about {needed:,.2g} images would tell" if needed < MOST else "if there is a difference, it does not matter"
    return f"cannot tell: FID differs by {gap}, and {more}"
