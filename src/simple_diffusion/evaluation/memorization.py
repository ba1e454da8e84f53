"""Are the samples copies of training images? Each one's nearest neighbours, and a score calibrated on unseen images.

A copy lies much nearer to one training image than to its neighbours. The score is that ratio: the distance to the
nearest training image over that to the tenth nearest (Yoon et al. 2023, section 3, take the second, which an image that
stands twice in the training set blinds). What ratio is suspicious depends on the data, so the threshold is the ratio
that only one unseen image in a hundred falls below.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DataError

NEIGHBOUR = 10


@dataclass(frozen=True)
class Copies:
    """How near samples lie to training images, in one space (pixels or features).

    nearest    int64 `[N]`: the nearest training image of each sample
    distance   `[N]`: root mean square distance to it
    score      `[N]`: that distance over the one to the NEIGHBOUR-th nearest; small for a copy
    threshold  the score that 1 % of unseen images fall below
    """

    nearest: Tensor
    distance: Tensor
    score: Tensor
    threshold: float

    @property
    def near(self) -> int:
        """How many samples lie below the threshold."""
        return int((self.score < self.threshold).sum())

    @property
    def share(self) -> float:
        """Of the samples below the threshold: 0.01 is expected of a model that copies nothing."""
        return self.near / len(self.score)


def nearest(queries: Tensor, views: Sequence[Tensor], k: int, leave_out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Root mean square distances and indices of the k nearest rows: float and int64 `[N, k]`, ascending.

    queries    `[N, D]`
    views      the training set under each augmentation, each `[M, D]`; the same row counts once, at its nearest view
    leave_out  int64 `[N]`: a row that does not count for each query, itself for instance
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


def find_copies(samples: Tensor, views: Sequence[Tensor], unseen: Tensor | None, limit: int = 2000) -> Copies:
    """The nearest training image of each sample, and how many samples are suspiciously near.

    samples   `[N, D]` float
    views     the training set `[M, D]` under each augmentation, the plain one first
    unseen    `[K, D]` images that the model did not see; None leaves each training image out in turn instead
    limit     how many unseen images calibrate the threshold

    Raises DataError for fewer than 12 training images, among which near and far mean nothing.
    """
    count = len(views[0])
    if count < NEIGHBOUR + 2:
        raise DataError(f"a search for copies needs at least {NEIGHBOUR + 2} training images, not {count}")
    distances, indices = nearest(samples, views, NEIGHBOUR)
    if unseen is None:
        unseen_distances, _ = nearest(views[0][:limit], views, NEIGHBOUR, leave_out=torch.arange(count)[:limit])
    else:
        unseen_distances, _ = nearest(unseen[:limit], views, NEIGHBOUR)
    score, unseen_score = ratio(distances), ratio(unseen_distances)
    threshold = unseen_score.quantile(0.01).item()
    return Copies(indices[:, 0], distances[:, 0], score, threshold)


def ratio(distances: Tensor) -> Tensor:
    """The first over the last of ascending distances `[N, k]`; 0 where both are."""
    return distances[:, 0] / distances[:, -1].clamp(min=1e-12)
