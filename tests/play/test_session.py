"""Drawing on request: what is shown is what the library draws, and what can't be asked for is refused."""

import base64
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
from simple_diffusion.model.model_file import read
from simple_diffusion.play.session import FRAMES, MOST_IMAGES, SampleRequest, Session

ASK = SampleRequest(seed=5, n=4, labels=(2, 0, 3), guidance=1.5, sampler="dpmpp", steps=4)


@pytest.fixture
def studio(run_folder) -> Session:
    return Session(str(run_folder))


@cache
def inside() -> dict[str, str]:
    """An image 12 x 16 of three colours and a mask, whose upper half is drawn."""
    image = np.random.default_rng(0).integers(0, 256, (3, 12, 16), dtype=np.uint8)
    mask = np.packbits(np.arange(12 * 16) < 96)
    return {"image": base64.b64encode(image.tobytes()).decode(), "mask": base64.b64encode(mask.tobytes()).decode()}


def pixels_of(frame, kind: str = "noisy", n: int = 4) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(frame[kind])), dtype=torch.uint8).view(n, 3, 12, 16)


def test_the_last_frame_is_what_sample_draws(studio, run_folder):
    """Up to the last bits, which depend on how many are drawn together."""
    first, *frames, last = studio.draw(ASK)
    assert (first["n"], first["steps"], first["labels"]) == (4, 4, (2, 0, 3))
    assert [frame["step"] for frame in frames] == [0, 1, 2, 3, 4]
    levels = [frame["level"] for frame in frames]
    assert levels == sorted(levels, reverse=True)
    assert levels[-1] == 0
    assert last["seconds"] > 0
    assert last["distance"] is None
    model = read(run_folder)
    changed = model.changed(guidance=1.5, sampler="dpmpp", sampler_steps=4)
    drawn = generate(changed, 4, torch.tensor([2, 0, 3, 2]), 5)
    assert (pixels_of(frames[-1]).int() - drawn.int()).abs().max() <= 1
    assert torch.equal(pixels_of(frames[-1]), pixels_of(frames[-1], "guess"))  # the last step ends at its guess


ASKS = {
    "a drawing": ASK,
    "a way between": replace(ASK, to_seed=9, labels=(1,)),
    "a filling": replace(ASK, **inside(), labels=(1,)),
}


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
@pytest.mark.parametrize("ema", [None, 0.08])
def test_the_lines_of_python_draw_the_same(run_folder, ask, ema):
    studio = Session(str(run_folder), ema)
    first, *frames, _ = studio.draw(ask)
    found: dict = {}
    exec(first["code"], found)  # as a user does who copies them
    assert torch.equal(found["pixels"], pixels_of(frames[-1]))


@pytest.mark.parametrize("ema", [None, 0.08])
def test_the_command_draws_the_same(run_folder, tmp_path, ema, monkeypatch):
    import shlex

    monkeypatch.chdir(tmp_path)
    first, *frames, _ = Session(str(run_folder), ema).draw(ASK)
    program, *argv = shlex.split(first["command"])
    assert program == "simple-diffusion"
    assert argv[-2:] == ["--out", "grid.png"]
    assert ends([*argv[:-1], "grid.npz"]) == 0
    drawn = torch.from_numpy(np.load("grid.npz")["images"]).permute(0, 3, 1, 2)
    assert (pixels_of(frames[-1]).int() - drawn.int()).abs().max() <= 1


def test_the_label_that_means_none_has_its_name_in_the_command(studio):
    assert "--label 1,none" in studio.command(replace(ASK, labels=(1, 3)))


def test_a_class_whose_number_is_the_name_of_another_has_its_name_in_the_command(studio):
    info = replace(studio.model.info, class_names=("1", "2", "7"))
    studio.model = replace(studio.model, spec=replace(studio.model.spec, info=info))
    words = studio.command(ASK).split()  # of the labels 2, 0, 3; "1" is the name of class 0, and "2" of class 1
    assert words[words.index("--label") + 1] == "7,0,none"


def test_the_lines_say_where_and_in_what_precision_it_draws(run_folder):
    studio = Session(str(run_folder), None, "cpu", "bf16")
    first, *frames, _ = studio.draw(ASK)
    found: dict = {}
    exec(first["code"], found)
    assert found["model"].config.precision == "bf16"
    assert torch.equal(found["pixels"], pixels_of(frames[-1]))
    assert "--device cpu --precision bf16" in first["command"]


def test_there_is_no_command_for_what_none_does(studio):
    assert [studio.command(ask) is None for ask in ASKS.values()] == [False, True, True]


