"""Comparing pairs: nothing differs from itself, damage is seen, and intervals hold what they promise to hold."""

import json
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from faults import ends

from simple_diffusion.cli.main import main
from simple_diffusion.cli.options import checkable_labels
from simple_diffusion.data.info import DataInfo
from simple_diffusion.data.sources import load_images
from simple_diffusion.errors import DataError
from simple_diffusion.evaluation.extractors import extractor_for
from simple_diffusion.evaluation.features import ImageFeatures
from simple_diffusion.evaluation.paired import Difference, conclusion, differences
from simple_diffusion.model.model_file import MODEL_FILE, read, save
from simple_diffusion.randomness import permutation

WIDTH, CLASSES = 4, 3


def some(n, seed, shift=0.0, noise=0.0):
    """Features of a normal distribution, and logits that follow from them; `noise` of them is not paired."""
    x = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed))
    own = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed + 10**6))
    x = x + noise * own + shift
    return ImageFeatures(x, 3 * x[:, :CLASSES])


REAL = some(4000, 12345)


def test_a_set_does_not_differ_from_itself():
    a, labels = some(300, 0), torch.arange(300) % CLASSES
    found = differences(a, a, REAL, labels)
    assert [difference.name for difference in found] == ["FID", "IS", "accuracy", "precision", "recall"]
    for difference in found:
        assert difference.a == difference.b
        assert difference.error == 0
        assert difference.verdict == ""
        assert math.isinf(difference.needed)
    assert conclusion(found[0]) == "cannot tell: both draw the same images"


def test_a_difference_of_shares_where_no_pair_differs_is_still_uncertain():
    """Both sets are classified without an error and lie among the real images: the next pair may differ."""
    labels = torch.arange(300) % CLASSES
    sure = [replace(some(300, s), logits=30 * torch.eye(CLASSES)[labels]) for s in (0, 1)]
    accuracy = differences(*sure, REAL, labels)[2]
    assert (accuracy.name, accuracy.a, accuracy.b) == ("accuracy", 1, 1)
    assert 1 / 300 < accuracy.margin < 3 / 300
    collapsed = [ImageFeatures(torch.full((300, WIDTH), x), torch.zeros(300, 0)) for x in (50.0, 60.0)]
    for difference in differences(*collapsed, REAL, None)[1:]:
        assert difference.a == difference.b == 0
        assert difference.margin > 1 / 302


def test_damage_is_detected_in_both_directions():
    a, b = some(600, 0), some(600, 0, shift=0.9)
    for one, other, better in ((a, b, "A"), (b, a, "B")):
        fid, inception, precision, recall = differences(one, other, REAL, None)
        assert fid.verdict == precision.verdict == recall.verdict == better
        assert fid.lower
        assert not inception.lower
        assert conclusion(fid).startswith(f"{better} is better: its FID is lower by ")


@pytest.mark.slow
def test_the_interval_contains_the_expected_difference():
    """At this n; the jackknife may be wider than needed, and must not be narrower."""
    found = [differences(some(200, s), some(200, s, shift=0.15, noise=0.3), REAL, None)[0] for s in range(80)]
    gaps = [fid.b - fid.a for fid in found]
    expected = sum(gaps) / len(gaps)
    held = sum(abs(gap - expected) <= fid.margin for gap, fid in zip(gaps, found, strict=True))
    assert held >= 72  # of 80: 95 % are 76, and fewer than 72 come once in forty times
    assert sum(fid.margin for fid in found) / len(found) < 4 * 1.96 * torch.tensor(gaps).std()


@pytest.mark.slow
def test_two_samples_of_one_distribution_rarely_differ_significantly():
    found = [differences(some(200, s), some(200, s + 500), REAL, None)[0] for s in range(60)]
    assert sum(bool(fid.verdict) for fid in found) <= 7  # 5 % are 3


def test_pairs_detect_a_difference_that_independent_samples_do_not():
    a, paired, alone = some(400, 0), some(400, 0, shift=0.1), some(400, 99, shift=0.1)
    of_pairs, of_others = (differences(a, b, REAL, None)[0] for b in (paired, alone))
    assert of_pairs.error < 0.7 * of_others.error


