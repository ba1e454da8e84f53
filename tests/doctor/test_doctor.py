"""The doctor: typical mistakes are the first finding, healthy runs have none, and what is missing is skipped."""

import json
import math
import shutil
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from faults import ends

from simple_diffusion.data.digits import SIZES
from simple_diffusion.data.images import Images
from simple_diffusion.data.sources import load_images
from simple_diffusion.denoising_error import LEVELS, linear_error, wiener_error
from simple_diffusion.doctor import patient as doctor_patient
from simple_diffusion.doctor import samples as doctor_samples
from simple_diffusion.doctor.examine import DIAGNOSES, examine
from simple_diffusion.doctor.patient import MAX_EXCESS, Finding, attach, load_patient
from simple_diffusion.doctor.samples import label_share
from simple_diffusion.doctor.weights import learning_rate, slow_ema
from simple_diffusion.errors import DataError
from simple_diffusion.model.model_file import MODEL_FILE
from simple_diffusion.run.steps import learner

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import doctor as cases  # noqa: E402

PAGE = (ROOT / "docs" / "doctor.md").read_text()


@pytest.fixture(autouse=True)
def _few_images(monkeypatch, request):
    """In the quick tests the errors are measured on fewer images, and the reference has fewer steps."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(doctor_patient, "PROBE", 32)
        monkeypatch.setattr(doctor_samples, "FINE", ("dpmpp", 10))


@pytest.fixture
def patient(run_folder, squares):
    return attach(load_patient(run_folder), load_images(str(squares)), None)


# --- measurements


def test_a_measurement_that_is_not_a_number_counts_as_the_worst():
    assert Finding(math.nan, "", "").excess == Finding(math.inf, "", "").excess == MAX_EXCESS
    assert Finding(-1.0, "", "").excess == 0


def test_for_white_noise_the_linear_denoiser_is_the_best_denoiser():
    """For independent pixels of variance l the smallest error is l s^2 / (l + s^2)."""
    x = 0.5 * torch.randn(4000, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    expected = 0.25 * LEVELS**2 / (0.25 + LEVELS**2)
    assert torch.allclose(wiener_error(x), expected, rtol=0.02)
    assert torch.allclose(wiener_error(x), linear_error(x.flatten(1)), rtol=0.03)


def test_the_wiener_denoiser_is_worse_than_the_linear_one():
    images, _ = cases.shapes(300)
    x = torch.from_numpy(images).permute(0, 3, 1, 2)[:, :1].float() / 127.5 - 1
    assert (wiener_error(x) > linear_error(x.flatten(1))).all()


def test_shuffled_labels_explain_no_pixel_variance():
    images, labels = cases.shapes()
    data = Images("discs", torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels), tuple("abcd"))
    assert label_share(data) > 0.05
    shuffled = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    assert abs(label_share(replace(data, labels=data.labels[shuffled]))) < 0.002


def test_a_loss_that_rises_again_points_to_the_learning_rate(patient):
    falling = [(n, 1 / n) for n in range(1, 101)]
    assert learning_rate(replace(patient, log=falling)).excess < 1
    risen = falling + [(n, 0.01 * 1.1 ** (n - 100)) for n in range(101, 140)]
    assert learning_rate(replace(patient, log=risen)).excess > 1


def test_huge_weights_everywhere_point_to_the_learning_rate_and_one_huge_weight_does_not(patient):
    """Outputs that overflow because all weights are huge are a symptom: nothing else is measured on the network."""
    weights = list(patient.denoiser.parameters())
    with torch.no_grad():
        weights[0].mul_(1e20)
    assert replace(patient).growth < 1.3
    with torch.no_grad():
        for weight in weights[1:]:
            weight.mul_(1e20)
    result = examine(patient)
    assert next(iter(result.findings)) == "learning rate too high"
    assert result.skipped["non-finite values"] == result.skipped["overfitting"] == "the weights have diverged"


def test_weights_may_grow_more_in_a_long_run(patient):
    """Ten times as large is too much after 20 steps, but not after 45,000, where a healthy run reached 4.3."""
    assert patient.max_growth == 5
    assert 30 < replace(patient, model=replace(patient.model, step=45_000)).max_growth < 40


def test_the_share_of_initial_weights_in_the_ema_is_measured(patient):
    start, _ = learner(patient.spec, torch.device("cpu"))
    for share in (0.0, 0.25, 0.5, 1.0):
        with torch.no_grad():
            weights = zip(patient.average.parameters(), patient.raw.parameters(), start.parameters(), strict=True)
            for kept, now, before in weights:
                kept.copy_(torch.lerp(now, before, share))
        expected = min(3 * share / (1 - share), MAX_EXCESS) if share < 1 else MAX_EXCESS
        assert slow_ema(patient).excess == pytest.approx(expected, rel=0.01, abs=1e-4)


# --- what is missing or does not belong to the model


def test_images_of_another_shape_are_refused(patient):
    with pytest.raises(DataError, match="name the training data with --data"):
        attach(patient, Images("small", torch.zeros(2, 1, 8, 8, dtype=torch.uint8)), None)


def test_a_checkpoint_that_is_not_finite_is_the_first_finding(patient):
    patient.checkpoint.tensors["model.net.stem.weight"][0] = math.nan
    result = examine(patient)
    assert next(iter(result.findings)) == "non-finite values"
    assert result.skipped["too few steps"] == "the weights are not finite"


def test_labels_of_other_classes_are_not_shown_to_the_model(patient, squares):
    """Neither those of the data nor those of the held-out images."""
    others = load_images(str(squares) + "[0,1]")
    result = examine(attach(patient, others, replace(others, pixels=255 - others.pixels)))
    assert next(iter(result.findings)) == "changed data"
    assert "labels ignored" in result.skipped
    assert "overfitting" not in result.skipped


def test_data_that_cannot_be_split_is_a_reason_to_skip(patient):
    """A run with held-out images, examined with too few images to hold any out."""
    few = replace(patient.spec, config=replace(patient.config, held_out=0.01))
    result = examine(replace(patient, spec=few, images=patient.images[:9]))
    assert "0.01 of 9 images can't be held out" in result.skipped["overfitting"]
    assert "pixel range" in result.passed | result.findings


def test_the_checkpoint_of_another_network_is_not_used(patient):
    other = replace(patient, images=None, spec=patient.spec.changed(widths=(8, 24)))
    assert examine(other).skipped["slow EMA"] == "the checkpoint belongs to another network"


# --- the command


def test_a_run_of_twenty_steps_has_too_little_training(run_folder, capsys):
    assert ends(["doctor", str(run_folder), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert not answer["healthy"]
    assert answer["findings"][0]["name"] == "too little training"
    names = {f["name"] for part in ("findings", "passed") for f in answer[part]} | set(answer["skipped"])
    assert names == set(DIAGNOSES)
    assert answer["skipped"]["overfitting"] == "there are no held-out images"


def test_a_single_model_file_lists_what_is_skipped(run_folder, tmp_path, capsys):
    file = tmp_path / "alone.safetensors"
    shutil.copy(run_folder / MODEL_FILE, file)
    assert ends(["doctor", str(file)]) == 0
    out = capsys.readouterr().out
    assert "1. too little training: " in out
    assert "   Fix: train for longer" in out
    assert "Skipped:\n  slow EMA: there is no checkpoint.\n" in out


def test_without_its_data_the_checks_that_need_it_are_skipped(run_folder, tmp_path, capsys):
    gone = tmp_path / "gone.npz"
    run = cases.edited(Path(shutil.copytree(run_folder, tmp_path / "run")), lambda tensors: None, gone)
    assert ends(["doctor", str(run), "--json"]) == 0
    captured = capsys.readouterr()
    assert "Name it with --data" in captured.err
    assert json.loads(captured.out)["skipped"]["too little training"] == "the data is not available"
    assert ends(["doctor", str(run), "--data", str(gone)]) == 3
    assert ends(["doctor", str(tmp_path)]) == 5


# --- typical mistakes


QUICK = (
    "uint8 divided by 255",
    "DDPM betas over 100 steps",
    "training at low noise only",
    "NaN in one layer",
    "weights of 1e38 in one layer",
)
"""Mistakes that show after three steps."""


@pytest.mark.parametrize("name", QUICK)
def test_a_mistake_that_shows_at_once_is_the_first_finding(name, tmp_path, monkeypatch):
    monkeypatch.setattr(cases, "STEPS", 3)
    monkeypatch.setitem(cases.SMALL, "sampler_steps", "2")
    monkeypatch.setitem(SIZES, "train", 300)
    monkeypatch.setattr(cases, "small_digits", cache(cases.small_digits.__wrapped__))
    mistake = cases.MISTAKES[name]
    assert next(iter(cases.examined(mistake.make(tmp_path), sampler_steps=8).findings)) == mistake.expected


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.MISTAKES)
def test_a_mistake_is_the_first_finding(name, tmp_path):
    mistake = cases.MISTAKES[name]
    assert next(iter(cases.examined(mistake.make(tmp_path), **mistake.sampler).findings)) == mistake.expected


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.HEALTHY)
def test_a_healthy_run_has_no_finding(name, tmp_path):
    result = cases.examined(cases.HEALTHY[name](tmp_path))
    assert not result.findings
    assert len(result.passed) >= 9


# --- the page


def test_the_page_lists_every_diagnosis_and_case():
    for name in (*DIAGNOSES, *cases.MISTAKES, *cases.HEALTHY):
        assert f"\n| {name} |" in PAGE, name
