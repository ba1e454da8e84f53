"""Duplicated and sorted images: what takes a part of the data, or compares images, must not depend on them."""

import json
from argparse import Namespace
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from simple_diffusion.augmentation import identity, symmetries
from simple_diffusion.cli.evaluate import Plan, samples_of
from simple_diffusion.cli.main import main
from simple_diffusion.data.images import Images, distinct, to_uint8
from simple_diffusion.data.info import DataInfo
from simple_diffusion.data.sources import load_images
from simple_diffusion.doctor.samples import memorization
from simple_diffusion.doctor.weights import non_finite_outputs
from simple_diffusion.errors import DataError
from simple_diffusion.evaluation.classifier import train_classifier
from simple_diffusion.evaluation.memorization import find_near_duplicates, unseen_scores
from simple_diffusion.evaluation.scores import closest_pairs, evaluate
from simple_diffusion.randomness import permutation
from simple_diffusion.run.report import data_of
from simple_diffusion.schedules import Karras
from simple_diffusion.validation import HeldOut, keep_out

EIGHT = symmetries(square=True)


def smooth(n: int, seed: int, freedom: int = 4) -> torch.Tensor:
    """Gray images uint8 `[n, 1, 8, 8]` of freedom x freedom random numbers."""
    x = torch.randn(n, 1, freedom, freedom, generator=torch.Generator().manual_seed(seed))
    return to_uint8(torch.nn.functional.interpolate(x, size=(8, 8), mode="bilinear").tanh())


def lines(n: int, seed: int) -> torch.Tensor:
    """Color images uint8 `[n, 3, 16, 16]` of two degrees of freedom: the brightness at the left and at the right."""
    left, right = torch.rand(2, n, 1, 1, 1, generator=torch.Generator().manual_seed(seed))
    return to_uint8(2 * torch.lerp(left, right, torch.linspace(0, 1, 16)).expand(n, 3, 16, 16) - 1)


def pale(n: int, seed: int) -> torch.Tensor:
    """Nearly white images: their distances are small beside their norms."""
    return 235 + smooth(n, seed) // 13


