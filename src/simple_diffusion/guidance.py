"""Guidance: extrapolate from the posterior mean of a weaker model past that of the model.

In classifier-free guidance (Ho & Salimans 2022) the weaker model is the same network without the label: `drop_labels`
is for training, `Guided` for sampling. Autoguidance (Karras et al. 2024) needs no labels: in `AutoGuided` the weaker
model is an early snapshot of the same training run.
"""

import math

import torch
from torch import Tensor

from .checks import check_callable, check_integer, check_number
from .denoiser import PosteriorMean, check_denoiser, weights_of
from .losses import Loss
from .networks.embedding import check_null
from .randomness import Draws
from .schedules import Schedule


def unlabelled(cond: Tensor, null: int) -> Tensor:
    """The labels `[B]` with their class replaced by "no label"; the augmentation in them stays."""
    return cond - cond % (null + 1) + null


def drop_labels(loss: Loss, null: int, p: float = 0.1) -> Loss:
    """The same loss, with the label of each sample replaced by `null` at random (Ho & Salimans 2022, algorithm 1).

    loss  (denoiser, x0, cond, draws) -> `[B]`; if cond is None, nothing is changed
    null  the label that means "no label": the number of classes
    p     probability that a label is dropped, in [0, 1]

    Raises ValueError for another p, and in training if the network has another number of classes.
    """
    check_callable("loss", loss, "a function such as sd.denoising_loss")
    check_integer("null", null, 0)
    check_number("p", p, 0, 1, "[]")

    def dropped(denoiser, x0: Tensor, cond: Tensor | None, draws: Draws) -> Tensor:
        if cond is not None:
            check_null(denoiser, null)
            cond = torch.where((draws.uniform("drop label") < p).to(cond.device), unlabelled(cond, null), cond)
        return loss(denoiser, x0, cond, draws)

    return dropped


Interval = tuple[float, float]
"""The lowest and the highest sigma/alpha at which guidance acts. At high noise it reduces the variety of the samples,
at low noise it has no effect (Kynkäänniemi et al. 2024)."""

EVERYWHERE: Interval = (0.0, math.inf)


def check_guidance(scale: float, interval: Interval) -> None:
    """Raise ValueError unless the scale is a number and the interval is in order."""
    check_number("scale", scale)
    check_number("interval[1]", interval[1], 0, math.inf, "[]")
    check_number("interval[0]", interval[0], 0, interval[1], "[]")


def inside(interval: Interval, schedule: Schedule, t: Tensor) -> Tensor:
    """Whether the ratio sigma/alpha at each of the times t `[B]` lies in the interval: bool `[B]`, on the CPU."""
    ratio = schedule.ratio(t.cpu().double())
    return (interval[0] <= ratio) & (ratio <= interval[1])


def extrapolated(away_from: Tensor, x0_hat: Tensor, scale: float, acts: Tensor) -> Tensor:
    """lerp(away_from, x0_hat, scale) where `acts` (`[B]` or `[1]`) is true, x0_hat elsewhere; `[B, ...]`."""
    scales = torch.where(acts, torch.tensor(scale, dtype=torch.float64), 1.0)
    return torch.lerp(away_from, x0_hat, scales.to(x0_hat).reshape(-1, *[1] * (x0_hat.ndim - 1)))


class Guided:
    """Classifier-free guidance: lerp(x0_hat(null), x0_hat(cond), scale) (Ho & Salimans 2022, eq. 6).

    It is called like `PosteriorMean`, with x_t `[B, ...]` and labels cond `[B]`, and returns the shape of x_t.

    denoiser  trained with `drop_labels`
    scale     0 is unconditional, 1 is conditional without guidance, above 1 is stronger; 1 + w in the paper. At 0 and 1
              the network is evaluated once, otherwise for both means.
    null      the label that means "no label"
    interval  of the ratio sigma/alpha in which guidance acts; outside, it returns the conditional mean

    Raises ValueError for another scale, null or interval, and if it is called without labels.
    """

    def __init__(self, denoiser: PosteriorMean, scale: float, null: int, interval: Interval = EVERYWHERE):
        check_denoiser(denoiser)
        check_guidance(scale, interval)
        check_integer("null", null, 1)
        check_null(weights_of(denoiser), null)
        self.denoiser, self.scale, self.null, self.interval = denoiser, scale, null, interval
        self.schedule = denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        if cond is None:
            raise ValueError("guidance needs a label for each image: pass cond [B]")
        no_label = unlabelled(cond, self.null)
        acts = inside(self.interval, self.schedule, t)
        if self.scale == 1 or not acts.any():
            return self.denoiser(x_t, t, cond)
        if self.scale == 0 and acts.all():
            return self.denoiser(x_t, t, no_label)
        t = t.expand(len(x_t))
        both = self.denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([no_label, cond]))  # [2B, ...]
        x0_null, x0_cond = both.chunk(2)
        return extrapolated(x0_null, x0_cond, self.scale, acts)


class AutoGuided:
    """Autoguidance: lerp(x0_hat of the guide, x0_hat, scale) (Karras et al. 2024, "Guiding a diffusion model with a bad
    version of itself", eq. 3).

    It is called like `PosteriorMean`, with x_t `[B, ...]`, and returns the same shape.

    denoiser  the model to sample from
    guide     a worse model of the same data with the same schedule. Both make similar errors, the guide larger ones, so
              their difference points away from the error.
    scale     1 is no guidance and evaluates `denoiser` only; above 1 is stronger and evaluates both
    interval  of the ratio sigma/alpha in which guidance acts

    Raises ValueError for another scale or interval, or for a guide with another schedule.
    """

    def __init__(self, denoiser: PosteriorMean, guide: PosteriorMean, scale: float, interval: Interval = EVERYWHERE):
        check_denoiser(denoiser)
        check_denoiser(guide)
        check_guidance(scale, interval)
        times = torch.linspace(0.1, 1, 10, dtype=torch.float64)
        if not torch.equal(denoiser.schedule.ratio(times), guide.schedule.ratio(times)):
            raise ValueError("`guide` must have the schedule of `denoiser`: use an early snapshot of the same run")
        self.denoiser, self.guide, self.scale, self.interval = denoiser, guide, scale, interval
        self.schedule = denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        x0_hat, acts = self.denoiser(x_t, t, cond), inside(self.interval, self.schedule, t)
        if self.scale == 1 or not acts.any():
            return x0_hat
        return extrapolated(self.guide(x_t, t, cond), x0_hat, self.scale, acts)