def test_rows_of_a_pair_are_left_out_together():
    """In another order of both sets at once nothing changes but the groups; of one alone the pairs are gone."""
    a, b = some(400, 0), some(400, 0, shift=0.1)
    order = permutation(400, 1, "test")
    together = differences(a[order], b[order], REAL, None)[0]
    apart = differences(a, b[order], REAL, None)[0]
    assert together.b - together.a == pytest.approx(apart.b - apart.a, rel=1e-6)
    assert together.error < 0.7 * apart.error


def test_the_number_of_samples_for_significance_is_estimated():
    """The error falls with the root of n: four times as many halve it."""
    fid = Difference("FID", 1000, 0.30, 0.29, 0.0102, lower=True)
    assert fid.verdict == ""
    assert fid.needed == pytest.approx(1000 * (2.093 * 0.0102 / 0.01) ** 2)
    assert "about 4.6e+03 images would tell" in conclusion(fid)
    assert "does not matter" in conclusion(replace(fid, b=0.3 - 1e-5))
    assert replace(fid, error=0.004).verdict == "B"
    assert replace(fid, error=0.004, lower=False).verdict == "A"


def test_too_few_pairs_are_refused():
    with pytest.raises(DataError, match=r"FID needs 20 samples and real images.*larger --n"):
        differences(some(19, 0), some(19, 0), REAL, None)


# --- the command


def test_labels_are_checked_only_by_an_extractor_of_the_same_classes():
    images = load_images("digits")
    model, labels, extractor = SimpleNamespace(info=DataInfo.of(images)), torch.arange(10), extractor_for(images)
    assert checkable_labels(labels, model, images, extractor) is labels
    assert checkable_labels(None, model, images, extractor) is None
    reordered = replace(images, class_names=images.class_names[::-1])
    assert checkable_labels(labels, model, reordered, extractor) is None
    without_logits = replace(extractor, record=replace(extractor.record, classes=0))
    assert checkable_labels(labels, model, images, without_logits) is None


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared") / "digits"
    main(["train", "digits", "--steps", "12", "--out", str(folder), *TINY])
    return folder


@pytest.mark.slow
def test_two_models(digits_run, tmp_path, capsys):
    """The same file under another name is the same; one that lost its training is worse, or at least never better."""
    twin, blind = tmp_path / "twin.safetensors", tmp_path / "blind.safetensors"
    shutil.copy(digits_run / MODEL_FILE, twin)
    model = read(digits_run)
    with torch.no_grad():
        model.denoiser.net.head.weight.mul_(-30)
    save(blind, model)
    options = ["--n", "400", "--out", str(tmp_path / "pairs.png"), "--json"]
    main(["compare", str(digits_run), str(twin), *options])
    answer = json.loads(capsys.readouterr().out)
    assert answer["conclusion"] == "cannot tell: both draw the same images"
    assert answer["changed"] == {}
    main(["compare", str(digits_run), str(blind), *options])
    answer = json.loads(capsys.readouterr().out)
    assert answer["scores"][0]["better"] == "A"
    assert (tmp_path / "pairs.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_two_samplers_of_one_model(digits_run, tmp_path, capsys):
    out = str(tmp_path / "pairs.png")
    assert ends(["compare", str(digits_run), "--set", "sampler=ddim", "--n", "383"]) == 3
    assert "FID needs 384 samples" in capsys.readouterr().err
    main(["compare", str(digits_run), "--set", "sampler=ddim", "--set", "sampler_steps=2", "--n", "400", "--out", out])
    said = capsys.readouterr().out
    assert "sampler: dpmpp -> ddim\nsampler_steps: 4 -> 2" in said
    assert "ddim in 2 steps" in said
    assert "By FID: " in said
    assert "Another seed" not in said  # it is one training


def test_comparing_incompatible_samples_gives_one_message(squares, run_folder, tmp_path, capsys):
    other = tmp_path / "other"
    main(["train", f"{squares}[0]", "--steps", "1", "--out", str(other), *TINY])
    for argv, code, words in (
        (["compare", str(run_folder)], 2, "--set sampler=heun"),
        (["compare", str(run_folder), "--set", "sampler=x"], 2, "sampler"),
        (["compare", str(run_folder), str(other)], 3, "models of the same data"),
        (["compare", str(run_folder), str(tmp_path / "none")], 5, "there is no model"),
        (["compare", str(run_folder), str(run_folder), "--out", "x.jpg"], 2, "must end in .png"),
        (["compare", str(run_folder), str(run_folder), "--data", "nowhere"], 3, "nowhere"),
    ):
        capsys.readouterr()
        assert ends(argv) == code, argv
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1
