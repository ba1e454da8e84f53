"""Labels to condition samples on."""

import torch
from torch import Tensor

from ..randomness import permutation
from .images import Images
from .info import DataInfo


def labels_like(images: Images, n: int, seed: int) -> Tensor:
    """n labels in the class frequencies of labeled images, shuffled by the seed: int64 `[n]`.

    The count of each class is its exact share of n, rounded.
    """
    assert images.labels is not None
    share = images.labels.bincount(minlength=images.classes).double() / len(images)
    ends = (share.cumsum(0) * n).round().long()
    labels = torch.repeat_interleave(torch.arange(images.classes), ends.diff(prepend=ends.new_zeros(1)))
    return labels[permutation(n, seed, "labels")]


def labels_for(info: DataInfo, images: Images | None, n: int, seed: int) -> Tensor | None:
    """n labels for a model that was trained on data like `info`: int64 `[n]`, or None for a model without classes.

    If the images have the classes of the model, the labels follow their class frequencies. Otherwise the labels are
    0, 1, 2, ... in turn.
    """
    if images is not None and info.in_own_classes(images).labels is not None:
        return labels_like(images, n, seed)
    return torch.arange(n) % info.classes if info.classes else None
