"""What every sampler must satisfy, as functions of a module and a schedule.

CHECKS take the module `samplers`, SAMPLING_CHECKS the module `sampling`. They run on the real modules in
test_samplers.py, and on broken copies of them, which must not pass, in test_mutants.py.
"""

import math
from functools import partial

import numpy as np
import torch
from oracles import Gaussian, Mixture, close, f64, mixture_flow, normal

from simple_diffusion import samplers as real_samplers
from simple_diffusion.schedules import Discrete, Karras

ORDERS = {name: info.order for name, info in real_samplers.SAMPLERS.items() if info.order}  # deterministic samplers
STOCHASTIC = {"ddpm": "posterior", "ddpm-beta": "beta"}  # ancestral samplers, and the variance of their steps
PARTLY = {"dpmpp-sde": 0.6}  # solvers with a share of the ancestral noise
EXACT_FOR = {"posterior": 0.0, "beta": 1.0}  # the deviation of the data for which a step is exact
COUNTS = (40, 80, 160)
Z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]


class Spy:
    """A denoiser that remembers how it was called."""

    def __init__(self, denoiser):
        self.denoiser, self.schedule, self.calls = denoiser, denoiser.schedule, []

    def __call__(self, x, t, cond=None):
        self.calls.append((x, t, cond))
        return self.denoiser(x, t, cond)


def functions(samplers):
    return [info.function for info in samplers.SAMPLERS.values()]


def recorded(seed=0):
    """Noise that depends on the step alone."""
    return lambda step, x: normal(*x.shape, seed=1000 * seed + step)


def still(step, x):
    return torch.zeros_like(x)


def slope(n, error):
    """The order of convergence: minus the slope of log error over log n."""
    return -np.polyfit(np.log(n), np.log(error), 1)[0]


def one_step(sampler, denoiser, x, t, s, z=0.0):
    """The state after the step from t to s, where the noise is z."""
    return next(iter(sampler(denoiser, x, f64(t, s), None, lambda step, x: torch.full_like(x, z))))


def coefficients(sampler, denoiser, t, s):
    """(gain, shift, noise) of a step that is affine in x and in its noise."""
    ends, zero = f64(0, 1)[:, None], f64(0)[:, None]
    shift, moved = one_step(sampler, denoiser, ends, t, s).flatten().tolist()
    noisy = one_step(sampler, denoiser, zero, t, s, z=1.0).item()
    return moved - shift, shift, noisy - shift


def response(sampler, denoiser, times):
    """(gain, shift, sum of the squared noise gains) of a whole run that is affine in its start and in its noise.

    One run tells all: row 0 starts at 0, row 1 at 1, and row 2 + k alone hears the noise of step k.
    """

    def one_each(step, x):
        z = torch.zeros_like(x)
        z[2 + step] = 1
        return z

    x = torch.zeros(len(times) + 2, 1, dtype=torch.float64)
    x[1] = 1
    *_, end = sampler(denoiser, x, times, None, one_each)
    return (end[1] - end[0]).item(), end[0].item(), (end[2:] - end[0]).square().sum().item()


# --- identities ------------------------------------------------------------------------------------------------------


def ends_at_posterior_mean(samplers, schedule):
    """n states; the last is the denoiser's word on the one before, at the last time; labels are passed on."""
    cond = torch.arange(9) % 3
    for grid in samplers.GRIDS.values():
        for sampler in functions(samplers):
            for n in (1, 2, 5):
                times, spy = grid(schedule, n), Spy(Mixture(schedule))
                states = [Z, *sampler(spy, Z, times, cond, recorded())]
                assert len(states) == n + 1
                x, t, _ = spy.calls[-1]
                assert torch.equal(x, states[-2])
                assert t == times[-1]
                close(states[-1], Mixture(schedule)(x, t, cond))
                assert all(labels is cond for _, _, labels in spy.calls)


def single_image_is_solved_exactly(samplers, schedule):
    """Where all data are one image the paths of the ODE are straight: no solver errs, however large its steps."""
    oracle, times = Gaussian(schedule, std=0.0), samplers.karras_grid(schedule, 6, 0.05, 20.0)
    for name in ORDERS:
        states = samplers.SAMPLERS[name].function(oracle, oracle.at(Z, times[0]), times, None, still)
        for x, t in zip(states, times[1:], strict=False):
            close(x, oracle.at(Z, t), 1e-9)


