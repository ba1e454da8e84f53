"""A perfect generator, whose samples are unseen images of the data's distribution, is at its baseline in the mean."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from simple_diffusion.data.images import Images
from simple_diffusion.data.sources import held_out, load_images
from simple_diffusion.evaluation.baselines import fid_baseline, fid_bias, images_new_to, inception_baseline
from simple_diffusion.evaluation.classifier import VALIDATION, held_out_part, split
from simple_diffusion.evaluation.extractors import extractor_for
from simple_diffusion.evaluation.features import ImageFeatures
from simple_diffusion.evaluation.metrics import Moments, frechet_distance
from simple_diffusion.evaluation.scores import evaluate

CLASSES, WIDTH = 3, 5
MAP = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(0))
SIZES = {
    "no test set, fewer samples than images": (400, 0, 120),
    "no test set, as many": (160, 0, 160),
    "no test set, more": (120, 0, 480),
    "small test set": (160, 60, 240),
    "test set of another size": (120, 200, 160),
}
"""Numbers of training images, test images and samples."""


pytestmark = pytest.mark.usefixtures("one_thread")


def perfect(n: int, rng: np.random.Generator) -> Images:
    """n images of one distribution, and labels that the extractor's logits predict for most of them."""
    pixels = torch.from_numpy(rng.normal(128, 40, (n, 1, 4, 4)).clip(0, 255).astype(np.uint8))
    _, logits = extractor(pixels)
    labels = (logits + torch.from_numpy(rng.normal(0, 3, (n, CLASSES)))).argmax(1)
    return Images("perfect", pixels, labels, ("a", "b", "c"))


