"""Two sets of samples from the same noise and labels: how much their scores differ, and how significantly.

The samples are paired: image i of both sets has the same noise and label. So the interval of the difference is usually
narrower than the intervals of the two scores. The jackknife leaves out pairs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import DataError
from .features import GROUPS, NEIGHBORS, PAIR_GROUPS, ImageFeatures, accuracy_of, fid_needs, fid_of, subset
from .intervals import STUDENT
from .metrics import inception_score, jackknife, precision_recall

Score = Callable[[ImageFeatures, Tensor | slice], float]
"""(samples, which of them to keep) -> a number."""

EVERY = slice(None)

MOST = 10**6
"""If a difference needs more images than this, it is too small to matter."""


@dataclass(frozen=True)
class Difference:
    """One score of both sets.

    name     FID, IS, accuracy, precision or recall
    n        images of each set behind it
    a, b     the two values
    error    standard error of b - a
    lower    whether lower is better
    groups   of the jackknife that measured the error
    """

    name: str
    n: int
    a: float
    b: float
    error: float
    lower: bool = False
    groups: int = GROUPS

    @property
    def margin(self) -> float:
        """Half the interval of 95 %."""
        return STUDENT[self.groups] * self.error

    @property
    def verdict(self) -> str:
        """ "A" or "B", the better set; "" where the difference is not significant."""
        if abs(self.b - self.a) <= self.margin:
            return ""
        return "B" if (self.b < self.a) == self.lower else "A"

    @property
    def needed(self) -> float:
        """About how many images make a difference of this size significant."""
        gap = abs(self.b - self.a)
        return self.n * (self.margin / gap) ** 2 if gap else math.inf

    def __str__(self) -> str:
        verdict = f"{self.verdict} is better" if self.verdict else "cannot tell"
        gap = f"{self.b - self.a:+.3g} ± {self.margin:.2g}"
        return f"{self.name:<9}  {self.a:.4g} -> {self.b:.4g}  difference {gap}: {verdict}"


def check_count(n: int, real: ImageFeatures) -> None:
    """Raise DataError for fewer pairs than FID needs."""
    needed = fid_needs(real)
    if min(n, len(real)) < needed:
        raise DataError(f"FID needs {needed} samples and real images, twice the extractor's features: use a larger --n")


def differences(a: ImageFeatures, b: ImageFeatures, real: ImageFeatures, labels: Tensor | None) -> list[Difference]:
    """FID first, then what the extractor allows: inception score, accuracy, precision and recall.

    a, b    samples through an extractor, in pairs
    real    the training set through the same
    labels  int64 `[N]` that the samples are conditioned on, or None where the extractor's logits do not stand for them

    Raises DataError for fewer than twice as many pairs as features.
    """
    n = len(a)
    check_count(n, real)
    found = [difference_of("FID", lambda side, keep: fid_of(real, side[keep]), a, b, lower=True)]
    if a.logits.shape[1] > 1 and n >= 10 * a.logits.shape[1]:
        found.append(difference_of("IS", lambda side, keep: inception_score(side.logits[keep], splits=1)[0], a, b))
    # Where no pair differs, the next one may: a share of n pairs is uncertain by at least 1 / (n + 2) (Agresti & Min
    # 2005, with no discordant pair). The same images differ by nothing.
    least = 0.0 if torch.equal(a.features, b.features) else 1.0
    if labels is not None:
        accuracy = difference_of("accuracy", lambda side, keep: accuracy_of(side[keep], labels[keep]), a, b)
        found.append(replace(accuracy, error=max(accuracy.error, least / (n + 2))))
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
        found.append(Difference(name, few, x, y, max(error, least / (few + 2)), groups=PAIR_GROUPS))
    return found


def difference_of(name: str, score: Score, a: ImageFeatures, b: ImageFeatures, lower: bool = False) -> Difference:
    """The difference of one score of two paired sets, with its standard error."""
    error = jackknife(lambda keep: score(b, keep) - score(a, keep), len(a), GROUPS).item()
    return Difference(name, len(a), score(a, EVERY), score(b, EVERY), error, lower)


def conclusion(fid: Difference) -> str:
    """Which set is better by FID, in a sentence."""
    gap = f"{abs(fid.b - fid.a):.3g} ± {fid.margin:.2g}"
    if fid.verdict:
        return f"{fid.verdict} is better: its FID is lower by {gap}"
    if fid.a == fid.b:
        return "cannot tell: both draw the same images"
    needed = fid.needed
    more = f"about {needed:,.2g} images would tell" if needed < MOST else "if there is a difference, it does not matter"
    return f"cannot tell: FID differs by {gap}, and {more}"
