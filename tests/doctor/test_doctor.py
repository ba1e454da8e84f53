"""The doctor: mistakes that are really made are named first, healthy runs are not accused, and nothing is guessed."""

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY
from faults import ends

from simple_diffusion.data.images import Images
from simple_diffusion.data.sources import load_images
from simple_diffusion.denoising_error import LEVELS, gaussian_error, wiener_error
from simple_diffusion.doctor.examine import DIAGNOSES, examine
from simple_diffusion.doctor.patient import MOST, Finding, attach, load_patient
from simple_diffusion.doctor.samples import label_share
from simple_diffusion.doctor.weights import diverged
from simple_diffusion.errors import DataError
from simple_diffusion.model.model_file import MODEL_FILE

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import doctor as cases  # noqa: E402

PAGE = (ROOT / "docs" / "doctor.md").read_text()


@pytest.fixture
def patient(run_folder, squares):
    return attach(load_patient(run_folder), load_images(str(squares)), None)


# --- the parts


def test_a_measure_that_is_no_number_is_the_worst():
    assert Finding(math.nan, "", "").excess == Finding(math.inf, "", "").excess == MOST
    assert Finding(-1.0, "", "").excess == 0


def test_the_best_blur_of_white_noise_is_the_best_denoiser():
    """Of pixels that know nothing of each other a blur can use nothing: l s^2 / (l + s^2), the variance l."""
    x = 0.5 * torch.randn(4000, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    expected = 0.25 * LEVELS**2 / (0.25 + LEVELS**2)
    assert torch.allclose(wiener_error(x), expected, rtol=0.02)
    assert torch.allclose(wiener_error(x), gaussian_error(x.flatten(1)), rtol=0.03)


def test_the_best_blur_knows_less_than_the_covariance():
    images, _ = cases.shapes()
    x = torch.from_numpy(images).permute(0, 3, 1, 2)[:, :1].float() / 127.5 - 1
    assert (wiener_error(x) > gaussian_error(x.flatten(1))).all()


def test_what_labels_say_is_nothing_where_they_are_shuffled():
    images, labels = cases.shapes()
    data = Images("discs", torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels), tuple("abcd"))
    assert label_share(data) > 0.05
    assert abs(label_share(replace(data, labels=data.labels[torch.randperm(len(data))]))) < 0.002


def test_a_loss_that_rises_again_is_a_divergence(patient):
    falling = [(n, 1 / n) for n in range(1, 101)]
    assert diverged(replace(patient, log=falling)).excess < 1
    risen = falling + [(n, 0.01 * 1.1 ** (n - 100)) for n in range(101, 140)]
    assert diverged(replace(patient, log=risen)).excess > 1


def test_weights_that_all_ran_away_say_the_learning_rate_and_one_damaged_layer_does_not(patient):
    """Answers that overflow because the weights are huge are a symptom: nothing else of the network is looked at."""
    weights = list(patient.denoiser.parameters())
    with torch.no_grad():
        weights[0].mul_(1e20)
    assert replace(patient).growth < 1.3
    with torch.no_grad():
        for weight in weights[1:]:
            weight.mul_(1e20)
    report = examine(patient)
    assert next(iter(report.findings)) == "learning rate too high"
    assert report.unknown["first layer that is not finite"] == report.unknown["over-fitting"] == "its weights ran away"


def test_a_long_run_may_walk_further(patient):
    """Ten times as large is too much after twenty steps, and not after 45,000, where a healthy run made 4.3."""
    with torch.no_grad():
        for weight in patient.denoiser.parameters():
            weight.mul_(10)
    assert patient.runaway > 1.5
    assert replace(patient, model=replace(patient.model, step=45_000)).runaway < 0.5


def test_the_age_of_the_average_is_its_place_on_the_way(patient):
    """Half of the first weights in the average is half the way back."""
    from simple_diffusion.doctor.weights import ema_age
    from simple_diffusion.run.steps import learner

    start, _ = learner(patient.spec, torch.device("cpu"))
    for share in (0.0, 0.25, 0.5, 1.0):
        with torch.no_grad():
            weights = zip(patient.average.parameters(), patient.raw.parameters(), start.parameters(), strict=True)
            for kept, now, before in weights:
                kept.copy_(torch.lerp(now, before, share))
        expected = min(3 * share / (1 - share), MOST) if share < 1 else MOST
        assert ema_age(patient).excess == pytest.approx(expected, rel=0.01, abs=1e-4)


