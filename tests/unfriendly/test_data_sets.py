"""Odd folders, arrays and labels, and what is understood: each is read as meant, or refused with the fix."""

import json
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

from simple_diffusion import Images, load_images, to_uint8, to_unit
from simple_diffusion.cli.main import main
from simple_diffusion.data.images import class_number
from simple_diffusion.data.sources import SOURCES, held_out
from simple_diffusion.errors import DataError
from simple_diffusion.model.model_file import read

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (12, 16, 16, 3), np.uint8)
COLOR[:, 0, 0], COLOR[:, 0, 1] = 0, 255  # so that each image uses the whole range
UNIT = COLOR / np.float32(255)


def files(*names: str) -> Callable[[Path], str]:
    """A folder `x` of these files; those that end in / are empty folders, and no images are empty files."""

    def make(folder: Path) -> str:
        for number, name in enumerate(names):
            path = folder / "x" / name
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if path.suffix in (".png", ".PNG", ".jpg"):
                Image.fromarray(COLOR[number % len(COLOR)]).save(path)
            elif not name.endswith("/"):
                path.touch()
        return "x"

    return make


def npy(array: np.ndarray) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        np.save(folder / "x.npy", array)
        return "x.npy"

    return make


def npz(**arrays) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        np.savez(folder / "x.npz", **arrays)
        return "x.npz"

    return make


def deep(folder: Path) -> str:
    (folder / "x").mkdir()
    for number in range(3):
        pixels = RNG.integers(0, 4096, (16, 16)).astype(np.uint16)  # 12 bits
        Image.fromarray(pixels).save(folder / "x" / f"{number}.png")
    return "x"


def of(make: Callable[[Path], str], classes: str) -> Callable[[Path], str]:
    """The same data with classes selected."""
    return lambda folder: f"{make(folder)}[{classes}]"


def builtin(folder: Path) -> str:
    files("1.png")(folder)
    (folder / "x").rename(folder / "digits")
    return "digits"


NFD, NFC = "Ame\u0301lie", "Am\u00e9lie"
LABELS = np.arange(12) % 3
DEFECTIVE = np.tile(COLOR > 127, (4, 1, 1, 1)).astype(np.uint8)
DEFECTIVE[0, 3, 3] = 255
SPLIT = ("train/a/1.png", "train/b/2.png")

