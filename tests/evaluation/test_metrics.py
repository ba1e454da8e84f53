import functools
import math
import operator

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from simple_diffusion.errors import DataError, UsageError
from simple_diffusion.evaluation import metrics
from simple_diffusion.evaluation.metrics import (
    Moments,
    frechet_by_count,
    frechet_distance,
    inception_score,
    jackknife,
    kernel_distance,
    precision_recall,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def shuffled(x, seed=0):
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]


def fid(real, fake):
    return frechet_distance(Moments.of(real), Moments.of(fake))


def gaussian(mean, cov):
    """Moments that are exactly these."""
    return Moments(101, torch.as_tensor(mean, dtype=torch.float64), torch.as_tensor(cov, dtype=torch.float64) * 100)


# --- moments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[500], [1] * 500, [499, 1], [1, 499], [7, 93, 400], [250, 250]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_of_batches_are_those_of_the_whole(sizes, dtype):
    x = (100 + normal(500, 16)).to(dtype)  # mean / std = 100: raw sums of squares in float32 would be percents off
    total = functools.reduce(operator.add, map(Moments.of, x.split(sizes)))
    assert total.count == 500
    np.testing.assert_allclose(total.mean, x.double().numpy().mean(0), rtol=1e-13)
    np.testing.assert_allclose(total.cov, np.cov(x.double().numpy().T), rtol=1e-10, atol=1e-10)


def test_moments_add_in_any_order():
    a, b, c = (Moments.of(normal(n, 5, seed=n) * n + n) for n in (3, 10, 40))
    for left, right in (((a + b) + c, a + (b + c)), (a + b, b + a)):
        assert left.count == right.count
        torch.testing.assert_close(left.mean, right.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(left.cov, right.cov, rtol=1e-12, atol=1e-9)


def test_moments_are_exact_at_a_mean_of_a_billion_standard_deviations():
    x = normal(400, 3)
    far = functools.reduce(operator.add, map(Moments.of, (x + 1e9).split(37)))
    torch.testing.assert_close(far.cov, torch.cov(x.T), rtol=0, atol=1e-6)


# --- Fréchet distance ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "width"), [(50, 3), (300, 16), (2000, 64)])
def test_frechet_agrees_with_scipy(n, width):
    real, fake = normal(n, width), normal(n + 10, width, seed=1) @ normal(width, width, seed=2) / width**0.5 + 0.3
    x, y = real.numpy(), fake.numpy()
    s, t = np.cov(x.T), np.cov(y.T)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert fid(real, fake) == pytest.approx(expected, rel=1e-8)


def test_frechet_of_diagonal_gaussians_is_the_closed_form():
    mean, std = normal(2, 24), normal(2, 24, seed=1).abs() + 0.1
    a, b = (gaussian(m, s.square().diag()) for m, s in zip(mean, std, strict=True))
    expected = (mean[0] - mean[1]).square().sum() + (std[0] - std[1]).square().sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-12)


def test_frechet_of_a_shift_and_of_a_scale_is_the_closed_form():
    x, shift = normal(200, 12), normal(12, seed=1)
    assert fid(x, x + shift) == pytest.approx(shift.square().sum().item(), rel=1e-9)
    x = x - x.mean(0)
    assert fid(x, 3 * x) == pytest.approx(4 * x.var(0).sum().item(), rel=1e-9)


def test_frechet_is_symmetric_and_invariant_to_rotation_and_order():
    real, fake = normal(100, 8), normal(90, 8, seed=1) * 1.5 + 0.2
    rotation = torch.linalg.qr(normal(8, 8, seed=2)).Q
    value = fid(real, fake)
    assert fid(fake, real) == pytest.approx(value, rel=1e-10)
    assert fid(real @ rotation, fake @ rotation) == pytest.approx(value, rel=1e-10)
    assert fid(real.flip(0), shuffled(fake)) == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize("n", [2, 3, 16, 64, 200])
