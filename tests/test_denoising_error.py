"""The error curves against closed forms."""

import math

import pytest
import torch
from oracles import Gaussian

from simple_diffusion import Karras, Linear, denoising_error
from simple_diffusion.data.digits import digits
from simple_diffusion.data.images import to_unit
from simple_diffusion.denoising_error import (
    LEVELS,
    ideal_error,
    leave_one_out,
    linear_error,
    model_error,
    wiener_error,
)


def normal(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def refitted(x, shrinkage: float, level: float) -> torch.Tensor:
    """The error on each image of the linear denoiser that is fitted to the others, by fitting it N times."""
    n, width = x.shape
    unit, errors = torch.eye(width, dtype=torch.float64), []
    scale = (x - x.mean(0)).square().sum() / (n - 1) / width
    for i in range(n):
        others = x[torch.arange(n) != i]
        d = others - others.mean(0)
        cov = (1 - shrinkage) * d.T @ d / (n - 1) + shrinkage * scale * unit
        denoise = cov @ torch.linalg.inv(cov + level**2 * unit)
        missed = (unit - denoise) @ (x[i] - others.mean(0))
        errors.append((missed.square().sum() + level**2 * denoise.square().sum()) / width)
    return torch.stack(errors)


@pytest.mark.parametrize(("n", "width"), [(2, 5), (12, 30), (30, 30), (31, 30), (40, 7)])
@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 1.0])
def test_leaving_out_each_image_in_closed_form_is_fitting_without_it(n, width, shrinkage, monkeypatch):
    """By the Gram matrix for fewer images than pixels, by the covariance for more."""
    monkeypatch.setattr(denoising_error, "SHRINKAGES", torch.tensor([shrinkage], dtype=torch.float64))
    x = normal(n, width, seed=0) @ normal(width, width, seed=1)
    errors = leave_one_out(x)
    for number in (2, 6, 12):
        torch.testing.assert_close(errors[number], refitted(x, shrinkage, LEVELS[number].item()), rtol=1e-6, atol=0)


def smooth(n: int, seed: int, width: int = 100) -> torch.Tensor:
    """Normal images with few directions of high variance and many of low, as photographs have."""
    return normal(n, width, seed=seed) * torch.arange(1, width + 1, dtype=torch.float64) ** -0.8 + 0.3


def wiener_curve(variances: torch.Tensor) -> torch.Tensor:
    """The error of the linear denoiser that knows the distribution."""
    square = LEVELS[:, None] ** 2
    return (variances * square / (variances + square)).mean(1)


def test_with_many_images_the_linear_error_is_the_closed_form():
    exact = wiener_curve(torch.arange(1, 21, dtype=torch.float64) ** -1.6)
    torch.testing.assert_close(linear_error(smooth(3000, 0, width=20)), exact, rtol=0.04, atol=0)


@pytest.mark.parametrize("n", [2, 5, 20, 60, 300])
def test_the_linear_error_of_few_images_is_an_upper_bound_on_unseen_ones(n):
    """The denoiser that knows the distribution is better; the one fitted in sample looks up to ten times better."""
    exact = wiener_curve(torch.arange(1, 101, dtype=torch.float64) ** -1.6)
    errors = torch.stack([linear_error(smooth(n, seed)) for seed in range(5)]).mean(0)
    assert (errors > 0.93 * exact).all()
    assert (errors <= LEVELS**2 + 1e-12).all()  # never worse than the noisy image
    assert errors[-1] < 3 * exact[-1]


def test_the_linear_error_of_digits_is_that_on_unseen_digits():
    """Fitted to 300 digits and measured on others: the same within 6 %, and an error in sample is a third too low."""
    x, unseen = (to_unit(digits("test").pixels[part]).flatten(1).double() for part in (slice(300), slice(300, 2300)))
    d = x - x.mean(0)
    values, vectors = torch.linalg.eigh(d.T @ d / 299)
    parts = ((unseen - x.mean(0)) @ vectors).square().mean(0)
    square, best = LEVELS[:, None] ** 2, torch.full((13,), torch.inf, dtype=torch.float64)
    for shrinkage in denoising_error.SHRINKAGES:
        share = square / ((1 - shrinkage) * values + shrinkage * values.mean() + square)
        best = torch.minimum(best, (share.square() * parts + square * (1 - share).square()).mean(1))
    torch.testing.assert_close(linear_error(x), best, rtol=0.06, atol=0)
    in_sample = wiener_curve(values.clamp(min=0))
    assert in_sample[0] < 0.67 * best[0]