def sorted_by_class(n: int, seed: int) -> torch.Tensor:
    """Two classes that differ in how close an image is to the next: smooth images, then rough ones."""
    return torch.cat([smooth(n // 2, seed, 3), smooth(n // 2, seed + 1, 8)])


def again(x: torch.Tensor, noise: int) -> torch.Tensor:
    """The images as another encoder writes them: with errors of a few gray levels."""
    errors = torch.randint(-noise, noise + 1, x.shape, generator=torch.Generator().manual_seed(9))
    return (x.int() + errors).clamp(0, 255).to(torch.uint8)


TRAIN, TEST = smooth(1000, 0), smooth(2000, 1)
CLASSES = sorted_by_class(4000, 10)
FLAT, PALE = lines(1000, 20), pale(1000, 30)
CASES = {
    "no duplicates": (TRAIN, None),
    "no duplicates, a test set": (TRAIN, TEST),
    "9 among 1,009": (torch.cat([TRAIN, TRAIN[:9]]), None),
    "2 % twice": (torch.cat([TRAIN, TRAIN[:20]]), None),
    "2 % twice, encoded again": (torch.cat([TRAIN, again(TRAIN[:20], 2)]), None),
    "one image 500 times": (torch.cat([TRAIN[:1].expand(500, -1, -1, -1), TRAIN]), None),
    "everything twice": (TRAIN.repeat(2, 1, 1, 1), None),
    "everything twenty times": (TRAIN.repeat(20, 1, 1, 1), None),
    "everything twice, encoded again": (torch.cat([TRAIN, again(TRAIN, 2)]), None),
    "everything in all symmetries": (torch.cat([view(TRAIN) for view in EIGHT]), None),
    "2 % twice, few degrees of freedom": (torch.cat([FLAT, FLAT[:20]]), None),
    "2 % twice, nearly white": (torch.cat([PALE, PALE[:20]]), None),
    "sorted by class": (CLASSES, None),
    "sorted by class, the other one first": (CLASSES.flip(0), None),
    "the test set sorted by class": (CLASSES, sorted_by_class(8000, 12)),
    "the test set sorted, the other one first": (CLASSES, sorted_by_class(8000, 12).flip(0)),
    "5 % of the test set in the training set": (TRAIN, torch.cat([TRAIN[:100], TEST[:1900]])),
    "5 % of the test set, encoded again": (TRAIN, torch.cat([again(TRAIN[:100], 2), TEST[:1900]])),
    "the test set is the training set": (TRAIN, TRAIN),
    "the test set is one image": (TRAIN, TEST[:1].expand(500, -1, -1, -1)),
    "a test set of ten images": (TRAIN, TEST[:10]),
    "duplicates in the test set": (TRAIN, torch.cat([TEST, TEST[:500]])),
}
"""Description -> (training set, test set or None)."""


@pytest.mark.parametrize("case", CASES)
def test_verbatim_samples_are_found_and_about_one_percent_of_honest_images(case):
    train, test = CASES[case]
    honest = smooth(3000, 2)
    honest = lines(1000, 21) if train.shape[1] == 3 else honest
    honest = pale(3000, 31) if "white" in case else honest
    honest = sorted_by_class(4000, 14) if "sorted" in case else honest
    copies = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(5))[:500]]
    views = [view(train).flatten(1) for view in (EIGHT if "symmetries" in case else [identity])]
    samples = torch.cat([copies, honest]).flatten(1)
    found = find_near_duplicates(samples, views, None if test is None else test.flatten(1))
    near = found.score < found.threshold
    assert near[:500].all()
    assert torch.equal(train[found.nearest[:500]], copies) or "symmetries" in case
    assert (found.distance[:500] == 0).all()
    assert 0.002 < near[500:].double().mean() < 0.025


@pytest.mark.parametrize("case", ["2 % twice", "everything twice", "sorted by class"])
def test_samples_are_found_that_nearly_repeat_an_image(case):
    train, _ = CASES[case]
    samples = again(train[-500:], 8).flatten(1)
    assert find_near_duplicates(samples, [train.flatten(1)], None).share == 1


def test_the_order_of_the_images_does_not_matter():
    train, honest = CLASSES, sorted_by_class(2000, 14).flatten(1)
    shares = [find_near_duplicates(honest, [x.flatten(1)], None).share for x in (train, train.flip(0))]
    assert shares[0] == pytest.approx(shares[1], abs=0.008)


@pytest.mark.parametrize(("n", "rank", "expected"), [(20, 1, 1 / 21), (999, 10, 0.01)])
def test_the_threshold_is_the_score_that_the_expected_share_of_honest_images_falls_below(n, rank, expected):
    """The k-th lowest of n scores is above a share k / (n + 1) of further scores, in the mean over data sets."""
    shares = []
    for seed in range(60 if n < 100 else 4):
        train, honest = smooth(n, 100 + 2 * seed).flatten(1), smooth(400, 101 + 2 * seed).flatten(1)
        found = find_near_duplicates(honest, [train], None)
        assert found.threshold == unseen_scores([train], None, n).sort().values[rank - 1]
        assert found.expected == expected
        shares.append(found.share)
    assert np.mean(shares) == pytest.approx(expected, abs=3 * np.std(shares) / np.sqrt(len(shares)))


# --- the commands and their parts


def labeled(pixels: torch.Tensor, name: str = "sorted") -> Images:
    """Images in two classes, the first half of them in the first."""
    return Images(name, pixels, (torch.arange(len(pixels)) >= len(pixels) / 2).long(), ("a", "b"))


def means(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """An extractor of row and column means."""
    x = pixels[:, 0].float() / 255
    return torch.cat([x.mean(1), x.mean(2)], 1), x.mean((1, 2), keepdim=True).squeeze(2)


def test_of_many_samples_in_the_order_of_their_classes_all_classes_are_searched():
    copies = TRAIN[:1500]
    samples = labeled(torch.cat([smooth(3000, 2), copies, copies]))  # the second class repeats training images
    train = labeled(torch.cat([TRAIN[:10], TRAIN]))
    found = evaluate(samples, train, labeled(TEST), means, "means").near_duplicates
    assert found["pixels"].share == pytest.approx(0.4, abs=0.05)
    assert found["features"].share == pytest.approx(0.4, abs=0.05)
    above, below = closest_pairs(found["pixels"], samples, train).unflatten(0, (-1, 2, 10)).unbind(1)
    assert torch.equal(above, below)


def test_the_evaluation_says_how_many_duplicates_there_are():
    train = labeled(torch.cat([TRAIN, TRAIN[:9]]))
    test = labeled(torch.cat([TEST[:500], TRAIN[:5], TRAIN[:5]]))
    result = evaluate(labeled(smooth(200, 2)), train, test, means, "means")
    notes = [
        "Of the 1,009 training images, 9 are exact duplicates of earlier ones.",
        "Of the 510 images of the test set, 10 are training images and were left out.",
    ]
    assert str(result).splitlines()[-2:] == notes
    assert result.as_dict()["notes"] == notes
    assert not evaluate(labeled(smooth(200, 2)), labeled(TRAIN), labeled(TEST), means, "means").notes


def baselines(train: Images, test: Images | None) -> dict[str, float]:
    result = evaluate(labeled(smooth(200, 2)), train, test, means, "means")
    groups = {"": result.scores} | {f"{name} ": scores for name, scores in result.by_class.items()}
    return {group + score.name: score.baseline for group, scores in groups.items() for score in scores}


def test_the_baselines_are_those_of_the_same_data_without_duplicates():
    """The parts of the training set that stand for a perfect generator share no image."""
    images = labeled(TRAIN[:300])
    twice = images[torch.arange(300).repeat(2)]
    assert baselines(twice, None) == pytest.approx(baselines(images, None), rel=0.02)
    test = labeled(TEST[:200])
    overlapping = replace(test, pixels=torch.cat([TEST[:200], TRAIN[:150]]), labels=torch.arange(350) // 100 % 2)
    assert baselines(images, overlapping) == baselines(images, test)
    assert baselines(images, images) == baselines(images, None)


def test_only_images_that_are_not_training_images_are_unseen():
    train, test = labeled(TRAIN[:300]), labeled(torch.cat([TRAIN[:50], TEST[:40], TRAIN[20:30], TEST[:2]]))
    new = test.new_to(train)
    assert torch.equal(new.pixels, torch.cat([TEST[:40], TEST[:2]]))
    assert torch.equal(new.labels, torch.cat([test.labels[50:90], test.labels[-2:]]))
    assert train.new_to(train) is None
    assert new.new_to(train) is new


@pytest.mark.parametrize("different", [1, 11])
def test_with_too_few_different_images_the_search_is_not_made_and_the_reason_is_given(different):
    train = TRAIN[:different].repeat(100, 1, 1, 1)
    reason = f"a search for near-duplicates needs at least 12 different training images, got {different}"
    with pytest.raises(DataError, match=reason):
        find_near_duplicates(train.flatten(1), [train.flatten(1)], None)
    result = evaluate(labeled(smooth(100, 2)), labeled(train), None, means, "means")
    assert not result.near_duplicates
    assert str(result).splitlines()[-1] == f"{reason}."
    with pytest.raises(DataError, match=reason):  # which doctor lists under Skipped
        memorization(patient_of(train, train[:64]))


def patient_of(train: torch.Tensor, samples: torch.Tensor):
    """What `memorization` reads of a patient."""
    spec = SimpleNamespace(augmentations=[identity])
    return SimpleNamespace(split=(Images("train", train), None), spec=spec, samples=samples / 127.5 - 1)


def test_doctor_searches_all_images_of_a_large_set():
    train = smooth(25_000, 3)
    memorized = train[torch.arange(0, 25_000, 400)[:62]]
    assert memorization(patient_of(train, memorized)).excess == pytest.approx(5)
    assert memorization(patient_of(train, smooth(64, 4))).excess < 0.6
    few = torch.cat([smooth(48, 4), memorized[:16]])  # a quarter of the samples, above the bound of a fifth
    assert memorization(patient_of(train, few)).excess > 1


def test_doctor_looks_for_non_finite_outputs_on_images_of_all_classes():
    images = labeled(torch.cat([torch.zeros(50, 1, 8, 8), torch.full((50, 1, 8, 8), 255)]).to(torch.uint8))
    seen = []

    class Spy:
        schedule, net = Karras(), torch.nn.Identity()

        def __call__(self, x, t, cond):
            seen.append(x.mean((1, 2, 3)))

    patient = SimpleNamespace(images=images, denoiser=Spy(), info=SimpleNamespace(classes=2), device="cpu")
    non_finite_outputs(patient, {})
    assert 0 < (seen[0] > 0).sum() < 8


def test_the_held_out_loss_is_that_of_all_classes():
    images, seen = labeled(torch.zeros(2000, 1, 2, 2, dtype=torch.uint8)), []

    def loss(denoiser, x0, cond, draws):
        seen.append(cond)
        return torch.zeros(len(x0))

    HeldOut(images, loss, 0).measure(torch.nn.Linear(1, 1))
    assert torch.cat(seen).double().mean() == pytest.approx(0.5, abs=0.1)


def test_held_out_images_do_not_occur_among_the_training_images():
    images = labeled(torch.cat([TRAIN, TRAIN, TRAIN[:100]]))
    train, held = keep_out(images, 0.1, seed=0)
    assert len(held) == len(held.distinct) == 100
    assert len(train.distinct) == 900
    assert len(train) == 2100 - 200 - sum(int((held.pixels == image).flatten(1).all(1).any()) for image in TRAIN[:100])
    assert len(distinct([torch.cat([train.pixels, held.pixels])])) == 1000
    once = labeled(TRAIN)
    rest, some = keep_out(once, 0.1, seed=0)  # without duplicates the parts of a permutation, as in earlier versions
    order = permutation(1000, 0, "held out")
    assert torch.equal(torch.cat([some.pixels, rest.pixels]), TRAIN[order])
    with pytest.raises(DataError, match="100 images, 1 of them different, can't be held out"):
        keep_out(labeled(TRAIN[:1].repeat(100, 1, 1, 1)), 0.1, seed=0)
    with pytest.raises(DataError, match="too few different images, 12: a classifier needs 20"):
        train_classifier(labeled(TRAIN[:12].repeat(100, 1, 1, 1)))


def test_a_part_of_a_file_of_samples_has_all_classes():
    samples = labeled(smooth(1000, 2))
    plan = Plan(None, samples, None, None, None)
    for n in (None, 1000, 5000):
        whole, _ = samples_of(Namespace(n=n, seed=0), plan)
        assert torch.equal(whole.pixels, samples.pixels)
    part, _ = samples_of(Namespace(n=200, seed=0), plan)
    assert len(part) == 200
    assert part.labels.double().mean() == pytest.approx(0.5, abs=0.12)


def test_data_and_train_say_how_many_duplicates_there_are(tmp_path, capsys):
    path = tmp_path / "twice.npz"
    pixels = torch.cat([TRAIN[:91], TRAIN[:9]])
    np.savez(path, images=pixels[:, 0].numpy(), labels=np.arange(100) % 2)
    main(["data", str(path), "--json"])
    out, said = capsys.readouterr()
    assert json.loads(out)["duplicates"] == 9
    assert "9 are exact duplicates of earlier ones." in said
    main(["train", str(path), "--steps", "1", "--dry-run", "--set=widths=8,16", "--set=blocks=1,1"])
    assert "9 are exact duplicates of earlier ones." in capsys.readouterr().out
    images = load_images(str(path))
    assert "9 are exact duplicates of earlier ones." in data_of(DataInfo.of(images), images).sentence
    once = images[images.distinct]
    assert once.duplicates == 0
    assert "duplicates" not in data_of(DataInfo.of(once), once).sentence


def test_distinct_rows_are_the_first_of_their_kind_in_any_view():
    x = torch.tensor([[1, 2], [2, 1], [1, 2], [3, 3], [2, 1]], dtype=torch.uint8)
    assert distinct([x]).tolist() == [0, 1, 3]
    assert distinct([x, x.flip(1)]).tolist() == [0, 3]
    assert distinct([x[:0]]).tolist() == []
