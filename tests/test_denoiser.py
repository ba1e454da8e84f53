import pytest
import torch
from oracles import ALL, VARIANCE_PRESERVING, WIDE, Affine, Bayes, Gaussian, close, f64, normal
from torch import nn

from simple_diffusion.denoiser import Clipped, Denoiser
from simple_diffusion.schedules import Cosine, Flow, Karras
from simple_diffusion.targets import TARGETS, flow, noise, v, x0

TIMES = torch.linspace(0.02, 1, 50, dtype=torch.float64)
X0, EPS = normal(50, 3, seed=1), normal(50, 3, seed=2)
every_schedule = pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)
every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
every_std = pytest.mark.parametrize("std", [1.0, 0.5])
every_mean = pytest.mark.parametrize("mean", [0.0, -0.97])


@every_schedule
@every_target
@every_std
@every_mean
def test_a_perfect_network_returns_the_image(schedule, target, std, mean):
    net = Affine()
    denoiser = Denoiser(net, schedule, target, std, mean)
    alpha, sigma, a, b = denoiser.coefficients(TIMES, X0)
    net.shift = a * (X0 - mean) / std + b * EPS
    amplified = (sigma / (b * alpha - a * sigma)).abs().clamp(min=1)  # of the network's rounding, in z0
    close(denoiser(schedule.levels(TIMES, X0)[0] * X0 + sigma * EPS, TIMES) / amplified, X0 / amplified, 1e-12)


@every_schedule
@every_target
@every_std
@every_mean
def test_the_optimal_network_gives_the_posterior_mean(schedule, target, std, mean):
    oracle = Gaussian(schedule, mean=0.3, std=0.2)
    denoiser = Denoiser(Bayes(target, Gaussian(WIDE, (0.3 - mean) / std, 0.2 / std)), schedule, target, std, mean)
    x = oracle.at(EPS, TIMES)
    close(denoiser(x, TIMES), oracle(x, TIMES), 1e-9)


@every_schedule
@every_std
def test_input_has_unit_variance(schedule, std):
    net = Affine()
    denoiser, (alpha, sigma) = Denoiser(net, schedule, noise, std), schedule.levels(TIMES, X0)
    power = 0
    for x in (alpha * std, sigma):  # of x_t's two independent parts
        denoiser(x, TIMES)
        power = power + net.seen[0] ** 2
    close(power, torch.ones_like(power))


@every_schedule
def test_input_of_data_of_any_mean_has_mean_0(schedule):
    """Nearly black images, whose mean is thirty times their standard deviation."""
    net, mean = Affine(), -0.97
    Denoiser(net, schedule, noise, 0.03, mean)(schedule.levels(TIMES, X0)[0] * mean, TIMES)
    close(net.seen[0], torch.zeros_like(net.seen[0]), 1e-12)


@every_schedule
@every_std
def test_noise_level_is_a_quarter_of_the_log_of_the_noise_to_signal_ratio(schedule, std):
    net = Affine()
    Denoiser(net, schedule, noise, std)(X0, TIMES)
    assert net.seen[1].shape == (50,)
    close(4 * net.seen[1], (schedule.ratio(TIMES) / std).log())


# --- targets, by what they mean --------------------------------------------------------------------------------------


@every_schedule
@every_std
def test_velocity_is_orthogonal_to_the_input(schedule, std):
    """Unit variance, and orthogonal to the input: the other axis of the circle that z0 and eps span."""
    alpha, sigma, a, b = Denoiser(Affine(), schedule, v, std).coefficients(TIMES, X0)
    close(a**2 + b**2, torch.ones_like(a))
    close(alpha * a + sigma * b, torch.zeros_like(a), 1e-12 * sigma.max().item())
    assert (b > 0).all()


def test_velocity_agrees_with_salimans_and_ho():
    for name in VARIANCE_PRESERVING:
        alpha, sigma = ALL[name].levels(TIMES, X0)
        a, b = v(alpha, sigma)
        close(a * X0 + b * EPS, alpha * EPS - sigma * X0)