def test_the_wiener_error_is_that_of_filters_that_are_fitted_without_the_image():
    x, errors = 0.5 * normal(8, 1, 6, 5, seed=0), []
    square = LEVELS[:, None, None, None] ** 2
    for i in range(8):
        others = x[torch.arange(8) != i]
        power, own = (
            torch.fft.fft2(y, norm="ortho").abs().square() for y in (others - others.mean(0), x[i] - others.mean(0))
        )
        keep = power.mean(0) / (power.mean(0) + square)
        errors.append(((1 - keep).square() * own + square * keep.square()).mean((1, 2, 3)))
    expected = torch.minimum(torch.stack(errors).mean(0), LEVELS**2)
    torch.testing.assert_close(wiener_error(x), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_bounds_of_very_few_or_equal_images_are_finite(n):
    for x in (normal(n, 1, 4, 4, seed=0), torch.ones(n, 1, 4, 4, dtype=torch.float64)):
        for error in (linear_error(x.flatten(1)), wiener_error(x), linear_error(x.flatten(1), torch.arange(n))):
            assert error.isfinite().all()
            assert (error <= LEVELS**2 + 1e-12).all()


def test_the_ideal_error_of_two_points_is_known():
    # Points at -1 and 1 on a line: the optimal denoiser is tanh(x / s^2), its error E[1 - tanh^2] under the mixture.
    train = torch.tensor([[-1.0], [1.0]])
    error = ideal_error(train, torch.arange(8000) % 2)
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = (-(z**2) / 2).exp() / math.sqrt(2 * math.pi)
    for level, value in zip(LEVELS.tolist(), error.tolist(), strict=True):
        truth = torch.trapezoid(density * (torch.tanh((1 + level * z) / level**2) - 1) ** 2, z).item()
        assert value == pytest.approx(truth, abs=0.03)


@pytest.mark.parametrize("schedule", [Karras(), Linear()])
def test_the_exact_denoisers_error_is_the_gaussian_curve(schedule):
    generator = torch.Generator().manual_seed(0)
    x0 = 0.1 + 0.4 * torch.randn(4000, 1, 1, 2, generator=generator, dtype=torch.float64)
    error = model_error(Gaussian(schedule, mean=0.1, std=0.4), x0, None)
    truth = 0.16 * LEVELS**2 / (0.16 + LEVELS**2)
    torch.testing.assert_close(error, truth, rtol=0.06, atol=0)  # 8,000 numbers: 5 standard errors


def test_conditioned_on_the_label_both_bounds_are_those_of_the_label():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(40, 3, generator=generator), 0.2 * torch.randn(20, 3, generator=generator) + 5]
    train, labels = torch.cat(parts), torch.tensor([0] * 40 + [1] * 20)
    expected = (40 * linear_error(parts[0]) + 20 * linear_error(parts[1])) / 60
    torch.testing.assert_close(linear_error(train, labels), expected)
    alone = labels.clone()
    alone[7] = 2  # a class of one image takes the mean and covariance of all
    torch.testing.assert_close(linear_error(train, alone), linear_error(train, labels), rtol=0.3, atol=0)
    conditional = ideal_error(train, torch.arange(60), labels)
    # At the highest level only the label's own mean is left, at the lowest each image by itself.
    spread = sum((part - part.mean(0)).double().square().sum() for part in parts) / train.numel()
    assert conditional[-1].item() == pytest.approx(spread.item(), rel=0.05)
    assert (conditional <= ideal_error(train, torch.arange(60)) + 1e-3).all()
    assert conditional[0] < 1e-6