READ: dict[str, tuple[Callable[[Path], str], int, str, str]] = {
    # what -> (data, number of images, its classes, a note; "" for none)
    "classes": (files("a/1.png", "b/2.png"), 2, "a b", ""),
    "no classes": (files("1.png", "2.PNG"), 2, "", ""),
    "one folder around the classes": (files("y/a/1.png", "y/b/2.png"), 2, "a b", "read 'x/y', the only folder in 'x'"),
    "two folders around them": (files("y/z/a/1.png", "y/z/b/2.png"), 2, "a b", "read 'x/y/z', the only"),
    "one folder around images": (files("y/1.png", "y/2.png"), 2, "", "read 'x/y', the only folder in 'x'"),
    "one class that is named": (of(files("cat/1.png"), "cat"), 1, "", ""),
    "a part of a data set alone": (files(*SPLIT), 2, "a b", "read 'x/train', the only folder"),
    "a class that is named train": (files("train/1.png", "bus/2.png"), 2, "bus train", ""),
    "previews of a file server": (files("a/1.png", "a/@eaDir/1.png", "b/2.png"), 2, "a b", r"ignored 1 .*1 @eaDir"),
    "previews beside the classes": (files("a/1.png", "b/2.png", "@eaDir/3.png"), 2, "a b", "1 @eaDir"),
    "an archive of macOS": (files("y/a/1.png", "y/b/2.png", "__MACOSX/y/._1.png"), 2, "a b", "1 __MACOSX"),
    "hidden previews": (files("1.png", ".thumbnails/1.png", "._1.png", ".DS_Store"), 1, "", "3 hidden"),
    "a trash": (files("a/1.png", "b/2.png", "#recycle/a/3.png"), 2, "a b", "1 #recycle"),
    "other endings": (files("1.png", "2.tif", "3.tif", "4.jfif"), 1, "", r"3 other entries \(2 .tif, 1 .jfif\)"),
    "a database of previews": (files("1.png", "Thumbs.db"), 1, "", r"\(1 .db\)"),
    "no ending": (files("1.png", "README"), 1, "", "1 without an ending"),
    "numbers as names": (files("0/1.png", "2/2.png", "5/3.png"), 3, "0 2 5", ""),
    "a number as a name": (of(files("0/1.png", "2/2.png", "5/3.png"), "2"), 1, "", ""),
    "a name in code points of macOS": (of(files(f"{NFD}/1.png", "b/2.png"), NFC), 1, "", ""),
    "a name in code points of Linux": (of(files(f"{NFC}/1.png", "b/2.png"), NFD), 1, "", ""),
    "the name of a built-in set": (builtin, 12, "", r"for the folder write \./digits"),
    "12 bits in 16": (deep, 3, "", "from 0 to 16 of 0..255: scale"),
    "bytes": (npy(COLOR), 12, "", ""),
    "masks of 0 and 1": (npy(COLOR > 127), 12, "", ""),
    "masks of 0 and 1 as bytes": (npy((COLOR > 127).astype(np.uint8)), 12, "", "from 0 to 1 of 0..255"),
    "masks with a defective pixel": (npy(DEFECTIVE), 48, "", "from 0 to 1 of 0..255"),
    "[0, 1]": (npy(UNIT), 12, "", r"floats in \[0, 1\]"),
    "[0, 1] and a little less": (npy(np.where(UNIT == 0, -1e-7, UNIT)), 12, "", r"floats in \[0, 1\]"),
    "[0, 1] and a little more": (npy(UNIT * 1.002), 12, "", r"floats in \[0, 1\]"),
    "[-1, 1] and a little more": (npy((2 * UNIT - 1) * 1.002), 12, "", r"floats in \[-1, 1\]"),
    "divided by 255 twice": (npy(UNIT / 255), 12, "", "from 0 to 1 of 0..255"),
    "channels first": (npy(COLOR.transpose(0, 3, 1, 2)), 12, "", ""),
    "three labeled gray images": (npz(images=COLOR[:3, ..., 0], labels=[0, 1, 1]), 3, "0 1", ""),
    "large images": (npy(np.tile(COLOR[:2], (1, 5, 5, 1))), 2, "", r"kept 80 x 80 pixels.*--size 32"),
    **{
        f"labels under {name}": (npz(images=COLOR, **{name: LABELS}), 12, "0 1 2", "")
        for name in ("label", "y", "targets", "Labels")
    },
    "x and y": (npz(x=COLOR, y=LABELS), 12, "0 1 2", ""),
    "two arrays without names": (npz(arr_0=COLOR, arr_1=LABELS), 12, "0 1 2", ""),
    "a column of labels": (npz(images=COLOR, labels=LABELS[:, None]), 12, "0 1 2", ""),
    "labels as texts": (npz(images=COLOR, labels=np.array(["b", "a", "b"] * 4)), 12, "a b", ""),
    "labels as bytes": (npz(images=COLOR, labels=np.array([b"b", b"a", b"b"] * 4)), 12, "a b", ""),
    "labels as truth values": (npz(images=COLOR, labels=LABELS > 1), 12, "0 1", ""),
    "labels with gaps": (
        npz(images=COLOR, labels=np.array([0, 5, 9])[LABELS]),
        12,
        "0 5 9",
        "no image has: 1, 2, 3, 4",
    ),
    "labels from 1": (npz(images=COLOR, labels=LABELS + 1), 12, "1 2 3", "no image has: 0"),
    "names of classes": (npz(images=COLOR, labels=LABELS, class_names=["u", "v", "w"]), 12, "u v w", ""),
    "an unused array": (npz(images=COLOR, labels=LABELS, boxes=LABELS), 12, "0 1 2", "did not use the arrays 'boxes'"),
    "no labels but another array": (npz(images=COLOR, kinds=LABELS), 12, "", "'kinds', and found no labels"),
}

