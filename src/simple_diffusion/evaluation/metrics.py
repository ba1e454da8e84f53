"""Metrics of the distance between samples and data, as functions of their features.

Features are `[N, D]` and logits `[N, K]`, of any float type and device. The computation is in float64 on the CPU. The
functions raise DataError if there are too few samples, if they are not finite, or if D differs. A value depends on the
extractor and on N, so print it with both.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, UsageError
from ..randomness import permutation

BLOCK = 2**23  # entries of a pairwise matrix in memory at once, at most: 64 MiB
TIE = 1e-12  # relative tolerance of squared distances, so that rounding does not separate equal points

Numbers = float | tuple[float, ...]  # return value of a statistic


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and scatter of features. The moments of a union of batches are their sum:

        total = functools.reduce(operator.add, map(Moments.of, batches))

    count    number of samples
    mean     float64 `[D]`
    scatter  float64 `[D, D]`, sum of the outer products of the deviations from the mean
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """The moments of features `[N, D]`, N >= 1. Raises DataError for another shape, or numbers not finite."""
        _check(features, 1, "a mean")
        return reduce(add, map(cls._of_block, features.split(max(1, BLOCK // max(1, features.shape[1])))))

    @classmethod
    def _of_block(cls, features: Tensor) -> "Moments":
        x = features.detach().cpu().double()
        mean = x.mean(0)
        x = x - mean
        return cls(len(x), mean, x.T @ x)

    def __add__(self, other: "Moments") -> "Moments":
        """Chan, Golub & LeVeque 1983: deviations, not raw squares, are added, so a large mean loses no digits."""
        _same_width(self.mean, other.mean)
        count = self.count + other.count
        shift = other.mean - self.mean
        between = torch.outer(shift, shift) * (self.count * other.count / count)
        return Moments(count, self.mean + shift * (other.count / count), self.scatter + other.scatter + between)

    @property
    def cov(self) -> Tensor:
        """Unbiased covariance `[D, D]`; DataError for fewer than 2 samples."""
        if self.count < 2:
            raise DataError(f"a covariance needs at least 2 samples, got {self.count}")
        return self.scatter / (self.count - 1)

    @cached_property
    def root(self) -> Tensor:
        """Symmetric square root of the covariance `[D, D]`, singular or not."""
        values, vectors = torch.linalg.eigh(self.cov)
        return vectors * values.clamp(min=0).sqrt() @ vectors.T


def frechet_distance(a: Moments, b: Moments) -> float:
    """FID, |μa - μb|² + tr(Sa + Sb - 2 (Sa Sb)^½), in squared feature units (Heusel et al. 2017, eq. 6).

    a, b   moments of features `[N, D]` and `[M, D]`, in either order

    The eigenvalues of (Sa Sb)^½ are the singular values of Sa^½ Sb^½, which exist for singular covariances too. The
    distance of a set to itself is 0 up to rounding. The expectation decreases with the number of samples, so compare
    values at the same number only, or use `frechet_by_count`.

    Raises DataError for two widths D, or one sample.
    """
    _same_width(a.mean, b.mean)
    overlap = torch.linalg.svdvals(a.root @ b.root).sum()
    distance = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * overlap
    return max(distance.item(), 0.0)


class FrechetByCount(NamedTuple):
    """The Fréchet distance as a function of the number of samples.

    counts   number of fakes for each value: n/4, n/2, n
    values   the distance at each count, in squared feature units
    limit    extrapolation to infinitely many samples; not clamped, so it scatters around 0 for equal distributions
    """

    counts: tuple[int, ...]
    values: tuple[float, ...]
    limit: float


def frechet_by_count(real: Tensor, fake: Tensor, seed: int = 0) -> FrechetByCount:
    """FID at n/4, n/2 and n and, by the least-squares line in 1/n, at infinity (Chong & Forsyth 2020).

    real, fake   features `[N, D]` and `[M, D]`, at least 8 of each
    seed         for the random order in which they are split

    Both sets are reduced by the same factor (the paper reduces the fakes only), which also removes the bias of a finite
    real set. Each value is the mean over disjoint parts of a random order. So every sample is used at every n, and
    noise that the values share does not change the slope. The linear relation holds if n/4 is several times D.

    Raises DataError for fewer samples, for different D, or for numbers that are not finite.
    """
    _checked_pair(real, fake, 8, "the Fréchet distance at n/4")
    reals, fakes = (
        [Moments.of(part) for part in x[permutation(len(x), seed, f"count/{side}")].tensor_split(4)]
        for side, x in (("real", real), ("fake", fake))
    )
    shares, values = (4, 2, 1), []
    for share in shares:
        values.append(sum(map(frechet_distance, reals, fakes)) / share)
        reals, fakes = ([a + b for a, b in zip(x[::2], x[1::2], strict=False)] for x in (reals, fakes))
    _, limit = np.polyfit(shares, values, 1)
    return FrechetByCount(tuple(len(fake) // share for share in shares), tuple(values), float(limit))


def inception_score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """exp E KL(p(y|x) ‖ p(y)), 1 to K: mean and standard deviation over splits (Salimans et al. 2016, section 4).

    logits   `[N, K]`, one for each of K classes
    splits   number of parts of the samples; the score is computed for each

    The splits are contiguous and differ in size by at most 1, so the samples must be in random order. The standard
    deviation is that of the splits (divisor `splits`, as in the paper's code), not the standard error of their mean.

    Raises UsageError for fewer than one split, DataError for fewer samples than splits.
    """
    if splits < 1:
        raise UsageError(f"splits must be at least 1, not {splits}")
    log_p = _checked(logits, splits, f"an Inception score in {splits} splits").log_softmax(1)
    scores = torch.stack([_split_score(part) for part in log_p.tensor_split(splits)])
    return scores.mean().item(), scores.std(correction=0).item()


def _split_score(log_p: Tensor) -> Tensor:
    log_marginal = log_p.logsumexp(0) - math.log(len(log_p))
    divergence = (log_p.exp() * (log_p - log_marginal)).sum(1)  # log p is finite, so 0 log 0 = 0
    return divergence.mean().exp()


def kernel_distance(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """KID, the unbiased MMD² with the kernel (x·y / D + 1)³ (Bińkowski et al. 2018, section 4), and its standard error.

    real, fake   features `[N, D]` and `[M, D]`, at least 2 of each; the value has no unit and may fall below 0

    The estimate uses all pairs, not random subsets. The standard error covers the sampling of both sets and is computed
    from the influence of each sample (the jackknife of a U-statistic). It is correct to first order for different
    distributions, and √2 times too large for equal ones.

    Raises DataError for fewer samples, for different D, or for numbers that are not finite.
    """
    real, fake = _checked_pair(real, fake, 2, "KID")
    real_real, _ = _kernel_sums(real, real)
    fake_fake, _ = _kernel_sums(fake, fake)
    real_fake, fake_real = _kernel_sums(real, fake)
    n, m = len(real), len(fake)
    # For each sample: the mean kernel with the others of its own set, minus that with the other set.
    of_real = (real_real - _self_kernel(real)) / (n - 1) - real_fake / m
    of_fake = (fake_fake - _self_kernel(fake)) / (m - 1) - fake_real / n
    error = 2 * (of_real.var() / n + of_fake.var() / m).sqrt()
    return (of_real.mean() + of_fake.mean()).item(), error.item()


def _kernel_sums(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Row sums `[N]` and column sums `[M]` of the kernel matrix."""
    rows, columns = [], torch.zeros_like(y[:, 0])
    for block in _blocks(x, y):
        kernel = (block @ y.T).div_(x.shape[1]).add_(1).pow_(3)
        rows.append(kernel.sum(1))
        columns += kernel.sum(0)
    return torch.cat(rows), columns


def _self_kernel(x: Tensor) -> Tensor:
    return (x.square().mean(1) + 1) ** 3


class PrecisionRecall(NamedTuple):
    """Fidelity and diversity of samples, measured separately. The best value is 1; only density can exceed it.

    precision   share of fakes inside at least one ball of the reals
    recall      share of reals inside at least one ball of the fakes
    density     mean number of balls of reals that contain a fake, divided by k
    coverage    share of reals whose ball contains a fake
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> PrecisionRecall:
    """Precision and recall (Kynkäänniemi et al. 2019, eq. 1-2), density and coverage (Naeem et al. 2020, section 3).

    real, fake   features `[N, D]` and `[M, D]`, more than k of each
    k            number of nearest neighbors that a ball contains

    The radius of a sample's ball is the distance to its k-th nearest other sample of the same set; the surface belongs
    to the ball. The papers use k = 3 for the first two and k = 5 for the others. All four depend on N, so compare
    values at the same N only.

    Raises UsageError for k below 1, DataError for too few samples or different D.
    """
    if k < 1:
        raise UsageError(f"k must be at least 1, not {k}")
    real, fake = _checked_pair(real, fake, k + 1, f"precision and recall with k = {k}")
    real_radii, fake_radii = _squared_radii(real, k), _squared_radii(fake, k)
    balls, covered, recalled = torch.zeros_like(fake_radii), [], []
    for radii, distances in zip(_blocks(real_radii, fake), _squared_distances(real, fake), strict=True):
        inside = distances <= radii[:, None]
        balls += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((distances <= fake_radii).any(1))
    shares = balls > 0, torch.cat(recalled), balls / k, torch.cat(covered)
    return PrecisionRecall(*(share.double().mean().item() for share in shares))


def _squared_radii(x: Tensor, k: int) -> Tensor:
    nearest = [block.topk(k + 1, largest=False).values[:, k] for block in _squared_distances(x, x)]  # + 1: itself
    radii = torch.cat(nearest)
    return radii + TIE * (radii + x.square().sum(1))


def _squared_distances(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """|x|² + |y|² - 2 x·y in blocks of rows: ten times as fast as summed differences, with rounding below TIE."""
    norms = y.square().sum(1)
    for block in _blocks(x, y):
        yield torch.addmm(norms, block, y.T, alpha=-2).add_(block.square().sum(1, keepdim=True))


def jackknife(statistic: Callable[[Tensor], Numbers], n: int, groups: int = 50, seed: int = 0) -> Tensor:
    """Standard error of a statistic of n samples: float64, shape of the statistic (Efron & Stein 1981).

    statistic   (int64 indices `[<= n]` of the samples to keep) -> one or several numbers, such as
                `lambda keep: frechet_distance(real, Moments.of(fake[keep]))`
    n           total number of samples
    groups      number of random groups; each is left out once, with one call of the statistic
    seed        for the random groups

    The error is up to 1.6 times too large for a distance between equal distributions and for `recall`. It is too small
    if a few outlying samples decide the statistic (`evaluation/intervals.py`).

    The bootstrap is not used because FID is biased in n. The duplicates of a bootstrap reduce the effective n, so its
    percentiles lie above the value. If n is only a few times D, its spread is up to three times that of FID.

    Raises UsageError for fewer than 2 groups, DataError for fewer samples than groups.
    """
    if groups < 2:
        raise UsageError(f"groups must be at least 2, not {groups}")
    if n < groups:
        raise DataError(f"a jackknife in {groups} groups needs at least {groups} samples, got {n}")
    parts = permutation(n, seed, "jackknife").tensor_split(groups)
    values = [statistic(torch.cat(parts[:g] + parts[g + 1 :])) for g in range(groups)]
    return torch.tensor(values, dtype=torch.float64).std(0, correction=0) * math.sqrt(groups - 1)


def _blocks(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """x in blocks of rows, so that the matrix of a block and y has at most BLOCK entries."""
    return x.split(max(1, BLOCK // len(y)))


def _check(x: Tensor, least: int, what: str) -> None:
    """DataError unless x is `[N, D]`, N >= least, and finite."""
    if x.ndim != 2:
        raise DataError(f"{what} needs features of shape [N, D], got {list(x.shape)}")
    if len(x) < least:
        raise DataError(f"{what} needs at least {least} samples, got {len(x)}")
    if not (finite := x.isfinite().all(1)).all():
        raise DataError(f"{what} needs finite features: {(~finite).sum()} of {len(x)} samples contain NaN or infinity")


def _checked(x: Tensor, least: int, what: str) -> Tensor:
    """x as float64 on the CPU; DataError unless it is `[N, D]`, N >= least, and finite."""
    _check(x, least, what)
    return x.detach().cpu().double()


def _checked_pair(real: Tensor, fake: Tensor, least: int, what: str) -> tuple[Tensor, Tensor]:
    real, fake = _checked(real, least, what), _checked(fake, least, what)
    _same_width(real[0], fake[0])
    return real, fake


def _same_width(a: Tensor, b: Tensor) -> None:
    if len(a) != len(b):
        raise DataError(f"features of {len(a)} and {len(b)} numbers a sample cannot be compared: use one extractor")
