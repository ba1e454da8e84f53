"""Evaluation end to end: its scores order what they should, and it refuses what it can't score."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from faults import fails

from simple_diffusion.augmentation import AUGMENTATIONS
from simple_diffusion.cli.evaluate import searched_augmentations
from simple_diffusion.cli.main import main
from simple_diffusion.data.images import Images
from simple_diffusion.data.sources import load_images
from simple_diffusion.denoising_error import error_curves
from simple_diffusion.errors import DataError
from simple_diffusion.evaluation.features import PROBED, ImageFeatures, cached_features, fid_of
from simple_diffusion.evaluation.memorization import NEIGHBOR
from simple_diffusion.evaluation.scores import evaluate, inception_score_of
from simple_diffusion.model.model_file import read


def blobs(n: int, seed: int, classes: int = 2) -> Images:
    """Grey 8 x 8 images of a bright bar, upright or lying, at a random place."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    pixels = rng.integers(0, 60, (n, 1, 8, 8), dtype=np.uint8)
    for image, label, place in zip(pixels, labels, rng.integers(1, 7, n), strict=True):
        bar = image[0] if label == 0 else image[0].T
        bar[:, place] = rng.integers(150, 255)
    return Images(f"blobs{seed}", torch.from_numpy(pixels), torch.from_numpy(labels), ("upright", "lying")[:classes])