def test_frechet_of_a_set_to_itself_is_zero_even_with_fewer_samples_than_features(n):
    x = 5 * normal(n, 64)
    assert 0 <= fid(x, x) < 1e-9
    assert 0 <= fid(x, x.flip(0)) < 1e-9


@pytest.mark.parametrize("n", [2, 3, 16, 64])
def test_frechet_of_singular_covariances_is_finite(n):
    real, fake = normal(n, 64).relu(), normal(100, 64, seed=1)
    fake[:, :20] = 7.0  # dead features
    value = fid(real, fake)
    assert math.isfinite(value)
    assert value == pytest.approx(fid(fake, real), rel=1e-10)


def test_frechet_of_constant_sets_is_the_distance_of_the_constants():
    assert fid(torch.zeros(5, 4), torch.ones(5, 4)) == 4
    assert fid(torch.ones(5, 4), torch.ones(5, 4)) == 0


# --- bias of the Fréchet distance in n -------------------------------------------------------------------------------


def test_frechet_by_count_extrapolates_to_zero_for_equal_distributions():
    results = [frechet_by_count(normal(2000, 16, seed=2 * i), normal(2000, 16, seed=2 * i + 1)) for i in range(20)]
    values, limits = np.array([r.values for r in results]), np.array([r.limit for r in results])
    assert results[0].counts == (500, 1000, 2000)
    assert (np.diff(values.mean(0)) < 0).all()
    assert values[:, 2].min() > 0.05  # the bias at n
    assert abs(limits.mean()) < 4 * limits.std() / math.sqrt(len(limits))
    assert abs(limits).max() < values[:, 2].min() / 2


def test_frechet_by_count_extrapolates_to_the_closed_form():
    limits = [frechet_by_count(normal(4000, 8, seed=i), normal(2000, 8, seed=99 + i) + 0.2).limit for i in range(20)]
    assert abs(np.mean(limits) - 8 * 0.2**2) < 4 * np.std(limits) / math.sqrt(20)


def test_frechet_by_count_ends_at_the_frechet_distance_and_repeats():
    real, fake = normal(803, 6), normal(401, 6, seed=1)
    result = frechet_by_count(real, fake, seed=3)
    assert result.counts == (100, 200, 401)
    assert result.values[2] == pytest.approx(fid(real, fake), rel=1e-10)
    assert result == frechet_by_count(real, fake, seed=3)
    assert result != frechet_by_count(real, fake, seed=4)
    # The weights of the least-squares intercept at abscissae 4, 2, 1.
    assert result.limit == pytest.approx(np.dot([-0.5, 0.5, 1.0], result.values), rel=1e-9)


# --- Inception score -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("splits", [1, 3, 10])
def test_inception_score_agrees_with_numpy(splits):
    logits = 3 * normal(104, 10)
    p = np.exp(logits.numpy())
    p /= p.sum(1, keepdims=True)
    scores = [np.exp((q * np.log(q / q.mean(0))).sum(1).mean()) for q in np.array_split(p, splits)]
    assert inception_score(logits, splits) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-10, abs=1e-10)


def test_inception_score_at_its_ends():
    assert inception_score(torch.zeros(40, 7)) == pytest.approx((1, 0), abs=1e-12)
    assert inception_score(torch.ones(40, 7)[:, :1]) == pytest.approx((1, 0), abs=1e-12)
    certain = 1e4 * torch.eye(10).repeat(30, 1)
    assert inception_score(certain) == pytest.approx((10, 0), abs=1e-12)
    assert inception_score(certain[:1].expand(40, 10)) == pytest.approx((1, 0), abs=1e-12)
    assert inception_score(certain, splits=300) == pytest.approx((1, 0), abs=1e-12)


# --- kernel distance -------------------------------------------------------------------------------------------------


