"""Sampling for the page: it shows what the library samples, and refuses what the model can't do."""

import base64
import shlex
import subprocess
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from conftest import TINY
from faults import ends

from simple_diffusion.cli.main import main
from simple_diffusion.errors import UsageError
from simple_diffusion.model.generate import generate
from simple_diffusion.play import session as module
from simple_diffusion.play.reproduce import command
from simple_diffusion.play.request import MAX_IMAGES, SampleRequest
from simple_diffusion.play.session import Session

REQUEST = SampleRequest(seed=5, n=4, labels=(2, 0, 3), guidance=1.5, sampler="dpmpp", steps=4)


@pytest.fixture(scope="module")
def session(run_folder) -> Session:
    return Session(str(run_folder))


@cache
def inpainting() -> dict[str, str]:
    """An image of 12 x 16 pixels in three colors, and a mask over its upper half."""
    image = np.random.default_rng(0).integers(0, 256, (3, 12, 16), dtype=np.uint8)
    mask = np.packbits(np.arange(12 * 16) < 96)
    return {"image": base64.b64encode(image.tobytes()).decode(), "mask": base64.b64encode(mask.tobytes()).decode()}


REQUESTS = {
    "sample": REQUEST,
    "interpolate": replace(REQUEST, to_seed=9, labels=(1,)),
    "inpaint": replace(REQUEST, **inpainting(), labels=(1,)),
}


def pixels_of(frame, kind: str = "x_t", n: int = 4) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(frame[kind])), dtype=torch.uint8).view(n, 3, 12, 16)


def pixels_of_code(code: str) -> torch.Tensor:
    """What the Python code leaves in `pixels` if a user runs it."""
    names: dict = {}
    exec(code, names)
    return names["pixels"]


