"""Races on one model, from the same noise: samplers by their cost, and strengths of guidance.

Cost is counted in evaluations of the network by image, which decide the time on any machine; guidance adds the same
share to all. Measures of quality, which need not agree: FID and KID, and for the solvers of the ODE the distance to
what a fine solution makes of the same noise. A model that has learned little can draw better with a coarse solver than
with a fine one (docs/notes/quality.md).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .checkpoint import Model
from .comparing import difference_of
from .data.images import to_uint8
from .drawing import pieces
from .evaluation import NEIGHBOURS, Featured, accuracy_of, fid_and_error, fid_of, some
from .extractors import Features
from .guidance import Interval
from .metrics import kernel_distance, precision_recall
from .samplers import SOLVERS

RACERS = {"ddim": 1, "heun": 2, "dpmpp": 1, "dpmpp-sde": 1, "ddpm": 1}
"""Samplers by name, and the evaluations that a step takes; heun's last step takes one."""


def cost_of(sampler: str, steps: int) -> int:
    """Evaluations of the network by image."""
    return RACERS[sampler] * (steps - 1) + 1


FINE = ("heun", 50)
"""The solution that stands for the exact one."""


@dataclass(frozen=True, eq=False)
class Lap:
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
        return cost_of(self.sampler, self.steps)

    def settings(self) -> dict[str, Any]:
        """What the config takes over."""
        return drawn_by(self.sampler, self.steps)


def drawn_by(sampler: str, steps: int) -> dict[str, Any]:
    """Settings of a config."""
    return {"sampler": sampler, "grid": "karras", "sampler_steps": steps}


def entrants(costs: Iterable[int]) -> list[tuple[str, int]]:
    """(sampler, steps) at each cost that a whole number of steps comes to, or one evaluation less."""
    racing = [(name, (cost - 1) // each + 1) for cost in costs for name, each in RACERS.items()]
    return [(name, steps) for name, steps in racing if steps >= 2]


def drawn(model: Model, changes: dict[str, Any], n: int, labels: Tensor | None, seed: int) -> Tensor:
    """n samples with other settings, from the same noise: float `[n, C, H, W]` about [-1, 1], on the CPU."""
    model = replace(model, config=replace(model.config, **changes))
    return torch.cat([x.cpu() for _, x in pieces(model, n, labels, seed)])


def kid_of(real: Featured, side: Featured) -> float:
    """KID on equally many images of both sides."""
    n = min(len(real), len(side), NEIGHBOURS)
    return kernel_distance(some(real, n), some(side, n))[0]


def race(
    model: Model,
    costs: Iterable[int],
    n: int,
    labels: Tensor | None,
    seed: int,
    extractor: Features,
    real: Featured,
) -> Iterator[Lap]:
    """Run every sampler at every cost, one lap after the other.

    costs      evaluations of the network by image
    n          images of each lap, at least twice the extractor's features
    labels     int64 `[n]` or None
    real       the training set through the extractor
    """
    fine = drawn(model, drawn_by(*FINE), n, labels, seed)
    for name, steps in entrants(costs):
        x = drawn(model, drawn_by(name, steps), n, labels, seed)
        side = Featured(*extractor(to_uint8(x)))
        away = (x - fine).clamp(-2, 2).square().mean().sqrt().item() if name in SOLVERS else None
        yield Lap(name, steps, *fid_and_error(real, side), kid_of(real, side), away, side)


def front(laps: list[Lap]) -> list[Lap]:
    """The laps that no cheaper or equally cheap one beats in FID, by rising cost (Pareto)."""
    best: list[Lap] = []
    for lap in sorted(laps, key=lambda lap: (lap.cost, lap.fid)):
        if not best or lap.fid < best[-1].fid:
            best.append(lap)
    return best


def choice(laps: list[Lap], real: Featured) -> Lap:
    """The cheapest lap whose FID can't be told from the lowest, by the interval of their difference in pairs."""
    lowest = min(laps, key=lambda lap: lap.fid)
    for lap in front(laps):
        fid = difference_of("FID", lambda side, keep: fid_of(real, side[keep]), lap.side, lowest.side, lower=True)
        if lap is lowest or not fid.verdict:
            return lap
    return lowest


@dataclass(frozen=True)
class Push:
    """What one strength of guidance made of the samples.

    scale, interval     of guidance
    fid, error          FID, and its standard error by the draw of the samples
    precision, recall   on NEIGHBOURS images at most
    accuracy            how often the extractor sees the label that was asked for; None where it knows others
    """

    scale: float
    interval: Interval
    fid: float
    error: float
    precision: float
    recall: float
    accuracy: float | None


def guidance_race(
    model: Model,
    scales: Iterable[float],
    n: int,
    labels: Tensor,
    seed: int,
    extractor: Features,
    real: Featured,
    known: bool,
) -> Iterator[Push]:
    """Draw with every scale, in the model's interval of noise levels and at every level.

    n        images of each, at least twice the extractor's features
    labels   int64 `[n]`
    real     the training set through the extractor
    known    whether the extractor's logits stand for the labels
    """
    mine = model.config.guidance_low, model.config.guidance_high
    few = min(n, len(real), NEIGHBOURS)
    for interval in dict.fromkeys((mine, (0.0, 1e4))):
        for scale in scales:
            changes = {"guidance": scale, "guidance_low": interval[0], "guidance_high": interval[1]}
            side = Featured(*extractor(to_uint8(drawn(model, changes, n, labels, seed))))
            near = precision_recall(some(real, few), some(side, few))
            accuracy = accuracy_of(side, labels) if known else None
            yield Push(scale, interval, *fid_and_error(real, side), near.precision, near.recall, accuracy)
