"""95 % intervals cover what they promise to cover, and have a width where the samples show none."""

import math

import numpy as np
import pytest
import torch

from simple_diffusion.evaluation.features import GROUPS, ImageFeatures
from simple_diffusion.evaluation.intervals import HEAVY, STUDENT, about, of_distance, of_share, share_text, tail_weight
from simple_diffusion.evaluation.metrics import Moments, frechet_distance, jackknife, precision_recall
from simple_diffusion.evaluation.scores import Evaluation, Score, accuracy_score

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("n", [2, 10, 200])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9, 1.0])
def test_the_interval_of_a_share_covers_it_in_95_percent(share, n):
    """The mean coverage over shares near this one; at a single share it jumps with the possible counts."""
    rng = np.random.default_rng(0)
    shares = np.clip(share + rng.uniform(-0.05, 0.05, 4000), 0, 1)
    counts = rng.binomial(n, shares)
    ends = {count: of_share(count / n, n) for count in set(counts.tolist())}
    held = [ends[count][0] <= p <= ends[count][1] for p, count in zip(shares, counts.tolist(), strict=True)]
    assert np.mean(held) > 0.92
    assert all(0 <= low <= high <= 1 for low, high in ends.values())


def test_two_hits_of_two_are_no_certainty():
    low, high = of_share(1.0, 2)
    assert high == 1
    assert low == pytest.approx(2 / (2 + 1.96**2))
    side = ImageFeatures(torch.zeros(2, 1), torch.eye(2))
    score = accuracy_score("x", side, torch.arange(2), side, torch.arange(2))
    assert score.short == "1 (0.3424 to 1; baseline 1)"
    assert share_text(0.0, 64) == "0.0 to 5.7 %"


def test_an_error_of_a_jackknife_widens_the_interval_of_a_share_and_never_narrows_it():
    alone = of_share(0.8, 100)
    assert of_share(0.8, 100, error=math.sqrt(0.8 * 0.2 / 100)) == pytest.approx(alone)
    assert of_share(0.8, 100, error=0.001) == pytest.approx(alone)
    low, high = of_share(0.8, 100, error=0.08)
    assert low < alone[0]
    assert high > alone[1]
    for end in (0.0, 1.0):  # an end, but some groups leave it
        low, high = of_share(end, 100, error=0.05)
        assert high - low > 0.05


def test_a_score_without_any_spread_has_no_interval():
    assert about(1.0, 0.0) is of_distance(1.0, 0.0, 2.0) is None
    assert Score("IS", "x", 50, "", 1.0, 0.0, interval=about(1.0, 0.0)).short == "1"
    row = Score("IS", "x", 50, "", 1.0, 0.0).row
    assert row.split() == ["IS", "1.0000", "50"]
    assert len(row) == len(str(Evaluation([Score("IS", "x", 50, "", 1.0)])).splitlines()[1])


@pytest.mark.parametrize("value", [0.0, 1e-12, 0.1, 1.0, 5.0])
def test_the_interval_of_a_distance_is_finite_and_holds_it(value):
    low, high = of_distance(value, 1.0, 2.093)
    assert 0 <= low <= value < high < 60
    assert high > value + 2.093 - 1e-9


def features(kind: str, n: int, generator: torch.Generator) -> torch.Tensor:
    """Features `[n, 8]` of a distribution by its name."""
    x = torch.randn(n, 8, generator=generator, dtype=torch.float64)
    if kind == "lognormal":
        return x.exp()
    if kind == "clusters":
        centers = 6 * torch.randn(10, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        return x + centers[torch.randint(10, (n,), generator=generator)]
    if kind == "squared":
        return x.relu() ** 2
    if kind.startswith("t"):
        freedom = int(kind.removeprefix("t"))
        return (
            x / torch.randn(n, freedom, generator=generator, dtype=torch.float64).square().mean(1, keepdim=True).sqrt()
        )
    return x


def coverage(kind: str, n: int, shift: float, trials: int, interval=of_distance) -> float:
    """The share of intervals that hold the mean FID of n samples that differ from the data by a scale and a shift."""
    generator = torch.Generator().manual_seed(1)
    real = Moments.of(features(kind, 20000, generator))

    def fid(x: torch.Tensor) -> float:
        return frechet_distance(real, Moments.of(x))

    def fake() -> torch.Tensor:
        return features(kind, n, generator) * (1 + shift) + shift

    mean, held = np.mean([fid(fake()) for _ in range(5 * trials)]), 0
    for _ in range(trials):
        x = fake()
        error = jackknife(lambda keep, x=x: fid(x[keep]), n, GROUPS).item()
        low, high = interval(fid(x), error, STUDENT[GROUPS])
        held += low <= mean <= high
    return held / trials


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 0.3])
@pytest.mark.parametrize("n", [100, 500])
@pytest.mark.parametrize(
    ("kind", "least"), [("normal", 0.95), ("clusters", 0.95), ("squared", 0.94), ("t5", 0.9), ("lognormal", 0.8)]
)
def test_the_interval_of_fid_covers_what_the_documentation_says(kind, least, n, shift):
    covered = coverage(kind, n, shift, trials=200)
    assert covered > least - 3 * math.sqrt(least * (1 - least) / 200)


def test_the_interval_of_fid_covers_the_mean_where_the_samples_are_skewed():
    """A set without outlying samples has too low a FID and too low an error: a symmetric interval misses the mean."""
    logarithmic, symmetric = (coverage("lognormal", 100, 0.0, 60, interval) for interval in (of_distance, about))
    assert logarithmic > symmetric + 0.1


def test_heavy_tails_are_told_from_those_of_images():
    generator = torch.Generator().manual_seed(0)
    assert tail_weight(features("normal", 4000, generator)) == pytest.approx(1.25, rel=0.05)
    assert tail_weight(features("t3", 4000, generator)) > HEAVY
    assert tail_weight(features("lognormal", 4000, generator)) > HEAVY
    assert tail_weight(torch.ones(10, 3)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_intervals_of_precision_recall_and_coverage_hold_the_mean(scale):
    generator = torch.Generator().manual_seed(2)
    real = torch.randn(100, 8, generator=generator)

    def fake() -> torch.Tensor:
        return scale * torch.randn(100, 8, generator=generator)

    means = np.mean([precision_recall(real, fake()) for _ in range(300)], axis=0)
    held = np.zeros(4)
    for _ in range(100):
        x = fake()
        errors = jackknife(lambda keep, x=x: tuple(precision_recall(real, x[keep])), 100, 10).tolist()
        for i, (share, error) in enumerate(zip(precision_recall(real, x), errors, strict=True)):
            if i != 2:  # density is no share
                low, high = of_share(share, 100, error, STUDENT[10])
                held[i] += low <= means[i] <= high
    assert held[[0, 1, 3]].min() >= 88
