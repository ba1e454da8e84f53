"""Classifier-free guidance (Ho & Salimans 2022): one network that knows labels and knows how to do without.

`drop_labels` is the half for training, `Guided` the half for sampling.
"""

import torch
from torch import Tensor

from .denoiser import PosteriorMean
from .losses import Loss
from .randomness import Draws


def drop_labels(loss: Loss, null: int, p: float = 0.1) -> Loss:
    """The same loss with each sample's label replaced by `null` with probability p, sample by sample.

    null is the label that means "no label": the number of classes.
    """

    def dropped(denoiser, x0: Tensor, cond: Tensor | None, draws: Draws) -> Tensor:
        if cond is not None:
            cond = torch.where((draws.uniform("drop label") < p).to(cond.device), null, cond)
        return loss(denoiser, x0, cond, draws)

    return dropped


class Guided:
    """The posterior mean pushed away from the unconditional one: lerp(x0_hat(null), x0_hat(cond), scale).

    scale   0 unconditional, 1 conditional without guidance, above 1 stronger; both ends are exact and cost one
            evaluation. In the paper's notation scale = 1 + w (eq. 6).
    null    the label that means "no label"
    """

    def __init__(self, denoiser: PosteriorMean, scale: float, null: int):
        self.denoiser, self.scale, self.null, self.schedule = denoiser, scale, null, denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        if cond is None:
            raise ValueError("guidance needs a label for each image: pass cond [B]")
        no_label = torch.full_like(cond, self.null)
        if self.scale == 1:
            return self.denoiser(x_t, t, cond)
        if self.scale == 0:
            return self.denoiser(x_t, t, no_label)
        t = t.expand(len(x_t))
        both = self.denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([no_label, cond]))  # [2B, ...]
        x0_null, x0_cond = both.chunk(2)
        return torch.lerp(x0_null, x0_cond, self.scale)