def test_kernel_distance_agrees_with_numpy():
    real, fake = normal(60, 7), normal(45, 7, seed=1).abs()
    x, y = real.numpy(), fake.numpy()
    kxx, kyy, kxy = ((a @ b.T / 7 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = (kxx.sum() - np.trace(kxx)) / (60 * 59) + (kyy.sum() - np.trace(kyy)) / (45 * 44)
    assert kernel_distance(real, fake)[0] == pytest.approx(within - 2 * kxy.mean(), rel=1e-10)


def test_kernel_distance_is_symmetric_and_invariant_to_order():
    real, fake = normal(60, 7), normal(45, 7, seed=1) + 0.5
    expected = pytest.approx(kernel_distance(real, fake), rel=1e-10)
    assert kernel_distance(fake, real) == expected
    assert kernel_distance(shuffled(real), fake.flip(0)) == expected


def test_kernel_distance_is_unbiased():
    x = normal(200, 8).relu()
    splits = (shuffled(x, seed=i) for i in range(200))
    values = np.array([kernel_distance(s[:20], s[20:40])[0] for s in splits])
    assert abs(values.mean()) < 5 * values.std() / math.sqrt(len(values))


@pytest.mark.parametrize(("shift", "ratio"), [(0.5, 1.0), (0.0, math.sqrt(2))])
def test_the_standard_error_of_the_kernel_distance_is_correct(shift, ratio):
    draws = np.array(
        [kernel_distance(normal(300, 8, seed=2 * i), normal(200, 8, seed=2 * i + 1) + shift) for i in range(200)]
    )
    assert np.sqrt((draws[:, 1] ** 2).mean()) / draws[:, 0].std() == pytest.approx(ratio, rel=0.2)


# --- precision, recall, density, coverage ----------------------------------------------------------------------------


def brute_force(real, fake, k):
    def distance(a, b):
        return sum((u - v) ** 2 for u, v in zip(a, b, strict=True))

    def radii(points):
        return [sorted(distance(p, q) for j, q in enumerate(points) if j != i)[k - 1] for i, p in enumerate(points)]

    real, fake = real.tolist(), fake.tolist()
    real_balls = [[distance(r, f) <= radius for f in fake] for r, radius in zip(real, radii(real), strict=True)]
    fake_balls = [[distance(r, f) <= radius for r in real] for f, radius in zip(fake, radii(fake), strict=True)]
    return (
        np.mean([any(row) for row in zip(*real_balls, strict=True)]),
        np.mean([any(row) for row in zip(*fake_balls, strict=True)]),
        np.sum(real_balls) / (k * len(fake)),
        np.mean([any(row) for row in real_balls]),
    )


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_recall_agrees_with_brute_force(k):
    real, fake = normal(60, 3), 0.8 * normal(50, 3, seed=1) + 0.4
    assert precision_recall(real, fake, k) == pytest.approx(brute_force(real, fake, k), rel=1e-12)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_precision_recall_agrees_with_brute_force_on_duplicated_samples(offset):
    """Ties everywhere: radii of exactly 0, and points exactly on the surface of a ball."""
    real = torch.cat([normal(20, 12), normal(5, 12, seed=1).repeat(5, 1)]) + offset
    for fake in (real, real.flip(0)[:30], real[20:].repeat(2, 1), torch.cat([real[15:], normal(9, 12, seed=2)])):
        assert precision_recall(real, fake) == pytest.approx(brute_force(real, fake, 3), rel=1e-12)


@pytest.mark.parametrize("block", [997, metrics.BLOCK])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_rounding_does_not_separate_duplicates(offset, block, monkeypatch):
    """Five copies of each sample: every ball has radius 0 and holds five, however products of other shapes round."""
    monkeypatch.setattr(metrics, "BLOCK", block)
    x = normal(200, 500).repeat(5, 1) + offset
    few = precision_recall(x, x[:333])
    assert (few.precision, few.density) == pytest.approx((1, 5 / 3), rel=1e-12)
    assert precision_recall(x, shuffled(x)) == pytest.approx((1, 1, 5 / 3, 1), rel=1e-12)


def test_precision_recall_of_a_set_to_itself():
    x = normal(100, 4)
    assert precision_recall(x, x) == pytest.approx((1, 1, 4 / 3, 1), rel=1e-12)  # density: k others, and itself


def test_a_collapsed_generator_is_precise_and_recalls_little():
    real, fake = normal(300, 4), 0.05 * normal(300, 4, seed=1)
    collapsed = precision_recall(real, fake)
    assert collapsed.precision > 0.95
    assert collapsed.recall < 0.05
    assert collapsed.coverage < 0.2
    swapped = precision_recall(fake, real)
    assert (swapped.precision, swapped.recall) == (collapsed.recall, collapsed.precision)


def test_one_outlier_among_the_reals_moves_precision_but_not_density():
    real, fake = normal(500, 4), normal(500, 4, seed=1) + 20
    real[0] = 20.0
    result = precision_recall(real, fake)
    assert result.precision > 0.95  # the known weakness: one ball holds all
    assert result.density < 0.5
    assert result.coverage == 1 / 500


def test_precision_recall_is_invariant_to_order():
    real, fake = normal(80, 3), normal(70, 3, seed=1) + 0.5
    assert precision_recall(real.flip(0), shuffled(fake)) == pytest.approx(precision_recall(real, fake))


@pytest.mark.parametrize("block", [1, 100, 1000])
@pytest.mark.parametrize("metric", [kernel_distance, precision_recall])
def test_the_size_of_a_block_changes_nothing(metric, block, monkeypatch):
    real, fake = normal(63, 5), normal(41, 5, seed=1) + 0.3
    expected = metric(real, fake)
    monkeypatch.setattr(metrics, "BLOCK", block)
    assert metric(real, fake) == pytest.approx(expected, rel=1e-12)


# --- standard errors -------------------------------------------------------------------------------------------------


def test_jackknife_of_a_mean_is_its_standard_error():
    x = normal(60)
    error = jackknife(lambda keep: x[keep].mean().item(), 60, groups=60)
    assert error.item() == pytest.approx(x.std().item() / math.sqrt(60), rel=1e-10)


def test_jackknife_leaves_out_each_sample_once_and_repeats():
    kept = []
    jackknife(lambda keep: kept.append(keep) or 0.0, 53, groups=5, seed=1)
    assert sorted(map(len, kept)) == [42, 42, 42, 43, 43]
    assert torch.bincount(torch.cat(kept)).tolist() == [4] * 53
    again = []
    jackknife(lambda keep: again.append(keep) or 0.0, 53, groups=5, seed=1)
    assert all(map(torch.equal, kept, again))


def test_jackknife_of_several_numbers_at_once():
    logits = normal(200, 10)
    both = jackknife(lambda keep: inception_score(logits[keep], splits=2), 200, groups=10)
    first = jackknife(lambda keep: inception_score(logits[keep], splits=2)[0], 200, groups=10)
    assert both.shape == (2,)
    torch.testing.assert_close(both[0], first, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("n", "width", "shift", "low", "high"),
    [
        (200, 4, 0.5, 0.85, 1.15),
        (500, 32, 0.3, 0.8, 1.25),
        (200, 4, 0.0, 0.95, 1.6),  # where the distributions agree: never narrow, and up to √2 wide
        (150, 32, 0.0, 0.95, 1.6),  # where a bootstrap is three times too wide
    ],
)
def test_jackknife_agrees_with_the_spread_of_the_frechet_distance_over_samples(n, width, shift, low, high):
    reference = gaussian(torch.zeros(width), torch.eye(width))
    fakes = [normal(n, width, seed=i) * (1 + shift / 3) + shift for i in range(200)]
    spread = np.std([frechet_distance(reference, Moments.of(x)) for x in fakes])
    errors = [
        jackknife(lambda keep, x=x: frechet_distance(reference, Moments.of(x[keep])), n, groups=20) for x in fakes[:20]
    ]
    assert low < math.sqrt(np.mean(np.square(errors))) / spread < high


@pytest.mark.slow
def test_intervals_of_the_frechet_distance_cover_its_expectation():
    reference = gaussian(torch.zeros(4), torch.eye(4))
    fakes = [1.2 * normal(200, 4, seed=i) + 0.5 for i in range(200)]
    values = np.array([frechet_distance(reference, Moments.of(x)) for x in fakes])
    errors = [
        jackknife(lambda keep, x=x: frechet_distance(reference, Moments.of(x[keep])), 200, groups=25).item()
        for x in fakes
    ]
    assert 0.88 < (abs(values - values.mean()) < 1.96 * np.array(errors)).mean() < 0.99


# --- refusals --------------------------------------------------------------------------------------------------------

A, NAN = torch.rand(20, 4), torch.full((20, 4), torch.nan)


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [
        (DataError, lambda: Moments.of(A[:0]), "at least 1 samples, got 0"),
        (DataError, lambda: Moments.of(A[0]), "shape"),
        (DataError, lambda: Moments.of(A[None]), "shape"),
        (DataError, lambda: Moments.of(NAN), "20 of 20 samples contain NaN or infinity"),
        (DataError, lambda: Moments.of(A / 0), "NaN or infinity"),
        (DataError, lambda: Moments.of(A) + Moments.of(A[:, :1]), "features of 4 and 1"),
        (DataError, lambda: fid(A, A[:1]), "at least 2 samples, got 1"),
        (DataError, lambda: fid(A, A[:, :1]), "features of 4 and 1"),
        (DataError, lambda: frechet_by_count(A, A[:7]), "at least 8 samples, got 7"),
        (DataError, lambda: frechet_by_count(A, A[:, :1]), "features of 4 and 1"),
        (DataError, lambda: inception_score(A[:9]), "10 splits needs at least 10 samples, got 9"),
        (DataError, lambda: inception_score(NAN), "NaN"),
        (UsageError, lambda: inception_score(A, 0), "splits must be at least 1, not 0"),
        (DataError, lambda: kernel_distance(A, A[:1]), "KID needs at least 2 samples, got 1"),
        (DataError, lambda: kernel_distance(A, A[:, :1]), "features of 4 and 1"),
        (DataError, lambda: kernel_distance(A, NAN), "NaN"),
        (DataError, lambda: precision_recall(A[:3], A), "k = 3 needs at least 4 samples, got 3"),
        (DataError, lambda: precision_recall(A, A[:3]), "at least 4 samples"),
        (DataError, lambda: precision_recall(A, A[:, :1]), "features of 4 and 1"),
        (DataError, lambda: precision_recall(NAN, A), "NaN"),
        (UsageError, lambda: precision_recall(A, A, 0), "k must be at least 1, not 0"),
        (DataError, lambda: jackknife(lambda keep: 0.0, 49), "at least 50 samples, got 49"),
        (UsageError, lambda: jackknife(lambda keep: 0.0, 49, groups=1), "groups must be at least 2, not 1"),
    ],
)
def test_invalid_input_gives_one_message(error, call, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_the_fewest_samples_are_enough():
    assert math.isfinite(fid(A[:2], A[2:4]))
    assert all(map(math.isfinite, kernel_distance(A[:2], A[2:4])))
    assert all(map(math.isfinite, precision_recall(A[:4], A[4:8])))
    assert all(map(math.isfinite, inception_score(A[:10])))
    assert math.isfinite(frechet_by_count(A[:8], A[8:16]).limit)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_float16_and_float32_inputs_are_computed_in_float64(dtype):
    real, fake = normal(50, 4).to(dtype), normal(50, 4, seed=1).to(dtype)
    for metric in (fid, kernel_distance, precision_recall):
        assert metric(real, fake) == metric(real.double(), fake.double())
    assert inception_score(real) == inception_score(real.double())