def extractor(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Skewed features, as those of a classifier are, and logits."""
    features = ((pixels.flatten(1).float() / 40 - 3.2) @ MAP / 4).exp()
    return features, features[:, :CLASSES]


def gaps(trials: int, train: int, test: int, n: int, seed: int) -> dict[str, list[float]]:
    """Each score of a perfect generator minus its baseline, in every trial."""
    found: dict[str, list[float]] = {}
    for trial in range(trials):
        rng = np.random.default_rng((seed, trial))
        data, unseen, samples = (perfect(size, rng) for size in (train, max(test, 2), n))
        result = evaluate(samples, data, unseen if test else None, extractor, f"perfect-{seed}")
        groups = {"": result.scores} | {f"{name} ": scores for name, scores in result.by_class.items()}
        for group, scores in groups.items():
            for score in scores:
                assert score.value is not None
                assert score.baseline is not None
                found.setdefault(group + score.name, []).append(score.value - score.baseline)
    return found


def check(found: dict[str, list[float]], errors: float) -> None:
    assert {"FID", "KID", "IS", "precision", "recall", "density", "coverage", "accuracy"} < found.keys()
    assert {"a FID", "b accuracy"} < found.keys()
    for name, values in found.items():
        error = np.std(values, ddof=1) / len(values) ** 0.5
        assert abs(np.mean(values)) < errors * error, f"{name}: {np.mean(values):.4g} ± {error:.2g}"


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_a_perfect_generator_is_at_its_baseline_in_every_score(sizes):
    check(gaps(60, *sizes, seed=1), errors=4)


def test_a_perfect_generator_is_at_its_baseline_without_a_test_set():
    """The halves of the training set have twice the bias of FID: 0.3 too high, which is six standard errors here."""
    check(gaps(12, *SIZES["no test set, as many"], seed=2), errors=4.5)


def of_features(x: torch.Tensor) -> ImageFeatures:
    return ImageFeatures(x, x[:, :0])


@pytest.mark.parametrize("n", [20, 64, 640])
def test_the_bias_of_fid_is_estimated_from_the_real_images_alone(n):
    """For normal features, also at the least number of images, twice that of the features."""
    generator = torch.Generator().manual_seed(n)
    sets = [[torch.randn(k, 10, generator=generator) for k in (40, n)] for _ in range(40)]
    truth = np.mean([frechet_distance(*map(Moments.of, pair)) for pair in sets])
    estimates = [fid_bias(of_features(real), n) for real, _ in sets]
    assert np.mean(estimates) == pytest.approx(truth, rel=0.1)


def test_few_test_images_keep_the_distance_of_the_test_set():
    """The test set differs from the training set by a known distance, which is no bias."""
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(20):
        real, unseen = (of_features(torch.randn(k, 4, generator=generator) + shift) for k, shift in ((400, 0), (40, 1)))
        value, note = fid_baseline(real, unseen, 4000)
        values.append(value)
        assert note == "extrapolated from 40 test images"
    bias = fid_bias(of_features(torch.randn(400, 4, generator=generator)), 4000)
    assert np.mean(values) == pytest.approx(4 + bias, rel=0.1)


def test_a_test_set_that_is_too_small_is_not_used():
    real = of_features(torch.randn(100, 10, generator=torch.Generator().manual_seed(0)))
    for unseen in (None, real[:19]):
        assert fid_baseline(real, unseen, 50) == (fid_bias(real, 50), "estimated from parts of the training set")
    assert fid_baseline(real, real[:50], 50)[1] == ""


def test_the_bias_of_the_inception_score_is_removed():
    """Its mean over sets of 30 images is the mean that is expected from sets of 60 and of 3000."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(60 * 100, 4, generator=generator)
    for size in (30, 60, 3000):
        expected = np.mean([inception_baseline(part, 30) for part in logits.split(size)])
        truth = np.mean([inception_baseline(part, len(part)) for part in logits.split(30)])
        assert expected == pytest.approx(truth, rel=0.004)
    assert inception_baseline(logits, 30) < 0.99 * inception_baseline(logits, 6000)


def test_the_classifier_is_not_scored_on_the_images_that_it_was_trained_on():
    images = perfect(200, np.random.default_rng(0))
    _, validation = split(images, VALIDATION, seed=3)
    part = held_out_part(images, 3)
    assert torch.equal(images.pixels[part], validation.pixels)
    for fingerprint, new in ((images.fingerprint, part), ("of other images", torch.arange(200))):
        classifier = SimpleNamespace(record=SimpleNamespace(fingerprint=fingerprint, seed=3))
        assert torch.equal(images_new_to(classifier, images), new)
    assert torch.equal(images_new_to(extractor, images), torch.arange(200))


@pytest.mark.slow
@pytest.mark.parametrize("count", [500, 1000])
def test_unseen_digits_are_at_the_baseline_of_the_shipped_extractor(count):
    """With 192 features of a real classifier: the baseline of 500 images is estimated from parts of 250."""
    train, test = load_images("digits"), held_out("digits")
    classifier = extractor_for(train)
    values, baselines = [], []
    for trial in range(8):
        real = train[torch.arange(count) + 5000 * trial]
        fake = ImageFeatures(*classifier(test.pixels[count * trial : count * (trial + 1)]))
        side = ImageFeatures(*classifier(real.pixels))
        values.append(frechet_distance(side.moments, fake.moments))
        baselines.append(fid_baseline(side, None, count)[0])
    error = np.std(np.subtract(values, baselines)) / 8**0.5
    assert abs(np.mean(values) - np.mean(baselines)) < 4 * error + 0.03 * np.mean(values)


def test_the_test_set_of_a_class_is_used_for_its_baseline():
    rng = np.random.default_rng(0)
    data, unseen, samples = (perfect(n, rng) for n in (160, 400, 90))
    result = evaluate(samples, data, unseen, extractor, "perfect-classes")
    assert all(fid.baseline is not None and not fid.note for _, fid in result.by_class.values())
    unlabeled = replace(unseen, labels=None, class_names=())
    result = evaluate(samples, data, unlabeled, extractor, "perfect-classes")
    assert {score.name for score in result.scores} > {"IS", "accuracy"}
