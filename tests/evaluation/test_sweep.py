"""Sweeps: which configurations there are, which are on the Pareto front, and which one is chosen."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import TINY
from faults import ends

from simple_diffusion.cli.main import main
from simple_diffusion.cli.sweep import float_samples, save_if_unchanged
from simple_diffusion.data.images import to_uint8
from simple_diffusion.errors import BusyError
from simple_diffusion.evaluation.features import ImageFeatures, fid_of
from simple_diffusion.evaluation.sweep import (
    EVERYWHERE,
    Scorer,
    SweepPoint,
    cheapest_tied,
    guidance_grid,
    pareto_front,
    sampler_grid,
    sampler_settings,
    sweep,
)
from simple_diffusion.model.config import Config
from simple_diffusion.model.generate import generate
from simple_diffusion.model.model_file import model_file, read, save
from simple_diffusion.run.folder import hold
from simple_diffusion.samplers import SAMPLERS

SOLVERS = [name for name, info in SAMPLERS.items() if info.solves_ode]


def point(nfe, fid, side=None):
    return SweepPoint(sampler_settings("ddim", nfe), fid, 0.0, 0.0, 0.0, 0.0, None, None, side)


def test_every_sampler_has_at_most_the_nfe_that_is_asked_for():
    grid = sampler_grid((5, 10, 2))
    assert [(one["sampler"], one["sampler_steps"]) for one in grid] == [
        ("ddpm", 5), ("ddim", 5), ("heun", 3), ("dpmpp", 5), ("dpmpp-sde", 5),
        ("ddpm", 10), ("ddim", 10), ("heun", 5), ("dpmpp", 10), ("dpmpp-sde", 10),
        ("ddpm", 2), ("ddim", 2), ("dpmpp", 2), ("dpmpp-sde", 2),  # heun in one step is none
    ]  # fmt: skip


def test_guidance_everywhere_can_be_a_setting():
    low, high = EVERYWHERE
    assert Config(guidance_low=low, guidance_high=high).guidance_high == high


def test_no_point_of_the_pareto_front_is_matched_by_a_cheaper_one():
    points = [point(10, 0.3), point(5, 0.5), point(10, 0.2), point(20, 0.25), point(30, 0.1), point(7, 0.5)]
    assert [(one.nfe, one.fid) for one in pareto_front(points)] == [(5, 0.5), (10, 0.2), (30, 0.1)]


def test_the_cheapest_point_tied_with_the_best_is_chosen():
    """The same samples but for a little noise are as good; shifted ones are not."""
    x = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
    little = 1e-3 * torch.randn(600, 4, generator=torch.Generator().manual_seed(1))
    real = ImageFeatures(torch.randn(4000, 4, generator=torch.Generator().manual_seed(2)), torch.zeros(4000, 1))
    made = {}
    for nfe, features in ((5, x + 1), (10, x + little), (20, x)):
        side = ImageFeatures(features, torch.zeros(600, 1))
        made[nfe] = point(nfe, fid_of(real, side), side)
    made[20] = point(20, min(made[10].fid, made[20].fid) - 1e-9, made[20].side)
    assert cheapest_tied(list(made.values()), real) is made[10]
    del made[10]
    assert cheapest_tied(list(made.values()), real) is made[20]


def extractor(x):
    """Four pixels as features, two as logits."""
    flat = x.flatten(1).float() / 255
    return flat[:, :4], flat[:, 4:6]


def images_with(settings):
    """Random images whose brightness is the guidance, or whose noise falls with the steps."""
    noise = torch.randn(60, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    return 0.3 * noise + settings.get("guidance", 0) / 10 + noise[0] / settings.get("sampler_steps", 100)


def test_a_sweep_scores_each_setting_once_and_guidance_of_1_is_the_same_in_any_interval():
    real, labels, asked = ImageFeatures(*extractor(to_uint8(images_with({})))), torch.arange(60) % 2, []

    def sample(settings):
        asked.append(settings)
        return images_with(settings)

    grid = guidance_grid((1, 3), ((0.1, 5.0), EVERYWHERE))
    points = list(sweep(sample, grid, Scorer(extractor, real, labels)))
    assert [one.settings for one in points] == grid
    assert asked == [grid[0], grid[1], grid[3]]
    assert points[0].fid == points[2].fid < points[1].fid == points[3].fid
    assert points[0].accuracy == (real.logits.argmax(1) == labels).double().mean() != 0
    assert points[0].distance is None
    assert points[1].as_dict()["guidance_high"] == 5


def test_only_deterministic_samplers_have_a_distance_to_the_reference():
    real, grid = ImageFeatures(*extractor(to_uint8(images_with({})))), sampler_grid((4, 8))
    for one in sweep(images_with, grid, Scorer(extractor, real, None), images_with({"sampler_steps": 100})):
        assert (one.distance is None) == (one.settings["sampler"] not in SOLVERS)
        assert one.accuracy is None
    near, far = (next(sweep(images_with, [grid[i]], Scorer(extractor, real, None), images_with({}))) for i in (6, 1))
    assert 0 < near.distance < far.distance


@pytest.mark.slow
def test_a_sweep_of_samplers(tmp_path, capsys):
    """Solvers come closer to the reference with more steps, and --write changes the sampler of the model alone."""
    run, out = tmp_path / "digits", tmp_path / "sweep.png"
    main(["train", "digits", "--steps", "60", "--out", str(run), *TINY])
    before = read(run)
    capsys.readouterr()
    main(["sweep", str(run), "--n", "400", "--nfe", "6,48", "--out", str(out), "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert read(run).config == before.config
    assert len(answer["points"]) == 10
    for name in SOLVERS:
        far, near = (entry["distance"] for entry in answer["points"] if entry["sampler"] == name)
        assert near < 0.8 * far, name
    assert all(entry["distance"] is None for entry in answer["points"] if entry["sampler"] not in SOLVERS)
    assert {entry["nfe"] for entry in answer["points"]} == {5, 6, 47, 48}
    front = sorted((entry["nfe"], entry["fid"]) for entry in answer["points"] if entry["on_front"])
    assert [fid for _, fid in front] == sorted((fid for _, fid in front), reverse=True)
    assert front[-1][1] == min(entry["fid"] for entry in answer["points"])
    assert out.read_bytes().startswith(b"\x89PNG")
    words = ["sweep", str(run), "--n", "400", "--nfe", "6,48", "--out", str(out), "--write", "--json"]
    with hold(run):
        assert ends(words) == 7
    assert read(run).config == before.config
    capsys.readouterr()
    main(words)
    again = json.loads(capsys.readouterr().out)
    assert again["points"] == answer["points"]
    after = read(run)
    assert {key: getattr(after.config, key) for key in again["choice"]} == again["choice"]
    for one, other in zip(before.denoiser.parameters(), after.denoiser.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_model_that_was_trained_during_the_sweep_is_not_overwritten(run_folder, tmp_path):
    run = shutil.copytree(run_folder, tmp_path / "run")
    model = read(run)
    save(model_file(run), replace(model, step=model.step + 1))
    with pytest.raises(BusyError, match="sweep again"):
        save_if_unchanged(str(run), model)
    assert read(run).step == model.step + 1


def test_a_sweep_samples_the_images_of_sample(run_folder):
    """Bit-exact, before they become bytes."""
    model = read(run_folder)
    labels = torch.arange(70) % model.info.classes
    model = model.changed(**sampler_settings("dpmpp", 4))
    x = float_samples(model, 70, labels, 3)
    assert torch.equal(to_uint8(x), generate(model, 70, labels, 3))
    assert not torch.equal(x, float_samples(model.changed(sampler="ddim"), 70, labels, 3))


@pytest.mark.slow
def test_a_sweep_of_guidance(tmp_path, capsys):
    """More guidance raises the accuracy of the classifier; --write saves the choice."""
    run, out = tmp_path / "digits", tmp_path / "guidance.png"
    main(["train", "digits", "--preset", "tiny", "--steps", "300", "--out", str(run)])
    capsys.readouterr()
    words = ["sweep", str(run), "--n", "400", "--guidance", "1,3", "--out", str(out), "--write", "--json"]
    main(words)
    answer = json.loads(capsys.readouterr().out)
    within, more_within, anywhere, more_anywhere = answer["points"]
    assert (within["guidance_high"], anywhere["guidance_high"]) == (5.0, 1e4)
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
    assert ends(["sweep", str(run), "--guidance", "1,2"]) == 2
