import math

import pytest
import torch
from oracles import ALL, WIDE, Affine, Bayes, Gaussian, close, f64, normal
from scipy.stats import norm

from simple_diffusion.denoiser import Denoiser
from simple_diffusion.losses import (
    CRITERIA,
    LogNormal,
    MinSNR,
    denoising_loss,
    loss_by_level,
    loss_of_error,
    on_steps,
    uniform,
)
from simple_diffusion.randomness import Draws
from simple_diffusion.schedules import SCHEDULES, Cosine, Discrete, Flow, Karras
from simple_diffusion.targets import TARGETS, flow, noise, v, x0

every_schedule = pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)
every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
MEAN, STD, DATA_STD = 0.2, 0.3, 0.5


def always(t):
    return lambda u, schedule: torch.full_like(u, t)


def losses(denoiser, n=64, size=1000, step=1, **options):
    """The loss of Gaussian data, for each of n samples."""
    x0 = MEAN + STD * normal(n, size, seed=step)
    return denoising_loss(denoiser, x0, None, Draws(0, step, range(n), total=n), **options)


def assert_mean_is(values, want):
    """The mean is within 5 standard errors, which are below 5 % of it."""
    error = values.std().item() / math.sqrt(len(values))
    assert error < 0.05 * want
    assert abs(values.mean().item() - want) < 5 * error


def expected(denoiser, gain, t):
    """The loss of the network `gain * x`, averaged over the times t `[n]`."""
    alpha, sigma, a, b = denoiser.coefficients(t, torch.zeros_like(t))
    unit = gain / (alpha**2 + sigma**2).sqrt()
    moment = (MEAN**2 + STD**2) / DATA_STD**2  # of z0
    return ((unit * alpha - a) ** 2 * moment + (unit * sigma - b) ** 2).mean().item()


@every_schedule
@every_target
@pytest.mark.parametrize("t", [0.1, 0.6])
def test_loss_of_a_linear_network(schedule, target, t):
    denoiser = Denoiser(Affine(gain=0.4), schedule, target, DATA_STD)
    assert_mean_is(losses(denoiser, density=always(t)), expected(denoiser, 0.4, f64(t)))


