import math

import pytest
import torch
from oracles import ALL, BETAS, VARIANCE_PRESERVING, close, f64, normal
from scipy.integrate import quad

from simple_diffusion.schedules import SCHEDULES, BetaCurve, Cosine, Discrete, Flow, Karras, Linear, Schedule

TIMES = torch.linspace(0.001, 1, 1000, dtype=torch.float64)
every_schedule = pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)


# --- every schedule --------------------------------------------------------------------------------------------------


@every_schedule
def test_levels_are_positive_finite_and_accurate_in_float32(schedule):
    t = torch.logspace(-4, 0, 1000)
    for curve, tolerance in ((schedule.alpha, 1e-3), (schedule.sigma, 1e-5)):  # alpha nears 1e-4 at t = 1
        level = curve(t)
        assert level.dtype == torch.float32
        assert (level > 0).all()
        assert level.isfinite().all()
        torch.testing.assert_close(level.double(), curve(t.double()), rtol=tolerance, atol=0)


@every_schedule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ratio_rises_strictly(schedule, dtype):
    assert (schedule.ratio(torch.logspace(-4, 0, 1000, dtype=dtype)).diff() > 0).all()


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
def test_variance_is_preserved(name):
    schedule, t = ALL[name], torch.logspace(-4, 0, 1000, dtype=torch.float64)
    close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t))


@every_schedule
def test_image_is_nearly_clean_near_0_and_nearly_noise_at_1(schedule):
    ends = schedule.ratio(f64(1e-4, 1))
    assert ends[0] < 0.01
    assert ends[1] > 30  # the quadratic's end, the least of all, is exp(7.17)^(1/2) = 36


@every_schedule
@pytest.mark.parametrize("time_of", [lambda s, r: s.time_of(r), Schedule.time_of], ids=["own", "bisection"])
def test_time_of_inverts_ratio(schedule, time_of):
    close(time_of(schedule, schedule.ratio(TIMES)), TIMES, 1e-9)
    ratio = torch.logspace(-2, 1.5, 100, dtype=torch.float64)
    close(schedule.ratio(time_of(schedule, ratio)), ratio, 1e-9)
    low, high = schedule.ratio(f64(0, 1))
    close(time_of(schedule, torch.stack([low / 2, high * 2])), f64(0, 1), 1e-9)


@every_schedule
def test_each_image_has_its_own_noise_level(schedule):
    x, t = torch.zeros(5, 2, 3, 4, dtype=torch.float64), torch.linspace(0.1, 0.9, 5)
    alpha, sigma = schedule.levels(t, x)
    for b in range(5):
        for level, curve in ((alpha, schedule.alpha), (sigma, schedule.sigma)):
            close((x + level)[b], torch.full_like(x[b], curve(t[b].double()).item()))
    for one in (t[2], t[2:3]):  # a single time serves the whole batch
        for level, curve in zip(schedule.levels(one, x), (schedule.alpha, schedule.sigma), strict=True):
            close(x + level, torch.full_like(x, curve(t[2].double()).item()))


@every_schedule
def test_noise_is_added_at_the_level_of_each_time(schedule):
    x0, eps, t = normal(5, 2, 3, seed=1), normal(5, 2, 3, seed=2), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    x_t = schedule.add_noise(x0, t, eps)
    for b in range(5):
        alpha, sigma = schedule.alpha(t[b]).item(), schedule.sigma(t[b]).item()
        close(x_t[b], alpha * x0[b] + sigma * eps[b])
    close(schedule.add_noise(x0, t[2], eps)[2], x_t[2])


@every_schedule
def test_levels_are_on_the_device_of_their_times(schedule):
    """The meta device stands for a GPU."""
    t = torch.empty(3, device="meta")
    for curve in (schedule.alpha, schedule.sigma, schedule.ratio):
        assert curve(t).device == t.device
        assert curve(t).shape == t.shape
    for level in schedule.levels(torch.ones(3), torch.empty(3, 2, 2, device="meta", dtype=torch.float64)):
        assert (level.device, level.dtype, level.shape) == (t.device, torch.float64, (3, 1, 1))


@pytest.mark.parametrize("schedule", [Karras(), Flow(), Linear()])  # two formulas, and the bisection of all others
def test_times_are_on_the_device_of_their_levels(schedule):
    ratio = torch.empty(3, device="meta")
    assert schedule.time_of(ratio).device == ratio.device
    assert schedule.time_of(ratio).shape == ratio.shape


# --- each against its paper ------------------------------------------------------------------------------------------


