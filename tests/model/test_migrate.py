"""Model files and runs of format 2, made by the last version that wrote it, work as before."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from simple_diffusion.cli.main import main
from simple_diffusion.errors import UsageError
from simple_diffusion.model.config import parse_settings
from simple_diffusion.model.migrate import RENAMED, migrated
from simple_diffusion.model.model_file import read
from simple_diffusion.model.posthoc_ema import posthoc_model

OLD = Path(__file__).parents[1] / "end_to_end" / "golden" / "format-2"
"""`squares.npz`; `run`, stopped at step 20 of 40; `model.safetensors` and `images.npz`, what that run came to."""


def images_of(model: Path, out: Path) -> np.ndarray:
    main(["sample", str(model), "--n", "8", "--out", str(out), "--device", "cpu", "--precision", "fp32"])
    return np.load(out)["images"].astype(int)


def test_an_old_model_gives_the_same_images(tmp_path):
    old = np.load(OLD / "images.npz")["images"].astype(int)
    assert (
        abs(images_of(OLD / "model.safetensors", tmp_path / "now.npz") - old).max() <= 1
    )  # other CPUs round otherwise


def test_an_old_run_resumes_to_the_same_model(tmp_path, monkeypatch):
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    main(["train", "--resume", "--out", "run", "--device", "cpu"])
    now, before = read("run", "cpu"), read("model.safetensors", "cpu")
    assert now.step == before.step == 40
    for (name, weight), (_, old) in zip(
        now.denoiser.state_dict().items(), before.denoiser.state_dict().items(), strict=True
    ):
        assert abs(weight - old).max() < 1e-3, name
    assert posthoc_model("run", now, 0.08).step == 40  # two of its five averages are of format 2


def test_only_names_change():
    record = {"format": 2, "config": {"times": "uniform", "target": "velocity", "lr": 0.1}, "card": {"name": "x"}}
    assert migrated(record)["config"] == {"density": "uniform", "target": "v", "lr": 0.1, "center": "no"}
    assert migrated(record)["info"] == {"name": "x"}
    assert migrated({"format": 4, "config": {}}) == {"format": 4, "config": {}}
    with pytest.raises(TypeError, match="configuration"):
        migrated({"format": 2, "config": []})


@pytest.mark.parametrize(
    ("length", "progress"), [({"steps": 40, "seconds": 0.0}, 0.25), ({"steps": 0, "seconds": 60.0}, 0.5)]
)
def test_the_progress_of_an_old_run_is_that_of_its_steps_or_its_seconds(length, progress):
    record = {"format": 3, "config": length, "numbers": {"n": 10, "seconds": 30.0}}
    assert migrated(record)["numbers"]["progress"] == progress


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_setting_answers_with_its_new_name(old, new):
    with pytest.raises(UsageError, match=f"{old} is now called {new}: use --set {new}=1"):
        parse_settings([f"{old}=1"])


def test_an_old_target_answers_with_its_new_name():
    with pytest.raises(UsageError, match="target=v"):
        parse_settings(["target=velocity"])
