"""Embeddings of the noise level and of the label, on which the networks are conditioned."""

import math

import torch
from torch import Tensor, nn

from ..checks import check_integer, shown


def sinusoid(noise_level: Tensor, width: int) -> Tensor:
    """Noise levels `[B]` -> sines and cosines `[B, width]` (Vaswani et al. 2017, section 3.5); width is even.

    The levels from -2 to 1.5 are scaled to 0 .. 1000, the range of DDPM's step numbers; `Cosine` and `Flow` go to 2.3.
    """
    half = width // 2
    frequencies = torch.exp(-math.log(10000.0) / max(half - 1, 1) * torch.arange(half, device=noise_level.device))
    angles = (noise_level.float() + 2)[:, None] * (1000 / 3.5) * frequencies  # [B] -> [B, half]
    return torch.cat([angles.sin(), angles.cos()], 1)


class Labels(nn.Module):
    """Embed labels: int64 `[B]`, or None -> `[B, width]`. "No label" is the zero vector.

    classes        number of classes; the label `classes` means "no label"
    width          of the embedding
    augmentations  number of augmentations that the label also holds, 1 for none (Karras et al. 2022, appendix F.2):
                   class c under augmentation a has the label c + a (classes + 1), so that augmentation 0, the
                   identity, leaves the label as it is
    """

    def __init__(self, classes: int, width: int, augmentations: int = 1):
        super().__init__()
        check_integer("classes", classes, 0)
        check_integer("augmentations", augmentations, 1)
        self.classes, self.width, self.augmentations = classes, width, augmentations
        self.of_class = nn.Embedding(classes, width) if classes else None
        self.of_view = nn.Embedding(augmentations - 1, width) if augmentations > 1 else None  # its name in model files

    def forward(self, cond: Tensor | None) -> Tensor | float:
        if cond is None:
            return 0.0
        self.check(cond)
        out: Tensor | float = 0.0
        label = cond
        if self.of_view is not None:
            label, augmentation = cond % (self.classes + 1), cond // (self.classes + 1)
            out = out + rows_or_zero(self.of_view, augmentation - 1, augmentation != 0)
        if self.of_class is not None:
            out = out + rows_or_zero(self.of_class, label, label != self.classes)
        return out

    def check(self, cond: Tensor) -> None:
        """Raise ValueError unless the network has these labels, and TypeError unless they are integers `[B]`.

        The values are checked on a CPU only, because other devices would have to wait.
        """
        if self.of_class is None and self.of_view is None:
            raise ValueError("the network has no classes: build it with classes=, or pass no labels")
        if not isinstance(cond, Tensor) or cond.dtype not in (torch.int64, torch.int32) or cond.ndim != 1:
            raise TypeError(f"`cond` must be a label for each image, a tensor of int64 [B], got {shown(cond)}")
        end = (self.classes + 1) * self.augmentations
        if cond.device.type == "cpu" and len(cond) and not (cond.min() >= 0 and cond.max() < end):
            raise ValueError(
                f"the labels of this network are from 0 to {end - 1}, where {self.classes} means no label, got labels "
                f"from {cond.min()} to {cond.max()}"
            )


def rows_or_zero(table: nn.Embedding, index: Tensor, valid: Tensor) -> Tensor:
    """The rows of the table `[B, width]`, zero where the index is not valid."""
    return table(torch.where(valid, index, 0)) * valid[:, None]


def label_embedding(network: object) -> Labels | None:
    """The label embedding of a network, or None if it has no module `Labels`."""
    modules = network.modules() if isinstance(network, nn.Module) else ()
    return next((module for module in modules if isinstance(module, Labels)), None)


def check_classes(network: object, labels: Tensor | None) -> None:
    """Raise ValueError if a label of a data set, int64 `[N]`, is no class of the network but would mean "no label"."""
    embedded = label_embedding(network)
    if (
        labels is not None
        and len(labels)
        and embedded is not None
        and 0 < embedded.classes <= (largest := int(labels.max()))
    ):
        raise ValueError(
            f"the network has {embedded.classes} classes, but an image has the label {largest}: build it with "
            f"classes={largest + 1} or more"
        )


def check_null(network: object, null: int) -> None:
    """Raise ValueError if `null` is not the label that means "no label" in the network: its number of classes."""
    embedded = label_embedding(network)
    if embedded is not None and embedded.classes not in (0, null):
        raise ValueError(f"`null` must be the number of classes of the network, {embedded.classes}, got {null}")
