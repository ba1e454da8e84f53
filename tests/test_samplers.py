import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, current_thread

import pytest
import torch
from checks import (
    CHECKS,
    EXACT_FOR,
    ON_EVERY_SCHEDULE,
    ORDERS,
    PARTLY,
    SAMPLING_CHECKS,
    STOCHASTIC,
    Spy,
    Z,
    ancestral_moments,
    functions,
)
from oracles import ALL, Gaussian, Mixture, close, f64, normal

from simple_diffusion import samplers, sampling
from simple_diffusion.denoiser import Denoiser
from simple_diffusion.networks.unet import UNet
from simple_diffusion.randomness import Draws
from simple_diffusion.schedules import Flow, Karras, Linear
from simple_diffusion.targets import v

every_schedule = pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)
every_sampler = pytest.mark.parametrize("sampler", functions(samplers), ids=samplers.SAMPLERS)


def test_every_sampler_states_its_order():
    assert ORDERS.keys() | STOCHASTIC.keys() | PARTLY.keys() == samplers.SAMPLERS.keys()
    assert set(STOCHASTIC.values()) == EXACT_FOR.keys() == samplers.VARIANCES.keys()


def test_ddpm_refuses_an_unknown_variance():
    with pytest.raises(ValueError, match="must be one of posterior, beta, got 'learned'"):
        next(samplers.ddpm(Gaussian(Linear()), Z, f64(1.0), variance="learned"))


@every_schedule
@pytest.mark.parametrize("name", ON_EVERY_SCHEDULE)
def test_samplers_on_every_schedule(name, schedule):
    CHECKS[name](samplers, schedule)


@pytest.mark.parametrize("name", [name for name in CHECKS if name not in ON_EVERY_SCHEDULE])
def test_samplers(name):
    CHECKS[name](samplers, Flow())


@pytest.mark.parametrize("check", SAMPLING_CHECKS.values(), ids=SAMPLING_CHECKS)
def test_sampling(check):
    check(sampling, Flow())


@every_sampler
def test_one_step_is_the_posterior_mean(sampler):
    (x,) = sampler(Mixture(Flow()), 5 * Z, f64(0.8))
    close(x, Mixture(Flow())(5 * Z, f64(0.8)))


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_only_stochastic_samplers_use_noise(name):
    drawn = []

    def noise(step, x):
        drawn.append(step)
        return torch.zeros_like(x)

    list(samplers.SAMPLERS[name].function(Gaussian(Linear()), Z, samplers.uniform_grid(Linear(), 5), None, noise))
    assert drawn == ([0, 1, 2, 3] if name in STOCHASTIC | PARTLY else [])


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("info", samplers.SAMPLERS.values(), ids=samplers.SAMPLERS)
def test_nfe_is_the_number_of_calls_of_the_denoiser(info, steps):
    spy = Spy(Gaussian(Karras()))
    list(info.function(spy, Z, samplers.karras_grid(Karras(), steps)))
    assert len(spy.calls) == info.nfe(steps)


@every_sampler
def test_the_denoiser_gets_times_with_the_dtype_of_the_images(sampler):
    spy = Spy(Gaussian(Linear()))
    list(sampler(spy, torch.zeros(2, 3, device="meta"), samplers.uniform_grid(Linear(), 3)))
    assert {(t.dtype, t.device.type) for _, t, _ in spy.calls} == {(torch.float32, "meta")}


def test_default_noise_differs_between_calls():
    torch.manual_seed(0)
    a, b = samplers.unit_noise(0, torch.zeros(10_000)), samplers.unit_noise(0, torch.zeros(10_000))
    assert abs((a * b).mean()) < 0.05
    for x in (a, b):
        assert abs(x.mean()) < 0.05
        assert abs(x.var() - 1) < 5 * math.sqrt(2 / 10_000)


def test_karras_grid_on_karras_is_equation_5_to_its_ends():
    n, low, high, rho = 18, 0.002, 80.0, 7.0
    want = [(high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n)]
    close(Karras().ratio(samplers.karras_grid(Karras(), n)), f64(*want))


@pytest.mark.parametrize("sampler", [samplers.SAMPLERS[name].function for name in STOCHASTIC], ids=STOCHASTIC)
def test_ancestral_sampling_by_monte_carlo(sampler):
    n, steps, schedule = 10_000, 100, Flow()
    oracle, times = Gaussian(schedule), samplers.karras_grid(schedule, steps)
    generator = torch.Generator().manual_seed(0)
    x = oracle.at(normal(n, 1), times[0])
    noise = lambda step, x: torch.randn(x.shape, dtype=x.dtype, generator=generator)  # noqa: E731
    *_, x = sampler(oracle, x, times, None, noise)
    mean, variance = ancestral_moments(samplers, schedule, steps, sampler)
    assert abs(x.mean() - mean) < 5 * math.sqrt(variance / n)
    assert abs(x.var() / variance - 1) < 5 * math.sqrt(2 / n)
    assert abs(x.std() / oracle.std - 1) < 0.1