def test_other_shapes_are_refused(patient):
    with pytest.raises(DataError, match="name its data"):
        attach(patient, Images("small", torch.zeros(2, 1, 8, 8, dtype=torch.uint8)), None)


def test_a_number_of_the_checkpoint_that_is_not_finite_is_seen(patient):
    patient.checkpoint.tensors["model.net.stem.weight"][0] = math.nan
    report = examine(patient)
    assert next(iter(report.findings)) == "first layer that is not finite"
    assert report.unknown["too few steps"] == "its weights are not finite"


def test_data_with_other_labels_leaves_the_labels_open(patient, squares):
    report = examine(attach(patient, load_images(str(squares) + "[0,1]"), None))
    assert next(iter(report.findings)) == "other data"
    assert "labels ignored" in report.unknown


def test_labels_of_other_data_are_not_shown_to_the_model(tmp_path, capsys):
    """Those of ten classes of digits to a model of two, of unseen images too."""
    assert ends(["train", "digits[0,1]", "--steps", "2", "--out", str(tmp_path / "run"), *TINY]) == 0
    capsys.readouterr()
    assert ends(["doctor", str(tmp_path / "run"), "--data", "digits", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["findings"][0]["name"] == "other data"
    assert "over-fitting" not in answer["not_looked_at"]


def test_the_checkpoint_of_another_network_is_not_used(patient):
    report = examine(replace(patient, spec=patient.spec.changed(widths=(8, 24))))
    assert report.unknown["EMA age"] == "the checkpoint beside it is of another network"


# --- the command


def test_a_run_of_twenty_steps_is_trained_too_little(run_folder, capsys):
    assert ends(["doctor", str(run_folder), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert not answer["healthy"]
    assert answer["findings"][0]["name"] == "trained too little"
    names = {f["name"] for part in ("findings", "sound") for f in answer[part]} | set(answer["not_looked_at"])
    assert names == set(DIAGNOSES)
    assert answer["not_looked_at"]["over-fitting"] == "no images are unseen"


def test_a_lone_file_says_what_could_not_be_looked_at(run_folder, tmp_path, capsys):
    file = tmp_path / "alone.safetensors"
    shutil.copy(run_folder / MODEL_FILE, file)
    assert ends(["doctor", str(file)]) == 0
    out = capsys.readouterr().out
    assert "1. trained too little: " in out
    assert "EMA age: there is no checkpoint of its training" in out


def test_without_its_data_it_says_so(squares, tmp_path, capsys):
    data = tmp_path / "gone.npz"
    shutil.copy(squares, data)
    run = cases.trained(tmp_path, data, steps=2, held_out=0)
    data.unlink()
    assert ends(["doctor", str(run), "--json"]) == 0
    captured = capsys.readouterr()
    assert "name it with --data" in captured.err
    assert json.loads(captured.out)["not_looked_at"]["trained too little"] == "the data could not be had"
    assert ends(["doctor", str(run), "--data", str(data)]) == 3
    assert ends(["doctor", str(tmp_path)]) == 5


# --- mistakes, made in a training of a moment


def first(mistake: cases.Mistake, folder: Path) -> str:
    return next(iter(cases.doctored(mistake.make(folder), **mistake.drawn).findings), "a clean bill")


SURE = ("first layer that is not finite", "pixel range", "terminal SNR", "levels not trained")
QUICK = {name: case for name, case in cases.MISTAKES.items() if case.expected in SURE}
del QUICK["images brought to [0, 1] twice"]  # half the range is twice the bound: three steps are the worse mistake
"""Mistakes that need no training to be seen."""


@pytest.mark.parametrize("name", QUICK)
def test_what_is_wrong_from_the_first_step_on(name, tmp_path, monkeypatch):
    monkeypatch.setattr(cases, "STEPS", 3)
    assert first(QUICK[name], tmp_path) == QUICK[name].expected


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.MISTAKES)
def test_a_mistake_is_named_first(name, tmp_path):
    assert first(cases.MISTAKES[name], tmp_path) == cases.MISTAKES[name].expected


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.HEALTHY)
def test_a_healthy_run_gets_a_clean_bill(name, tmp_path):
    report = cases.doctored(cases.HEALTHY[name](tmp_path))
    assert not report.findings
    assert len(report.sound) >= 9


# --- the page


def test_the_page_names_every_diagnosis_and_case():
    for name in (*DIAGNOSES, *cases.MISTAKES, *cases.HEALTHY):
        assert f"\n| {name} |" in PAGE, name
