"""Races on one model, from the same noise: samplers by their cost, and strengths of guidance.

Cost is counted in evaluations of the network by image, which decide the time on any machine; guidance adds the same
share to all. Measures of quality, which need not agree: FID and KID, and for the solvers of the ODE the distance to
what a fine solution makes of the same noise. A model that has learned little can draw better with a coarse solver than
with a fine one (docs/notes/quality.md).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.images import to_uint8
from ..guidance import Interval
from ..model.generate import generate_batches
from ..model.model_file import Model
from ..samplers import FINE, SAMPLERS
from ..sampling import distance
from .extractors import Features
from .features import NEIGHBOURS, Featured, accuracy_of, fid_and_error, fid_of, some
from .metrics import kernel_distance, precision_recall
from .paired import difference_of

SWEPT = {name: info for name, info in SAMPLERS.items() if info.usual_steps <= 250}
"""The samplers that are compared: all that do not need hundreds of steps."""


@dataclass(frozen=True, eq=False)
class SweepPoint:
    """What one sampler made of so many steps.

    sampler, steps
    fid, error, kid   FID, its standard error by the draw of the samples, and KID
    distance          root mean square distance a pixel, in [-1, 1], to the fine solution; None with fresh noise
    side              the samples through the extractor
    """

    sampler: str
    steps: int
    fid: float
    error: float
    kid: float
    distance: float | None
    side: Featured

    @property
    def cost(self) -> int:
        """Evaluations of the network by image."""
        return SAMPLERS[self.sampler].nfe(self.steps)

    def settings(self) -> dict[str, Any]:
        """What the config takes over."""
        return drawn_by(self.sampler, self.steps)


def drawn_by(sampler: str, steps: int) -> dict[str, Any]:
    """Settings of a config."""
    return {"sampler": sampler, "grid": "karras", "sampler_steps": steps}


def entrants(costs: Iterable[int]) -> list[tuple[str, int]]:
    """(sampler, steps) at each cost that a whole number of steps comes to, or one evaluation less."""
    racing = [(name, (cost - 1) // info.nfe_per_step + 1) for cost in costs for name, info in SWEPT.items()]
    return [(name, steps) for name, steps in racing if steps >= 2]


def drawn(model: Model, changes: dict[str, Any], n: int, labels: Tensor | None, seed: int) -> Tensor:
    """n samples with other settings, from the same noise: float `[n, C, H, W]` about [-1, 1], on the CPU."""
    return torch.cat([x.cpu() for _, x in generate_batches(model.changed(**changes), n, labels, seed)])


def kid_of(real: Featured, side: Featured) -> float:
    """KID on equally many images of both sides."""
    n = min(len(real), len(side), NEIGHBOURS)
    return kernel_distance(some(real, n), some(side, n))[0]


@dataclass(frozen=True)
class Marks:
    """What samples are worth.

    fid, error          FID, and its standard error by the draw of the samples
    precision, recall   on NEIGHBOURS images at most
    accuracy            how often the extractor sees the label that was asked for; None where it knows others
    """

    fid: float
    error: float
    precision: float
    recall: float
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class Course:
    """What all contestants of a sweep are given, and what judges them.

    n           images of each, at least twice the extractor's features
    labels      int64 `[n]`, or None
    real        the training set through the extractor
    known       whether the extractor's logits stand for the labels
    """

    n: int
    labels: Tensor | None
    seed: int
    extractor: Features
    real: Featured
    known: bool

    def marks(self, model: Model, changes: dict[str, Any] | None = None) -> Marks:
        """Draw with a model, with some settings changed."""
        few = min(self.n, len(self.real), NEIGHBOURS)
        side = Featured(*self.extractor(to_uint8(drawn(model, changes or {}, self.n, self.labels, self.seed))))
        near = precision_recall(some(self.real, few), some(side, few))
        accuracy = accuracy_of(side, self.labels) if self.known and self.labels is not None else None
        return Marks(*fid_and_error(self.real, side), near.precision, near.recall, accuracy)


def race(model: Model, costs: Iterable[int], course: Course) -> Iterator[SweepPoint]:
    """Run every sampler at every cost, one lap after the other.

    costs   evaluations of the network by image
    """
    on = course.n, course.labels, course.seed
    fine = drawn(model, drawn_by(*FINE), *on)
    for name, steps in entrants(costs):
        x = drawn(model, drawn_by(name, steps), *on)
        side = Featured(*course.extractor(to_uint8(x)))
        away = distance(x, fine) if SAMPLERS[name].solves_ode else None
        yield SweepPoint(name, steps, *fid_and_error(course.real, side), kid_of(course.real, side), away, side)


def front(laps: list[SweepPoint]) -> list[SweepPoint]:
    """The laps that no cheaper or equally cheap one beats in FID, by rising cost (Pareto)."""
    best: list[SweepPoint] = []
    for lap in sorted(laps, key=lambda lap: (lap.cost, lap.fid)):
        if not best or lap.fid < best[-1].fid:
            best.append(lap)
    return best


def choice(laps: list[SweepPoint], real: Featured) -> SweepPoint:
    """The cheapest lap whose FID can't be told from the lowest, by the interval of their difference in pairs."""
    lowest = min(laps, key=lambda lap: lap.fid)
    for lap in front(laps):
        fid = difference_of("FID", lambda side, keep: fid_of(real, side[keep]), lap.side, lowest.side, lower=True)
        if lap is lowest or not fid.verdict:
            return lap
    return lowest


GUIDANCE = ("guidance", "guidance_low", "guidance_high")
"""The settings of guidance: its scale, and the interval of sigma/alpha where it acts."""


def guidance_race(model: Model, scales: Iterable[float], course: Course) -> Iterator[tuple[Interval, float, Marks]]:
    """(interval, scale, marks) of every scale, in the model's interval of noise levels and at every level."""
    mine = model.config.guidance_low, model.config.guidance_high
    plain: dict[float, Marks] = {}  # of 0 and 1, which are the same in any interval
    for interval in dict.fromkeys((mine, (0.0, 1e4))):
        for scale in scales:
            marks = plain.get(scale)
            if marks is None:
                marks = course.marks(model, dict(zip(GUIDANCE, (scale, *interval), strict=True)))
            if scale in (0, 1):
                plain[scale] = marks
            yield interval, scale, marks