def assert_sorted_as_ruff_sorts(code: str, folder) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "I,F", "-"]
    found = subprocess.run(command, input=code, cwd=folder, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_frames_lead_to_what_the_command_sample_generates(session, run_folder):
    """Up to rounding, which depends on the number of images in a batch."""
    first, *frames, last = session.sample(REQUEST)
    assert (first["n"], first["steps"], first["labels"]) == (4, 4, (2, 0, 3))
    assert [frame["step"] for frame in frames] == [0, 1, 2, 3, 4]
    levels = [frame["level"] for frame in frames]
    assert levels == sorted(levels, reverse=True)
    assert levels[-1] == 0
    assert last["seconds"] > 0
    assert last["distance"] is None
    model = session.model.changed(guidance=1.5, sampler="dpmpp", sampler_steps=4)
    generated = generate(model, 4, torch.tensor([2, 0, 3, 2]), 5)
    assert (pixels_of(frames[-1]).int() - generated.int()).abs().max() <= 1
    assert torch.equal(pixels_of(frames[-1]), pixels_of(frames[-1], "x0_hat"))  # the last step ends at x0_hat


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_the_python_code_is_bit_exact_with_the_page(session, request_, tmp_path):
    first, *frames, _ = session.sample(request_)
    assert torch.equal(pixels_of_code(first["code"]), pixels_of(frames[-1]))
    assert_sorted_as_ruff_sorts(first["code"], tmp_path)


def test_command_and_code_name_ema_length_device_and_precision(run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = Session(str(run_folder), 0.08, "cpu", "bf16")
    assert session.model.config.precision == "bf16"
    first, *frames, _ = session.sample(REQUEST)
    assert torch.equal(pixels_of_code(first["code"]), pixels_of(frames[-1]))
    assert_sorted_as_ruff_sorts(first["code"], tmp_path)
    program, *argv = shlex.split(first["command"])
    assert program == "simple-diffusion"
    assert "--ema 0.08 --device cpu --precision bf16" in first["command"]
    assert argv[-2:] == ["--out", "grid.png"]
    assert ends([*argv[:-1], "grid.npz"]) == 0
    generated = torch.from_numpy(np.load("grid.npz")["images"]).permute(0, 3, 1, 2)
    assert (pixels_of(frames[-1]).int() - generated.int()).abs().max() <= 8  # bf16 rounds to 8 bits


def test_the_command_names_a_label_by_number_unless_it_is_ambiguous(session):
    assert "--label 2,0,none" in command(session.source, REQUEST)
    source = replace(session.source, class_names=("1", "2", "7"))  # numbers are names here
    assert "--label 7,1,none" in command(source, REQUEST)


def test_there_is_no_command_to_interpolate_or_inpaint(session):
    assert [command(session.source, request) is None for request in REQUESTS.values()] == [False, True, True]


def test_an_interpolation_begins_and_ends_at_the_images_of_both_seeds(session):
    _, *_, frame, _ = session.sample(REQUESTS["interpolate"])
    for place, seed in ((0, 5), (3, 9)):
        _, *_, alone, _ = session.sample(replace(REQUEST, seed=seed, n=1, labels=(1,)))
        away = pixels_of(frame)[place].int() - pixels_of(alone, n=1)[0].int()
        assert away.abs().max() <= 1


def test_inpainting_keeps_the_pixels_outside_the_mask(session):
    _, *_, frame, _ = session.sample(REQUESTS["inpaint"])
    given = torch.frombuffer(bytearray(base64.b64decode(inpainting()["image"])), dtype=torch.uint8).view(3, 12, 16)
    pixels = pixels_of(frame)
    assert torch.equal(pixels[:, :, 6:], given[:, 6:].expand(4, 3, 6, 16))
    assert (pixels[:, :, :6].int() - given[:, :6].int()).abs().float().mean() > 20


def test_the_distance_to_the_reference_solution_falls_with_the_steps(session, monkeypatch):
    monkeypatch.setattr(module, "FINE", ("heun", 20))
    away = []
    for steps in (2, 8):
        *messages, last = session.sample(replace(REQUEST, steps=steps, measure=True))
        away.append(last["distance"])
        assert sum("measuring" in message for message in messages) == (21 if steps == 2 else 0)  # computed once
    assert away[0] > 2 * away[1] > 0
    *_, last = session.sample(replace(REQUEST, sampler="ddpm", measure=True))
    assert last["distance"] is None  # a stochastic sampler has no reference solution


def test_of_many_steps_some_are_sent(session, monkeypatch):
    monkeypatch.setattr(module, "FRAMES", 5)
    _, *frames, _ = session.sample(replace(REQUEST, n=1, labels=(0,), sampler="ddim", steps=20))
    assert [frame["step"] for frame in frames] == [0, 4, 8, 12, 16, 20]


def test_a_model_without_classes_takes_no_labels(squares, tmp_path):
    run = tmp_path / "one"
    main(["train", f"{squares}[0]", "--steps", "1", "--out", str(run), *TINY])
    session = Session(str(run))
    assert session.facts()["classes"] == ()
    request = replace(REQUEST, labels=())
    session.check(request)
    first, *frames, _ = session.sample(request)
    assert torch.equal(pixels_of_code(first["code"]), pixels_of(frames[-1]))
    assert_sorted_as_ruff_sorts(first["code"], tmp_path)
    assert "--label" not in first["command"]
    with pytest.raises(UsageError, match="no classes"):
        session.check(REQUEST)


INVALID = {
    "no images": ({"n": 0}, "`n` must be from 1 to 64"),
    "too many images": ({"n": MAX_IMAGES + 1}, "`n` must be from 1 to 64"),
    "no steps": ({"steps": 0}, "`steps` must be from 1"),
    "a million steps": ({"steps": 10**6}, "`steps` must be from 1 to 1,000"),
    "negative guidance": ({"guidance": -0.1}, "`guidance` must be from 0"),
    "strong guidance": ({"guidance": 101.0}, "`guidance` must be from 0 to 100"),
    "a negative seed": ({"seed": -1}, "`seed` must be from 0"),
    "a large seed": ({"seed": 2**53}, "`seed` must be from 0"),
    "a negative second seed": ({"to_seed": -1}, "`to_seed` must be from 0"),
    "an unknown sampler": ({"sampler": "euler"}, "no sampler 'euler'"),
    "interpolation with a stochastic sampler": ({"to_seed": 1, "sampler": "ddpm"}, "ddpm is stochastic"),
    "interpolation and inpainting": ({"to_seed": 1, "image": "", "mask": ""}, "only one"),
    "an image alone": ({"image": ""}, "together"),
    "a mask alone": ({"mask": ""}, "together"),
}


@pytest.mark.parametrize(("changes", "words"), INVALID.values(), ids=INVALID)
def test_values_that_no_model_accepts_are_refused(changes, words):
    with pytest.raises(UsageError, match=words):
        replace(REQUEST, **changes)


UNSUITABLE = {
    "no label": ({"labels": ()}, "1 to 4"),
    "more labels than images": ({"labels": (0,) * 5}, "1 to 4"),
    "a label too high": ({"labels": (4,)}, "must be from 0 to 3"),
    "a negative label": ({"labels": (-1,)}, "must be from 0 to 3"),
    "an image of another size": ({"image": "AAAA", "mask": inpainting()["mask"]}, "`image` must be 576 bytes"),
    "an image that is not base64": ({"image": "é" * 768, "mask": inpainting()["mask"]}, "`image` must be 576 bytes"),
    "a mask of another size": (inpainting() | {"mask": "AAAA"}, "`mask` must be 24 bytes"),
}


@pytest.mark.parametrize(("changes", "words"), UNSUITABLE.values(), ids=UNSUITABLE)
def test_values_that_this_model_does_not_accept_are_refused(session, changes, words):
    with pytest.raises(UsageError, match=words):
        session.check(replace(REQUEST, **changes))


def test_the_number_of_large_images_is_limited(session, monkeypatch):
    monkeypatch.setattr(session, "max_images", 3)
    with pytest.raises(UsageError, match="from 1 to 3 for images of this size"):
        session.check(REQUEST)