def extractor(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column means: 16 features; the larger spread tells the class."""
    x = pixels[:, 0].float() / 255
    columns, rows = x.mean(1), x.mean(2)
    logits = 40 * torch.stack([columns.std(1), rows.std(1)], 1)
    return torch.cat([columns, rows], 1), logits


@pytest.fixture(scope="module")
def scored():
    train, test = blobs(1200, 0), blobs(600, 1)
    honest = blobs(600, 2)
    noise = torch.randint(0, 80, honest.pixels.shape, generator=torch.Generator().manual_seed(0))
    noisy = (honest.pixels.int() + noise).clamp(max=255).to(torch.uint8)
    one_class = replace(honest, pixels=honest.pixels[::2].repeat(2, 1, 1, 1), labels=honest.labels[::2].repeat(2))
    mislabelled = replace(honest, labels=1 - honest.labels)
    sets = {
        "honest": honest,
        "noisy": replace(honest, pixels=noisy),
        "one class": one_class,
        "mislabelled": mislabelled,
    }
    return {name: evaluate(samples, train, test, extractor, "bars") for name, samples in sets.items()}


def value(evaluation, name: str):
    return next(score for score in evaluation.scores if score.name == name)


def test_unseen_real_images_reach_the_baseline(scored):
    for kind in ("FID", "KID", "IS", "precision", "recall", "coverage", "accuracy"):
        score = value(scored["honest"], kind)
        room = 5 * score.error + 1e-9 + (score.baseline if kind == "FID" else 0)
        assert abs(score.value - score.baseline) < room, kind


def test_each_score_detects_its_kind_of_damage(scored):
    assert value(scored["noisy"], "FID").value > 5 * value(scored["noisy"], "FID").baseline
    assert value(scored["noisy"], "KID").value > 10 * value(scored["noisy"], "KID").error
    assert value(scored["noisy"], "precision").value < value(scored["noisy"], "precision").baseline - 0.1
    assert value(scored["one class"], "recall").value < value(scored["one class"], "recall").baseline - 0.3
    assert value(scored["one class"], "IS").value < 1.2 < value(scored["honest"], "IS").value
    assert value(scored["mislabelled"], "accuracy").value < 0.1 < 0.9 < value(scored["honest"], "accuracy").value
    by_class = scored["mislabelled"].by_class["upright"]
    assert by_class[0].value < 0.1
    assert by_class[1].value > 20 * by_class[1].baseline


def test_the_table_has_a_value_an_interval_a_baseline_and_a_count_for_each_score(scored):
    title, head, *lines = str(scored["honest"]).splitlines()
    assert title == "Features of bars, compared with the training set:"
    assert head.split() == ["score", "value", "95", "%", "interval", "baseline", "n"]
    for score, line in zip(scored["honest"].scores, lines, strict=False):
        assert line.split()[0] == score.name
        assert len(line) == len(head)
        unit = 1000 if score.name == "KID" else 1
        numbers = [float(word) for word in line.replace("x 1000", "").replace(" to ", " ").split()[1:5]]
        assert numbers == pytest.approx([unit * x for x in (score.value, *score.interval, score.baseline)], abs=6e-5)
    fid = value(scored["honest"], "FID")
    assert str(fid).startswith("FID[bars, n=600 vs train]  ")
    assert "({:.4g} to {:.4g}; baseline {:.4g})".format(*fid.interval, fid.baseline) in str(fid)


@pytest.mark.parametrize(
    ("columns", "kinds"),
    [(0, set()), (1, set()), (2, {"IS", "accuracy"}), (5, {"IS"})],
    ids=["none", "one", "two, as many as labels", "five"],
)
def test_which_scores_of_labels_there_are_follows_from_the_logits(columns, kinds):
    def other(pixels):
        features, _ = extractor(pixels)
        return features, features[:, :columns]

    result = evaluate(blobs(100, 1), blobs(200, 0), None, other, f"of {columns} logits")
    assert {score.name for score in result.scores} & {"IS", "accuracy"} == kinds
    assert bool(result.by_class) == ("accuracy" in kinds)


@pytest.mark.parametrize(("classes", "needed"), [(3, 30), (6, 50)])
def test_the_inception_score_needs_ten_samples_a_class_or_a_published_split(classes, needed, monkeypatch):
    monkeypatch.setattr("simple_diffusion.evaluation.scores.SPLIT", 50)  # for 5000, to be quick
    logits = torch.randn(needed, classes, generator=torch.Generator().manual_seed(0))
    few, enough = (ImageFeatures(logits[:n], logits[:n]) for n in (needed - 1, needed))
    assert inception_score_of("x", few, few).value is None
    assert f"needs at least {needed} samples" in inception_score_of("x", few, few).note
    assert inception_score_of("x", enough, enough).value is not None


def test_near_duplicates_are_searched_under_the_given_augmentations():
    train, unseen = blobs(300, 0), blobs(300, 1)
    mirrored = replace(blobs(100, 2), pixels=torch.cat([train.pixels[:50].flip(-1), blobs(50, 2).pixels]))
    views = {name: AUGMENTATIONS[name](True) for name in AUGMENTATIONS}
    found = {
        name: evaluate(mirrored, train, unseen, extractor, "bars", augmentations=some).near_duplicates["pixels"]
        for name, some in views.items()
    }
    assert found["none"].count <= 10
    assert found["mirror"].count >= 50
    assert found["symmetries"].count >= 50
    result = evaluate(mirrored, train, unseen, extractor, "bars", augmentations=views["mirror"])
    near = found["mirror"].count
    assert f"Near-duplicates of training images in pixels: {near} of 100 samples" in str(result)
    assert "1 % expected by chance" in str(result)
    assert result.as_dict()["near_duplicates"]["pixels"]["count"] == near


def test_too_few_samples_give_a_message_instead_of_a_score():
    few = blobs(20, 3)
    result = evaluate(few, blobs(1200, 0), None, extractor, "bars")
    assert value(result, "FID").value is None
    assert "32 samples" in str(value(result, "FID"))
    assert value(result, "KID").value is None
    assert value(result, "recall").value is None
    assert value(result, "IS").value is not None  # ten a class are there
    assert result.by_count is None
    assert str(result).count("FID of a class needs at least 32 samples") == 1  # not for each class


def test_a_baseline_that_is_not_that_of_n_unseen_images_is_noted():
    samples, train, test = blobs(600, 2), blobs(800, 0), blobs(600, 1)
    assert not any(score.note for score in evaluate(samples, train, test, extractor, "bars").scores)
    few = str(evaluate(samples, train, test[torch.arange(300)], extractor, "bars"))
    assert "Baseline of FID: extrapolated from 300 test images." in few
    assert "Baseline of KID, precision, recall, density, coverage: 250 of its 550 images are other training" in few
    alone = evaluate(samples, train, None, extractor, "bars")
    assert all(score.baseline is not None and score.note for score in alone.scores)
    assert "Baseline of FID: estimated from parts of the training set." in str(alone)
    assert "Baseline of IS, accuracy: of 800 training images, new to the classifier." in str(alone)
    assert all(fid.baseline is not None for _, fid in alone.by_class.values())


def test_the_interval_of_the_inception_score_lies_within_its_range():
    """Of one prediction it is 1, and the samples show no spread; of few samples the interval ends at 1."""
    one = ImageFeatures(torch.zeros(40, 2), torch.tensor([[2.0, 0.3]]).repeat(40, 1))
    assert inception_score_of("x", one, one).interval is None
    some = ImageFeatures(torch.zeros(20, 2), 0.3 * torch.randn(20, 2, generator=torch.Generator().manual_seed(0)))
    low, high = inception_score_of("x", some, some).interval
    assert 1 <= low < high <= 2


def test_features_with_heavy_tails_are_reported():
    """A few images decide FID there: its interval covers less than 95 %."""

    def heavy(pixels):
        features, logits = extractor(pixels)
        return (10 * features).exp(), logits

    assert "heavy tails" not in str(evaluate(blobs(100, 2), blobs(200, 0), None, extractor, "bars"))
    assert "The features have heavy tails" in str(evaluate(blobs(100, 2), blobs(200, 0), None, heavy, "heavy"))


def test_near_duplicates_are_not_searched_in_very_few_images():
    """How near the nearest is, the one of rank NEIGHBOR tells; an image of the training set is not its own."""
    for n, searched in ((NEIGHBOR + 1, False), (NEIGHBOR + 2, True)):
        assert bool(evaluate(blobs(20, 3), blobs(n, 0), None, extractor, "bars").near_duplicates) == searched


def test_small_data_is_searched_under_all_symmetries_and_large_data_under_what_it_was_trained_on(run_folder):
    small, large = (blobs(n, 0) for n in (5000, 5001))
    model = read(run_folder)
    mirrored = model.changed(augment="mirror")
    for images, of, views in ((small, None, 8), (small, mirrored, 8), (large, None, 1), (large, mirrored, 2)):
        assert len(searched_augmentations(images, of)) == views


def test_the_error_by_level_of_unseen_images_is_measured_as_that_of_the_training_images(run_folder, squares):
    denoiser, images = read(run_folder).denoiser, load_images(str(squares))
    other = replace(images, pixels=images.pixels ^ 1)
    points = {curve.name: curve.points for curve in error_curves(denoiser, images, other)}
    swapped = {curve.name: curve.points for curve in error_curves(denoiser, other, images)}
    assert points["model, unseen images"] == swapped["model, training images"]
    for unseen in (None, images):  # training images are not unseen
        assert "model, unseen images" not in [curve.name for curve in error_curves(denoiser, images, unseen)]
    brighter = replace(images, pixels=255 - images.pixels)
    unseen = error_curves(denoiser, images, brighter)[-1]
    assert all(error > 0 for _, error in unseen.points)


def test_features_are_cached_by_the_fingerprint_of_the_data():
    train = blobs(100, 7)
    calls = []

    def counted(pixels):
        calls.append(len(pixels))
        return extractor(pixels)

    first = cached_features(train, counted, "counted")
    again = cached_features(replace(train, name="other name"), counted, "counted")
    assert calls == [100, PROBED]
    assert torch.equal(first.features, again.features)
    changed = replace(train, pixels=train.pixels.flip(0))
    cached_features(changed, counted, "counted")
    cached_features(train, counted, "another extractor")
    assert calls == [100, PROBED, 100, 100]


def scaled(factor: float):
    """The extractor with all features and logits times a factor."""
    return lambda pixels: tuple(factor * x for x in extractor(pixels))


@pytest.mark.parametrize(
    "other",
    [
        scaled(1.01),
        lambda pixels: tuple(x.bfloat16().float() for x in extractor(pixels)),
        lambda pixels: (extractor(pixels)[0], extractor(pixels)[1].flip(1)),
        lambda pixels: (extractor(pixels)[0][:, :5], extractor(pixels)[1]),
        lambda pixels: (extractor(pixels)[0], extractor(pixels)[1][:, :0]),
        lambda pixels: tuple(0 * x for x in extractor(pixels)),
    ],
    ids=["weights", "arithmetic", "logits", "fewer features", "no logits", "zeros"],
)
def test_features_of_another_extractor_with_the_same_name_are_replaced(other):
    train = blobs(100, 8)
    for one in (extractor, other, other, extractor):
        cached, own = cached_features(train, one, "same"), ImageFeatures(*one(train.pixels))
        assert torch.equal(cached.features, own.features)
        assert torch.equal(cached.logits, own.logits)
        assert fid_of(cached, own) < 1e-6


def test_rounding_does_not_replace_cached_features():
    train = blobs(100, 9)
    first = cached_features(train, extractor, "rounded")
    assert torch.equal(cached_features(train, scaled(1 + 1e-6), "rounded").features, first.features)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pixels": torch.zeros(9, 1, 8, 9, dtype=torch.uint8)}, "1 x 8 x 9"),
        ({"pixels": torch.zeros(9, 3, 8, 8, dtype=torch.uint8)}, "3 x 8 x 8"),
        (
            {"pixels": torch.zeros(1, 1, 8, 8, dtype=torch.uint8), "labels": torch.zeros(1, dtype=torch.long)},
            "one sample",
        ),
        ({"labels": torch.full((9,), 5), "class_names": tuple("abcdef")}, "label 5"),
    ],
)
def test_images_that_cannot_be_scored_are_refused(change, words):
    with pytest.raises(DataError, match=words):
        evaluate(replace(blobs(9, 0), **change), blobs(100, 1), None, extractor, "bars")


def test_the_command_scores_a_model_and_its_samples_equally(run_folder, squares, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("simple_diffusion.evaluation.classifier.SEEN", 6 * 86 * 32**2)  # enough for squares
    # More than the images that the estimate of the time is made with.
    main(["evaluate", str(run_folder), "--n", "130", "--out", str(tmp_path / "of-run"), "--json"])
    of_run = json.loads(capsys.readouterr().out)
    assert sorted(p.name for p in (tmp_path / "of-run").iterdir()) == [
        "closest-in-features.png",
        "closest-in-pixels.png",
        "levels.png",
        "scores.json",
    ]
    assert json.loads((tmp_path / "of-run" / "scores.json").read_text()) == of_run
    names = [score["name"] for score in of_run["extractors"][0]["scores"]]
    assert names == ["FID", "KID", "precision", "recall", "density", "coverage", "IS", "accuracy"]
    assert set(of_run["extractors"][0]["by_class"]) == {"0", "1", "2"}
    # The training images themselves, from an .npz, score better than a model of twenty steps.
    main(["evaluate", str(squares), "--data", str(squares), "--out", str(tmp_path / "of-data"), "--json"])
    of_data = json.loads(capsys.readouterr().out)
    precision = {result["what"]: result["extractors"][0]["scores"][2]["value"] for result in (of_run, of_data)}
    assert precision[str(squares)] == 1 > precision[str(run_folder)]
    assert of_data["extractors"][0]["near_duplicates"]["pixels"]["share"] == 1


@pytest.mark.parametrize("classes", [0, 5])
def test_data_with_other_classes_than_the_model_can_be_scored(run_folder, tmp_path, classes, capsys, monkeypatch):
    """A model of three is compared with data of none and of five, whose labels it is not shown."""
    monkeypatch.setattr("simple_diffusion.evaluation.classifier.SEEN", 2 * 86 * 32**2)
    monkeypatch.setattr("simple_diffusion.evaluation.classifier.PRETEXT", 2 * 86 * 32**2)
    rng = np.random.default_rng(0)
    labels = {"labels": np.arange(100) % classes} if classes else {}
    np.savez(tmp_path / "other.npz", images=rng.integers(0, 255, (100, 12, 16, 3), dtype=np.uint8), **labels)
    argv = ["evaluate", str(run_folder), "--data", str(tmp_path / "other.npz"), "--n", "60", "--out", str(tmp_path)]
    main([*argv, "--json"])
    scores = json.loads(capsys.readouterr().out)["extractors"][0]["scores"]
    assert "KID" in {score["name"] for score in scores}
    assert "accuracy" not in {score["name"] for score in scores}
    assert (tmp_path / "levels.png").exists()


def test_a_subset_of_the_samples_is_scored_with_several_extractors(squares, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("simple_diffusion.evaluation.classifier.SEEN", 2 * 86 * 32**2)
    argv = ["evaluate", str(squares), "--data", str(squares), "--n", "60", "--extractor-seeds", "2"]
    main([*argv, "--out", str(tmp_path), "--json"])
    out, said = capsys.readouterr()
    result = json.loads(out)
    assert result["n"] == 60
    names = {score["extractor"] for one in result["extractors"] for score in one["scores"]}
    assert len(names) == len(result["extractors"]) == 2
    assert "Over 2 extractors:" in said
    for kind in ("KID", "recall", "accuracy"):
        a, b = sorted(next(s["value"] for s in one["scores"] if s["name"] == kind) for one in result["extractors"])
        assert f"  {kind:<9}  {a:.4g} to {b:.4g}" in said
    assert "\n  FID  " not in said.partition("Over 2 extractors:")[2]  # there is no FID of so few images


def test_invalid_options_are_refused(capsys, run_folder, squares, tmp_path):
    np.savez(tmp_path / "wide.npz", images=np.zeros((60, 12, 18, 3), np.uint8))
    np.save(tmp_path / "nan.npy", np.full((60, 12, 16, 3), np.nan, np.float32))
    np.save(tmp_path / "bright.npy", np.full((60, 12, 16, 3), 7.0, np.float32))
    fails(capsys, ["evaluate", tmp_path / "wide.npz"], 2, "--data")
    fails(capsys, ["evaluate", tmp_path / "wide.npz", "--data", squares], 3, "3 x 12 x 18")
    fails(capsys, ["evaluate", tmp_path / "nan.npy", "--data", squares], 3, "nan.npy")
    fails(capsys, ["evaluate", tmp_path / "bright.npy", "--data", squares], 3, "bright.npy")
    fails(capsys, ["evaluate", tmp_path / "gone.npz", "--data", squares], 3, "gone.npz")
    fails(capsys, ["evaluate", tmp_path / "gone"], 5, "gone")
    assert len(load_images(str(squares))) == 96
    assert not (tmp_path / "wide").exists()