def ddim_is_euler(samplers, schedule):
    """In x/alpha over sigma/alpha DDIM is Euler's method."""
    times, oracle = samplers.karras_grid(schedule, 12, 0.05, 20.0), Gaussian(schedule)
    x = oracle.at(Z, times[0])
    alpha, level = [*schedule.alpha(times), 1.0], [*schedule.ratio(times), 0.0]
    y = x / alpha[0]
    for i, state in enumerate(samplers.ddim(oracle, x, times, None, recorded())):
        y = y + (level[i + 1] - level[i]) * (y - oracle(alpha[i] * y, times[i])) / level[i]
        close(state / alpha[i + 1], y, 1e-12)


def dpmpp_looks_half_a_step_ahead(samplers, schedule):
    """Where the posterior mean is a line over log(alpha/sigma), each step but the first takes it at its middle."""

    def line(x, t, cond=None):
        return torch.zeros_like(x) - schedule.ratio(t).log()

    line.schedule, times = schedule, uneven_grid(schedule, 8)
    (alpha, sigma), lam = (schedule.alpha(times), schedule.sigma(times)), -schedule.ratio(times).log()
    states = list(samplers.dpmpp(line, Z, times, None, still))
    for i in range(1, 7):
        ahead = (lam[i] + lam[i + 1]) / 2
        decay = sigma[i + 1] / sigma[i]
        close(states[i], decay * states[i - 1] + (alpha[i + 1] - decay * alpha[i]) * ahead, 1e-9)


def schedule_is_a_clock(samplers, schedule):
    """On the same noise levels and the same noise each schedule takes the same path."""
    levels, wide = torch.logspace(1.5, -1.5, 12, dtype=torch.float64), Karras(0.01, 100.0)
    times, clock = schedule.time_of(levels), wide.time_of(levels)
    alphas = [*schedule.alpha(times[1:]), 1.0]
    for sampler in functions(samplers):
        got = sampler(Mixture(schedule), schedule.alpha(times[0]) * 30 * Z, times, None, recorded())
        want = sampler(Mixture(wide), 30 * Z, clock, None, recorded())
        for alpha, x, y in zip(alphas, got, want, strict=True):
            close(x / alpha, y, 1e-8)


# --- order of convergence --------------------------------------------------------------------------------------------


def uneven_grid(schedule, n):
    """Levels from 20 to 0.05 whose steps are short and long in turn, at every n."""
    steps = torch.tensor([1.0, 3.0], dtype=torch.float64).repeat(n)[: n - 1]
    share = torch.cat([f64(0), steps.cumsum(0) / steps.sum()])
    return schedule.time_of(20.0 * (0.05 / 20.0) ** share)


def gaussian_errors(samplers, schedule, name):
    """Errors at the last positive level, where the flow is known in closed form."""
    oracle, errors = Gaussian(schedule), []
    for n in COUNTS:
        times = uneven_grid(schedule, n)
        *_, x, _ = samplers.SAMPLERS[name].function(oracle, oracle.at(Z, times[0]), times, None, still)
        errors.append((x - oracle.at(Z, times[-1])).square().mean().sqrt().item())
    return errors


def mixture_errors(samplers, schedule, name):
    """The same for two overlapping modes, against Runge-Kutta."""
    (start, end), errors = mixture_flow(20.0, 0.05), []
    for n in COUNTS:
        times = samplers.karras_grid(schedule, n, 0.05, 20.0)
        x = start * schedule.alpha(times[0])
        *_, x, _ = samplers.SAMPLERS[name].function(Mixture(schedule), x, times, None, still)
        errors.append((x / schedule.alpha(times[-1]) - end).square().mean().sqrt().item())
    return errors


def converges_in_order(samplers, schedule):
    for errors in (gaussian_errors, mixture_errors):
        for name, order in ORDERS.items():
            measured = slope(COUNTS, errors(samplers, schedule, name))
            assert abs(measured - order) < (0.1 if order == 1 else 0.15), f"{name}: order {measured:.2f}"


# --- ancestral sampling ----------------------------------------------------------------------------------------------


