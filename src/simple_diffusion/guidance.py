"""Guidance: the posterior mean, pushed away from that of a model which knows less.

Classifier-free guidance (Ho & Salimans 2022) pushes away from the same network without the label: `drop_labels` is the
half for training, `Guided` the half for sampling. Autoguidance (Karras et al. 2024) needs no labels: `AutoGuided`
pushes away from an early snapshot of the same training.
"""

import math

import torch
from torch import Tensor

from .denoiser import PosteriorMean
from .losses import Loss
from .randomness import Draws
from .schedules import Schedule


def unlabelled(cond: Tensor, null: int) -> Tensor:
    """The labels `[B]` without their class; an augmentation that they name stays (`Labels`)."""
    return cond - cond % (null + 1) + null


def drop_labels(loss: Loss, null: int, p: float = 0.1) -> Loss:
    """The same loss with each sample's label replaced by `null`, sample by sample (Ho & Salimans 2022, algorithm 1).

    loss  (denoiser, x0, cond, draws) -> `[B]`; without labels it is left as it is
    null  the label that means "no label": the number of classes
    p     probability that a label is dropped, in [0, 1]
    """

    def dropped(denoiser, x0: Tensor, cond: Tensor | None, draws: Draws) -> Tensor:
        if cond is not None:
            cond = torch.where((draws.uniform("drop label") < p).to(cond.device), unlabelled(cond, null), cond)
        return loss(denoiser, x0, cond, draws)

    return dropped


Interval = tuple[float, float]
"""Least and largest sigma/alpha at which guidance acts: it costs variety at high noise and does nothing at low noise
(Kynkäänniemi et al. 2024)."""

EVERYWHERE: Interval = (0.0, math.inf)


def inside(interval: Interval, schedule: Schedule, t: Tensor) -> Tensor:
    """Which times t `[B]` have a ratio sigma/alpha in the interval: bool `[B]`, on the CPU: no GPU is waited for."""
    ratio = schedule.ratio(t.cpu().double())
    return (interval[0] <= ratio) & (ratio <= interval[1])


def extrapolated(away_from: Tensor, x0_hat: Tensor, scale: float, acts: Tensor) -> Tensor:
    """lerp(away_from, x0_hat, scale) where guidance acts `[B]` or `[1]`, x0_hat elsewhere; `[B, ...]`."""
    scales = torch.where(acts, torch.tensor(scale, dtype=torch.float64), 1.0)
    return torch.lerp(away_from, x0_hat, scales.to(x0_hat).reshape(-1, *[1] * (x0_hat.ndim - 1)))


class Guided:
    """Classifier-free guidance: lerp(x0_hat(null), x0_hat(cond), scale) (Ho & Salimans 2022, eq. 6).

    Called as `PosteriorMean` is: x_t `[B, ...]` in, the same shape out; cond `[B]` must be given.

    denoiser  trained with `drop_labels`
    scale     0 unconditional, 1 conditional without guidance, above 1 stronger; both ends are exact and cost one
              evaluation. In the paper's notation scale = 1 + w.
    null      the label that means "no label"
    interval  of the ratio sigma/alpha inside which it guides; outside, the conditional mean alone, at one evaluation

    Raises ValueError when it is called without labels.
    """

    def __init__(self, denoiser: PosteriorMean, scale: float, null: int, interval: Interval = EVERYWHERE):
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

    Called as `PosteriorMean` is: x_t `[B, ...]` in, the same shape out.

    denoiser  the model to draw from
    guide     a worse model of the same data and schedule; both err alike, the guide more, so that their difference
              points away from the error
    scale     1 is none, at one evaluation; above 1 stronger, at one evaluation of each
    interval  of the ratio sigma/alpha inside which it guides
    """

    def __init__(self, denoiser: PosteriorMean, guide: PosteriorMean, scale: float, interval: Interval = EVERYWHERE):
        self.denoiser, self.guide, self.scale, self.interval = denoiser, guide, scale, interval
        self.schedule = denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        x0_hat, acts = self.denoiser(x_t, t, cond), inside(self.interval, self.schedule, t)
        if self.scale == 1 or not acts.any():
            return x0_hat
        return extrapolated(self.guide(x_t, t, cond), x0_hat, self.scale, acts)
