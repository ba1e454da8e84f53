"""The race of samplers: who is in it, who is in front, and who is chosen."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import TINY
from faults import ends

from simple_diffusion.cli.main import main
from simple_diffusion.cli.race import save_if_unchanged
from simple_diffusion.data.images import to_uint8
from simple_diffusion.errors import BusyError
from simple_diffusion.evaluation.features import Featured, fid_of
from simple_diffusion.evaluation.sweep import SweepPoint, choice, drawn, drawn_by, entrants, front
from simple_diffusion.model.generate import generate
from simple_diffusion.model.model_file import model_file, read, save
from simple_diffusion.run.folder import hold
from simple_diffusion.samplers import SAMPLERS


def lap(cost, fid, sampler="ddim", side=None):
    return SweepPoint(sampler, cost, fid, 0.0, 0.0, None, side)


def test_entrants_spend_what_they_are_given():
    assert entrants((5, 10)) == [
        ("ddpm", 5), ("ddim", 5), ("heun", 3), ("dpmpp", 5), ("dpmpp-sde", 5),
        ("ddpm", 10), ("ddim", 10), ("heun", 5), ("dpmpp", 10), ("dpmpp-sde", 10),
    ]  # fmt: skip


def test_the_front_is_what_nothing_cheaper_beats():
    laps = [lap(10, 0.3), lap(5, 0.5), lap(10, 0.2), lap(20, 0.25), lap(30, 0.1), lap(7, 0.5)]
    assert [(one.cost, one.fid) for one in front(laps)] == [(5, 0.5), (10, 0.2), (30, 0.1)]


def test_the_cheapest_that_cannot_be_told_from_the_best_is_chosen():
    """The same samples but for a little noise are as good; shifted ones are not."""
    x = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
    little = 1e-3 * torch.randn(600, 4, generator=torch.Generator().manual_seed(1))
    real = Featured(torch.randn(4000, 4, generator=torch.Generator().manual_seed(2)), torch.zeros(4000, 1))
    made = {}
    for cost, features in ((5, x + 1), (10, x + little), (20, x)):
        side = Featured(features, torch.zeros(600, 1))
        fid = fid_of(real, side)
        made[cost] = lap(cost, fid, side=side)
    made[20] = lap(20, min(made[10].fid, made[20].fid) - 1e-9, side=made[20].side)
    assert choice(list(made.values()), real) is made[10]
    del made[10]
    assert choice(list(made.values()), real) is made[20]


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    """Solvers come nearer to the fine solution with more steps, and --write changes what the model draws with alone."""
    run, out = tmp_path / "digits", tmp_path / "race.png"
    main(["train", "digits", "--steps", "60", "--out", str(run), *TINY])
    before = read(run)
    capsys.readouterr()
    main(["race", str(run), "--n", "400", "--evaluations", "6,48", "--out", str(out), "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert read(run).config == before.config
    assert len(answer["laps"]) == 10
    solvers = [name for name, info in SAMPLERS.items() if info.solves_ode]
    for name in solvers:
        far, near = (entry["distance"] for entry in answer["laps"] if entry["sampler"] == name)
        assert near < 0.8 * far, name
    assert all(entry["distance"] is None for entry in answer["laps"] if entry["sampler"] not in solvers)
    assert any(entry["on_front"] for entry in answer["laps"])
    assert out.read_bytes().startswith(b"\x89PNG")
    words = ["race", str(run), "--n", "400", "--evaluations", "6,48", "--out", str(out), "--write", "--json"]
    with hold(run):
        assert ends(words) == 7
    assert read(run).config == before.config
    capsys.readouterr()
    main(words)
    again = json.loads(capsys.readouterr().out)
    assert again["laps"] == answer["laps"]
    after = read(run)
    assert {key: getattr(after.config, key) for key in again["choice"]} == again["choice"]
    for one, other in zip(before.denoiser.parameters(), after.denoiser.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_was_trained_meanwhile_is_not_overwritten(run_folder, tmp_path):
    run = shutil.copytree(run_folder, tmp_path / "run")
    model = read(run)
    save(model_file(run), replace(model, step=model.step + 1))
    with pytest.raises(BusyError, match="race it again"):
        save_if_unchanged(str(run), model)
    assert read(run).step == model.step + 1


def test_a_race_draws_what_sample_draws(run_folder):
    """To the bit, before it becomes bytes; and the fine solution is none of another sampler."""
    model = read(run_folder)
    labels = torch.arange(70) % model.info.classes
    changes = drawn_by("dpmpp", 4)
    x = drawn(model, changes, 70, labels, 3)
    assert torch.equal(to_uint8(x), generate(model.changed(**changes), 70, labels, 3))
    assert not torch.equal(x, drawn(model, drawn_by("ddim", 4), 70, labels, 3))


@pytest.mark.slow
def test_the_race_of_strengths(tmp_path, capsys):
    """Guidance 1 is none, in any interval; more of it is seen better by the classifier; --write stores the choice."""
    run, out = tmp_path / "digits", tmp_path / "guidance.png"
    main(["train", "digits", "--preset", "tiny", "--steps", "300", "--out", str(run)])
    capsys.readouterr()
    words = ["race", str(run), "--n", "400", "--guidance", "1,3", "--out", str(out), "--write", "--json"]
    main(words)
    answer = json.loads(capsys.readouterr().out)
    within, more_within, anywhere, more_anywhere = answer["pushes"]
    assert (within["interval"], anywhere["interval"]) == ([0.1, 5.0], [0.0, 1e4])
    for key in ("fid", "recall", "accuracy"):
        assert within[key] == anywhere[key]
    assert more_within["accuracy"] > within["accuracy"]
    assert more_anywhere["accuracy"] > within["accuracy"]
    assert out.read_bytes().startswith(b"\x89PNG")
    after = read(run)
    assert {key: getattr(after.config, key) for key in answer["choice"]} == answer["choice"]


def test_guidance_needs_classes(tmp_path, squares):
    run = tmp_path / "one"
    main(["train", f"{squares}[0]", "--steps", "2", "--out", str(run), *TINY])
    assert ends(["race", str(run), "--guidance", "1,2"]) == 2
