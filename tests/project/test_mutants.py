"""The checks of the samplers can fail: copies of the source, each broken in one place, must not pass them."""

from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path

import pytest
from checks import CHECKS, SAMPLING_CHECKS

from simple_diffusion import samplers, sampling
from simple_diffusion.schedules import Flow

SAMPLERS, SAMPLING = (Path(module.__file__).read_text() for module in (samplers, sampling))

# What is broken: (text, what it becomes instead). All places are changed where the text stands in several.
MUTANTS = {
    # every sampler
    "the last step is missing": ("range(len(times))", "range(len(times) - 1)"),
    "the next alpha is this one": ("alphas[i], sigmas[i], alphas[i + 1]", "alphas[i], sigmas[i], alphas[i]"),
    "the clean end has sigma left": ("tolist(), 0.0]", "tolist(), 1e-4]"),
    "the denoiser hears no label": ("denoiser(x, i.t, cond)", "denoiser(x, i.t)"),
    "the denoiser hears the first time": ("denoiser(x, i.t, cond)", "denoiser(x, times[0], cond)"),
    "noise implied has its sign flipped": ("(x - i.alpha_t * x0_hat)", "(i.alpha_t * x0_hat - x)"),
    "noise implied forgets alpha": ("(x - i.alpha_t * x0_hat)", "(x - x0_hat)"),
    # ddpm
    "ddpm: alpha_t for alpha_s": ("i.alpha_s * beta * x0_hat", "i.alpha_t * beta * x0_hat"),
    "ddpm: beta for the posterior's variance": ("(i.sigma_s / i.sigma_t) ** 2", "1.0"),
    "ddpm: posterior's deviation for its variance": ("(i.sigma_s / i.sigma_t) ** 2", "i.sigma_s / i.sigma_t"),
    "ddpm: the posterior's variance for beta": (
        'partial(ddpm, variance="beta")',
        'partial(ddpm, variance="posterior")',
    ),
    "ddpm: the variance asked for is not heard": ("VARIANCES[variance](i)", 'VARIANCES["posterior"](i)'),
    "ddpm: beta without the scale of x": ("(i.alpha_s**2 + i.sigma_s**2) / (i.alpha_t**2 + i.sigma_t**2)", "1.0"),
    "ddpm: beta with the scale upside down": (
        "(i.alpha_s**2 + i.sigma_s**2) / (i.alpha_t**2 + i.sigma_t**2)",
        "(i.alpha_t**2 + i.sigma_t**2) / (i.alpha_s**2 + i.sigma_s**2)",
    ),
    "ddpm: noise after the last step": ("mean if i.s is None else mean + std", "mean + std"),
    "ddpm: variance for deviation": ("mean + std * noise", "mean + std**2 * noise"),
    "ddpm: no noise": ("mean + std * noise", "mean + 0 * noise"),
    "ddpm: beta of the wrong level": ("(alpha_ts * i.sigma_s) ** 2", "i.sigma_s**2"),
    "ddpm: gain without its square": ("alpha_ts * i.sigma_s**2 * x", "alpha_ts * i.sigma_s * i.sigma_t * x"),
    "ddpm: one noise for all steps": ("mean + std * noise(i.number, x)", "mean + std * noise(0, x)"),
    # ddim, and dpmpp with it
    "ddim: alpha_t for alpha_s": ("x = i.alpha_s * x0_hat + math", "x = i.alpha_t * x0_hat + math"),
    "ddim: sigma_t for sigma_s": ("math.sqrt(i.sigma_s**2 - new**2)", "math.sqrt(i.sigma_t**2 - new**2)"),
    "ddim: old noise is not cut by the new": ("math.sqrt(i.sigma_s**2 - new**2)", "i.sigma_s"),
    "ddim: cut without squares": ("math.sqrt(i.sigma_s**2 - new**2)", "(i.sigma_s - new)"),
    "ddim: all signal from the guess": ("math.sqrt(i.sigma_s**2 - new**2) * eps_hat", "0 * eps_hat"),
    "ddim: eta squared": ("new = eta * i.sigma_s", "new = eta**2 * i.sigma_s"),
    "ddim: noise of half the step": ("(i.alpha_s * i.sigma_t)) ** 2)", "(i.alpha_s * i.sigma_t)))"),
    "ddim: cuts the old noise, and adds none": ("if new > 0", "if new > 9"),
    "ddim: one noise for all steps": ("x + new * noise(i.number, x)", "x + new * noise(0, x)"),
    # heun
    "heun: no correction": ("(eps_hat + eps_s) / 2", "eps_hat"),
    "heun: the end's slope alone": ("(eps_hat + eps_s) / 2", "eps_s"),
    "heun: slopes not halved": ("(eps_hat + eps_s) / 2", "(eps_hat + eps_s)"),
    "heun: correction at the old time": ("denoiser(x_s, i.s, cond)", "denoiser(x_s, i.t, cond)"),
    "heun: correction without its label": ("denoiser(x_s, i.s, cond)", "denoiser(x_s, i.s)"),
    "heun: climbs in sigma, not in sigma/alpha": (
        "climb = i.sigma_s / i.alpha_s - i.sigma_t / i.alpha_t",
        "climb = i.sigma_s - i.sigma_t",
    ),
    "heun: alpha_t for alpha_s": ("x_s = i.alpha_s * (x / i.alpha_t", "x_s = i.alpha_t * (x / i.alpha_t"),
    # dpmpp
    "dpmpp: extrapolates backwards": ("x0_hat + (x0_hat - before[0])", "x0_hat - (x0_hat - before[0])"),
    "dpmpp: a whole step ahead": ("(h / (lam - before[1]) / 2)", "(h / (lam - before[1]))"),
    "dpmpp: steps taken for equal": ("(h / (lam - before[1]) / 2)", "(1 / 2)"),
    "dpmpp: ratio of steps upside down": ("(h / (lam - before[1]) / 2)", "((lam - before[1]) / h / 2)"),
    "dpmpp: forgets the step before": ("before = x0_hat, lam", "before = None"),
    "dpmpp: remembers what it extrapolated": ("before = x0_hat, lam", "before = x, lam"),
    "dpmpp: moves by the guess where it is": (
        "renoised(i, x, ahead, eta, noise)",
        "renoised(i, x, x0_hat, eta, noise)",
    ),
    "dpmpp: hears no eta": ("renoised(i, x, ahead, eta, noise)", "renoised(i, x, ahead, 0.0, noise)"),
    # grids
    "uniform grid: one step down": ("torch.arange(n, 0, -1,", "torch.arange(n - 1, -1, -1,"),
    "karras grid: not raised to rho": ("time_of(roots**rho)", "time_of(roots)"),
    "karras grid: upside down": ("time_of(roots**rho)", "time_of(roots**rho).flip(0)"),
    "karras grid: rho of 7 whatever is asked": ("time_of(roots**rho)", "time_of(roots**7)"),
    "karras grid: beyond the schedule's reach": ("min(sigma_max, reach[1])", "sigma_max"),
}