RATES = {  # beta(t), between its ends a and b
    "linear": lambda t, a, b: a + t * (b - a),
    "quadratic": lambda t, a, b: (math.sqrt(a) + t * (math.sqrt(b) - math.sqrt(a))) ** 2,
    "sigmoid": lambda t, a, b: a + (b - a) / (1 + math.exp(6 - 12 * t)),
}


def test_every_curve_states_its_rate():
    assert RATES.keys() == {name for name, kind in SCHEDULES.items() if issubclass(kind, BetaCurve)}


@pytest.mark.parametrize("ends", [(0.1, 20.0), (1.0, 12.0)])
@pytest.mark.parametrize("name", RATES)
def test_signal_falls_at_the_rate_beta(name, ends):
    """beta is its paper's, and it is the derivative of -2 log alpha; at t = 0 the image is clean."""
    schedule = SCHEDULES[name](*ends)
    for at in (0.0, 0.001, 0.1, 0.5, 1.0):
        t = f64(at).requires_grad_()
        want = RATES[name](at, *ends)
        (slope,) = torch.autograd.grad(-2 * schedule.alpha(t).log(), t)
        close(slope, f64(want))
        close(schedule.beta(t.detach()), f64(want))
        integral, _ = quad(lambda u: RATES[name](u, *ends), 0, at, epsrel=1e-13)
        close(schedule.alpha(t.detach()), f64(math.exp(-integral / 2)))
        close(schedule.sigma(t.detach()), f64(math.sqrt(-math.expm1(-integral))))


@pytest.mark.parametrize("s", [0.008, 0.1])
def test_cosine_agrees_with_nichol_and_dhariwal(s):
    def f(t):
        return torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2

    close(Cosine(s).alpha(TIMES) ** 2, f(0.9999 * TIMES) / f(f64(0)))


def test_flow_is_a_straight_line_from_data_to_noise():
    close(Flow().sigma(TIMES), TIMES)
    close(Flow().alpha(TIMES), 1 - TIMES + 1e-4 * TIMES)


@pytest.mark.parametrize("schedule", [Karras(), Karras(0.01, 50.0, 3.0)])
def test_karras_is_equation_5(schedule):
    n, low, high, rho = 20, schedule.sigma_min, schedule.sigma_max, schedule.rho
    want = [(high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n)]
    close(schedule.ratio(torch.linspace(1, 0, n, dtype=torch.float64)), f64(*want))
    close(schedule.alpha(TIMES), torch.ones_like(TIMES))


# --- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("betas", [BETAS, BETAS[:7], torch.tensor([0.5, 0.1, 0.999])], ids=["ddpm", "7", "uneven"])
def test_table_holds_exactly_at_its_steps(betas):
    betas, schedule = betas.double(), Discrete(betas)
    n = torch.arange(1, len(betas) + 1, dtype=torch.float64)
    abar = (1 - betas).cumprod(0)
    close(schedule.alpha(n / len(betas)), abar.sqrt())
    close(schedule.sigma(n / len(betas)), (1 - abar).sqrt())


def test_log_ratio_is_linear_between_steps():
    schedule, n = Discrete(BETAS[:10]), torch.arange(0, 10, dtype=torch.float64)
    left, middle, right = (schedule.ratio((n + k) / 10).log() for k in (0, 0.25, 1))
    close(middle, left + (right - left) / 4)
    assert (right > left).all()
    close((right - left)[0], (right - left)[1])  # below the first step it goes on as between the first two


def test_many_small_steps_approach_linear():
    def worst(n):
        schedule, linear = Discrete([(0.1 + 19.9 * (i + 0.5) / n) / n for i in range(n)]), Linear()
        t = torch.arange(1, n + 1, dtype=torch.float64) / n
        return (schedule.alpha(t) - linear.alpha(t)).abs().max().item()

    assert worst(1000) < 5e-3
    assert worst(1000) / worst(4000) == pytest.approx(4, rel=0.05)  # first order in 1/n


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, 1.5, math.nan, math.inf])
def test_table_refuses_betas_outside_0_to_1(beta):
    for betas in ([beta, 0.1], [0.1, beta], torch.tensor([0.1, beta, 0.1])):
        with pytest.raises(ValueError, match="inside"):
            Discrete(betas)


def test_table_needs_two_steps_and_compares_by_value():
    for betas in ([], [0.1]):
        with pytest.raises(ValueError, match="two"):
            Discrete(betas)
    assert Discrete(BETAS) == Discrete(BETAS.tolist())
    assert Discrete(BETAS) != Discrete(BETAS[:-1])
