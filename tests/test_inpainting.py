"""A part of an image generated to fit the rest, and the way between two noises, by exact denoisers."""

import math
from functools import partial

import pytest
import torch
from checks import functions
from oracles import ALL, Gaussian, close, normal

from simple_diffusion import samplers
from simple_diffusion.inpainting import Inpainted, repaint
from simple_diffusion.samplers import ddim, karras_grid
from simple_diffusion.sampling import distance, slerp, trajectory

STD, RHO, GIVEN = 0.5, 0.9, 0.6


class Pair:
    """Data N(0, C) of two pixels that go together: variance STD^2, correlation RHO."""

    def __init__(self, schedule):
        self.schedule = schedule
        self.covariance = STD**2 * torch.tensor([[1, RHO], [RHO, 1]], dtype=torch.float64)

    def __call__(self, x_t, t, cond=None):
        alpha, sigma = self.schedule.levels(t, x_t)
        alpha, sigma = alpha.flatten()[0], sigma.flatten()[0]
        gain = alpha * self.covariance @ torch.linalg.inv(alpha**2 * self.covariance + sigma**2 * torch.eye(2))
        return x_t @ gain.to(x_t)


def drawn(denoiser, sampler, n=4000, steps=60):
    times = karras_grid(denoiser.schedule, steps)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        level = (denoiser.schedule.alpha(times[0]) ** 2 + denoiser.schedule.sigma(times[0]) ** 2).sqrt()
        *_, x = sampler(denoiser, level * torch.randn(n, 2), times)
    return x


def test_repaint_samples_the_conditional_distribution():
    """Given one pixel the other is N(rho a, (1 - rho^2) std^2). Without repetitions it falls short of that by far."""
    denoiser = Inpainted(Pair(ALL["cosine"]), torch.tensor([GIVEN, 0.0]), torch.tensor([False, True]))
    away = {}
    for repeats in (1, 10):
        x = drawn(denoiser, partial(repaint, repeats=repeats))
        close(x[:, 0], torch.full_like(x[:, 0], GIVEN), 1e-6)
        away[repeats] = abs(x[:, 1].mean().item() - RHO * GIVEN)
    assert away[10] < 0.03
    assert away[10] < away[1] / 3
    assert x[:, 1].std().item() == pytest.approx(STD * (1 - RHO**2) ** 0.5, rel=0.1)


@pytest.mark.parametrize("sampler", [*functions(samplers), repaint], ids=[*samplers.SAMPLERS, "repaint"])
def test_known_pixels_are_kept_and_do_not_change_independent_ones(sampler):
    denoiser = Gaussian(ALL["flow"])
    shape, times = (4, 1, 3, 3), karras_grid(denoiser.schedule, 6)
    x0, mask = normal(1, 3, 3).clamp(-1, 1).float(), torch.arange(9).view(3, 3) % 2 == 0
    *_, free = trajectory(denoiser, shape, times, sampler=sampler)
    *_, x = trajectory(Inpainted(denoiser, x0, mask), shape, times, sampler=sampler)
    assert torch.equal(x[:, :, mask], free[:, :, mask])
    torch.testing.assert_close(x[:, :, ~mask], x0[:, ~mask].expand(4, 1, 4), rtol=0, atol=1e-6)


def test_the_known_part_has_the_noise_level_of_each_step():
    """With the noise that it began with, by a solver."""
    denoiser = Gaussian(ALL["cosine"])
    times, x0 = karras_grid(denoiser.schedule, 5), torch.full((1, 2, 2), 0.3)
    start, *path = trajectory(
        Inpainted(denoiser, x0, torch.zeros(2, 2, dtype=torch.bool)), (2, 1, 2, 2), times, sampler=ddim
    )
    level = (denoiser.schedule.alpha(times) ** 2 + denoiser.schedule.sigma(times) ** 2).sqrt()
    for t, x in zip(times[1:], path[:-1], strict=True):
        alpha, sigma = denoiser.schedule.alpha(t), denoiser.schedule.sigma(t)
        first = denoiser.schedule.alpha(times[0]), denoiser.schedule.sigma(times[0])
        eps = (start - first[0] * x0) / first[1]
        torch.testing.assert_close(x, (alpha * x0 + sigma * eps).float(), rtol=1e-4, atol=1e-4)
    assert level[0] > 0


def test_repaint_without_repeats_is_stochastic_ddim():
    denoiser = Gaussian(ALL["cosine"])
    once = drawn(denoiser, partial(repaint, repeats=1), 5, 7)
    assert torch.equal(once, drawn(denoiser, partial(ddim, eta=1.0), 5, 7))
    assert not torch.equal(once, drawn(denoiser, partial(repaint, repeats=2), 5, 7))


def test_repaint_converges_to_the_data_distribution_with_more_steps():
    """Going back and forth between two levels keeps what the levels are; coarse steps narrow it, as in `ddpm`."""
    short = {}
    for steps in (30, 240):
        x = drawn(Gaussian(ALL["cosine"]), partial(repaint, repeats=4), steps=steps)
        assert x.mean().item() == pytest.approx(0.7, abs=0.02)
        short[steps] = 0.4 - x.std().item()
    assert 0.05 < short[30] < 0.1
    assert short[240] < short[30] / 4


def test_slerp_keeps_the_norm():
    one, other = normal(1, 30, 30, seed=1).float(), normal(1, 30, 30, seed=2).float()
    way = slerp(one, other, torch.linspace(0, 1, 9).tolist())
    assert torch.equal(way[0], one)
    torch.testing.assert_close(way[-1], other, rtol=1e-6, atol=1e-6)
    lengths = way.flatten(1).norm(dim=1) / 30
    assert ((lengths - 1).abs() < 0.05).all()
    assert ((one + other) / 2).norm() / 30 < 0.75  # the mean is not
    angles = torch.cosine_similarity(way[1:].flatten(1), way[:-1].flatten(1)).acos()
    torch.testing.assert_close(angles, angles.mean().expand(8), rtol=0.05, atol=0)  # in even steps


def test_slerp_of_equal_noises_is_that_noise():
    one = normal(1, 3, 3).float()
    assert torch.equal(slerp(one, one, [0, 0.5, 1]), one.expand(3, 1, 3, 3))


def test_slerp_is_exact_at_small_and_large_angles():
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([math.cos(0.5), math.sin(0.5)])
    close(slerp(one, other, [0.5])[0], torch.tensor([math.cos(0.25), math.sin(0.25)]), 1e-6)
    assert torch.equal(slerp(one, one, [0.0, 0.3]), torch.stack([one, one]))


def test_distance_is_a_root_mean_square_of_at_most_the_range_of_pixels():
    x = torch.full((2, 1, 3, 3), 0.3)
    assert distance(x, x) == 0
    assert distance(x, x - 0.4) == pytest.approx(0.4)
    assert distance(x, x + 9) == 2
