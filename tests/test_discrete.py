"""Tables of betas and ancestral sampling on them, against 40-digit arithmetic and the law that theory states."""

from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from checks import EXACT_FOR, STOCHASTIC, response
from oracles import Gaussian, close, f64
from scipy.special import expit

from simple_diffusion.samplers import SAMPLERS, uniform_grid
from simple_diffusion.schedules import BETAS, SCHEDULES, BetaCurve, Discrete

LOW, HIGH = 1e-4, 0.02


def cosine(T, s=0.008):
    angle = (np.arange(T + 1) / T + s) / (1 + s) * np.pi / 2
    abar = np.cos(angle) ** 2 / np.cos(angle[0]) ** 2
    return np.minimum(1 - abar[1:] / abar[:-1], 0.999)


PAPERS = {  # T -> betas, before they are scaled
    "linear": lambda T: np.linspace(LOW, HIGH, T),
    "quadratic": lambda T: np.linspace(LOW**0.5, HIGH**0.5, T) ** 2,
    "sigmoid": lambda T: expit(np.linspace(-6, 6, T)) * (HIGH - LOW) + LOW,
    "cosine": cosine,
}

every_table = pytest.mark.parametrize("name", BETAS)
every_sampler = pytest.mark.parametrize("sampler", STOCHASTIC)


@every_table
@pytest.mark.parametrize("T", [21, 500, 1000])
def test_tables_are_those_of_their_papers(name, T):
    kind, _, unscaled = name.partition("-")
    factor = 1 if unscaled or kind == "cosine" else 1000 / T
    betas = BETAS[name](T)
    assert betas.dtype == torch.float64
    close(betas, torch.from_numpy(factor * PAPERS[kind](T)))


LEAST = {"linear": 21, "quadratic": 21, "sigmoid": 20}  # 1000/T times the last beta, 0.02 or 0.01995, is below 0.999


@every_table
def test_the_error_for_a_short_table_names_the_shortest_length_that_works(name):
    least, kind = LEAST.get(name, 2), name.partition("-")[0]
    for T in (-1, 0, 1, least - 1):
        with pytest.raises(ValueError, match=f"^the {kind} table of betas needs at least {least} steps, got {T}$"):
            BETAS[name](T)
    for T in (least, least + 1):
        Discrete(BETAS[name](T))  # all betas lie inside (0, 1)


@pytest.mark.parametrize(("name", "T"), [*((name, 100) for name in BETAS), ("linear", 1000), ("cosine", 1000)])
def test_levels_and_steps_are_exact(name, T):
    """alpha, sigma, and the sampler's coefficients of x0_hat, x_t and the noise (Ho et al. 2020, eq. 4, 6, 7)."""
    betas = BETAS[name](T)
    alphas, sigmas, from_x0, from_x, variances = [], [], [], [], {"posterior": [], "beta": []}
    with localcontext(prec=40):
        before = Decimal(1)
        for beta in map(Decimal, betas.tolist()):
            abar = before * (1 - beta)
            alphas.append(float(abar.sqrt()))
            sigmas.append(float((1 - abar).sqrt()))
            from_x0.append(float(before.sqrt() * beta / (1 - abar)))
            from_x.append(float((1 - beta).sqrt() * (1 - before) / (1 - abar)))
            variances["posterior"].append(float((1 - before) / (1 - abar) * beta))
            variances["beta"].append(float(beta))
            before = abar
    schedule, times = Discrete(betas), uniform_grid(Discrete(betas), T)
    close(schedule.alpha(times.flip(0)), f64(*alphas))
    close(schedule.sigma(times.flip(0)), f64(*sigmas))

    def one(x, t, cond=None):  # row 0: x0_hat = 1; row 1: x alone; row 2: noise alone
        return f64(1, 0, 0)

    one.schedule = schedule
    start, noise = f64(0, 1, 0), f64(0, 0, 1)
    for sampler, variance in STOCHASTIC.items():
        states = torch.stack([start, *SAMPLERS[sampler].function(one, start, times, None, lambda step, x: noise)])
        gain = states[1:-1, 1] / states[:-2, 1]  # the last step is the mean alone, which forgets x
        close(gain.flip(0), f64(*from_x[1:]))
        close((states[1:-1, 0] - gain * states[:-2, 0]).flip(0), f64(*from_x0[1:]))
        close((states[1:-1, 2] - gain * states[:-2, 2]).square().flip(0), f64(*variances[variance][1:]))
        close(states[-1], f64(1, 0, 0))


