"""The search for copies against brute force, and on sets with planted copies."""

import pytest
import torch

from simple_diffusion.augmentation import identity, symmetries
from simple_diffusion.errors import DataError
from simple_diffusion.evaluation.memorization import find_near_duplicates, nearest
from simple_diffusion.samplers import karras_grid
from simple_diffusion.sampling import sample
from simple_diffusion.schedules import Karras


def images(n: int, seed: int, side: int = 8) -> torch.Tensor:
    """Smooth random images `[n, 1, side, side]` in [-1, 1]."""
    x = torch.randn(n, 1, side // 2, side // 2, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(x, size=(side, side), mode="bilinear").tanh()


def views(x: torch.Tensor, of) -> list[torch.Tensor]:
    return [view(x).flatten(1) for view in of]


def test_nearest_is_brute_force():
    train, queries = images(40, 0), images(12, 1)
    of = symmetries(square=True)
    distances, indices = nearest(queries.flatten(1), views(train, of), k=3)
    for query, distance, index in zip(queries, distances, indices, strict=True):
        brute = torch.stack([(view(train) - query).square().mean((1, 2, 3)).sqrt() for view in of]).min(0).values
        expected = brute.sort()
        torch.testing.assert_close(distance, expected.values[:3], atol=1e-5, rtol=0)
        assert index.tolist() == expected.indices[:3].tolist()


def test_the_symmetries_are_eight_different_ones_that_keep_the_pixels():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    square = [view(x) for view in symmetries(square=True)]
    assert len({tuple(view.flatten().tolist()) for view in square}) == 8
    assert all(view.flatten().sort().values.tolist() == list(range(16)) for view in square)
    assert all(view(torch.zeros(1, 3, 4, 6)).shape == (1, 3, 4, 6) for view in symmetries(square=False))


@pytest.mark.parametrize("calibrated_on", ["unseen images", "the training set itself"])
def test_only_planted_near_duplicates_are_found(calibrated_on):
    train, honest, unseen = images(300, 0), images(100, 1), images(500, 2)
    noise = 0.03 * torch.randn(30, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    turned = torch.rot90(train[:30].flip(-1), 1, (-2, -1)) + noise  # copies under a symmetry, slightly noised
    samples = torch.cat([honest, turned]).flatten(1)
    calibration = unseen.flatten(1) if calibrated_on == "unseen images" else None
    found = find_near_duplicates(samples, views(train, symmetries(square=True)), calibration)
    copied = found.score < found.threshold
    assert copied[100:].all()
    assert copied[:100].sum() <= 5  # 1 % is expected by chance
    assert found.nearest[100:].tolist() == list(range(30))
    assert found.count == copied.sum() == pytest.approx(130 * found.share)
    plain = find_near_duplicates(samples, views(train, [identity]), calibration)
    assert (plain.score[100:] < plain.threshold).double().mean() < 0.2  # turned, they pass for new


def test_a_duplicated_training_image_can_have_near_duplicates():
    train = torch.cat([images(50, 0), images(50, 0)])
    found = find_near_duplicates(train[:3].flatten(1), views(train, [identity]), images(100, 2).flatten(1))
    assert found.share == 1


def test_very_few_training_images_are_refused():
    with pytest.raises(DataError, match="12 different training images, got 11"):
        find_near_duplicates(torch.zeros(2, 4), [torch.arange(44.0).view(11, 4)], None)


class ByHeart:
    """The optimal denoiser of a training set: what a model becomes that trains for ever (softmax of the distances)."""

    schedule = Karras()

    def __init__(self, train: torch.Tensor):
        self.train = train

    def __call__(self, x_t, t, cond=None):
        alpha, sigma = self.schedule.levels(t, x_t)
        flat = self.train.flatten(1).to(x_t)
        distance = torch.cdist(x_t.flatten(1), alpha.flatten()[0] * flat).square()
        return ((-distance / (2 * sigma.flatten()[0] ** 2)).softmax(1) @ flat).view_as(x_t)


class MeanAndCovariance(ByHeart):
    """The best denoiser of N(mean, covariance of the training set): it knows no image."""

    def __init__(self, train: torch.Tensor):
        flat = train.flatten(1).double()
        self.mean = flat.mean(0)
        self.values, self.vectors = torch.linalg.eigh((flat - self.mean).T.cov() + 1e-9 * torch.eye(flat.shape[1]))

    def __call__(self, x_t, t, cond=None):
        _, sigma = self.schedule.levels(t, x_t)
        gain = self.values / (self.values + sigma.flatten()[0].double() ** 2)
        centred = (x_t.flatten(1).double() - self.mean) @ self.vectors
        return (centred * gain @ self.vectors.T + self.mean).view_as(x_t).to(x_t)


@pytest.mark.parametrize(("denoiser", "least", "most"), [(ByHeart, 0.99, 1.0), (MeanAndCovariance, 0.0, 0.05)])
def test_memorization_is_found_for_the_ideal_denoiser_and_not_for_the_linear_one(denoiser, least, most):
    train = images(200, 0)
    schedule = ByHeart.schedule
    drawn = sample(denoiser(train), (200, 1, 8, 8), karras_grid(schedule, 12))
    found = find_near_duplicates(drawn.flatten(1), views(train, symmetries(square=True)), None)
    assert least <= found.share <= most
