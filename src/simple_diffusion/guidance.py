"""Classifier-free guidance (Ho & Salimans 2022): one network that knows labels and knows how to do without.

`drop_labels` is the half for training, `Guided` the half for sampling.
"""

import math

import torch
from torch import Tensor

from .denoiser import PosteriorMean
from .losses import Loss
from .randomness import Draws


def unlabelled(cond: Tensor, null: int) -> Tensor:
    """The labels `[B]` without their class; an augmentation that they name stays (`Labels`)."""
    return cond - cond % (null + 1) + null


def drop_labels(loss: Loss, null: int, p: float = 0.1) -> Loss:
    """The same loss with each sample's label replaced by `null` with probability p, sample by sample.

    null is the label that means "no label": the number of classes.
    """

    def dropped(denoiser, x0: Tensor, cond: Tensor | None, draws: Draws) -> Tensor:
        if cond is not None:
            cond = torch.where((draws.uniform("drop label") < p).to(cond.device), unlabelled(cond, null), cond)
        return loss(denoiser, x0, cond, draws)

    return dropped


class Guided:
    """The posterior mean pushed away from the unconditional one: lerp(x0_hat(null), x0_hat(cond), scale).

    scale     0 unconditional, 1 conditional without guidance, above 1 stronger; both ends are exact and cost one
              evaluation. In the paper's notation scale = 1 + w (eq. 6).
    null      the label that means "no label"
    interval  of sigma/alpha inside which it guides; outside, the conditional mean alone, at one evaluation: guidance
              costs variety at high noise and does nothing at low noise (Kynkäänniemi et al. 2024)
    """

    def __init__(
        self, denoiser: PosteriorMean, scale: float, null: int, interval: tuple[float, float] = (0.0, math.inf)
    ):
        self.denoiser, self.scale, self.null, self.interval = denoiser, scale, null, interval
        self.schedule = denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        if cond is None:
            raise ValueError("guidance needs a label for each image: pass cond [B]")
        no_label = unlabelled(cond, self.null)
        low, high = self.interval
        ratio = self.schedule.ratio(t.cpu().double())
        inside = (low <= ratio) & (ratio <= high)  # as many as there are times
        if self.scale == 1 or not inside.any():
            return self.denoiser(x_t, t, cond)
        if self.scale == 0 and inside.all():
            return self.denoiser(x_t, t, no_label)
        t = t.expand(len(x_t))
        both = self.denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([no_label, cond]))  # [2B, ...]
        x0_null, x0_cond = both.chunk(2)
        scale = torch.where(inside, ratio.new_tensor(self.scale), 1.0).to(x_t).reshape(-1, *[1] * (x_t.ndim - 1))
        return torch.lerp(x0_null, x0_cond, scale)
