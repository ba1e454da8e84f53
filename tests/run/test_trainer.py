"""The budget of a run, on a clock that the test turns."""

import pytest
import torch

import simple_diffusion.run.budget as budget
import simple_diffusion.run.estimate as estimate
import simple_diffusion.run.trainer as run
import simple_diffusion.training as training
from simple_diffusion.data.info import DataInfo
from simple_diffusion.data.sources import load_images
from simple_diffusion.errors import DivergedError, ResourceError
from simple_diffusion.model.build import ModelSpec
from simple_diffusion.model.config import Config, fitted
from simple_diffusion.model.model_file import read
from simple_diffusion.run.estimate import duration
from simple_diffusion.run.folder import free_folder
from simple_diffusion.run.milestones import PICTURES
from simple_diffusion.training import warmup_linear

TINY = {"widths": (8, 16), "blocks": (1, 1), "batch": 8, "sampler_steps": 2}


class Clock:
    """A clock that moves while the gradient of a step is computed."""

    def __init__(self, monkeypatch, step_seconds):
        self.now, self.steps = 0.0, 0
        monkeypatch.setattr(budget.time, "perf_counter", lambda: self.now)
        real = training.backward

        def slow(*args, **kwargs):
            self.now += step_seconds(self.now)
            self.steps += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(training, "backward", slow)

        def slow_generate(model, n, *args, **kwargs):
            self.now += 0.5
            return torch.zeros((n, *model.info.shape), dtype=torch.uint8)

        monkeypatch.setattr(run, "PICTURES", PICTURES)
        monkeypatch.setattr(run, "generate", slow_generate)


@pytest.mark.parametrize(
    "step_seconds",
    [
        pytest.param(lambda now: 0.6, id="steady", marks=pytest.mark.slow),
        pytest.param(lambda now: 0.4 if now < 30 else 1.2, id="slows down half-way"),
        pytest.param(lambda now: 1.2 if now < 30 else 0.4, id="speeds up half-way", marks=pytest.mark.slow),
    ],
)
def test_a_run_by_the_clock_ends_on_time_with_the_rate_at_zero(squares, tmp_path, monkeypatch, step_seconds):
    clock = Clock(monkeypatch, step_seconds)
    clock.now = 8.0  # of loading
    config = fitted(Config(seconds=60.0, **TINY), torch.device("cpu"))
    result = run.train_run(config, load_images(str(squares)), tmp_path / "run", torch.device("cpu"), 0.0, quiet=True)
    assert result.seconds == pytest.approx(60, rel=0.03)
    assert result.step == clock.steps
    rates = [float(row.split(",")[4]) for row in (tmp_path / "run" / "log.csv").read_text().splitlines()[1:]]
    assert rates[0] < 0.5 * config.lr  # in the warm-up
    assert rates[-1] < 0.03 * config.lr
    assert max(rates) > 0.9 * config.lr
    assert f"steps={clock.steps}" in (tmp_path / "run" / "config.toml").read_text()


def test_the_length_of_a_run_includes_its_last_report(squares, tmp_path, monkeypatch):
    clock = Clock(monkeypatch, lambda now: 0.1)

    def slow_report(*args, **kwargs):
        clock.now += 7

    monkeypatch.setattr(run, "write_report", slow_report)
    config = fitted(Config(seconds=0.0, steps=2, **TINY), torch.device("cpu"))
    result = run.train_run(config, load_images(str(squares)), tmp_path / "run", torch.device("cpu"), 0.0, quiet=True)
    assert result.seconds == clock.now


def test_warmup_linear():
    assert warmup_linear(0.0) == 0
    assert warmup_linear(0.03) == pytest.approx(1)
    assert warmup_linear(0.015) == pytest.approx(0.5)
    assert warmup_linear(0.515) == pytest.approx(0.5)
    assert warmup_linear(1.0) == 0


def test_divergence_keeps_the_last_good_weights(squares, tmp_path, monkeypatch):
    images = load_images(str(squares))
    config = fitted(Config(seconds=0.0, steps=10, **TINY), torch.device("cpu"))
    real = ModelSpec.training_loss

    def poisoned(spec):
        loss = real(spec)
        return lambda d, x0, cond, draws: loss(d, x0, cond, draws) * (float("nan") if draws.step == 6 else 1.0)

    monkeypatch.setattr(ModelSpec, "training_loss", poisoned)
    with pytest.raises(DivergedError, match="step 6"):
        run.train_run(config, images, tmp_path / "run", torch.device("cpu"), 0.0, quiet=True)
    model = read(tmp_path / "run")
    assert model.step == 5
    assert all(p.isfinite().all() for p in model.denoiser.parameters())


def test_the_info_is_read_from_the_data(squares):
    info = DataInfo.of(load_images(str(squares)))
    assert (info.shape, info.classes, info.count) == ((3, 12, 16), 3, 96)


def test_a_forecast_on_a_machine_that_stalls_is_of_one_step(squares, monkeypatch):
    monkeypatch.setattr(estimate, "MEASURED", 0.0)
    config = fitted(Config(seconds=0.0, steps=10, **TINY), torch.device("cpu"))
    result = estimate.dry_run(config, load_images(str(squares)), torch.device("cpu"))
    assert result["images"] == 80
    assert result["images_per_second"] > 0


def test_free_folder_takes_the_first_free_number(tmp_path):
    assert free_folder(tmp_path / "runs", "digits").name == "digits-1"
    (tmp_path / "runs" / "digits-2").touch()
    assert free_folder(tmp_path / "runs", "digits").name == "digits-3"
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(ResourceError, match=r"link cannot be used .* choose another --out"):
        free_folder(tmp_path / "link", "digits")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (119.4, "119 s"),
        (120, "2.0 minutes"),
        (7199, "120.0 minutes"),
        (9000, "2.5 hours"),
        (1.2e6, "13.9 days"),
    ],
)
def test_lengths_of_time_have_a_readable_unit(seconds, text):
    assert duration(seconds) == text
