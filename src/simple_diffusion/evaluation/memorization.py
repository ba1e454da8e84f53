"""Memorization: samples that are near-duplicates of training images, with a threshold calibrated on unseen images.

The score of a sample is the distance to its nearest training image over the distance to the tenth nearest. A
near-duplicate is much closer to one training image than to the others, so its score is small. (Yoon et al. 2023,
section 3, use the second nearest, which fails where a training image occurs twice.) What is small depends on the data:
the threshold is the score that 1 % of unseen images fall below. Duplicates in the data must not lower it: equal
training images count once, and an unseen image is scored without its own duplicates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.images import distinct, to_unit
from ..errors import DataError
from ..randomness import permutation

NEIGHBOR = 10
"""Rank of the neighbor whose distance is the scale."""
CHANCE = 0.01
"""Share of unseen images below the threshold."""
DUPLICATE = 0.1
"""Score below which an image is a duplicate in any data set. Of unseen digits, clothes and photographs, none is below
0.3."""
FEW = 100
"""Unseen images that suffice to find the score that 1 % fall below."""
QUERIES, ROWS = 2000, 2048
"""Images that are compared at once: their distances take 16 MB."""


@dataclass(frozen=True)
class NearDuplicates:
    """How close samples are to training images, in one space (pixels or features).

    nearest    int64 `[N]`: the nearest training image of each sample
    distance   `[N]`: root mean square distance to it
    score      `[N]`: that distance over the distance to the NEIGHBOR-th nearest, in [0, 1]
    threshold  the score that a share `expected` of unseen images falls below
    expected   0.01; 1 / (n + 1) where the threshold is the lowest score of fewer than 99 images
    """

    nearest: Tensor
    distance: Tensor
    score: Tensor
    threshold: float
    expected: float = CHANCE

    @property
    def count(self) -> int:
        """Number of samples below the threshold."""
        return int((self.score < self.threshold).sum())

    @property
    def share(self) -> float:
        """Share of samples below the threshold; `expected` for a model that memorizes nothing."""
        return self.count / len(self.score)


def nearest(queries: Tensor, views: Sequence[Tensor], k: int, leave_out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Root mean square distances and indices of the k nearest rows: float and int64 `[N, k]`, ascending.

    queries    `[N, D]`, float or uint8; pixels of type uint8 are compared in [-1, 1]
    views      the training set under each augmentation, each `[M, D]` with M > k; of a row the nearest view counts
    leave_out  int64 `[N]`: for each query a row to leave out, such as the query itself
    """
    distances, indices = [], []
    for start in range(0, len(queries), QUERIES):
        block = floats(queries[start : start + QUERIES])
        squares, index = block.new_empty(len(block), 0), torch.empty(len(block), 0, dtype=torch.int64)
        for first in range(0, len(views[0]), ROWS):
            numbers = torch.arange(first, min(first + ROWS, len(views[0]))).expand(len(block), -1)
            near = block.new_full(numbers.shape, torch.inf)
            for view in views:
                rows = floats(view[first : first + ROWS])
                near = torch.minimum(near, torch.addmm(rows.square().sum(1), block, rows.T, alpha=-2))
            if leave_out is not None:
                near.masked_fill_(numbers == leave_out[start : start + QUERIES, None], torch.inf)
            squares, index = torch.cat([squares, near], 1), torch.cat([index, numbers], 1)
            squares, best = squares.topk(min(k, squares.shape[1]), largest=False)
            index = index.gather(1, best)
        squares = recompute_small(squares, block, views, index).sort(1)
        distances.append((squares.values / block.shape[1]).sqrt())
        indices.append(index.gather(1, squares.indices))
    return torch.cat(distances), torch.cat(indices)


def recompute_small(squares: Tensor, queries: Tensor, views: Sequence[Tensor], index: Tensor) -> Tensor:
    """|q - x|² of each query `[N, D]` and its rows `index` `[N, k]` from |x|² - 2 q x, in `squares`: `[N, k]`.

    The sum of these terms and |q|² loses the digits of small distances, which are computed from the differences.
    """
    norm = queries.square().sum(1, keepdim=True)
    squares = squares + norm
    for rank, small in enumerate((squares < norm / 100).T):
        if small.any():
            rows = index[small, rank]
            exact = [(queries[small] - floats(view[rows])).square().sum(1) for view in views]
            squares[small, rank] = torch.stack(exact).amin(0)
    return squares


def floats(rows: Tensor) -> Tensor:
    """Pixels of type uint8 in [-1, 1]; other rows as they are."""
    return to_unit(rows) if rows.dtype == torch.uint8 else rows


def find_near_duplicates(
    samples: Tensor, views: Sequence[Tensor], unseen: Tensor | None, limit: int = 2000
) -> NearDuplicates:
    """The nearest training image of each sample, and which samples are near-duplicates of it.

    samples   `[N, D]`, float or uint8; pixels of type uint8 are compared in [-1, 1]
    views     the training set `[M, D]` under each augmentation, the identity first
    unseen    `[K, D]` images that the model was not trained on; None, or fewer than FEW, leaves out each training image
              in turn instead
    limit     number of images that calibrate the threshold, chosen at random

    Raises DataError for fewer than 12 training images that differ under all augmentations.
    """
    rows = distinct(views)
    if len(rows) < NEIGHBOR + 2:
        needed = f"needs at least {NEIGHBOR + 2} different training images"
        raise DataError(f"a search for near-duplicates {needed}, got {len(rows)}")
    if len(rows) < len(views[0]):
        views = [view[rows] for view in views]
    distances, indices = nearest(samples, views, NEIGHBOR)
    scores = unseen_scores(views, unseen, limit).sort().values
    # The k-th lowest of n scores is above a share k / (n + 1) of the scores of further images, in the mean.
    position = max(CHANCE * (len(scores) + 1) - 1, 0) / (len(scores) - 1)
    threshold, expected = scores.quantile(position).item(), max(CHANCE, 1 / (len(scores) + 1))
    return NearDuplicates(rows[indices[:, 0]], distances[:, 0], relative(distances)[:, 0], threshold, expected)


def unseen_scores(views: Sequence[Tensor], unseen: Tensor | None, limit: int) -> Tensor:
    """The scores of at most `limit` unseen images, or of training images that are left out: `[n]`.

    An image may have duplicates in the training set. It is scored without them, so no score is that of a duplicate.
    """
    count, leave_out = len(views[0]), None
    if unseen is not None:
        unseen = unseen[distinct([unseen])]
    if unseen is None or len(unseen) < min(FEW, count):
        unseen = views[0]
        leave_out = permutation(count, 0, "near-duplicates")[:limit]
    some = permutation(len(unseen), 0, "near-duplicates")[:limit]
    distances, _ = nearest(unseen[some], views, NEIGHBOR, leave_out)
    scores = relative(distances)
    # Images with m degrees of freedom have neighbors like points in m dimensions, where P(score < s) is about 9 s^m and
    # the fifth neighbor lies at 2^(-1/m) of the tenth. To the power of 15 this is a score of probability 9 / 2^15.
    duplicate = scores[:, NEIGHBOR // 2 - 1].median().pow(15).clamp(max=DUPLICATE)
    return scores.masked_fill(scores < duplicate, 1).amin(1)


def relative(distances: Tensor) -> Tensor:
    """Ascending distances `[N, k]` over the last of each row: in [0, 1], 1 where all are 0."""
    scale = distances[:, -1:]
    return torch.where(scale > 0, distances / scale, 1.0)
