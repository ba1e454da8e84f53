"""A race of samplers on one model: quality against cost, from the same noise, and the cheapest as good as the best.

Cost is counted in evaluations of the network by image, which decide the time on any machine; guidance adds the same
share to all. Two measures of quality, which need not agree: FID, and for the solvers of the ODE the distance to what a
fine solution makes of the same noise. A model that has learned little can draw better with a coarse solver than with a
fine one (docs/notes/quality.md).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .checkpoint import Model
from .config import Config
from .data.images import to_unit
from .drawing import draw
from .evaluation import GROUPS, Featured
from .extractors import Features
from .metrics import Moments, frechet_distance, jackknife
from .samplers import SOLVERS

RACERS = {"ddim": 1, "heun": 2, "dpmpp": 1, "dpmpp-sde": 1, "ddpm": 1}
"""Samplers by name, and the evaluations that a step takes."""

FINE = ("heun", 50)
"""The solution that stands for the exact one."""


@dataclass(frozen=True, eq=False)
class Lap:
    """What one sampler made of so many steps.

    sampler, steps, cost   cost in evaluations of the network
    fid, error             FID, and its standard error by the draw of the samples
    distance               root mean square distance a pixel, in [-1, 1], to the fine solution; None with fresh noise
    side                   the samples through the extractor
    """

    sampler: str
    steps: int
    cost: int
    fid: float
    error: float
    distance: float | None
    side: Featured

    def settings(self) -> dict[str, Any]:
        """What the config takes over."""
        return {"sampler": self.sampler, "grid": "karras", "sampler_steps": self.steps}


def entrants(costs: Iterable[int]) -> list[tuple[str, int]]:
    """(sampler, steps) at each cost that a whole number of steps comes to, or one evaluation less."""
    return [(name, cost // each) for cost in costs for name, each in RACERS.items() if cost >= 2 * each]


def pixels_of(model: Model, config: Config, n: int, labels: Tensor | None, seed: int) -> Tensor:
    """n samples with other settings, from the same noise: uint8 `[n, C, H, W]`."""
    return draw(replace(model, config=config), n, labels, seed)


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
    sampler, steps = FINE
    fine = pixels_of(model, replace(model.config, sampler=sampler, grid="karras", sampler_steps=steps), n, labels, seed)
    for name, steps in entrants(costs):
        config = replace(model.config, sampler=name, grid="karras", sampler_steps=steps)
        pixels = pixels_of(model, config, n, labels, seed)
        side = Featured(*extractor(pixels))

        def fid(keep: Tensor, side: Featured = side) -> float:
            return frechet_distance(real.moments, Moments.of(side.features[keep]))

        away = (to_unit(pixels) - to_unit(fine)).square().mean().sqrt().item() if name in SOLVERS else None
        error = jackknife(fid, n, GROUPS).item()
        yield Lap(name, steps, steps * RACERS[name], fid(torch.arange(n)), error, away, side)


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
        if lap is lowest:
            break

        def gap(keep: Tensor, lap: Lap = lap) -> float:
            there, here = (Moments.of(one.side.features[keep]) for one in (lap, lowest))
            return frechet_distance(real.moments, there) - frechet_distance(real.moments, here)

        if lap.fid - lowest.fid <= 1.96 * jackknife(gap, len(lap.side), GROUPS).item():
            return lap
    return lowest