def ddpm_is_bayes(samplers, schedule):
    """The mean of a step is that of the product of the two Gaussians q(x_t | x_s) and q(x_s | x0_hat); its variance is
    that of x_s given x_t, for the data for which it is exact.
    """
    times, oracle = samplers.karras_grid(schedule, 8), Gaussian(schedule)
    for t, s in zip(times.tolist(), times[1:].tolist(), strict=False):
        (a_t, a_s), (s_t, s_s) = schedule.alpha(f64(t, s)).tolist(), schedule.sigma(f64(t, s)).tolist()
        a, v = a_t / a_s, s_t**2 - (a_t / a_s * s_s) ** 2  # q(x_t | x_s) = N(a x_s, v)
        x0 = oracle(f64(0, 1)[:, None], f64(t)).flatten()
        mean = (a / v * f64(0, 1) + a_s / s_s**2 * x0) / (a**2 / v + 1 / s_s**2)
        for name, variance in STOCHASTIC.items():
            gain, shift, std = coefficients(samplers.SAMPLERS[name].function, oracle, t, s)
            precision = a**2 / v + 1 / ((a_s * EXACT_FOR[variance]) ** 2 + s_s**2)
            close(f64(gain + shift, shift, std), f64(mean[1], mean[0], precision**-0.5), 1e-9)


def ddpm_is_exact_for_its_data(samplers, schedule):
    """Where a variance is exact every step leads from one marginal to the next, however large the steps."""
    times = samplers.karras_grid(schedule, 4)
    for name, variance in STOCHASTIC.items():
        oracle = Gaussian(schedule, std=EXACT_FOR[variance])
        means, stds = oracle.at(torch.zeros_like(times), times).tolist(), oracle.marginal_std(times, times).tolist()
        mean, square = means[0], stds[0] ** 2
        for i in range(3):
            gain, shift, std = coefficients(
                samplers.SAMPLERS[name].function, oracle, times[i].item(), times[i + 1].item()
            )
            mean, square = gain * mean + shift, gain**2 * square + std**2
            close(f64(mean, square), f64(means[i + 1], stds[i + 1] ** 2), 1e-9)


def ddpm_is_the_textbook_on_a_table(samplers, schedule, n=20):
    """On a table of betas and all of its steps: algorithm 2 of Ho et al. 2020 with either variance, from the betas."""
    ratio = schedule.ratio(torch.arange(1, n + 1, dtype=torch.float64) / n)
    abar = torch.cat([f64(1), 1 / (1 + ratio**2)])
    betas = 1 - abar[1:] / abar[:-1]
    table = Discrete(betas)
    oracle = Gaussian(table)
    for name, variance in STOCHASTIC.items():
        x, states = Z, samplers.SAMPLERS[name].function(oracle, Z, samplers.uniform_grid(table, n), None, recorded())
        for step, i in enumerate(range(n, 0, -1)):
            x0, beta = oracle(x, f64(i / n)), betas[i - 1]
            mean = abar[i - 1].sqrt() * beta / (1 - abar[i]) * x0
            mean = mean + (1 - beta).sqrt() * (1 - abar[i - 1]) / (1 - abar[i]) * x
            kept = {"posterior": (1 - abar[i - 1]) / (1 - abar[i]), "beta": f64(float(i > 1))}[variance]
            x = next(states)
            close(x, mean + (kept * beta).sqrt() * recorded()(step, x), 1e-10)


def eta_keeps_the_marginal(samplers, schedule):
    """Whatever eta, a step takes q(x_t | x0) to q(x_s | x0) with eta times ddpm's noise; at eta = 1 it is ddpm's."""
    oracle, times = Gaussian(schedule, std=0.0), samplers.karras_grid(schedule, 6)
    alpha, sigma = schedule.alpha(times).tolist(), schedule.sigma(times).tolist()
    for i, (t, s) in enumerate(zip(times.tolist(), times[1:].tolist(), strict=False)):
        shares = [(partial(f, eta=eta), eta) for f in (samplers.ddim, samplers.dpmpp) for eta in (0.0, 0.4, 1.0)]
        for sampler, eta in [*shares, *((samplers.SAMPLERS[name].function, eta) for name, eta in PARTLY.items())]:
            gain, shift, std = coefficients(sampler, oracle, t, s)
            mean, variance = gain * alpha[i] * oracle.mean + shift, (gain * sigma[i]) ** 2 + std**2
            close(f64(mean, variance), f64(alpha[i + 1] * oracle.mean, sigma[i + 1] ** 2), 1e-9)
            close(f64(std), eta * f64(coefficients(samplers.ddpm, oracle, t, s)[2]), 1e-9)
    x, oracle = 5 * Z, Mixture(schedule)
    got = samplers.ddim(oracle, x, times, None, recorded(), eta=1.0)
    for a, b in zip(got, samplers.ddpm(oracle, x, times, None, recorded()), strict=True):
        close(a, b, 1e-10)


