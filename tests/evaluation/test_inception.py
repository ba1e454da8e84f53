"""Inception: what is ours of it. The network itself is torch-fidelity's, which is not installed for tests."""

import hashlib
import json
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from faults import fails

from simple_diffusion.cli.main import main
from simple_diffusion.errors import DataError, UsageError
from simple_diffusion.evaluation import inception as ours
from simple_diffusion.evaluation.inception import NAME, WEIGHTS, fetch, inception, to_rgb, verify

KNOWN = b"weights that are known to the last byte"


@pytest.fixture
def known(monkeypatch, tmp_path):
    """A file that passes for the published weights, and an empty cache of torch."""
    monkeypatch.setattr(ours, "SHA256", hashlib.sha256(KNOWN).hexdigest())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    path = tmp_path / "by-hand.pth"
    path.write_bytes(KNOWN)
    return path


@pytest.fixture
def unpickled(monkeypatch) -> list[str]:
    """A stand-in for torch-fidelity: three column means as features. The list holds the files that it was given."""
    paths = []

    class StandIn(torch.nn.Module):
        def __init__(self, name, features_list, feature_extractor_weights_path):
            super().__init__()
            assert features_list == ["2048", "logits_unbiased"]
            paths.append(feature_extractor_weights_path)

        def forward(self, x):
            assert x.dtype == torch.uint8
            assert x.shape[1] == 3
            features = x.float().mean((1, 2))
            return features, -features

    package = ModuleType("torch_fidelity")
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = StandIn
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return paths


def test_without_the_package_the_error_has_the_command_to_install_it(monkeypatch, squares, capsys):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(UsageError, match=r"pip install 'simple-diffusion\[fidelity\]'"):
        inception()
    fails(capsys, ["evaluate", squares, "--data", squares, "--extractor", "inception"], 2, "simple-diffusion[fidelity]")


def test_options_that_contradict_each_other(squares, capsys):
    evaluate = ["evaluate", squares, "--data", squares]
    fails(capsys, [*evaluate, "--inception-weights", "x.pth"], 2, "--extractor inception")
    fails(capsys, [*evaluate, "--extractor", "inception", "--extractor-seeds", "2"], 2, "drop --extractor-seeds")


def test_gray_becomes_three_equal_channels_and_rgb_stays_the_same():
    grey = torch.randint(0, 256, (4, 1, 6, 5)).to(torch.uint8)
    assert to_rgb(grey).shape == (4, 3, 6, 5)
    assert all(torch.equal(to_rgb(grey)[:, c : c + 1], grey) for c in range(3))
    colour = torch.randint(0, 256, (4, 3, 6, 5)).to(torch.uint8)
    assert torch.equal(to_rgb(colour), colour)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 2, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 3, 8, 8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(0, 3, 8, 8, dtype=torch.uint8),
    ],
)
def test_other_images_are_refused(images):
    with pytest.raises(DataError, match="inception-v3-fidelity takes uint8"):
        to_rgb(images)


def test_each_image_gets_its_own_numbers_in_order(known, unpickled):
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (2 * ours.BATCH + 7, 1, 4, 4), dtype=np.uint8))
    features, logits = inception(known, device="cpu")(pixels)
    assert torch.allclose(features, pixels[:, 0].float().mean(1))
    assert torch.equal(logits, -features)
    assert unpickled == [str(known)]


def test_the_command_prints_its_name_with_each_number(known, unpickled, squares, tmp_path, capsys):
    argv = ["evaluate", squares, "--data", squares, "--extractor", "inception", "--inception-weights", known]
    main([*map(str, argv), "--out", str(tmp_path / "scores"), "--json"])
    (result,) = json.loads(capsys.readouterr().out)["extractors"]
    assert {score["extractor"] for score in result["scores"]} == {NAME}
    assert (
        result["near_duplicates"]["pixels"]["count"] == result["near_duplicates"]["pixels"]["samples"] == 96
    )  # the data itself


@pytest.mark.parametrize("place", ["by hand", "in the cache"])
def test_a_file_with_a_wrong_checksum_is_not_unpickled(known, unpickled, place):
    path = known
    if place == "in the cache":
        path = known.parent / "torch" / "hub" / "checkpoints" / WEIGHTS
        path.parent.mkdir(parents=True)
    path.write_bytes(KNOWN + b"!")
    with pytest.raises(DataError, match="SHA-256") as error:
        inception(known if place == "by hand" else None)
    assert str(path) in str(error.value)
    assert unpickled == []


def test_a_missing_file_is_refused(known):
    with pytest.raises(DataError, match=r"gone\.pth cannot be read"):
        verify(known.parent / "gone.pth")


def test_weights_are_downloaded_once_to_the_cache_of_torch(known, monkeypatch):
    monkeypatch.setattr(ours, "URL", known.as_uri())
    path = fetch()
    assert path == known.parent / "torch" / "hub" / "checkpoints" / WEIGHTS
    assert path.read_bytes() == KNOWN
    known.unlink()
    assert fetch() == path


@pytest.mark.parametrize("failure", ["no network", "other bytes"])
def test_the_download_error_says_where_to_put_the_file(known, monkeypatch, failure):
    monkeypatch.setattr(ours, "URL", known.as_uri())
    if failure == "no network":
        known.unlink()
    else:
        known.write_bytes(KNOWN + b"!")
    with pytest.raises(DataError, match="--inception-weights") as error:
        fetch()
    path = known.parent / "torch" / "hub" / "checkpoints" / WEIGHTS
    assert all(word in str(error.value) for word in (str(path), known.as_uri()))
    assert "\n" not in str(error.value)
    assert not list(path.parent.iterdir())
