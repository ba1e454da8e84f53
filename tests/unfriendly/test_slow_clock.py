"""Timed runs on slow machines: loading that takes long, few steps, and a resume that loads again."""

import math
import re
import time

import pytest
import torch

import simple_diffusion.run.budget as budget_module
from simple_diffusion.cli import train
from simple_diffusion.cli.main import main
from simple_diffusion.data.sources import load_images
from simple_diffusion.denoiser import Denoiser
from simple_diffusion.model.config import Config
from simple_diffusion.networks.unet import UNet
from simple_diffusion.run.budget import Budget
from simple_diffusion.schedules import Karras
from simple_diffusion.targets import v
from simple_diffusion.training import fit


@pytest.fixture
def clock(monkeypatch):
    """A clock at 0 s, which the test turns."""

    class Clock:
        now = 0.0

    monkeypatch.setattr(budget_module.time, "perf_counter", lambda: Clock.now)
    return Clock


def rates_of(budget: Budget, clock, seconds: float, most: int = 10**6) -> list[float]:
    """The learning rates of the steps until the end, each of which takes some seconds."""
    budget.begin()
    rates: list[float] = []
    while budget.progress < 1 and len(rates) < most:
        clock.now += seconds
        rates.append(budget.advance(len(rates) + 1))
    return rates


@pytest.mark.parametrize("loading", [0.0, 1.0, 8.0, 40.0])
@pytest.mark.parametrize("lr_schedule", ["linear", "constant"])
def test_a_timed_run_has_the_rates_of_a_run_of_as_many_steps(clock, loading, lr_schedule):
    """However long loading took: the warm-up begins at the first step."""
    settings = {"lr_schedule": lr_schedule, "warmup": 0.1}
    timed = Budget(Config(seconds=61.0, **settings), started=0.0)  # one second is reserved
    clock.now = loading
    rates = rates_of(timed, clock, 0.25)
    assert len(rates) == round((60 - loading) / 0.25)
    counted = Budget(Config(seconds=0.0, steps=len(rates), **settings), started=0.0)
    assert rates == pytest.approx(rates_of(counted, clock, 0.25), rel=1e-9)
    assert rates[0] == pytest.approx(3e-3 * 0.5 / len(rates) / 0.1)
    assert sum(rates) / len(rates) > 0.45 * 3e-3


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_no_step_is_lost_at_rate_0(clock, steps):
    timed = rates_of(Budget(Config(seconds=61.0), started=0.0), clock, 60 / steps)
    clock.now = 0.0
    counted = rates_of(Budget(Config(seconds=0.0, steps=steps), started=0.0), clock, 1.0)
    assert timed == pytest.approx(counted)
    assert min(timed) > 0.1 * 3e-3


@pytest.mark.parametrize("seconds", [0.3, 1.7, 25.0])
def test_a_step_that_passes_the_end_has_a_rate_and_is_the_last(clock, seconds):
    budget = Budget(Config(seconds=11.0), started=0.0)
    rates = rates_of(budget, clock, seconds)
    assert len(rates) == math.ceil(10 / seconds - 1e-9)
    assert rates[-1] > 0
    assert budget.progress == 1


def test_a_resume_goes_on_where_the_run_stopped_however_long_it_loads(clock):
    config = Config(seconds=101.0)
    whole = Budget(config, started=0.0)
    rates = rates_of(whole, clock, 0.5, most=90)
    stopped, seconds = whole.progress, whole.elapsed
    clock.now = 1000.0
    resumed = Budget(config, started=1000.0, before=seconds, progress=stopped)
    clock.now = 1020.0  # 20 of the 55 seconds that are left
    more = rates_of(resumed, clock, 0.5)
    assert (stopped, len(more)) == (pytest.approx(0.45), 70)
    falls = -torch.tensor(rates + more, dtype=torch.float64).diff()[7:]  # after the warm-up
    # No jump: of the rate, 0.55/0.97 of the peak are left, and fall evenly over the 70 steps.
    assert falls[:80] == pytest.approx(3e-3 / 0.97 / 200)
    assert falls[-69:] == pytest.approx(3e-3 / 0.97 * 0.55 / 70)
    assert resumed.progress == 1


def test_a_resume_during_the_warm_up_goes_on_with_it(clock):
    config = Config(seconds=101.0, warmup=0.2)
    whole = Budget(config, started=0.0)
    rates = rates_of(whole, clock, 1.0, most=5)
    resumed = Budget(config, started=clock.now, before=whole.elapsed, progress=whole.progress)
    clock.now += 30
    assert rates[-1] < rates_of(resumed, clock, 1.0)[0] < 1.4 * rates[-1]


def test_the_time_that_is_left_is_known(clock):
    counted = Budget(Config(seconds=0.0, steps=10), started=0.0)
    clock.now = 30.0  # of loading
    assert counted.left == math.inf
    rates_of(counted, clock, 2.0, most=4)
    assert counted.left == pytest.approx(12)
    timed = Budget(Config(seconds=61.0), started=30.0)
    assert timed.left == pytest.approx(52)
    clock.now = 1e6
    assert timed.left == 0


@pytest.mark.parametrize("out", [[], ["--out", "run"]])
def test_a_run_whose_time_went_into_loading_is_refused_and_leaves_nothing(squares, tmp_path, monkeypatch, capsys, out):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "STARTED", time.perf_counter() - 60)
    with pytest.raises(SystemExit) as stopped:
        main(["train", str(squares), "--for", "5s", "--preset", "tiny", *out])
    assert stopped.value.code == 2
    refused = r"loading took \d+\.\d s of the 5 s of the run: train longer, such as --for \d+s\n"
    assert re.search(refused, capsys.readouterr().err)
    assert [*tmp_path.iterdir()] == []


def test_a_run_with_little_time_left_says_so(clock):
    for now, said in ((1.0, ""), (8.0, "Loading took 8 s of the 30 s, so that 21 s are left.")):
        budget = Budget(Config(seconds=30.0), started=0.0)
        clock.now = now
        budget.begin()
        assert budget.start_note == said


def test_fit_of_one_step_changes_the_weights(squares):
    images = load_images(str(squares))
    torch.manual_seed(0)
    denoiser = Denoiser(UNet(channels=3, classes=3, widths=(8, 16), blocks=(1, 1)), Karras(), v, images.std)
    before = [p.detach().clone() for p in denoiser.parameters()]
    fit(denoiser, images, steps=1)
    assert any((p - q).abs().max() > 1e-4 for p, q in zip(denoiser.parameters(), before, strict=True))