def ancestral_moments(samplers, schedule, n, sampler):
    """Exact mean and variance of what a sampler makes of Gaussian data, started from x_1's own distribution."""
    oracle, times = Gaussian(schedule), samplers.karras_grid(schedule, n)
    gain, shift, noise = response(sampler, oracle, times)
    mean, std = oracle.at(f64(0, 1), times[0]).tolist()
    return gain * mean + shift, gain**2 * (std - mean) ** 2 + noise


def ancestral_law_is_the_datas(samplers, schedule):
    """The mean is the data's, and the variance tends to it in first order: from below with too little noise in a step,
    from above with too much.
    """
    counts, oracle = (50, 100, 200), Gaussian(schedule)
    every = {name: samplers.SAMPLERS[name].function for name in STOCHASTIC}
    every["ddim"] = lambda *a: samplers.ddim(*a, eta=1.0)
    for name, sampler in every.items():
        moments = [ancestral_moments(samplers, schedule, n, sampler) for n in counts]
        side = 1 if EXACT_FOR[STOCHASTIC.get(name, "posterior")] < oracle.std else -1
        missing = [side * (1 - variance / oracle.std**2) for _, variance in moments]
        assert 0 < missing[-1] < 0.1
        assert abs(slope(counts, missing) - 1) < 0.15
        assert all(abs(mean - oracle.mean) < 1e-10 for mean, _ in moments)


def dpmpp_law_is_the_datas_in_second_order(samplers, schedule):
    """Whatever eta, the mean is the data's, and the variance tends to it in second order, from above."""
    counts, oracle = (50, 100, 200), Gaussian(schedule)
    partly = [samplers.SAMPLERS[name].function for name in PARTLY]
    for sampler in (samplers.dpmpp, *partly, partial(samplers.dpmpp, eta=1.0)):
        moments = [ancestral_moments(samplers, schedule, n, sampler) for n in counts]
        first, second, third = (variance / oracle.std**2 - 1 for _, variance in moments)
        assert 0 < third < 0.01
        assert abs(math.log2((first - second) / (second - third)) - 2) < 0.15  # without what the last level leaves
        assert all(abs(mean - oracle.mean) < 1e-10 for mean, _ in moments)


# --- grids and whole images ------------------------------------------------------------------------------------------


def grids_are_what_they_say(samplers, schedule):
    for grid in samplers.GRIDS.values():
        for n in (1, 2, 7, 100):
            times = grid(schedule, n)
            assert times.shape == (n,)
            assert times.dtype == torch.float64
            assert (times.diff() < 0).all()
            assert times[-1] >= 0
            assert times[0] <= 1
    close(samplers.uniform_grid(schedule, 4), f64(1, 0.75, 0.5, 0.25), 0)
    assert samplers.uniform_grid(schedule, 1000)[-1] == 0.001
    n, low, high, rho = 9, 0.05, 20.0, 5.0  # Karras et al. 2022, equation 5
    want = [(high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n)]
    close(schedule.ratio(samplers.karras_grid(schedule, n, low, high, rho)), f64(*want), 1e-9)
    times = samplers.karras_grid(schedule, n, 1e-9, 1e9)  # cut to what the schedule reaches
    assert (times.diff() < 0).all()
    close(times[0], f64(1)[0], 1e-9)
    close(schedule.ratio(times[-1]), schedule.ratio(f64(0))[0].clamp(min=1e-9), 1e-9)