@pytest.mark.parametrize(("name", "T"), [*((name, 50) for name in BETAS), ("linear", 200)])
@every_sampler
def test_ancestral_sampling_has_the_theoretical_mean_and_variance(name, sampler, T):
    """Mean and variance carried along all T steps, for data N(0.7, 0.4^2), from the betas alone."""
    betas = BETAS[name](T).numpy()
    abar = np.concatenate([[1], np.cumprod(1 - betas)])
    oracle = Gaussian(Discrete(betas))
    mean, square = 0.0, 1.0  # starts from N(0, 1), as in algorithm 2
    for n in range(T, 0, -1):
        beta, noisy = betas[n - 1], 1 - abar[n]
        pull = np.sqrt(abar[n]) * oracle.std**2 / (abar[n] * oracle.std**2 + noisy)  # of E[x0 | x_t]
        still = oracle.mean - pull * np.sqrt(abar[n]) * oracle.mean
        from_x0, from_x = np.sqrt(abar[n - 1]) * beta / noisy, np.sqrt(1 - beta) * (1 - abar[n - 1]) / noisy
        added = {"posterior": beta * (1 - abar[n - 1]) / noisy, "beta": beta if n > 1 else 0.0}[STOCHASTIC[sampler]]
        gain = from_x0 * pull + from_x
        mean, square = gain * mean + from_x0 * still, gain**2 * square + added
    gain, shift, noise = response(SAMPLERS[sampler].function, oracle, uniform_grid(oracle.schedule, T))
    close(f64(shift, gain**2 + noise), f64(mean, square), 1e-9)


@every_sampler
def test_each_variance_is_exact_for_one_data_variance_and_a_bound_for_others(sampler):
    """Unit noise stays unit noise under beta, to the last step; between the two data the law errs by its own side."""
    variance, T = STOCHASTIC[sampler], 100
    schedule = Discrete(BETAS["linear"](T))
    times = uniform_grid(schedule, T)
    for std in (0.0, 0.4, 1.0):
        oracle = Gaussian(schedule, 0.0, std)
        gain, _, noise = response(lambda *a: list(SAMPLERS[sampler].function(*a))[:-1], oracle, times)
        start, end = oracle.marginal_std(times[[0, -1]], times[[0, -1]]).square().tolist()
        error = (gain**2 * start + noise) / end - 1
        if std == EXACT_FOR[variance]:
            assert abs(error) < 1e-9
        else:
            assert (error > 1e-3) if variance == "beta" else (error < -1e-3)


@pytest.mark.parametrize("name", [name for name, kind in SCHEDULES.items() if issubclass(kind, BetaCurve)])
def test_scaled_tables_approach_their_curve(name):
    """The longer the table the nearer, in first order of 1/T; unscaled it is the same table at T = 1000 alone."""

    def worst(T):
        t = uniform_grid(SCHEDULES[name](), T)
        return (Discrete(BETAS[name](T)).alpha(t) - SCHEDULES[name]().alpha(t)).abs().max().item()

    assert worst(1000) < 5e-3
    assert worst(1000) / worst(4000) == pytest.approx(4, rel=0.05)
    close(BETAS[f"{name}-unscaled"](1000), BETAS[name](1000), 0)


def test_cosine_table_lies_on_its_curve():
    """Up to its last beta, which is capped; the curve's clock stops at 0.9999 instead."""
    betas, t = BETAS["cosine"](1000), torch.arange(1, 1000, dtype=torch.float64) / 1000
    close(Discrete(betas).alpha(t), SCHEDULES["cosine"]().alpha(t / 0.9999))
    assert betas.argmax() == 999
    assert betas[-1] == 0.999
    assert betas[-2] < 0.76  # 3/4: the cosine falls in a straight line to its zero
