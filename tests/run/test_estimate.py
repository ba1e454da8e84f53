"""What is said of a run before it is over."""

import pytest
import torch
from conftest import TINY

import simple_diffusion.run.trainer as run
from simple_diffusion.cli.main import main
from simple_diffusion.model.config import Config
from simple_diffusion.model.model_file import read
from simple_diffusion.run.estimate import OVERHEAD, RECOGNIZABLE, duration, forecast, peak_memory

CPU = torch.device("cpu")


def test_a_run_by_the_clock_sees_what_its_speed_allows():
    expected = forecast(Config(seconds=100.0), 1000, 50.0, CPU, seen=500, elapsed=10)
    assert expected.seconds == 100
    assert expected.images == pytest.approx(500 + 90 * 50 * (1 - OVERHEAD))
    assert expected.epochs == pytest.approx(expected.images / 1000)


def test_a_run_by_steps_takes_what_is_left_of_them():
    expected = forecast(Config(seconds=0.0, steps=100, batch=10), 500, 50.0, CPU, seen=200, elapsed=7)
    assert (expected.images, expected.epochs) == (1000, 2)
    assert expected.seconds == pytest.approx(7 + 800 / 50 / (1 - OVERHEAD))


def test_the_same_pace_at_any_moment_is_the_same_outlook():
    """What was forecast at the start is forecast half-way, if the speed was what it said."""
    config, speed = Config(seconds=1000.0), 40.0
    first = forecast(config, 1000, speed, CPU)
    later = forecast(config, 1000, speed, CPU, seen=first.images / 2, elapsed=500)
    assert later.images == pytest.approx(first.images)


def test_a_run_too_short_for_pictures_is_told_how_long_it_needs():
    short = str(forecast(Config(seconds=10.0), 1000, 100.0, CPU))
    assert f"train for {duration(2 * RECOGNIZABLE / 100)}" in short
    assert "from the start" in str(forecast(Config(seconds=1000.0), 1000, 100.0, CPU))


def test_memory_grows_with_what_is_held():
    before = peak_memory(CPU)
    held = torch.ones(2**27)  # 512 MiB, written to
    assert peak_memory(CPU) - before > 0.4 * held.numel() * 4 or before > 2**31


def test_a_run_says_once_how_it_will_end(squares, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "LOOK", 0.0)
    main(["train", str(squares), "--steps", "12", "--out", str(tmp_path / "run"), *TINY])
    said = capsys.readouterr().err
    assert said.count("images/s, the run sees") == 1
    batch = read(tmp_path / "run").config.batch
    assert f"the run sees {12 * batch:,} images" in said