REFUSED: dict[str, tuple[Callable[[Path], str], str]] = {
    # what -> (data, the error)
    "parts of a data set": (files(*SPLIT, "test/a/3.png"), "train, test, which are parts .* such as x/train"),
    "other names of parts": (files("Train/1.png", "val/2.png"), "Train, val, which are parts"),
    "parts in a folder": (files("y/train/1.png", "y/test/2.png"), "such as x/y/train"),
    "a class of other endings": (files("a/1.png", "b/2.tif", "b/3.tif"), r"'x/b' has no image, only 2 .* \(2 .tif\)"),
    "only other endings": (files("1.tif", "2.jfif"), r"found 0 folders and 2 other entries \(1 .jfif, 1 .tif\)"),
    "a number that is no name": (
        of(files("0/1.png", "2/2.png", "5/3.png"), "1"),
        "no class '1': its classes are 0, 2, 5",
    ),
    "two spellings of a name": (files(f"{NFD}/1.png", f"{NFC}/2.png"), "in different Unicode spellings: merge"),
    "a photo": (npy(COLOR[0]), r"can be one color image .* save \[1, H, W, 3\]"),
    "a photo, channels first": (npy(COLOR[0].transpose(2, 0, 1)), "can be one color image"),
    "a photo with alpha": (npy(np.zeros((16, 16, 4), np.uint8)), "can be one color image"),
    "the number of images last": (
        npy(np.zeros((16, 16, 200), np.uint8)),
        "16 x 200 is longer than 4:1: the first axis",
    ),
    "an overshoot": (npy(UNIT * 1.1 - 0.05), "save uint8"),
    "neither range": (npy(UNIT * 0.9 - 0.1), "neither"),
    "16 bits": (npy(COLOR.astype(np.uint16)), "its type is uint16"),
    "a label more": (npz(images=COLOR, labels=[*LABELS, 0]), "for each of 12 images"),
    "labels one-hot": (npz(images=COLOR, labels=np.eye(3, dtype=int)[LABELS]), "for each of 12 images"),
    "labels as floats": (npz(images=COLOR, y=LABELS / 1), "float64"),
    "a label without a name": (npz(images=COLOR, labels=LABELS, class_names=["u", "v"]), "from 0 to 1"),
    "two classes of one name": (npz(images=COLOR, labels=LABELS, class_names=["u", "v", "u"]), "must differ"),
}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """In an empty folder; the built-in data set is small."""
    monkeypatch.chdir(tmp_path)
    pixels = torch.from_numpy(COLOR).permute(0, 3, 1, 2)
    monkeypatch.setitem(SOURCES, "digits", lambda split, root, classes: Images("digits", pixels))


@pytest.mark.parametrize("what", READ)
def test_it_is_read_as_meant(tmp_path, what):
    make, count, classes, note = READ[what]
    images = load_images(make(tmp_path))
    assert (len(images), " ".join(images.class_names)) == (count, classes)
    assert re.search(note, "; ".join(images.notes)) if note else images.notes == ()
    assert images.pixels.dtype == torch.uint8


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_with_the_fix(tmp_path, what):
    make, error = REFUSED[what]
    with pytest.raises(DataError, match=error):
        load_images(make(tmp_path))


def test_the_tables_are_long():
    assert len(READ) + len(REFUSED) >= 60


def test_a_pixel_a_little_below_zero_changes_no_other(tmp_path):
    pixels = load_images(npy(UNIT)(tmp_path)).pixels
    assert torch.equal(load_images(npy(np.where(UNIT == 0, -1e-7, UNIT))(tmp_path)).pixels, pixels)
    assert torch.equal(pixels, torch.from_numpy(COLOR).permute(0, 3, 1, 2))