def test_a_way_begins_and_ends_at_the_seeds_own_images(studio):
    _, *_, frame, _ = studio.draw(ASKS["a way between"])
    for place, seed in ((0, 5), (3, 9)):
        _, *_, alone, _ = studio.draw(replace(ASK, seed=seed, n=1, labels=(1,)))
        away = pixels_of(frame)[place].int() - pixels_of(alone, n=1)[0].int()
        assert away.abs().max() <= 1


def test_a_filling_keeps_what_is_not_painted(studio):
    _, *_, frame, _ = studio.draw(ASKS["a filling"])
    given = torch.frombuffer(bytearray(base64.b64decode(inside()["image"])), dtype=torch.uint8).view(3, 12, 16)
    drawn = pixels_of(frame)
    assert torch.equal(drawn[:, :, 6:], given[:, 6:].expand(4, 3, 6, 16))
    assert (drawn[:, :, :6].int() - given[:, :6].int()).abs().float().mean() > 20


def test_the_distance_to_the_fine_solution_falls_with_steps(studio):
    away = []
    for steps in (2, 8, 40):
        *_, last = studio.draw(replace(ASK, steps=steps, measure=True))
        away.append(last["distance"])
    assert away[0] > 2 * away[1] > 4 * away[2] > 0
    *_, last = studio.draw(replace(ASK, sampler="ddpm", measure=True))
    assert last["distance"] is None  # it adds noise of its own


def test_of_many_steps_some_are_shown(studio):
    _, *frames, _ = studio.draw(replace(ASK, n=1, labels=(0,), sampler="ddim", steps=200))
    assert len(frames) == FRAMES + 1
    assert (frames[0]["step"], frames[-1]["step"]) == (0, 200)


def test_a_model_without_classes(squares, tmp_path):
    run = tmp_path / "one"
    main(["train", f"{squares}[0]", "--steps", "2", "--out", str(run), *TINY])
    studio = Session(str(run))
    assert studio.facts()["classes"] == ()
    ask = replace(ASK, labels=())
    studio.check(ask)
    first, *frames, _ = studio.draw(ask)
    found: dict = {}
    exec(first["code"], found)
    assert torch.equal(found["pixels"], pixels_of(frames[-1]))
    assert "--label" not in first["command"]
    with pytest.raises(UsageError, match="no labels"):
        studio.check(ASK)


REFUSED = {
    "no images": ({"n": 0}, "n is from 1 to 64"),
    "too many images": ({"n": MOST_IMAGES + 1}, "n is from 1 to 64"),
    "no steps": ({"steps": 0}, "steps is from 1"),
    "a million steps": ({"steps": 10**6}, "steps is from 1 to 1,000"),
    "negative guidance": ({"guidance": -0.1}, "guidance is from 0"),
    "strong guidance": ({"guidance": 101.0}, "guidance is from 0 to 100"),
    "a negative seed": ({"seed": -1}, "seed is from 0"),
    "a large seed": ({"seed": 2**53}, "seed is from 0"),
    "another negative seed": ({"to_seed": -1}, "seed is from 0"),
    "another sampler": ({"sampler": "euler"}, "no sampler 'euler'"),
    "a way with fresh noise": ({"to_seed": 1, "sampler": "ddpm"}, "adds noise of its own"),
    "a way inside an image": ({"to_seed": 1, "image": "", "mask": ""}, "ask for one"),
    "an image alone": ({"image": ""}, "belong together"),
    "a mask alone": ({"mask": ""}, "belong together"),
}


@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED)
def test_what_nobody_can_ask_for(changes, words):
    with pytest.raises(UsageError, match=words):
        replace(ASK, **changes)


UNSUITED = {
    "no label": ({"labels": ()}, "from 1 to 4"),
    "more labels than images": ({"labels": (0,) * 5}, "from 1 to 4"),
    "a label too high": ({"labels": (4,)}, "a label is from 0 to 3"),
    "a negative label": ({"labels": (-1,)}, "a label is from 0 to 3"),
    "an image of another size": ({"image": "AAAA", "mask": inside()["mask"]}, "image takes 576 bytes"),
    "an image that is no base64": ({"image": "é" * 768, "mask": inside()["mask"]}, "image takes 576 bytes"),
    "a mask of another size": (inside() | {"mask": "AAAA"}, "mask takes 24 bytes"),
}


@pytest.mark.parametrize(("changes", "words"), UNSUITED.values(), ids=UNSUITED)
def test_what_this_model_cannot_draw(studio, changes, words):
    with pytest.raises(UsageError, match=words):
        studio.check(replace(ASK, **changes))


def test_large_images_are_drawn_in_smaller_numbers(studio):
    studio.most = 3
    with pytest.raises(UsageError, match="from 1 to 3 for images of this size"):
        studio.check(ASK)