@every_schedule
def test_loss_over_uniform_times(schedule):
    denoiser = Denoiser(Affine(gain=0.4), schedule, v, DATA_STD)
    want = expected(denoiser, 0.4, 0.001 + 0.999 * (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000)
    found = torch.stack([losses(denoiser, n=64, size=50, step=step).mean() for step in range(1, 41)])
    assert_mean_is(found, want)


@every_schedule
@every_target
@pytest.mark.parametrize("t", [0.1, 0.6])
def test_the_ideal_network_reaches_the_bayes_error_and_another_does_not(schedule, target, t):
    mean, std = MEAN / DATA_STD, STD / DATA_STD
    best, other = (
        losses(Denoiser(Bayes(target, Gaussian(WIDE, mean, s)), schedule, target, DATA_STD), density=always(t))
        for s in (std, 3 * std)
    )
    ratio = schedule.ratio(f64(t)) / DATA_STD
    a, b = target(1 / (1 + ratio**2).sqrt(), ratio / (1 + ratio**2).sqrt())
    variance = std**2 * ratio**2 / (std**2 + ratio**2)  # of z0 given x_t, and eps = (x_t / alpha - z0) / ratio
    assert_mean_is(best, ((a - b / ratio) ** 2 * variance).item())
    assert other.mean() > best.mean()


def test_the_loss_does_not_depend_on_the_mean_of_the_data():
    """The mean is subtracted from the images, so that images moved by it have the same loss."""
    x0, cond, draws = normal(8, 4, seed=1), None, Draws(0, 1, range(8), total=8)
    still, moved = (Denoiser(Affine(gain=0.4), Karras(), v, DATA_STD, mean) for mean in (0.0, 5.0))
    want = denoising_loss(still, x0, cond, draws)
    torch.testing.assert_close(denoising_loss(moved, x0 + 5, cond, draws), want, rtol=1e-9, atol=0)


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize(
    ("target", "table"),
    [
        (noise, lambda snr, least: least / snr),
        (x0, lambda snr, least: least),
        (v, lambda snr, least: least / (snr + 1)),
        (flow, lambda snr, least: least / (snr.sqrt() + 1) ** 2),
    ],
)
def test_min_snr_is_the_table_of_its_paper(target, table, gamma):
    denoiser, times = Denoiser(Affine(gain=0.4), Cosine(), target), []

    def record(u, schedule):
        times.append(uniform(u, schedule))
        return times[-1]

    got = losses(denoiser, density=record, weight=MinSNR(gamma)) / losses(denoiser, density=record)
    snr = Cosine().ratio(times[0]) ** -2
    assert (snr < gamma).any()
    assert (snr > gamma).any()
    torch.testing.assert_close(got, table(snr, snr.clamp(max=gamma)), rtol=1e-10, atol=0)


@every_schedule
@every_target
def test_weight_1_gives_the_error_of_the_x0_prediction(schedule, target):
    """With weight 1 the loss is |x0_hat - x0|^2 / data_std^2 for any target."""
    denoiser, seen = Denoiser(Affine(gain=0.4), schedule, target, DATA_STD), []
    predict = denoiser.predict
    denoiser.predict = lambda x, t, cond: seen.append((x, t)) or predict(x, t, cond)
    got = losses(denoiser, n=8, size=4, weight=torch.ones_like)
    x0 = MEAN + STD * normal(8, 4, seed=1)
    ((x, t),) = seen
    torch.testing.assert_close(got, ((denoiser(x, t) - x0) / DATA_STD).square().mean(1), rtol=1e-8, atol=0)


# --- densities of noise levels ---------------------------------------------------------------------------------------


@every_schedule
@pytest.mark.parametrize("times", [LogNormal(), LogNormal(0.0, 1.0)])
def test_log_normal_has_log_normal_quantiles(schedule, times):
    u = torch.linspace(0.002, 0.998, 999, dtype=torch.float64)
    want = torch.from_numpy(norm.ppf(u.numpy(), times.mean, times.std))
    close(schedule.ratio(times(u, schedule)).log(), want, 1e-9)
    ends = times(f64(0, 1 - 2**-53), schedule)
    assert (ends >= 0).all()
    assert (ends <= 1).all()
    assert (schedule.sigma(ends) > 0).all()


def test_log_normal_is_logit_normal_on_the_straight_line():
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    t = LogNormal(0.5, 0.8)(u, Flow())
    torch.testing.assert_close(
        t.logit(), torch.from_numpy(norm.ppf(u.numpy(), 0.5, 0.8)), rtol=0, atol=0.01
    )  # alpha ends above 0


def test_uniform_times_cover_0_to_1_evenly():
    t = uniform(Draws(0, 1, range(1000), total=1000).stratified("time"), Karras())
    assert t.max() <= 1
    assert t.min() >= 0.001
    inner = ((t - 0.001) / 0.999).sort().values * 1000  # one in each of the thousand equal parts
    assert torch.equal(inner.ceil().long(), torch.arange(1, 1001))


@pytest.mark.parametrize("steps", [2, 7, 500])
def test_all_steps_of_a_table_are_equally_frequent(steps):
    schedule = Discrete([0.01] * steps)
    for each in (1, 4):
        n = steps * each
        t = on_steps(Draws(0, 1, range(n), total=n).stratified("time"), schedule)
        places, counts = t.unique(return_counts=True)
        close(places, torch.arange(1, steps + 1, dtype=torch.float64) / steps, 0)
        assert (counts == each).all()
    close(on_steps(f64(0, 1 - 2**-53, 1), schedule), f64(1 / steps, 1, 1), 0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_in_continuous_time_have_no_steps(name):
    with pytest.raises(ValueError, match=r"has no table of betas.*use Discrete"):
        on_steps(f64(0.5), SCHEDULES[name]())


# --- criteria --------------------------------------------------------------------------------------------------------

CLOSED = {  # |e| -> penalty
    "l2": lambda e: e**2,
    "l1": lambda e: e,
    "huber": lambda e: e**2 / 2 if e < 1 else e - 1 / 2,
}


def test_every_criterion_has_a_closed_form_here():
    assert CLOSED.keys() == CRITERIA.keys()


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("weight", [None, MinSNR(5.0)])
def test_loss_is_the_mean_of_the_criterion(name, weight):
    """For x_t = sqrt(abar) x0 + sqrt(1 - abar) eps, with abar from the betas."""
    betas, n = torch.linspace(1e-4, 0.02, 500, dtype=torch.float64), 32
    denoiser, x0 = Denoiser(Affine(gain=0.4, shift=1.5), Discrete(betas), noise), normal(n, 6)
    draws = Draws(0, 1, range(n), total=n)
    step = (draws.stratified("time") * 500).long()  # 0 is the first step
    abar = (1 - betas).cumprod(0)[step, None]
    eps = draws.normal("noise", (6,)).double()
    error = 0.4 * (abar.sqrt() * x0 + (1 - abar).sqrt() * eps) + 1.5 - eps
    if weight is not None:
        error = error * (weight(abar / (1 - abar)) * (1 - abar) / abar).sqrt()
    want = [sum(CLOSED[name](abs(e)) for e in row) / 6 for row in error.tolist()]
    got = denoising_loss(denoiser, x0, None, draws, density=on_steps, weight=weight, criterion=CRITERIA[name])
    close(got, f64(*want))
    assert (error.abs() < 1).any()
    assert (error.abs() > 1).any()


def test_the_default_criterion_is_the_square():
    denoiser = Denoiser(Affine(gain=0.4), Karras(), v)
    assert torch.equal(losses(denoiser), losses(denoiser, criterion=CRITERIA["l2"]))
    assert not torch.allclose(losses(denoiser), losses(denoiser, criterion=CRITERIA["l1"]))


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [uniform, LogNormal()])
def test_loss_of_a_sample_does_not_depend_on_its_batch(times):
    denoiser, x0 = Denoiser(Affine(gain=0.4), Karras(), v, DATA_STD), normal(8, 1, 3, 3)
    whole = denoising_loss(denoiser, x0, None, Draws(5, 7, range(8), total=8), density=times)
    assert whole.shape == (8,)
    for part in ([3], [6, 1, 4]):
        close(denoising_loss(denoiser, x0[part], None, Draws(5, 7, part, total=8), density=times), whole[part])


def test_labels_reach_the_network():
    net, cond = Affine(), torch.arange(4)
    denoising_loss(Denoiser(net, Karras(), v), normal(4, 2), cond, Draws(0, 1, range(4), total=4))
    assert net.seen[2] is cond


@pytest.mark.parametrize("name", ["karras", "flow", "discrete"])
def test_the_loss_by_level_of_a_linear_network_is_its_closed_form(name):
    """Sample i always has a time from the i-th quantile, so its mean over steps is the loss at that noise level."""
    schedule = ALL[name]
    denoiser, times = Denoiser(Affine(gain=0.4), schedule, v, DATA_STD), LogNormal(math.log(DATA_STD), 1.0)
    n, steps = 32, 60
    mean = torch.stack([losses(denoiser, n, 400, step, density=times) for step in range(1, steps + 1)]).mean(0)
    points = loss_by_level(mean, times, schedule, most=8)
    assert len(points) == 8
    ratios = [ratio for ratio, _ in points]
    assert ratios == sorted(ratios)
    for i, (_, loss) in enumerate(points):
        u = (i + (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000) / 8
        want = expected(denoiser, 0.4, times(u, schedule))
        assert loss == pytest.approx(want, rel=0.05)


def test_the_loss_by_level_has_at_most_one_point_per_sample():
    points = loss_by_level(torch.tensor([3.0, 1.0, 2.0]), LogNormal(), Karras())
    assert [loss for _, loss in points] == [3.0, 1.0, 2.0]
    assert points[1][0] == pytest.approx(math.exp(-1.2))  # the median


@every_schedule
@every_target
@pytest.mark.parametrize("weight", [None, MinSNR()])
def test_the_loss_of_an_x0_error_is_the_denoising_loss(schedule, target, weight):
    """For the same images, noise and network."""
    denoiser = Denoiser(Affine(), schedule, target, DATA_STD)
    x0, draws = normal(4, 50), Draws(0, 1, range(4), total=4)
    t = f64(0.1, 0.4, 0.8)
    errors, wanted = [], []
    for time in t.tolist():
        wanted.append(denoising_loss(denoiser, x0, None, draws, density=always(time), weight=weight).mean())
        alpha, sigma = schedule.alpha(f64(time)), schedule.sigma(f64(time))
        x_t = alpha * x0 + sigma * draws.normal("noise", (50,)).double()
        errors.append((denoiser(x_t, f64(time)) - x0).square().mean())
    got = loss_of_error(denoiser, schedule.ratio(t), torch.stack(errors), weight)
    close(got, torch.stack(wanted), 1e-6)
