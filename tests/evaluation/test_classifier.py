"""The classifier, its training, and the extractors made of it."""

import copy
import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from simple_diffusion.cli.main import main
from simple_diffusion.data.images import Images, to_unit
from simple_diffusion.data.sources import load_images
from simple_diffusion.errors import CheckpointError, DataError, DivergedError, ResourceError
from simple_diffusion.evaluation import classifier as classification
from simple_diffusion.evaluation import extractors
from simple_diffusion.evaluation.classifier import (
    Report,
    accuracy,
    infer,
    passes,
    pretext,
    score,
    shifted,
    sized,
    split,
    train_classifier,
)
from simple_diffusion.evaluation.extractors import (
    SHIPPED,
    Extractor,
    extractor_for,
    hash_of,
    make_extractor,
    name_of,
    read_extractor,
    save_extractor,
    shipped,
)
from simple_diffusion.networks.classifier import Classifier


def bars(n: int, seed: int, labelled: bool = True) -> Images:
    """Grey images of 16 x 16 with a bright bar at the left, in the middle or at the right, in noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    pixels = rng.integers(0, 120, (n, 1, 16, 16), dtype=np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[0, 2:9, 1 + 5 * label : 4 + 5 * label] = rng.integers(150, 255)
    if not labelled:
        return Images(f"bars/{seed}", torch.from_numpy(pixels))
    return Images(f"bars/{seed}", torch.from_numpy(pixels), torch.from_numpy(labels), ("left", "middle", "right"))


def greys(n: int) -> Images:
    """Image i has the value i all over, so that its copies can be traced."""
    pixels = torch.arange(n).to(torch.uint8)[:, None, None, None].expand(n, 1, 8, 8).contiguous()
    return Images("greys", pixels, torch.arange(n) % 2, ("even", "odd"))


def numpy_of(net: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in net.state_dict().items()}


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    x, y = numpy_of(a), numpy_of(b)
    return x.keys() == y.keys() and all(np.array_equal(x[name], y[name]) for name in x)


@pytest.fixture(scope="module")
def trained() -> tuple[Classifier, Report]:
    return train_classifier(bars(200, 0), epochs=6)


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return make_extractor(bars(100, 0), "bars", epochs=1)


# --- the network


def test_the_default_network_has_the_parameters_of_the_predecessor():
    net = Classifier()
    assert sum(p.numel() for p in net.parameters()) == 345_194
    convs = [(m.in_channels, m.out_channels, m.stride, m.bias) for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert convs == [(1, 32, (1, 1), None), (32, 64, (2, 2), None), (64, 128, (2, 2), None), (128, 192, (2, 2), None)]
    assert [type(m) for m in net.body] == 4 * [nn.Conv2d, nn.BatchNorm2d, nn.GELU]
    assert net.body(torch.zeros(2, 1, 32, 32)).shape == (2, 192, 4, 4)


def test_features_are_the_spatial_mean_and_logits_are_linear_in_the_whole_map():
    net = Classifier(channels=3, classes=5, size=20, layers=3, start=8).eval()
    x = torch.randn(4, 3, 20, 20)
    features, logits = net(x)
    maps = net.body(x).detach().double().numpy()
    assert maps.shape == (4, 32, 5, 5)
    assert np.allclose(features.detach(), maps.reshape(4, 32, 25).mean(2), atol=1e-6)
    weight, bias = (p.detach().double().numpy() for p in (net.head.weight, net.head.bias))
    assert np.allclose(logits.detach(), maps.reshape(4, -1) @ weight.T + bias, atol=1e-5)


@pytest.mark.parametrize(("channels", "classes", "size"), [*itertools.product((1, 3, 5), (1, 2, 7), (1, 2, 5, 8))])
def test_every_small_combination_learns(channels, classes, size):
    for layers, start in itertools.product((1, 2, 4), (1, 3)):
        net = Classifier(channels, classes, size, layers, start)
        features, logits = net(torch.randn(6, channels, size, size))
        assert features.shape == (6, start if layers == 1 else 2 * start * (layers - 1))
        assert logits.shape == (6, classes)
        (features.square().sum() + logits.square().sum()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        assert net.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"layers": 17}, {"channels": 0}, {"size": 5000}, {"classes": -1}])
def test_impossible_networks_are_refused(wrong):
    with pytest.raises(ValueError, match="at most 16 layers"):
        Classifier(**wrong)


# --- what the network sees


def test_images_of_the_right_size_pass_unchanged_and_others_keep_their_ramps():
    pixels = torch.arange(0, 224, 8).to(torch.uint8).expand(2, 3, 28, 28)
    assert torch.equal(sized(pixels, 28), to_unit(pixels))
    ramp = sized(pixels, 32)
    assert ramp.shape == (2, 3, 32, 32)
    # Column j lies at 28 / 32 (j + 1/2) - 1/2 of the original; a ramp stays one, up to the edge.
    at = 28 / 32 * (torch.arange(2, 30) + 0.5) - 0.5
    assert torch.allclose(ramp[..., 2:30], (8 * at / 127.5 - 1).expand(2, 3, 32, 28), atol=1e-5)
    fine = ((torch.arange(64) + 1) // 2 % 2 * 255).to(torch.uint8).expand(1, 1, 64, 64)
    assert sized(fine, 16)[..., 1:-1].abs().max() < 0.2  # averaged, not skipped over


def test_shifts_move_each_image_by_its_own_and_repeat_the_edge():
    x = torch.randn(9, 2, 4, 5)
    moves = torch.tensor(list(itertools.product((-2, 0, 1), repeat=2)))
    moved = shifted(x, moves)
    for b, i, j in itertools.product(range(9), range(4), range(5)):
        down, right = moves[b].tolist()
        source = x[b, :, min(max(i - down, 0), 3), min(max(j - right, 0), 4)]
        assert torch.equal(moved[b, :, i, j], source)


def test_the_pretext_task_labels_the_eight_symmetries_of_the_square():
    image = torch.arange(9).to(torch.uint8).reshape(1, 1, 3, 3)
    turned = pretext(Images("one", torch.cat([image, image + 100])), 3)
    assert turned.labels is not None
    assert turned.labels.tolist() == [label for label in range(8) for _ in range(2)]
    assert turned.classes == 8
    first = turned.pixels[::2, 0].numpy()
    square = image[0, 0].numpy()
    for label, x in enumerate(first):
        assert np.array_equal(x, np.rot90(square if label < 4 else np.fliplr(square), label % 4))
    assert len({x.tobytes() for x in first}) == 8
    assert np.array_equal(turned.pixels[1::2, 0].numpy(), first + 100)


# --- training


def test_an_easy_data_set_is_classified(trained):
    net, report = trained
    assert accuracy(net, bars(300, 1)) > 0.98
    assert report.accuracy > 0.95
    assert not net.training


def test_the_same_seed_gives_the_same_bits_and_another_one_others():
    runs = [train_classifier(bars(60, 0), epochs=2, seed=seed) for seed in (3, 3, 4)]
    assert same_weights(runs[0][0], runs[1][0])
    assert replace(runs[0][1], seconds=0) == replace(runs[1][1], seconds=0)
    assert not same_weights(runs[0][0], runs[2][0])


def test_the_first_weights_the_order_and_the_shifts_each_follow_the_seed(monkeypatch):
    def after_a_pass(seed: int) -> Classifier:
        torch.manual_seed(0)
        net = Classifier(1, 3, 32, 2, 4)
        next(passes(net, bars(48, 0), 1, seed, torch.float32))
        return net

    with monkeypatch.context() as patch:
        patch.setattr(classification, "SHIFT", 0)
        assert not same_weights(after_a_pass(1), after_a_pass(2))  # by the order alone
    with monkeypatch.context() as patch:
        patch.setattr(classification, "permutation", lambda n, *_: torch.arange(n))
        assert not same_weights(after_a_pass(1), after_a_pass(2))  # by the shifts alone
    monkeypatch.setattr(classification, "passes", lambda *_: iter([1]))
    nets = [train_classifier(bars(30, 0), epochs=1, seed=seed)[0] for seed in (1, 2)]
    assert not same_weights(*nets)


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train_classifier(bars(40, 0), epochs=1)
    assert torch.equal(before, torch.get_rng_state())


def test_the_validation_part_is_a_tenth_and_disjoint():
    rest, held_out = split(greys(200), 0.1, seed=1)
    values = [set(x.pixels[:, 0, 0, 0].tolist()) for x in (rest, held_out)]
    assert len(held_out) == 20
    assert values[0] | values[1] == set(range(200))
    assert not values[0] & values[1]
    assert held_out.labels is not None
    assert torch.equal(held_out.labels, held_out.pixels[:, 0, 0, 0].long() % 2)  # labels go with their images


@pytest.mark.parametrize("labelled", [True, False])
def test_what_is_held_out_is_never_trained_on_nor_are_its_symmetries(monkeypatch, labelled):
    seen, judged = set(), set()

    def watch_passes(net, images, *_):
        seen.update(images.pixels.flatten().tolist())
        yield 1

    def watch_score(net, images):
        judged.update(images.pixels.flatten().tolist())
        return 1.0, 1.0

    monkeypatch.setattr(classification, "passes", watch_passes)
    monkeypatch.setattr(classification, "score", watch_score)
    images = greys(200) if labelled else replace(greys(200), labels=None, class_names=())
    train_classifier(images, epochs=1)
    assert len(judged) == 20
    assert seen == set(range(200)) - judged


def test_the_best_weights_are_returned_and_not_the_last():
    rng = np.random.default_rng(0)
    noise = replace(bars(80, 0), labels=torch.from_numpy(rng.integers(0, 3, 80)))  # nothing to learn: it must overfit
    epochs, seed, made = 20, 0, 10
    rest, held_out = split(noise, 0.1, seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Classifier(1, 3).to(memory_format=torch.channels_last)
    losses = []
    for _ in passes(net, rest, epochs, seed, torch.float32):
        losses.append(score(net, held_out)[0])
        if len(losses) == made:
            break
    best = min(range(made), key=losses.__getitem__)
    assert losses[-1] > losses[best]

    def train(patience: int) -> tuple[Classifier, Report]:
        return train_classifier(noise, epochs=epochs, seed=seed, patience=patience, precision="fp32", device="cpu")

    found, report = train(patience=made - 1 - best)
    assert (report.epoch, report.epochs) == (best + 1, made)
    assert report.loss == losses[best]
    assert score(found, held_out) == (report.loss, report.accuracy)


def test_data_without_classes_trains_on_symmetries():
    index = torch.arange(0, 120, 3)  # bars at the left, which no symmetry maps to themselves
    left = replace(bars(120, 0)[index], labels=None, class_names=())
    net, report = train_classifier(left, epochs=5)
    assert net.architecture["classes"] == 8
    assert report.accuracy > 0.8


@pytest.mark.parametrize(("seen", "chosen", "epochs"), [(4000, 100, 6), (800, 100, 1), (320, 40, 1)])
def test_data_without_classes_has_a_budget_of_images(monkeypatch, seen, chosen, epochs):
    asked = []

    def watch(net, images, epochs, *_):
        asked.append((len(images), epochs, set(images.pixels.flatten().tolist())))
        yield 1

    monkeypatch.setattr(classification, "PRETEXT", seen * 32**2)
    monkeypatch.setattr(classification, "passes", watch)
    train_classifier(replace(greys(100), labels=None, class_names=()))
    (count, passes_made, values), *_ = asked
    assert count == 8 * (chosen - chosen // 10)  # eight views of what is not held out
    assert passes_made == epochs
    assert len(values) == chosen - chosen // 10
    assert values != set(range(len(values)))  # drawn, not the first


def test_large_images_are_resized_to_64_pixels():
    images = replace(bars(40, 0), pixels=torch.randint(0, 256, (40, 3, 40, 30)).to(torch.uint8))
    net, _ = train_classifier(images, epochs=1)
    assert net.architecture == {"channels": 3, "classes": 3, "size": 64, "layers": 5, "start": 32}


def test_too_few_images_and_missing_labels_are_refused(trained):
    with pytest.raises(DataError, match="too few different images, 19"):
        train_classifier(bars(19, 0))
    with pytest.raises(DataError, match="no labels"):
        accuracy(trained[0], bars(30, 0, labelled=False))


def test_a_loss_that_is_not_finite_stops_training(monkeypatch):
    monkeypatch.setattr(classification, "score", lambda *_: (math.nan, 0.0))
    with pytest.raises(DivergedError, match="epoch 1"):
        train_classifier(bars(30, 0), epochs=1)


# --- extractors


def test_features_do_not_depend_on_batches_or_count(extractor):
    pixels = bars(300, 5).pixels
    whole = extractor(pixels)
    for cut in (1, 256):
        parts = [extractor(pixels[:cut]), extractor(pixels[cut:])]
        for output, *pieces in zip(whole, *parts, strict=True):
            assert torch.equal(output, torch.cat(pieces)), cut
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    for output, mixed in zip(whole, extractor(pixels[order]), strict=True):
        assert output.dtype == torch.float32
        assert torch.equal(output[order], mixed)


def test_extraction_is_the_network_in_eval_mode_at_its_size(extractor):
    pixels = bars(10, 6).pixels
    features, logits = infer(extractor.net.train(), pixels)
    net = extractor.net.eval().double()
    expected = net(torch.nn.functional.interpolate(to_unit(pixels).double(), (32, 32), mode="bilinear", antialias=True))
    net.float()
    assert torch.allclose(features.double(), expected[0], atol=1e-5)
    assert torch.allclose(logits.double(), expected[1], atol=1e-4)
    assert not features.requires_grad


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "1 channels, not of 3"),
        (torch.zeros(2, 1, 8, 8), "uint8"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), "uint8"),
        (torch.zeros(0, 1, 8, 8, dtype=torch.uint8), "uint8"),
    ],
)
def test_other_images_are_refused(extractor, images, words):
    with pytest.raises(DataError, match=words):
        extractor(images)


def test_the_test_set_is_used_after_training_only():
    one = make_extractor(bars(60, 0), "x", test=bars(90, 1), epochs=1)
    two = make_extractor(bars(60, 0), "x", test=replace(bars(90, 2), labels=torch.zeros(90).long()), epochs=1)
    assert same_weights(one.net, two.net)
    assert one.record.test_accuracy == accuracy(one.net, bars(90, 1))
    assert make_extractor(bars(60, 0), "x", epochs=1).record.test_accuracy is None


def test_a_file_holds_the_extractor(extractor, tmp_path):
    save_extractor(tmp_path / "x.safetensors", extractor)
    again = read_extractor(tmp_path / "x.safetensors")
    assert again.record == extractor.record
    pixels = bars(30, 7).pixels
    for a, b in zip(extractor(pixels), again(pixels), strict=True):
        assert torch.equal(a, b)


def tampered(extractor: Extractor, path: Path, **changes) -> None:
    save_extractor(path, replace(extractor, record=replace(extractor.record, **changes)))


@pytest.mark.parametrize("damage", ["cut", "text", "shape", "huge", "kind"])
def test_damaged_files_are_refused_with_one_message(extractor, run_folder, tmp_path, damage):
    path = tmp_path / "x.safetensors"
    save_extractor(path, extractor)
    architecture = extractor.net.architecture
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "text":
        path.write_text("not weights")
    elif damage == "shape":
        tampered(extractor, path, architecture={**architecture, "start": 16})
    elif damage == "huge":
        tampered(extractor, path, architecture={**architecture, "layers": 10**9})
    else:
        path = run_folder / "model.safetensors"
    with pytest.raises(CheckpointError, match=path.name) as error:
        read_extractor(path)
    assert "\n" not in str(error.value)


@pytest.fixture
def quick(monkeypatch):
    """Trainings of one pass; the list tells for which names there were any."""
    calls = []

    def make(images: Images, name: str, **options) -> Extractor:
        calls.append(name)
        return make_extractor(images, name, epochs=1, **options)

    monkeypatch.setattr(extractors, "make_extractor", make)
    return calls


def test_other_data_trains_once_and_is_cached(quick, tmp_path, capsys):
    images = bars(40, 0)
    first = extractor_for(images, cache=tmp_path)
    file = f"0-cnn-1-{images.fingerprint[:8]}"
    assert first.name == f"{file}-{hash_of(first.net)[:8]}"
    assert first.classes == 3
    assert str(tmp_path / file) in capsys.readouterr().err
    second = extractor_for(replace(images, name="elsewhere/0"), cache=tmp_path)
    assert quick == [file]
    assert second.name == first.name
    assert same_weights(first.net, second.net)
    assert capsys.readouterr().err == ""
    other = extractor_for(images, cache=tmp_path, seed=2)
    assert other.name == f"{file}-seed2-{hash_of(other.net)[:8]}"
    assert not same_weights(first.net, other.net)
    assert extractor_for(bars(40, 1), cache=tmp_path).record.name not in quick[:2]
    assert len(quick) == 3


def test_without_classes_the_name_contains_symmetry_and_there_are_no_logits(quick, tmp_path):
    for images in (
        bars(24, 0, labelled=False),
        replace(bars(24, 0), labels=torch.zeros(24).long(), class_names=("all",)),
    ):
        made = extractor_for(images, cache=tmp_path, quiet=True)
        assert made.name.startswith("0-symmetry-1-")
        assert made.classes == 0
        features, logits = made(images.pixels)
        assert features.shape == (24, 192)
        assert logits.shape == (24, 0)  # symmetries are no classes


@pytest.mark.parametrize("damage", ["text", "other data"])
def test_a_cached_file_that_cannot_be_used_is_replaced(quick, tmp_path, capsys, damage):
    images = bars(40, 0)
    made = extractor_for(images, cache=tmp_path, quiet=True)
    path = tmp_path / f"{made.record.name}.safetensors"
    if damage == "text":
        path.write_text("not weights")
    else:
        tampered(made, path, fingerprint="0" * 64)
    again = extractor_for(images, cache=tmp_path)
    assert len(quick) == 2
    assert "replaced" in capsys.readouterr().err
    assert same_weights(made.net, again.net)
    assert read_extractor(path).record == made.record


def test_an_extractor_is_used_if_the_cache_cannot_be_written(quick, tmp_path, monkeypatch, capsys):
    def full(path: Path, *_) -> None:
        raise ResourceError(f"{path} can't be written")

    monkeypatch.setattr(extractors, "write_tensors", full)
    assert extractor_for(bars(40, 0), cache=tmp_path).classes == 3
    assert "not saved" in capsys.readouterr().err


def test_the_default_cache_is_the_users(quick, tmp_path, monkeypatch):
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    made = extractor_for(bars(40, 0), quiet=True)
    assert [path.stem for path in tmp_path.rglob("*.safetensors")] == [made.record.name]


def test_the_printed_name_stands_for_the_weights(tmp_path):
    images = bars(40, 0)
    one, two = (make_extractor(images, "x", seed=seed, epochs=1) for seed in (0, 1))
    half = replace(one, net=copy.deepcopy(one.net).bfloat16())
    assert len({one.name, two.name, half.name, "x"}) == 4
    save_extractor(tmp_path / "y.safetensors", one)
    assert read_extractor(tmp_path / "y.safetensors").name == one.name
    original = SHIPPED / "digits-cnn-1.safetensors"
    shutil.copy(original, tmp_path)
    assert read_extractor(original).name == "digits-cnn-1"
    assert read_extractor(tmp_path / original.name).name.startswith("digits-cnn-1-")  # not known to be the shipped one


def test_names_are_fit_for_files():
    images = replace(bars(30, 0), name="/data/my photos: 2024?.npz")
    assert name_of(images, 0) == f"my-photos-2024-cnn-1-{images.fingerprint[:8]}"


def first(images: Images, n: int) -> Images:
    return images[torch.arange(n)]


@pytest.mark.parametrize(("name", "least"), [("fashion-mnist", 0.90), ("digits", 0.98)])
def test_shipped_weights_classify_the_test_set(name, least):
    test = load_images_or_skip(name, "test")
    extractor = extractor_for(test)
    assert extractor.name == f"{name}-cnn-1"
    assert extractor.classes == 10
    right = accuracy(extractor.net, first(test, 1000))
    assert right >= least
    assert right == pytest.approx(extractor.record.test_accuracy, abs=0.03)
    assert extractor(test.pixels[:2])[0].shape == (2, 192)


def load_images_or_skip(name: str, split: str) -> Images:
    try:
        return load_images(name, split=split)
    except DataError:
        pytest.skip(f"{name} is not here")


def test_shipped_weights_are_found_by_fingerprint():
    images = replace(load_images_or_skip("fashion-mnist", "train"), name="some.npz")
    found = shipped(images)
    assert found is not None
    assert found.name == "fashion-mnist-cnn-1"
    assert found.record.test_accuracy is not None
    assert found.record.test_accuracy >= 0.912
    assert shipped(replace(first(images, 1000))) is None


# --- the command


def test_the_command_writes_an_extractor(squares, tmp_path, capsys):
    argv = ["classifier", str(squares), "--epochs", "2", "--seed", "3", "--json"]
    for name in ("a", "b"):
        main([*argv, "--out", str(tmp_path / f"{name}.safetensors")])
        result = json.loads(capsys.readouterr().out)
        assert result["name"] == read_extractor(tmp_path / f"{name}.safetensors").name
        assert result["test_accuracy"] is None
    made = [read_extractor(tmp_path / f"{name}.safetensors") for name in ("a", "b")]
    assert [one.name for one in made] == [f"{name}-{hash_of(made[0].net)[:8]}" for name in ("a", "b")]
    assert same_weights(made[0].net, made[1].net)
    record = made[0].record
    assert record.classes == 3
    assert record.fingerprint == load_images(str(squares)).fingerprint
    main([*record.command.split()[1:], "--out", str(tmp_path / "again.safetensors")])
    assert same_weights(made[0].net, read_extractor(tmp_path / "again.safetensors").net)
    assert "3 classes" in capsys.readouterr().out


@pytest.mark.parametrize(("option", "code"), [(["--out", "x.npz"], 2), (["--epochs", "0"], 2), (["--seed", "-1"], 2)])
def test_invalid_use_writes_nothing(squares, tmp_path, monkeypatch, capsys, option, code):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["classifier", str(squares), *option])
    assert stop.value.code == code
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
