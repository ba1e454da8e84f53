"""A loss or gradient that is not finite is found in its step, named, and never reaches the weights."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from faults import after_step, assert_equal, assert_same_run, ends, fails, stopped_after
from PIL import Image

from simple_diffusion.data.sources import load_images
from simple_diffusion.model.build import ModelSpec
from simple_diffusion.model.model_file import read
from simple_diffusion.randomness import permutation
from simple_diffusion.run.checkpoint import latest
from simple_diffusion.validation import keep_out

STEPS, BATCH, COUNT = 10, 16, 40
OPTIONS = [f"--set={pair}" for pair in ("held_out=0.2", "sampler_steps=1", "lr=0.01")]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of 40 images."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(folder / f"photo-{i:02d}.png")
    return folder


def command(data: Path, out: Path, *more: str) -> list[str]:
    return ["train", str(data), "--steps", str(STEPS), "--out", str(out), *TINY, *OPTIONS, *more]


def loss_of(row: int, value: float) -> Callable:
    """Gives the loss of one row of a batch a value."""

    def spoil(denoiser, losses, draws):
        mask = torch.tensor([sample == row for sample in draws.samples])
        return torch.where(mask, torch.full_like(losses, value), losses)

    return spoil


def gradient(denoiser, losses, draws):
    """Leaves the loss as it is, and makes the gradient NaN, by a hook."""
    losses = losses * 1.0
    losses.register_hook(lambda g: g * math.nan)
    return losses


def spoiled(monkeypatch, steps: range, spoil: Callable) -> None:
    """Spoil the loss of these steps."""
    real = ModelSpec.training_loss

    def spoilt_loss(spec):
        loss = real(spec)

        def spoilt(denoiser, x0, cond, draws):
            losses = loss(denoiser, x0, cond, draws)
            return spoil(denoiser, losses, draws) if draws.step in steps else losses

        return spoilt

    monkeypatch.setattr(ModelSpec, "training_loss", spoilt_loss)


def shown(data: Path, step: int) -> list[str]:
    """The names of the images of a step's batch, by the order of the data."""
    kept = COUNT - round(0.2 * COUNT)
    left = permutation(COUNT, 0, "held out")[COUNT - kept :]
    places = range((step - 1) * BATCH, step * BATCH)
    return [f"photo-{left[permutation(kept, 0, 'order', place // kept)[place % kept]]:02d}.png" for place in places]


KINDS = {
    "nan": (loss_of(3, math.nan), "loss"),
    "inf": (loss_of(3, math.inf), "loss"),
    "gradient": (gradient, "gradient"),
}


SPOILED = pytest.mark.parametrize(
    ("spoil", "what"),
    [pytest.param(*kind, id=name, marks=[pytest.mark.slow] * (name == "inf")) for name, kind in KINDS.items()],
)


@pytest.fixture(scope="module")
def good(photos, tmp_path_factory) -> Path:
    """The folder of a run that was stopped after its fifth step."""
    folder = tmp_path_factory.mktemp("good") / "run"
    stopped_after(5, command(photos, folder))
    return folder


@pytest.fixture(scope="module")
def unbroken(photos, tmp_path_factory) -> Path:
    """The folder of a run whose loss is always finite."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert ends(command(photos, folder)) == 0
    return folder


@SPOILED
def test_the_first_non_finite_step_ends_the_run(photos, tmp_path, monkeypatch, capsys, good, unbroken, spoil, what):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        spoiled(patch, range(6, 7), spoil)
        said = fails(
            capsys, command(photos, folder), 4, f"the {what} of step 6 is not finite", "at noise level ", "lr="
        )
    names = shown(photos, 6)
    named = [name for name in {f"photo-{i:02d}.png" for i in range(COUNT)} if name in said]
    assert set(named) == ({names[3]} if what == "loss" else set(names[:4]))
    assert ("and 12 more" in said) == (what == "gradient")
    assert float(said.split("at noise level ")[1].split(",")[0].split(" ")[0]) > 0
    assert read(folder).step == 5  # the model is that of the last good step
    assert_equal(read(folder).denoiser.state_dict(), read(good).denoiser.state_dict())
    assert latest(folder).numbers.n == 0  # the checkpoint is that of the start, and whole
    assert ends([*command(photos, folder), "--resume"]) == 0  # where the cause is gone
    assert_same_run(folder, unbroken)


@SPOILED
def test_steps_up_to_max_skipped_are_skipped_without_effect(photos, tmp_path, monkeypatch, capsys, good, spoil, what):
    folder, more = tmp_path / "run", "--set=max_skipped=2"
    spoiled(monkeypatch, range(6, 8), spoil)
    capsys.readouterr()
    stopped_after(7, command(photos, folder, more))
    after, before = latest(folder), latest(good)
    assert after.numbers.n == 7
    assert_equal(after.tensors, before.tensors)  # weights, their average, and the optimiser's memory
    assert ends([*command(photos, folder, more), "--resume"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "was skipped" in line]
    assert [line.split(" was")[0] for line in said] == ["Step 6", "Step 7"]
    assert all(shown(photos, step)[3] in line for step, line in zip((6, 7), said, strict=True))
    assert latest(folder).numbers.done
    assert not torch.equal(latest(folder).tensors["model.net.head.weight"], before.tensors["model.net.head.weight"])


def test_one_skip_more_than_max_skipped_ends_the_run(photos, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    spoiled(monkeypatch, range(3, 9), loss_of(0, math.nan))
    with after_step(2, lambda: None):
        fails(capsys, command(photos, folder, "--set=max_skipped=2"), 4, "loss of step 5", shown(photos, 5)[0])
    stopped_after(2, command(photos, tmp_path / "good", "--set=max_skipped=2"))
    assert_equal(read(folder).denoiser.state_dict(), read(tmp_path / "good").denoiser.state_dict())


def test_a_finite_step_resets_the_count_of_skipped_steps(photos, tmp_path, monkeypatch):
    spoiled(monkeypatch, [2, 3, 5, 6, 8, 9], loss_of(0, math.nan))
    assert ends(command(photos, tmp_path / "run", "--set=max_skipped=2")) == 0
    assert all(p.isfinite().all() for p in read(tmp_path / "run").denoiser.parameters())


def test_an_image_of_an_array_is_named_by_its_number_in_the_file(squares, tmp_path, monkeypatch, capsys):
    """Also where some of the images are held out."""
    images = load_images(str(squares))
    rest, _ = keep_out(images, 0.2, 0)
    spoiled(monkeypatch, range(1, 2), loss_of(2, math.nan))
    said = fails(capsys, command(squares, tmp_path / "run"), 4, "image ")
    number = int(said.split("image ")[1].split(" ")[0])
    index = permutation(len(rest), 0, "order", 0)[2]
    assert torch.equal(images.pixels[number], rest.pixels[index])