def test_a_test_set_has_the_numbers_of_the_classes_of_the_training_set(monkeypatch):
    pixels = torch.from_numpy(COLOR).permute(0, 3, 1, 2)

    def source(split, root, classes) -> Images:
        if split == "train":
            return Images("x", pixels, torch.tensor([0, 2, 3] * 4), ("a", "never", "b", "c"))
        return Images("x", pixels, torch.tensor([0, 1, 2] * 4), ("c", "unknown", "a"))

    monkeypatch.setitem(SOURCES, "digits", source)
    train = load_images("digits")
    assert (train.class_names, train.labels.tolist()) == (("a", "b", "c"), [0, 1, 2] * 4)
    test = held_out("digits", class_names=train.class_names)
    assert (test.class_names, test.labels.tolist()) == (train.class_names, [2, 0] * 4)


# The library

PIXELS = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "floats": (lambda: Images("x", torch.rand(3, 1, 4, 4)), TypeError, "pixels .*uint8, got torch.float32"),
    "an array": (lambda: Images("x", np.zeros((3, 1, 4, 4), np.uint8)), TypeError, "pixels .* tensor"),
    "three axes": (lambda: Images("x", PIXELS[:, 0]), ValueError, r"\[N, C, H, W\]"),
    "one image": (lambda: Images("x", PIXELS)[1], TypeError, r"images\[1:2\]"),
    "no names": (lambda: Images("x", PIXELS, torch.arange(3)), ValueError, "labels and class_names together"),
    "no labels": (lambda: Images("x", PIXELS, None, ("a",)), ValueError, "labels and class_names together"),
    "int32": (lambda: Images("x", PIXELS, torch.arange(3).int(), tuple("abc")), TypeError, "int64, got torch.int32"),
    "the number of classes": (lambda: Images("x", PIXELS, torch.arange(3), ("a", "b")), ValueError, "from 0 to 1"),
    "negative": (lambda: Images("x", PIXELS, torch.arange(3) - 1, tuple("abc")), ValueError, "from 0 to 2"),
    "too few labels": (lambda: Images("x", PIXELS, torch.arange(2), tuple("abc")), ValueError, "each of 3 images"),
    "one name twice": (lambda: Images("x", PIXELS, torch.arange(3), tuple("aba")), ValueError, "must differ"),
    "one name twice in two spellings": (
        lambda: Images("x", PIXELS, torch.arange(3), (NFC, NFD, "a")),
        ValueError,
        "differ",
    ),
    "numbers as names": (
        lambda: Images("x", PIXELS, torch.arange(3), (0, 1, 2)),  # pyrefly: ignore[bad-argument-type]
        *(TypeError, "must be a tuple of texts"),
    ),
    "one text as names": (lambda: Images("x", PIXELS, torch.arange(3), "abc"), TypeError, "a tuple of texts"),  # pyrefly: ignore[bad-argument-type]
    "to_unit of floats": (lambda: to_unit(torch.rand(3)), TypeError, "uint8 from 0 to 255, got torch.float32"),
    "to_unit of an array": (lambda: to_unit(np.zeros(3, np.uint8)), TypeError, "got ndarray"),  # pyrefly: ignore[bad-argument-type]
    "to_uint8 of bytes": (lambda: to_uint8(PIXELS), TypeError, "must be a floating-point tensor"),
    "no path": (lambda: load_images(5), TypeError, "a text or a path"),  # pyrefly: ignore[bad-argument-type]
    "bytes": (lambda: load_images(b"x"), TypeError, "a text or a path"),  # pyrefly: ignore[bad-argument-type]
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_argument_of_the_library_is_named(what):
    call, kind, message = WRONG[what]
    with pytest.raises(kind, match=message):
        call()


def test_a_path_is_a_source(tmp_path):
    images = load_images(tmp_path / files("1.png")(tmp_path))
    assert (len(images), images.name) == (1, f"{tmp_path}/x")


def test_where_all_names_are_numbers_a_number_is_a_name():
    assert [class_number(word, ("0", "2", "5")) for word in ("0", "1", "2", "5")] == [0, None, 1, 2]
    assert [class_number(word, ("cat", "2", "5")) for word in ("0", "1", "2", "5")] == [0, 1, 1, 2]


