"""The error curves against closed forms."""

import math

import pytest
import torch
from oracles import Gaussian

from simple_diffusion import Karras, Linear
from simple_diffusion.denoising_error import LEVELS, ideal_error, linear_error, model_error


def test_the_linear_error_is_that_of_the_wiener_filter():
    eigenvalues = torch.tensor([0.5, 0.1, 0.01, 0.0], dtype=torch.float64)
    basis, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    # 8 points whose covariance is exactly that: plus and minus each axis.
    axes = (basis * (4 * eigenvalues).sqrt()).T
    error = linear_error(torch.cat([axes, -axes]) + 3)
    for level, value in zip(LEVELS.tolist(), error.tolist(), strict=True):
        wiener = [v * level**2 / (v + level**2) for v in eigenvalues.tolist()]
        assert value == pytest.approx(sum(wiener) / 4, rel=1e-9)


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
    conditional = ideal_error(train, torch.arange(60), labels)
    # At the highest level only the label's own mean is left, at the lowest each image by itself.
    spread = sum((part - part.mean(0)).double().square().sum() for part in parts) / train.numel()
    assert conditional[-1].item() == pytest.approx(spread.item(), rel=0.05)
    assert (conditional <= ideal_error(train, torch.arange(60)) + 1e-3).all()
    assert conditional[0] < 1e-6
