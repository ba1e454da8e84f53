"""Real-data baselines: the scores of a perfect generator, whose samples are unseen images of the data's distribution.

A score depends on the number of samples n and on the number of real images N. So its mean over perfect generators is
only the baseline if both numbers are the same:

- FID has the bias a (1/n + 1/N) for equal distributions, to first order. n test images have the right bias. With fewer,
  or none, a is measured on parts of the training set, and the value is brought to n and N.
- KID, precision, recall, density and coverage compare k images with k others. The score and its baseline use the same k
  training images, and k is so small that as many images remain for the baseline.
- The inception score has a bias in closed form. Accuracy has none.

A classifier is better on the images that it was trained on. So images that it was not trained on are used for the
inception score and for accuracy.
"""

import math
from statistics import mean

import torch
from torch import Tensor

from ..data.images import Images
from ..randomness import permutation
from .classifier import held_out_part
from .extractors import Features
from .features import NEIGHBORS, ImageFeatures, fid_of
from .metrics import inception_score

SPLITS = 4
"""Random splits of the training set over which the bias of FID is averaged."""


def fid_bias(real: ImageFeatures, n: int) -> float:
    """The mean FID of n unseen images against these real ones, estimated from the real ones alone.

    Random splits into two parts share no image. Their mean FID, times the ratio of 1/n + 1/N to the same sum for the
    parts, is the estimate (compare Chong & Forsyth 2020). A part has n images, but at most half of all. For N of twice
    the number of features and more, it was right within 5 % for normal features and within 10 % for those of images.
    """
    real = real.once
    total = len(real)
    part = min(n, total // 2)
    orders = [permutation(total, 0, "baseline", split) for split in range(SPLITS)]
    measured = mean(fid_of(real[order[part:]], real[order[:part]]) for order in orders)
    return measured * (1 / n + 1 / total) / (1 / part + 1 / (total - part))


def fid_baseline(real: ImageFeatures, unseen: ImageFeatures | None, n: int) -> tuple[float | None, str]:
    """(the mean FID of n unseen images against the real ones or None, a note on how it was measured).

    unseen   images that are not among the real ones; None, or fewer than twice the number of features, are not used
    """
    few = 0 if unseen is None else min(n, len(unseen))
    if few < n and len(real.once) < 4:
        return None, "none: it needs four different training images"
    if unseen is None or few < min(n, 2 * real.features.shape[1]):
        return fid_bias(real, n), "estimated from parts of the training set"
    value = fid_of(real, unseen[permutation(len(unseen), 0, "floor")[:few]])
    if few == n:
        return value, ""
    share = (1 / few - 1 / n) / (1 / few + 1 / len(real))
    return max(value - share * fid_bias(real, few), 0.0), f"extrapolated from {few:,} test images"


def neighbor_sets(real: ImageFeatures, unseen: ImageFeatures | None, n: int) -> tuple[Tensor, Tensor, str]:
    """(features `[k, F]` of real images, features `[k, F]` of others, a note on the others).

    k is the number of samples n, but at most NEIGHBORS, and so that there are 2 k images. The others are unseen ones,
    and training images where those are too few.
    """
    real = real.once
    spare = 0 if unseen is None else len(unseen)
    k = min(n, len(real), NEIGHBORS, (len(real) + spare) // 2)
    order = permutation(len(real), 0, "neighbours")
    missing = max(k - spare, 0)
    others = real.features[order[k : k + missing]]
    if unseen is not None:
        others = torch.cat([unseen.features[permutation(spare, 0, "neighbours")[:k]], others])
    note = f"{missing:,} of its {k:,} images are other training images" if missing else ""
    return real.features[order[:k]], others, note


def inception_baseline(logits: Tensor, n: int) -> float:
    """The mean inception score of n images, from the logits `[M, K]` of M images.

    Its logarithm is biased by -c/n, where c = 1/2 sum_k Var(p_k) / E p_k over the K classes (Miller 1955).
    """
    p = logits.double().softmax(1)
    c = (p.var(0) / p.mean(0).clamp(min=1e-300)).sum().item() / 2
    return inception_score(logits, splits=1)[0] * math.exp(c * (1 / len(logits) - 1 / n))


def images_new_to(extractor: Features, train: Images) -> Tensor:
    """The numbers of the training images that the extractor was not trained on, int64 `[M]`.

    These are the images that its training held out. A function that is no classifier of this data knows none of them.
    """
    record = getattr(extractor, "record", None)
    if record is None or record.fingerprint != train.fingerprint:
        return torch.arange(len(train))
    return held_out_part(train, record.seed)