@pytest.mark.parametrize("cond", [None, torch.arange(70) % 4], ids=["bare", "labelled"])
@pytest.mark.parametrize("sampler", [samplers.ddpm, samplers.dpmpp])
def test_images_are_bit_exact_for_any_number_of_samples(sampler, cond):
    torch.manual_seed(0)
    net = UNet(1, classes=3, widths=(32, 32), blocks=(1, 1))
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    denoiser, times = Denoiser(net, Karras(), v, 0.5).eval(), samplers.karras_grid(Karras(), 3)

    def draw(n):
        labels = None if cond is None else cond[:n]
        return sampling.sample(denoiser, (n, 1, 8, 8), times, labels, sampler=sampler, batch=32)

    whole = draw(70)
    assert torch.equal(draw(5), whole[:5])
    assert torch.equal(draw(1), whole[:1])
    assert whole.isfinite().all()
    assert not whole.requires_grad


def test_samples_are_yielded_in_batches():
    times = samplers.uniform_grid(Linear(), 3)
    parts = list(sampling.sample_batches(Gaussian(Linear()), (10, 2), times, batch=4))
    assert [len(part) for part in parts] == [4, 4, 2]
    assert torch.equal(torch.cat(parts), sampling.sample(Gaussian(Linear()), (10, 2), times, batch=4))


def test_samples_do_not_depend_on_the_number_of_cores():
    torch.manual_seed(0)
    net = UNet(1, 0, widths=(8, 16), blocks=(1, 1))
    torch.nn.init.normal_(net.head.weight, std=0.1)
    denoiser = Denoiser(net, Karras(), v, 0.5).eval()
    grid, before, drawn = samplers.karras_grid(denoiser.schedule, 4), torch.get_num_threads(), []
    threads = set()

    def telling(x, t, cond):
        threads.add(torch.get_num_threads())
        return denoiser(x, t, cond)

    telling.schedule = denoiser.schedule
    try:
        for cores in (1, 2, 3):
            torch.set_num_threads(cores)
            drawn.append(sampling.sample(denoiser, (37, 1, 8, 8), grid, batch=8))
            *_, last = sampling.trajectory(telling, (37, 1, 8, 8), grid, batch=8, first=32)
            assert torch.equal(last, drawn[0][32:])  # a film ends in the same bits
            with ThreadPoolExecutor(1) as fresh:  # a new thread takes the process's setting
                assert fresh.submit(torch.get_num_threads).result() == torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(before)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    assert threads == {1}


def test_a_subset_of_the_batches_has_the_same_samples():
    denoiser, times = Gaussian(Linear()), samplers.uniform_grid(Linear(), 3)
    whole = sampling.sample(denoiser, (10, 2), times, batch=4)
    last, first = sampling.sample_batches(denoiser, (10, 2), times, batch=4, firsts=[8, 0])
    assert torch.equal(last, whole[8:])
    assert torch.equal(first, whole[:4])


def test_noise_depends_on_seed_step_and_purpose():
    """By name: other names would be other images for every seed that was ever written down."""
    heard = []

    def deaf(denoiser, x, times, cond, noise):
        heard.extend(noise(step, x) for step in range(3))
        yield x

    times = f64(0.5)
    start = sampling.sample(Gaussian(Linear()), (4, 3), times, sampler=deaf, seed=7, batch=4)
    close(start, Draws(7, 0, range(4)).normal("start", (3,)), 1e-6)  # alpha^2 + sigma^2 = 1
    for step, noise in enumerate(heard):
        assert torch.equal(noise, Draws(7, step, range(4)).normal("sampler", (3,)))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_batches_run_in_parallel_on_cores_and_in_sequence_on_another_device(device):
    """Two batches meet in the denoiser, or never do; the device that holds no numbers stands for a GPU."""
    before, meeting, here = torch.get_num_threads(), Barrier(2), set()

    def telling(x, t, cond):
        assert x.device.type == t.device.type == device
        here.add(current_thread())
        if device == "cpu":
            meeting.wait(timeout=60)
        return x

    telling.schedule = Linear()
    try:
        torch.set_num_threads(2)
        drawn = list(sampling.sample_batches(telling, (8, 2), f64(1.0), batch=4, device=device))
    finally:
        torch.set_num_threads(before)
    assert [x.device.type for x in drawn] == [device, device]
    assert len(here) == (2 if device == "cpu" else 1)


def test_an_error_in_a_batch_reaches_the_caller():
    def broken(x_t, t, cond=None):
        raise ArithmeticError("broken")

    broken.schedule = Karras()
    with pytest.raises(ArithmeticError, match="broken"):
        sampling.sample(broken, (100, 1), samplers.karras_grid(broken.schedule, 3))


@pytest.mark.parametrize("labels", [3, 5])
def test_each_image_needs_a_label(labels):
    with pytest.raises(ValueError, match=f"4 images need 4 labels, not {labels}"):
        sampling.sample(Mixture(Karras()), (4, 1), f64(1, 0.5), torch.zeros(labels, dtype=torch.long))
