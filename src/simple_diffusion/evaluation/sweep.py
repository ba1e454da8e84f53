"""Sweeps: samples under many settings from the same noise and labels, scored alike, and the choice among them.

The NFE, the number of function evaluations, counts how often the network is evaluated for one image. It decides the
time on any machine; guidance multiplies it by the same factor for all samplers. FID and KID compare distributions; the
distance to the reference solution compares image by image, for the deterministic samplers. The two need not agree: a
model with little training can score better with a coarse solver than with a fine one (docs/notes/quality.md).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..data.images import to_uint8
from ..guidance import Interval
from ..samplers import FINE, SAMPLERS
from ..sampling import distance
from .extractors import Features
from .features import GROUPS, NEIGHBORS, ImageFeatures, accuracy_of, fid_and_error, fid_of, subset
from .intervals import STUDENT, of_distance
from .metrics import kernel_distance, precision_recall
from .paired import difference_of

Settings = dict[str, Any]
"""Settings of a configuration, by name."""

Sample = Callable[[Settings], Tensor]
"""Settings -> samples with them: float `[n, C, H, W]` about [-1, 1] on the CPU, always from the same noise."""

SWEPT = {name: info for name, info in SAMPLERS.items() if info.usual_steps <= 250}
"""The samplers of a sweep: all that do not need hundreds of steps."""

EVERYWHERE: Interval = (0.0, 1e4)
"""Guidance at every noise level, as a configuration can say it."""


def nfe_of(settings: Settings) -> int:
    """The number of network evaluations for one image."""
    return SAMPLERS[settings["sampler"]].nfe(settings["sampler_steps"])


def sampler_settings(sampler: str, steps: int) -> Settings:
    """The settings of a sampler on the grid of Karras et al. (2022)."""
    return {"sampler": sampler, "grid": "karras", "sampler_steps": steps}


REFERENCE = sampler_settings(*FINE)
"""The settings whose samples stand for the exact solution of the ODE."""


def sampler_grid(nfes: Iterable[int]) -> list[Settings]:
    """Every sampler at each NFE, or at one less where no number of steps gives it; with at least two steps."""
    steps = [(name, (nfe - 1) // info.nfe_per_step + 1) for nfe in nfes for name, info in SWEPT.items()]
    return [sampler_settings(name, count) for name, count in steps if count >= 2]


def guidance_grid(scales: Sequence[float], intervals: Iterable[Interval]) -> list[Settings]:
    """Every scale of guidance in each interval of noise levels sigma/alpha."""
    return [
        {"guidance": scale, "guidance_low": low, "guidance_high": high} for low, high in intervals for scale in scales
    ]


def effective(settings: Settings) -> Settings:
    """The settings that change the samples: guidance of 0 or 1 is the same in any interval."""
    return {"guidance": settings["guidance"]} if settings.get("guidance") in (0, 1) else settings


@dataclass(frozen=True, eq=False)
class SweepPoint:
    """The scores of the samples with some settings.

    fid, error          FID, and its standard error over samples
    kid                 KID; this, precision and recall on at most NEIGHBORS images
    precision, recall   shares in [0, 1]
    accuracy            share of the samples whose requested label the classifier predicts; None without such labels
    distance            root mean square distance a pixel, in [-1, 1], to the reference solution; None for a stochastic
                        sampler, or without a reference
    side                the samples through the extractor
    """

    settings: Settings
    fid: float
    error: float
    kid: float
    precision: float
    recall: float
    accuracy: float | None
    distance: float | None
    side: ImageFeatures

    @property
    def nfe(self) -> int:
        """Network evaluations for one image."""
        return nfe_of(self.settings)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of FID over samples."""
        return of_distance(self.fid, self.error, STUDENT[GROUPS]) or (self.fid, self.fid)

    def as_dict(self) -> dict[str, Any]:
        """Settings and scores, for JSON."""
        names = ("fid", "error", "interval", "kid", "precision", "recall", "accuracy", "distance")
        return self.settings | {name: getattr(self, name) for name in names}


@dataclass(frozen=True, eq=False)
class Scorer:
    """What scores every point of a sweep.

    extractor   of features
    real        the training set through the extractor
    labels      int64 `[n]` that the samples are conditioned on; None where the extractor does not predict them
    """

    extractor: Features
    real: ImageFeatures
    labels: Tensor | None

    def score(self, settings: Settings, x: Tensor, reference: Tensor | None = None) -> SweepPoint:
        """Score samples x, float `[n, C, H, W]`; `reference` of the same shape is the exact solution."""
        side = ImageFeatures(*self.extractor(to_uint8(x)))
        n = min(len(self.real), len(side), NEIGHBORS)
        real, fake = subset(self.real, n), subset(side, n)
        kid, _ = kernel_distance(real, fake)
        near = precision_recall(real, fake)
        accuracy = None if self.labels is None else accuracy_of(side, self.labels)
        away = None if reference is None else distance(x, reference)
        fid, error = fid_and_error(self.real, side)
        return SweepPoint(settings, fid, error, kid, near.precision, near.recall, accuracy, away, side)


def sweep(
    sample: Sample, grid: Iterable[Settings], scorer: Scorer, reference: Tensor | None = None
) -> Iterator[SweepPoint]:
    """Sample with each of the settings and score the samples; yields a point for each, in their order.

    reference   samples with `REFERENCE`, to measure the distance of deterministic samplers to them
    """
    scored: dict[tuple[Any, ...], SweepPoint] = {}
    for settings in grid:
        key = tuple(effective(settings).items())
        if key not in scored:
            x = sample(settings)
            compared = reference is not None and SAMPLERS[settings["sampler"]].solves_ode
            scored[key] = scorer.score(settings, x, reference if compared else None)
        yield replace(scored[key], settings=settings)


def pareto_front(points: Iterable[SweepPoint]) -> list[SweepPoint]:
    """The points with a lower FID than every other of the same or a lower NFE, by rising NFE."""
    front: list[SweepPoint] = []
    for point in sorted(points, key=lambda point: (point.nfe, point.fid)):
        if not front or point.fid < front[-1].fid:
            front.append(point)
    return front


def cheapest_tied(points: Sequence[SweepPoint], real: ImageFeatures) -> SweepPoint:
    """The point of least NFE whose FID is statistically tied with the lowest: the 95 % interval of their paired
    difference holds 0."""
    lowest = min(points, key=lambda point: point.fid)
    for point in pareto_front(points):
        fid = difference_of("FID", lambda side, keep: fid_of(real, side[keep]), point.side, lowest.side, lower=True)
        if point is lowest or not fid.verdict:
            return point
    return lowest