def images_belong_to_seed_and_number(sampling, schedule):
    """Image i is the same however many are generated; labels meet their images; every batch is full."""
    times = real_samplers.karras_grid(schedule, 4)

    def draw(n, cond=None, seed=0, batch=64, oracle=None):
        cond = None if cond is None else cond[:n]
        spy = Spy(oracle or Mixture(schedule))
        x = sampling.sample(spy, (n, 4), times, cond, sampler=real_samplers.ddpm, seed=seed, batch=batch)
        assert all(len(x) == batch for x, _, _ in spy.calls)
        assert all(len(labels) == batch for _, _, labels in spy.calls if labels is not None)
        return x, spy.calls[0][0]

    labels = torch.arange(70) % 3
    for cond in (None, labels):
        (all70, _), (five, _), (one, _) = (draw(n, cond) for n in (70, 5, 1))
        assert all70.shape == (70, 4)
        assert torch.equal(five, all70[:5])
        assert torch.equal(one, all70[:1])
        assert len(all70.unique()) == 280  # no noise came twice
        close(draw(70, cond, batch=7)[0], all70, 1e-5)
        for a, b in zip(draw(70, cond, seed=1), draw(70, cond), strict=True):
            assert not torch.isclose(a, b, rtol=1e-5, atol=1e-6).any()

    def telling(x, t, cond):
        return torch.zeros_like(x) + cond[:, None]

    telling.schedule = schedule
    numbers = torch.arange(70)
    close(draw(70, numbers, batch=16, oracle=telling)[0], numbers[:, None].float().expand(70, 4), 1e-5)

    times = real_samplers.karras_grid(schedule, 2, 0.05, 1.0)
    x = draw(1, batch=2000)[1]  # starts at the first level: data of unit variance, and the noise
    std = math.hypot(schedule.alpha(times[:1]).item(), schedule.sigma(times[:1]).item())
    assert abs(x.std().item() / std - 1) < 5 / math.sqrt(2 * x.numel())


def trajectory_ends_in_the_images(sampling, schedule):
    """The states of a batch run from the noise that the first step meets to the images that `sample` generates."""
    times, labels = real_samplers.karras_grid(schedule, 4), torch.arange(37) % 3
    for sampler in functions(real_samplers):
        for cond in (None, labels):
            whole = sampling.sample(Mixture(schedule), (37, 2), times, cond, sampler=sampler, seed=3, batch=16)
            for first in (0, 16, 32):
                spy = Spy(Mixture(schedule))
                path = list(
                    sampling.trajectory(spy, (37, 2), times, cond, sampler=sampler, seed=3, batch=16, first=first)
                )
                assert [len(x) for x in path] == 5 * [min(16, 37 - first)]
                assert torch.equal(path[-1], whole[first : first + 16])
                assert torch.equal(path[0], spy.calls[0][0][: len(path[0])])


def noise_of_a_step_is_its_own(sampling, schedule):
    """The noise of a step depends on the seed, the step and the image, and on nothing else."""

    def heard(seed, numbers, batch):
        noises = []

        def deaf(denoiser, x, times, cond, noise):
            noises.append([noise(step, x) for step in range(len(times))])
            yield x

        times = f64(1, 0.5, 0.2)
        start = sampling.sample(Gaussian(schedule), (numbers, 3), times, sampler=deaf, seed=seed, batch=batch)
        return start, torch.stack([torch.cat(step)[:numbers] for step in zip(*noises, strict=True)])  # [steps, N, 3]

    start, noise = heard(0, 70, 64)
    assert torch.equal(noise, heard(0, 70, 9)[1])
    assert torch.equal(noise[:, :5], heard(0, 5, 5)[1])
    assert len(noise.unique()) == noise.numel()
    assert not torch.isin(heard(1, 70, 64)[1], noise).any()
    together = torch.cat([start[None], noise]).flatten(1)  # what a step adds is news beside the start and other steps
    assert (together.corrcoef() - torch.eye(4)).abs().max() < 5 / math.sqrt(210)


def by_name(*checks):
    return {check.__name__: check for check in checks}


ON_EVERY_SCHEDULE = by_name(grids_are_what_they_say, schedule_is_a_clock)
"""The second one carries over whatever holds on one schedule to all of them."""

CHECKS = by_name(  # the slow ones last
    grids_are_what_they_say,
    ends_at_posterior_mean,
    schedule_is_a_clock,
    single_image_is_solved_exactly,
    ddim_is_euler,
    dpmpp_looks_half_a_step_ahead,
    ddpm_is_bayes,
    ddpm_is_exact_for_its_data,
    ddpm_is_the_textbook_on_a_table,
    eta_keeps_the_marginal,
    ancestral_law_is_the_datas,
    dpmpp_law_is_the_datas_in_second_order,
    converges_in_order,
)

SAMPLING_CHECKS = by_name(
    trajectory_ends_in_the_images,
    noise_of_a_step_is_its_own,
    images_belong_to_seed_and_number,
)
