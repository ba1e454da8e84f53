"""What a network is told beside the image: the noise level as waves, and the label, with room for "no label"."""

import math

import torch
from torch import Tensor, nn


def sinusoid(noise_level: Tensor, width: int) -> Tensor:
    """Noise levels `[B]` -> sines and cosines `[B, width]` (Vaswani et al. 2017, section 3.5); width is even.

    Levels span about [-2, 1.5] and are spread over 0 .. 1000, the range of the step numbers of DDPM.
    """
    half = width // 2
    frequencies = torch.exp(-math.log(10000.0) / max(half - 1, 1) * torch.arange(half, device=noise_level.device))
    angles = (noise_level.float() + 2)[:, None] * (1000 / 3.5) * frequencies  # [B] -> [B, half]
    return torch.cat([angles.sin(), angles.cos()], 1)


class Labels(nn.Module):
    """Labels int64 `[B]`, or None -> vectors `[B, width]`; "no label" is the zero vector.

    classes  number of classes; the label `classes` means "none"
    views    number of augmentations that a label may also name, 1 for none (Karras et al. 2022, appendix F.2):
             view v of class c has the label c + v (classes + 1), so that a plain label asks for the plain view 0
    """

    def __init__(self, classes: int, width: int, views: int = 1):
        super().__init__()
        self.classes, self.width = classes, width
        self.of_class = nn.Embedding(classes, width) if classes else None
        self.of_view = nn.Embedding(views - 1, width) if views > 1 else None

    def forward(self, cond: Tensor | None) -> Tensor | float:
        if cond is None:
            return 0.0
        out: Tensor | float = 0.0
        label = cond  # without views nothing is taken modulo, so that a label out of range is an IndexError
        if self.of_view is not None:
            label, view = cond % (self.classes + 1), cond // (self.classes + 1)
            out = out + looked_up(self.of_view, view - 1, view != 0)
        if self.of_class is not None:
            out = out + looked_up(self.of_class, label, label != self.classes)
        return out


def looked_up(table: nn.Embedding, index: Tensor, known: Tensor) -> Tensor:
    """Rows `[B, width]` of the table, zero where the index is not known."""
    return table(torch.where(known, index, 0)) * known[:, None]