SAMPLING_MUTANTS = {
    "the last batch is not filled": (
        "range(first, first + batch)",
        "range(first, min(first + batch, shape[0]))",
    ),
    "each batch draws the same noise": ("range(first, first + batch)", "range(batch)"),
    "labels of the first batch": ("[[min(number, n - 1)", "[[min(number - first, n - 1)"),
    "start without its level": ("x = level * (start_noise", "x = (start_noise"),
    "start as an image at unit scale": ("math.hypot(", "max("),
    "one noise for all steps": ("Draws(seed, step, numbers)", "Draws(seed, 0, numbers)"),
    "noise without the seed": ("Draws(seed, step, numbers)", "Draws(0, step, numbers)"),
    "start without the seed": ("Draws(seed, 0, numbers)", "Draws(0, 0, numbers)"),
    "the noise is not shown": ("    yield x[: n - first]\n    states", "    states"),
    "what fills the batch up is shown": ("yield x[: n - first]", "yield x"),
    "the step's noise is the start's": ('normal("sampler"', 'normal("start"'),
}


FLOW = Flow()


def module(source):
    made = module_from_spec(ModuleSpec("simple_diffusion.mutant", None))
    exec(compile(source, "<mutant>", "exec"), made.__dict__)
    return made


def rejected(checks, mutant):
    """The checks that reject a module, in their order."""
    for name, check in checks.items():
        try:
            check(mutant, FLOW)
        except AssertionError:
            yield name


@pytest.mark.parametrize(("checks", "source"), [(CHECKS, SAMPLERS), (SAMPLING_CHECKS, SAMPLING)])
def test_the_original_passes(checks, source):
    assert not list(rejected(checks, module(source)))


@pytest.mark.parametrize(("text", "broken"), MUTANTS.values(), ids=MUTANTS)
def test_a_broken_sampler_is_rejected(text, broken):
    assert text in SAMPLERS
    assert next(rejected(CHECKS, module(SAMPLERS.replace(text, broken))), None)


@pytest.mark.parametrize(("text", "broken"), SAMPLING_MUTANTS.values(), ids=SAMPLING_MUTANTS)
def test_broken_sampling_is_rejected(text, broken):
    assert text in SAMPLING
    assert next(rejected(SAMPLING_CHECKS, module(SAMPLING.replace(text, broken))), None)
