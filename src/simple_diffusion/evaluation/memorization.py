"""Memorization: samples that are near-duplicates of training images, with a threshold calibrated on unseen images.

The score of a sample is the distance to its nearest training image over the distance to the tenth nearest. A
near-duplicate is much closer to one training image than to the others, so its score is small. (Yoon et al. 2023,
section 3, use the second nearest, which fails where a training image occurs twice.) What is small depends on the data:
the threshold is the score that 1 % of unseen images fall below.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DataError

NEIGHBOR = 10
"""Rank of the neighbor whose distance is the scale."""


@dataclass(frozen=True)
class NearDuplicates:
    """How close samples are to training images, in one space (pixels or features).

    nearest    int64 `[N]`: the nearest training image of each sample
    distance   `[N]`: root mean square distance to it
    score      `[N]`: that distance over the distance to the NEIGHBOR-th nearest, in [0, 1]
    threshold  the score that 1 % of unseen images fall below
    """

    nearest: Tensor
    distance: Tensor
    score: Tensor
    threshold: float

    @property
    def count(self) -> int:
        """Number of samples below the threshold."""
        return int((self.score < self.threshold).sum())

    @property
    def share(self) -> float:
        """Share of samples below the threshold; 0.01 is expected of a model that memorizes nothing."""
        return self.count / len(self.score)


def nearest(queries: Tensor, views: Sequence[Tensor], k: int, leave_out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Root mean square distances and indices of the k nearest rows: float and int64 `[N, k]`, ascending.

    queries    `[N, D]`
    views      the training set under each augmentation, each `[M, D]`; of a row the nearest view counts
    leave_out  int64 `[N]`: for each query a row to leave out, such as the query itself
    """
    distances, indices = [], []
    norms = [view.square().sum(1) for view in views]
    for start in range(0, len(queries), 500):
        block = queries[start : start + 500]
        best = torch.full((len(block), len(views[0])), torch.inf)
        for view, norm in zip(views, norms, strict=True):
            best = torch.minimum(best, torch.addmm(norm, block, view.T, alpha=-2))
        best = (best + block.square().sum(1, keepdim=True)).clamp(min=0)
        if leave_out is not None:
            best[torch.arange(len(block)), leave_out[start : start + 500]] = torch.inf
        found = best.topk(k, largest=False)
        distances.append((found.values / queries.shape[1]).sqrt())
        indices.append(found.indices)
    return torch.cat(distances), torch.cat(indices)


def find_near_duplicates(
    samples: Tensor, views: Sequence[Tensor], unseen: Tensor | None, limit: int = 2000
) -> NearDuplicates:
    """The nearest training image of each sample, and which samples are near-duplicates of it.

    samples   `[N, D]` float
    views     the training set `[M, D]` under each augmentation, the identity first
    unseen    `[K, D]` images that the model was not trained on; None leaves out each training image in turn instead
    limit     number of unseen images that calibrate the threshold

    Raises DataError for fewer than 12 training images.
    """
    count = len(views[0])
    if count < NEIGHBOR + 2:
        raise DataError(f"a search for near-duplicates needs at least {NEIGHBOR + 2} training images, got {count}")
    distances, indices = nearest(samples, views, NEIGHBOR)
    if unseen is None:
        unseen_distances, _ = nearest(views[0][:limit], views, NEIGHBOR, leave_out=torch.arange(count)[:limit])
    else:
        unseen_distances, _ = nearest(unseen[:limit], views, NEIGHBOR)
    score, unseen_score = ratio(distances), ratio(unseen_distances)
    threshold = unseen_score.quantile(0.01).item()
    return NearDuplicates(indices[:, 0], distances[:, 0], score, threshold)


def ratio(distances: Tensor) -> Tensor:
    """The first over the last of ascending distances `[N, k]`; 0 where both are 0."""
    return distances[:, 0] / distances[:, -1].clamp(min=1e-12)