@pytest.mark.parametrize("name", ["a" * 60, "日本" * 30, "\u0301" * 300])
def test_long_names_of_classes_fit_into_the_name_of_a_file(name):
    stem = Images(f"x[{','.join(name + str(n) for n in range(8))}]", PIXELS).stem
    assert len(stem.encode()) <= 100
    assert stem.startswith("x")


# Commands


def run_of(data: str, out: str, *options: str) -> Path:
    main(["train", data, "--steps", "3", "--out", out, *TINY, *options])
    return Path(out)


def test_samples_keep_the_names_of_their_classes_and_no_others_are_generated(tmp_path, capsys):
    gaps = npz(images=COLOR, labels=np.array([0, 5, 9])[LABELS])(tmp_path)
    run = run_of(gaps, "run")
    assert "left out the classes that no image has: 1, 2" in capsys.readouterr().out
    assert read(run).info.class_names == ("0", "5", "9")
    main(["sample", str(run), "--n", "4", "--label", "5", "--out", "five.npz"])
    with np.load("five.npz") as written:
        assert (written["labels"].tolist(), written["class_names"].tolist()) == ([1] * 4, ["0", "5", "9"])
    fives = load_images("five.npz").in_classes(("9", "5", "0"))  # of other data
    assert (fives.labels.tolist(), fives.class_names) == ([1] * 4, ("9", "5", "0"))
    for label, message in (("1", "no label '1': its labels are 0, 5, 9"), ("3", "no label '3'")):
        with pytest.raises(SystemExit) as stopped:
            main(["sample", str(run), "--label", label])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_samples_of_other_classes_are_refused(tmp_path, capsys):
    np.savez("samples.npz", images=COLOR, labels=LABELS, class_names=["u", "v", "w"])
    files("u/1.png", "v/2.png")(tmp_path)
    with pytest.raises(SystemExit):
        main(["evaluate", "samples.npz", "--data", "x"])
    assert "has the classes 0 u, 1 v, 2 w and x the classes 0 u, 1 v: name the data" in capsys.readouterr().err


def test_guidance_without_labels_is_refused(tmp_path, capsys):
    run = run_of(npy(COLOR)(tmp_path), "run")
    commands = [
        ["sample", str(run), "--guidance", "2"],
        ["evaluate", str(run), "--guidance", "2"],
        ["doctor", str(run), "--guidance", "2"],
        ["sweep", str(run), "--guidance", "1,2"],
        ["compare", str(run), "--set", "guidance=2"],
        ["train", "x.npy", "--steps", "2", "--set", "guidance=2"],
        ["train", "x.npy", "--steps", "2", "--set", "drop_labels=0.2"],
    ]
    capsys.readouterr()
    for command in commands:
        with pytest.raises(SystemExit) as stopped:
            main(command)
        assert stopped.value.code == 2
        assert "needs labels, and x.npy has none: leave" in capsys.readouterr().err


def test_a_run_resumes_where_its_data_has_moved_and_nowhere_else(tmp_path, capsys):
    run = run_of(files("a/1.png", "b/2.png")(tmp_path), "run")
    for same in ("x/", "./x", f"{tmp_path}/x"):
        main(["train", same, "--resume", "--out", str(run)])
    shutil.move("x", "y")
    capsys.readouterr()
    for data in ([], ["x"]):
        with pytest.raises(SystemExit) as stopped:
            main(["train", *data, "--resume", "--out", str(run)])
        assert stopped.value.code == 3
        assert "if the data has moved, name it: simple-diffusion train DATA --resume" in capsys.readouterr().err
    main(["train", "y", "--resume", "--out", str(run)])
    assert read(run).info.name == "y"
    assert tomllib.loads((run / "config.toml").read_text())["data"] == "y"
    files("a/1.png", "b/2.png", "b/3.png")(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["train", "x", "--resume", "--out", str(run)])
    assert stopped.value.code == 3
    assert "count is 3 and was 2; restore it, or name the place" in capsys.readouterr().err
    main(["data", "y", "--json"])
    assert json.loads(capsys.readouterr().out)["fingerprint"] == read(run).info.fingerprint
