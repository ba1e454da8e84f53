"""The built-in digits: balanced classes, reproducible bits, ink inside the frame, legible and varied."""

from unittest.mock import patch

import pytest
import torch

from simple_diffusion.data import digits as module
from simple_diffusion.data.digits import digits
from simple_diffusion.errors import DataError

FEW = {"train": 5000, "test": 1000}


@pytest.fixture(autouse=True)
def _few(monkeypatch, request):
    """In the quick tests the splits have 5,000 and 1,000 images."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(module, "SIZES", FEW)


@pytest.fixture(scope="module")
def train():
    with patch.object(module, "SIZES", FEW):
        return digits("train")


@pytest.fixture(scope="module")
def test():
    with patch.object(module, "SIZES", FEW):
        return digits("test")


def flat(images, n):
    return images.pixels[:n].flatten(1).float() / 255


def distances(a, b):
    return torch.cdist(a, b, compute_mode="use_mm_for_euclid_dist")


def test_sizes_and_types(train, test):
    for images, n in ((train, 5000), (test, 1000)):
        assert images.name == "digits"
        assert images.pixels.shape == (n, 1, 28, 28)
        assert images.pixels.dtype == torch.uint8
        assert images.labels.shape == (n,)
        assert images.labels.dtype == torch.int64
    assert train.class_names == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")


def test_classes_are_exactly_balanced_and_shuffled(train, test):
    for images in (train, test):
        assert torch.bincount(images.labels).tolist() == [len(images) // 10] * 10
        same_as_next = (images.labels[1:] == images.labels[:-1]).double().mean().item()
        assert same_as_next == pytest.approx(0.1, abs=0.02)


def test_white_ink_on_black_about_as_much_as_in_mnist(train):
    assert train.pixels.min() == 0
    assert (train.pixels.flatten(1).amax(1) == 255).double().mean() > 0.999
    assert 0.10 < (train.mean + 1) / 2 < 0.16


def test_same_seed_same_bits(test):
    assert digits("test").fingerprint == test.fingerprint


def test_other_seed_or_split_other_images(monkeypatch):
    monkeypatch.setattr(module, "SIZES", {"train": 1000, "test": 1000})
    prints = {images.fingerprint for images in (digits("test"), digits("test", seed=1), digits("train"))}
    assert len(prints) == 3


def test_bits_do_not_depend_on_threads(test):
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert digits("test").fingerprint == test.fingerprint
    finally:
        torch.set_num_threads(before)


def test_bits_do_not_depend_on_chunks(test, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 77)
    assert digits("test").fingerprint == test.fingerprint


def test_some_classes_are_the_same_images_and_no_others_are_rendered(test, monkeypatch):
    whole, rendered, render = test, [], module._render
    monkeypatch.setattr(module, "_render", lambda ends, radius: rendered.append(len(ends)) or render(ends, radius))
    seven, both = digits("test", classes="7"), digits("test", classes="4,0")
    assert torch.equal(seven.pixels, whole.pixels[whole.labels == 7])
    assert (seven.labels, seven.class_names) == (None, ())
    rows = (whole.labels == 4) | (whole.labels == 0)
    assert torch.equal(both.pixels, whole.pixels[rows])
    assert torch.equal(both.labels, (whole.labels[rows] == 0).long())
    assert both.class_names == ("4", "0")
    assert sum(rendered) == 300
    with pytest.raises(DataError, match="no class '11'"):
        digits("test", classes="11")


def test_windows_cut_no_ink(test, monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 15)
    assert digits("test").fingerprint == test.fingerprint


def test_ink_stays_off_the_border(train, test):
    for images in (train, test):
        inside = images.pixels[..., 2:-2, 2:-2]
        assert torch.equal(inside.sum((1, 2, 3)), images.pixels.sum((1, 2, 3)))


def test_ink_is_in_the_middle(train):
    ink = train.pixels[:, 0].sum(0).double()
    at = torch.arange(28.0, dtype=torch.float64)
    for axis in (0, 1):
        assert (ink.sum(axis) @ at / ink.sum()).item() == pytest.approx(13.5, abs=1)


def test_the_nearest_image_has_the_same_label(train, test):
    nearest = distances(flat(test, 1000), flat(train, 5000)).argmin(1)
    assert (train.labels[nearest] == test.labels).double().mean() > 0.93


def test_every_class_is_varied(train, test):
    """The nearest class mean is often right, but not as often as for ten fixed shapes."""
    means = torch.stack([flat(train, 5000)[train.labels[:5000] == c].mean(0) for c in range(10)])
    right = (distances(flat(test, 1000), means).argmin(1) == test.labels).double().mean()
    assert 0.6 < right < 0.93


def test_no_image_occurs_twice(train, test):
    seen = {image.tobytes() for images in (train, test) for image in images.pixels.numpy()}
    assert len(seen) == 6000


@pytest.mark.slow
def test_the_whole_set_is_balanced_inside_the_border_and_without_duplicates():
    train, test = digits("train"), digits("test")
    test_classes_are_exactly_balanced_and_shuffled(train, test)
    test_ink_stays_off_the_border(train, test)
    assert (len(train), len(test)) == (60_000, 10_000)
    assert len({image.tobytes() for images in (train, test) for image in images.pixels.numpy()}) == 70_000


def test_an_unknown_split_gives_one_message():
    with pytest.raises(DataError, match=r"^`split` of digits must be train or test, got 'valid'$"):
        digits("valid")