def test_flow_is_the_speed_along_the_straight_line():
    t, step = f64(0.3, 0.6, 0.9), 0.1
    (alpha, sigma), (alpha2, sigma2) = (Flow().levels(u, X0[:3]) for u in (t, t + step))
    a, b = flow(alpha, sigma)
    speed = (alpha2 - alpha) / step * X0[:3] + (sigma2 - sigma) / step * EPS[:3]
    close(a * X0[:3] + b * EPS[:3], speed, 1e-3)  # the line ends at alpha = 1e-4


def test_noise_and_clean_are_the_noise_and_the_image():
    for target, want in ((noise, EPS), (x0, X0)):
        a, b = target(f64(0.6), f64(0.8))
        close(a * X0 + b * EPS, want)


# --- EDM -------------------------------------------------------------------------------------------------------------


def test_velocity_with_data_std_is_the_preconditioning_of_edm():
    std, net = 0.5, Affine()
    denoiser = Denoiser(net, Karras(), v, std)
    x = 10 * X0
    _, sigma = Karras().levels(TIMES, x)
    c_skip = std**2 / (sigma**2 + std**2)
    c_out = sigma * std / (sigma**2 + std**2).sqrt()
    c_in = 1 / (sigma**2 + std**2).sqrt()
    close(denoiser(x, TIMES), c_skip * x)
    close(net.seen[0], c_in * x)
    close(net.seen[1], (sigma.flatten() / std).log() / 4)  # c_noise, in units of the data
    net.shift = 1.0
    close(denoiser(x, TIMES) - c_skip * x, -c_out.expand_as(x))  # the output's sign is turned
    alpha, sigma, a, b = denoiser.coefficients(TIMES, x)
    weight = (sigma**2 + std**2) / (sigma * std) ** 2
    close(((b * alpha - a * sigma) / (sigma * std)) ** 2, weight)  # lambda, of |x0_hat - x0|^2
    close(weight * c_out**2, torch.ones_like(weight))


# --- plumbing --------------------------------------------------------------------------------------------------------


def test_a_single_time_serves_the_batch_and_labels_reach_the_network():
    net, cond = Affine(gain=0.3), torch.arange(50)
    denoiser = Denoiser(net, Cosine(), v, 0.5)
    want = denoiser(X0, TIMES[7].expand(50), cond)
    assert net.seen[2] is cond
    for t in (TIMES[7], TIMES[7:8]):
        assert torch.equal(denoiser(X0, t, cond), want)
    assert denoiser(X0, TIMES) is not None
    assert net.seen[2] is None


def test_each_image_and_row_uses_its_own_time():
    denoiser = Denoiser(Affine(gain=0.3), Cosine(), v)
    x = normal(4, 2, 3, 5)
    whole = denoiser(x, TIMES[:4])
    for i in range(4):
        close(whole[i : i + 1], denoiser(x[i : i + 1], TIMES[i]))
    assert not torch.allclose(whole[0], denoiser(x, TIMES[1])[0])


def test_network_computes_in_its_dtype_and_the_rest_in_the_images():
    torch.manual_seed(0)

    class Net(nn.Linear):
        def forward(self, x, noise_level, cond):
            out = super().forward(x)
            self.seen = noise_level.dtype, out.dtype
            return out

    net, x = Net(3, 3), X0.float()
    exact = Denoiser(net, Cosine(), v)(x, TIMES)
    assert net.seen == (torch.float32, torch.float32)
    rough = Denoiser(net, Cosine(), v, dtype=torch.bfloat16)(x, TIMES)
    assert net.seen == (torch.float32, torch.bfloat16)
    assert rough.dtype == exact.dtype == torch.float32
    assert Denoiser(net, Cosine(), v, dtype=torch.bfloat16).predict(x, TIMES).dtype == torch.float32
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0, atol=0.05)


def test_clipped_limits_predictions_to_the_range_of_images():
    oracle = Gaussian(Cosine(), mean=0.7, std=0.4)
    clipped, x = Clipped(oracle), f64(-3, 0.5, 0.7, 5)[:, None]
    assert clipped.schedule is oracle.schedule
    close(clipped(x, f64(0.1)).flatten(), torch.cat([f64(-1), oracle(x, f64(0.1)).flatten()[1:3], f64(1)]))
