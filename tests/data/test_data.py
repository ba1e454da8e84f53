"""The loaders: they read what was written, and refuse damaged files with their names."""

import gzip
import hashlib
import os
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import unprivileged
from PIL import Image

from simple_diffusion.data import idx, sources
from simple_diffusion.data.arrays import load_array
from simple_diffusion.data.folder import fit, load_folder
from simple_diffusion.data.idx import load_idx, read_idx
from simple_diffusion.data.images import Images, select
from simple_diffusion.data.sources import held_out, load_images
from simple_diffusion.errors import DataError, UsageError

DATA = Path(os.environ.get("SIMPLE_DIFFUSION_DATA") or Path(__file__).parents[3] / "shared" / "data")
RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, np.uint8)


def save(path: Path, pixels, **options) -> Path:
    """Write an image, lossless if the format allows it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def planes(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.atleast_3d(pixels).transpose(2, 0, 1).copy())


# IDX files


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def put_set(folder: Path, images: np.ndarray, labels: np.ndarray, stem: str = "train", suffix: str = ".gz") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pack = gzip.compress if suffix else bytes
    (folder / f"{stem}-images-idx3-ubyte{suffix}").write_bytes(pack(idx_bytes(images)))
    (folder / f"{stem}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx_bytes(labels)))


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No data set is on this machine, and downloads fail."""
    monkeypatch.delenv("SIMPLE_DIFFUSION_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(idx, "SYSTEM", tmp_path / "system")
    monkeypatch.setattr("simple_diffusion.system.files.sys.platform", "linux")

    def refuse(urls, path, sha256):
        raise DataError(f"download to {path}")

    monkeypatch.setattr(idx, "download", refuse)
    return tmp_path


def test_idx_reads_back_what_was_written(tmp_path):
    path = tmp_path / "file"
    for shape, pack in (((7,), bytes), ((4, 5, 6), gzip.compress), ((0, 28, 28), bytes)):
        array = noise(*shape)
        path.write_bytes(pack(idx_bytes(array)))
        assert torch.equal(read_idx(path), torch.from_numpy(array))


GOOD = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
DAMAGED_IDX = {
    "empty": b"",
    "html": b"<!DOCTYPE html><html>",
    "magic": b"\1" + GOOD[1:],
    "int32": GOOD[:2] + b"\x0c" + GOOD[3:],
    "no dims": b"\0\0\x08\0",
    "cut in the header": GOOD[:9],
    "cut in the data": GOOD[:-1],
    "trailing": GOOD + b"\0",
    "huge dims": GOOD[:4] + b"\xff" * 12 + GOOD[16:],
    "gzip cut": gzip.compress(GOOD)[:-12],
    "gzip checksum": gzip.compress(GOOD)[:-8] + bytes(8),
    "gzip flipped": (lambda z: z[:15] + bytes([z[15] ^ 255]) + z[16:])(gzip.compress(GOOD)),
    "gzip trailing": gzip.compress(GOOD) + b"more",
    "gzip of half": gzip.compress(GOOD[:20]),
}


def test_idx_refuses_damage_and_names_the_file(tmp_path):
    path = tmp_path / "bad-file"
    for content in DAMAGED_IDX.values():
        path.write_bytes(content)
        with pytest.raises(DataError, match="bad-file"):
            read_idx(path)
    with pytest.raises(DataError, match="missing-file"):
        read_idx(tmp_path / "missing-file")


def test_idx_sets_are_searched_in_order(nowhere, monkeypatch):
    root, given = nowhere / "root", nowhere / "given"
    folders = [
        root / "mnist",
        root,
        given / "mnist",
        nowhere / "system/mnist",
        nowhere / "cache/simple-diffusion/mnist",
    ]
    for number, folder in enumerate(folders):
        put_set(folder, np.full((3, 2, 2), number, np.uint8), noise(3) % 10, suffix=".gz" if number % 2 else "")
    monkeypatch.setenv("SIMPLE_DIFFUSION_DATA", str(given))
    for number, folder in enumerate(folders):
        assert load_idx("mnist", "train", root).pixels.unique().tolist() == [number]
        for file in folder.glob("train-*"):
            file.unlink()
    with pytest.raises(DataError, match=r"download to .*root.mnist.train-images"):
        load_idx("mnist", "train", root)
    with pytest.raises(DataError, match=r"download to .*given.mnist"):
        load_idx("mnist", "train")
    monkeypatch.delenv("SIMPLE_DIFFUSION_DATA")
    with pytest.raises(DataError, match=r"download to .*cache.simple-diffusion.mnist"):
        load_idx("mnist", "train")


def test_idx_set_has_its_labels_and_splits(nowhere):
    for stem in ("train", "t10k"):
        put_set(nowhere / "mnist", noise(4, 5, 6), np.array([3, 0, 9, 3], np.uint8), stem)
    train, test = (load_idx("mnist", split, nowhere) for split in ("train", "test"))
    assert train.labels.tolist() == [3, 0, 9, 3]
    assert (train.shape, train.classes, train.class_names[9]) == ((1, 5, 6), 10, "9")
    assert not torch.equal(train.pixels, test.pixels)
    with pytest.raises(DataError, match="must be train or test, got 'validation'"):
        load_idx("mnist", "validation", nowhere)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (noise(3, 2, 2), noise(2), "one label for each of 3 images, got shape .2,."),
        (noise(3, 2, 2), np.array([0, 10, 1], np.uint8), "label 10"),
        (noise(3, 2), np.zeros(3, np.uint8), "has no images"),
        (noise(0, 2, 2), noise(0), "has no images"),
    ],
)
def test_idx_set_must_fit_together(nowhere, images, labels, message):
    put_set(nowhere, images, labels)
    with pytest.raises(DataError, match=message):
        load_idx("mnist", "train", nowhere)


@pytest.mark.skipif(not (DATA / "fashion-mnist").is_dir(), reason="Fashion-MNIST is not in $SIMPLE_DIFFUSION_DATA")
def test_fashion_mnist_is_the_published_one():
    for name, sha256 in idx.IDX_SETS["fashion-mnist"].sha256.items():
        assert hashlib.sha256((DATA / "fashion-mnist" / name).read_bytes()).hexdigest() == sha256
    images = load_idx("fashion-mnist", "train", DATA)
    assert images.pixels.shape == (60000, 1, 28, 28)
    assert images.labels.bincount().tolist() == [6000] * 10
    assert images.class_names[9] == "Ankle boot"
    assert images.labels[0] == 9  # an ankle boot
    # The usual constants for normalizing this data, in [0, 1].
    assert (images.mean + 1) / 2 == pytest.approx(0.2860, abs=1e-4)
    assert images.std / 2 == pytest.approx(0.3530, abs=1e-4)


# Folders: pixels (unusual files are in test_odd_images.py)


def test_folder_keeps_small_images_of_one_size(tmp_path):
    colour = [noise(20, 30, 3) for _ in range(3)]
    for number, pixels in enumerate(colour):
        save(tmp_path / f"{number}.png", pixels)
    images = load_folder(tmp_path)
    assert torch.equal(images.pixels, torch.stack([planes(pixels) for pixels in colour]))
    assert (images.labels, images.classes, images.notes) == (None, 0, ())
    assert images.name == str(tmp_path)


def test_all_gray_is_one_channel_and_gray_among_colors_is_rgb(tmp_path):
    grey, bits, colour = noise(8, 8), noise(8, 8) > 127, noise(8, 8, 3)
    save(tmp_path / "0.png", grey)
    save(tmp_path / "1.bmp", bits)
    assert load_folder(tmp_path).pixels.tolist() == [[grey.tolist()], [(bits * 255).tolist()]]
    save(tmp_path / "2.png", colour)
    pixels = load_folder(tmp_path).pixels
    assert pixels.shape == (3, 3, 8, 8)
    assert torch.equal(pixels[0], torch.from_numpy(grey).expand(3, 8, 8))
    assert torch.equal(pixels[2], planes(colour))


# Folders: sizes


def test_different_or_large_images_are_cropped_and_resized_with_a_note(tmp_path):
    save(tmp_path / "0.png", noise(40, 50, 3))
    save(tmp_path / "1.png", noise(20, 20, 3))
    images = load_folder(tmp_path)
    assert images.shape == (3, 32, 32)
    what = "cropped to squares and resized 40 x 50 and 1 other sizes to 32 x 32, 1 of 2 enlarged"
    assert images.notes == (f"{what}; --size N for another size",)
    (tmp_path / "1.png").unlink()
    assert load_folder(tmp_path).shape == (3, 40, 50)
    save(tmp_path / "0.png", noise(40, 65, 3))
    assert load_folder(tmp_path).shape == (3, 32, 32)
    images = load_folder(tmp_path, size=16)
    assert images.shape == (3, 16, 16)
    assert images.notes == ("cropped to squares and resized 40 x 65 to 16 x 16",)


def test_a_given_size_leaves_what_has_it(tmp_path):
    pixels = noise(100, 100, 3)
    save(tmp_path / "0.png", pixels)
    images = load_folder(tmp_path, size=100)
    assert torch.equal(images.pixels[0], planes(pixels))
    assert images.notes == ()


def test_fit_takes_the_center_and_does_not_alias():
    wide = np.zeros((64, 128), np.uint8)
    wide[:, 32:96] = 200
    assert (fit(wide, 16) == 200).all()
    assert (fit(wide.T, 16) == 200).all()
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)  # without antialiasing: 0 or 255
    assert np.abs(fit(checks, 16).astype(int) - 127).max() <= 2
    assert (fit(wide[:, 32:96], 64) == wide[:, 32:96]).all()


# Folders: files, order and classes


def test_first_level_folders_are_classes(tmp_path):
    save(tmp_path / "dogs/1.png", np.full((4, 4), 1, np.uint8))
    save(tmp_path / "cats/deep/er/3.png", np.full((4, 4), 3, np.uint8))
    save(tmp_path / "cats/2.png", np.full((4, 4), 2, np.uint8))
    save(tmp_path / "10/9.png", np.full((4, 4), 9, np.uint8))
    images = load_folder(tmp_path)
    assert images.class_names == ("10", "cats", "dogs")
    assert images.labels.dtype == torch.int64
    assert list(zip(images.labels.tolist(), images.pixels[:, 0, 0, 0].tolist(), strict=True)) == [
        (0, 9),
        (1, 2),
        (1, 3),
        (2, 1),
    ]
    with pytest.raises(DataError, match="1 images beside folders"):
        load_folder(tmp_path / "cats")
    save(tmp_path / "cats/deep/er/.hidden.png", noise(4, 4))
    alone = load_folder(tmp_path / "cats/deep")
    assert (alone.class_names, alone.labels) == ((), None)
    assert f"read '{tmp_path}/cats/deep/er', the only folder in '{tmp_path}/cats/deep'" in alone.notes


def test_a_class_without_images_is_refused(tmp_path):
    save(tmp_path / "cats/1.png", noise(4, 4))
    (tmp_path / "dogs").mkdir()
    (tmp_path / "dogs/readme.txt").touch()
    with pytest.raises(DataError, match=r"class folder .*dogs"):
        load_folder(tmp_path)


def test_the_order_is_that_of_the_bytes_of_the_paths(tmp_path):
    names = ["B.png", "a.png", "a b.png", "a\nb.png", "e\u0301.png", "é.png", "日本.png", "🐟.png", "10.png", "9.png"]
    if os.name == "posix" and os.uname().sysname == "Linux":
        names.append(os.fsdecode(b"\xff.png"))
    pictures = {name: noise(4, 4) for name in names}
    for folder, order in (("one", names), ("two", names[::-1])):
        for name in order:
            save(tmp_path / folder / name, pictures[name])
    one, two = (load_folder(tmp_path / folder) for folder in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    expected = [planes(pictures[name]) for name in sorted(names, key=os.fsencode)]
    assert torch.equal(one.pixels, torch.stack(expected))


def test_other_and_hidden_files_are_ignored_and_counted(tmp_path):
    for name in ("1.JPEG", "2.Jpg", "3.PNG", "4.webp", "5.BMP"):
        save(tmp_path / name, noise(4, 4, 3))
    save(tmp_path / ".hidden/6.png", noise(4, 4, 3))
    save(tmp_path / "._1.jpg", noise(4, 4, 3))
    for name in ("Thumbs.db", "notes.txt", "png"):
        (tmp_path / name).touch()
    (tmp_path / "dangling.png").symlink_to("nothing")
    images = load_folder(tmp_path)
    assert len(images) == 5
    assert images.notes == (
        "ignored 6 other entries (2 hidden, 1 .db, 1 .txt, 1 not a file, 1 without an ending): "
        "images end in .jpg .jpeg .png .webp .bmp",
    )


@pytest.mark.skipif(os.name != "posix", reason="no links for everybody here")
def test_links_are_followed_once(tmp_path):
    save(tmp_path / "a/1.png", noise(4, 4))
    save(tmp_path / "z/2.png", noise(4, 4))
    (tmp_path / "a/loop").symlink_to("..")
    (tmp_path / "self").symlink_to(".")
    (tmp_path / "again").symlink_to("z")  # sorts before its target, but does not replace it
    outside = save(tmp_path.parent / f"{tmp_path.name}-outside/3.png", noise(4, 4)).parent
    (tmp_path / "other").symlink_to(outside)
    images = load_folder(tmp_path)
    assert (images.class_names, len(images)) == (("a", "other", "z"), 3)
    assert "ignored 3 other entries (3 links to folders that were already read)" in images.notes[0]


def test_an_empty_or_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*missing"):
        load_folder(tmp_path / "missing")
    (tmp_path / "note.gif").touch()
    (tmp_path / "sub").mkdir()
    with pytest.raises(DataError, match=r"no image in .*\.jpg .*found 1 folders and 1 other entry \(1 .gif\)"):
        load_folder(tmp_path)


@pytest.mark.parametrize(("mode", "named"), [(0o000, "pets/cats"), (0o444, "pets/cats/1.png"), (0o300, "pets/cats")])
def test_the_error_for_an_unreadable_folder_has_its_name(tmp_path, monkeypatch, mode, named):
    """Without the permission to list it, or to open its files."""
    save(tmp_path / "pets" / "cats" / "1.png", np.zeros((4, 4), np.uint8))
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    Path("pets/cats").chmod(mode)
    try:
        with unprivileged(), pytest.raises(DataError, match=f"cannot read '{named}' .Permission denied.") as error:
            load_images("pets")
        assert error.value.exit_code == 3
        if mode == 0o000:
            with unprivileged(), pytest.raises(DataError, match=r"'pets/cats/1\.npz' is not a data set"):
                load_images("pets/cats/1.npz")
    finally:
        Path("pets/cats").chmod(0o755)


@pytest.mark.skipif(not (DATA / "goldfish-32").is_dir(), reason="goldfish-32 is not in $SIMPLE_DIFFUSION_DATA")
def test_five_hundred_photographs():
    images = load_folder(DATA / "goldfish-32")
    assert images.pixels.shape == (500, 3, 32, 32)
    first, second, third = images.pixels.float().mean((0, 2, 3))
    assert first > second > third  # goldfish are orange


# Arrays


@pytest.mark.parametrize(("channels", "first"), [(None, True), (1, False), (3, True), (3, False)])
def test_every_layout_of_an_array_gives_the_same_images(tmp_path, channels, first):
    truth = noise(5, channels or 1, 6, 7)
    array = truth[:, 0] if channels is None else truth if first else truth.transpose(0, 2, 3, 1)
    np.save(tmp_path / "x.npy", array)
    images = load_array(tmp_path / "x.npy")
    assert torch.equal(images.pixels, torch.from_numpy(truth))
    assert images.pixels.is_contiguous()
    assert (images.labels, images.classes, images.notes) == (None, 0, ())


def test_the_last_axis_is_preferred_as_channels(tmp_path):
    array = noise(2, 3, 4, 3)
    np.save(tmp_path / "x.npy", array)
    assert torch.equal(load_array(tmp_path / "x.npy").pixels, torch.from_numpy(array).permute(0, 3, 1, 2))


def test_floats_are_converted_back_to_the_same_bytes(tmp_path):
    levels = np.arange(256).reshape(1, 16, 16)
    for scaled, dtype in ((levels / 255, "f2"), (levels / 255, "f8"), (levels / 127.5 - 1, ">f4")):
        np.save(tmp_path / "x.npy", scaled.astype(dtype))
        images = load_array(tmp_path / "x.npy")
        assert images.pixels[0].tolist() == levels.tolist()
        assert "to 0..255" in images.notes[0]


def test_bools_are_black_and_white(tmp_path):
    bits = noise(2, 4, 4) > 127
    np.save(tmp_path / "x.npy", bits)
    assert load_array(tmp_path / "x.npy").pixels[:, 0].tolist() == (bits * 255).tolist()


def test_npz_has_labels_and_its_only_array_may_have_any_name(tmp_path):
    truth = noise(4, 6, 6, 3)
    np.savez_compressed(tmp_path / "x.npz", images=truth, labels=np.array([0, 2, 2, 0], np.int8), more=np.ones(3))
    images = load_array(tmp_path / "x.npz")
    assert torch.equal(images.pixels, torch.from_numpy(truth).permute(0, 3, 1, 2))
    assert images.labels.dtype == torch.int64
    assert (images.labels.tolist(), images.class_names) == ([0, 2, 2, 0], ("0", "1", "2"))
    np.savez(tmp_path / "y.npz", truth, labels=np.zeros(4, int))
    assert torch.equal(load_array(tmp_path / "y.npz").pixels, images.pixels)


ZEROS = np.zeros((2, 4, 4), np.uint8)
REFUSED_ARRAYS = {
    "alpha": (np.zeros((2, 8, 8, 4), np.uint8), "no alpha"),
    "two axes": (ZEROS[0], "shape"),
    "five axes": (np.zeros((2, 2, 4, 4, 3), np.uint8), "shape"),
    "has no images": (ZEROS[:0], "empty"),
    "no pixels": (ZEROS[:, :0], "empty"),
    "int64": (ZEROS.astype(np.int64), "save uint8"),
    "complex": (ZEROS.astype(complex), "save uint8"),
    "text": (ZEROS.astype(str), "save uint8"),
    "0..255 floats": (ZEROS + 255.0, "save uint8"),
    "below -1": (ZEROS - 1.01, "save uint8"),
    "NaN": (np.where(np.eye(4), np.nan, ZEROS), "nan"),
    "inf": (np.where(np.eye(4), np.inf, ZEROS), "inf"),
    "objects": (ZEROS.astype(object), "save it again"),
}


def test_arrays_that_are_not_images_are_refused(tmp_path):
    path = tmp_path / "bad.npy"
    for array, message in REFUSED_ARRAYS.values():
        np.save(path, array)
        with pytest.raises(DataError, match=rf"bad.npy.*{message}"):
            load_array(path)
        np.savez(tmp_path / "bad.npz", images=array)
        with pytest.raises(DataError, match=rf"bad.npz.*{message}"):
            load_array(tmp_path / "bad.npz")


def test_labels_that_are_not_classes_are_refused(tmp_path):
    for labels in ([0], [[0, 1]], [0, -1], [0, 10**9], [0.0, 1.0], ["a", ""], [None, 1]):
        np.savez(tmp_path / "bad.npz", images=ZEROS, labels=np.array(labels))
        with pytest.raises(DataError, match=r"bad.npz"):
            load_array(tmp_path / "bad.npz")


def test_an_npz_with_several_arrays_must_name_one_images(tmp_path):
    np.savez(tmp_path / "bad.npz", a=ZEROS, b=ZEROS)
    with pytest.raises(DataError, match=r"bad.npz.*none of its arrays .* has the name images"):
        load_array(tmp_path / "bad.npz")
    np.savez(tmp_path / "bad.npz", labels=np.zeros(2, int))
    with pytest.raises(DataError, match=r"bad.npz.*images="):
        load_array(tmp_path / "bad.npz")


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_every_damaged_array_file_raises_a_data_error(tmp_path, name):
    path = tmp_path / name
    if name == "x.npy":
        np.save(path, noise(2, 8, 8))
    else:
        np.savez_compressed(path, images=noise(2, 8, 8), labels=np.zeros(2, int))
    whole = path.read_bytes()
    for end in range(0, len(whole), 23):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=name):
            load_array(path)
    for place in range(0, len(whole), 11):  # a changed pixel of an .npy cannot be detected
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with suppress(DataError):
            load_array(path)


# Sources


def test_a_source_is_a_name_a_folder_or_an_array(tmp_path, monkeypatch):
    digits = Images("digits", torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
    asked = []
    monkeypatch.setitem(sources.SOURCES, "digits", lambda *args: asked.append(args) or digits)
    assert load_images("digits", split="test", root="there").pixels is digits.pixels
    assert held_out("digits[3,4]").pixels is digits.pixels
    assert asked == [("test", "there", None), ("test", None, "3,4")]
    save(tmp_path / "digits/1.png", noise(4, 4))
    assert len(load_images(str(tmp_path / "digits"))) == 1
    np.save(tmp_path / "x.npy", noise(2, 4, 4))
    array = (tmp_path / "x.npy").rename(tmp_path / "Y.NPY")
    assert len(load_images(str(array))) == 2
    for path in (tmp_path / "digits", array):
        assert held_out(str(path)) is None
        with pytest.raises(DataError, match="no split 'test'"):
            load_images(str(path), split="test")


def test_the_named_sources_are_wired_to_their_loaders(nowhere):
    put_set(nowhere / "fashion-mnist", noise(2, 4, 4), np.arange(2, dtype=np.uint8))
    put_set(nowhere / "mnist", noise(2, 4, 4), np.arange(2, dtype=np.uint8))
    assert set(sources.SOURCES) == {"digits", "fashion-mnist", "mnist"}
    assert load_images("fashion-mnist", root=nowhere).class_names[1] == "Trouser"
    assert load_images("mnist", root=nowhere).class_names[1] == "1"


def test_an_unknown_source_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(DataError, match=r"'Fashion_Mnist' .*digits, fashion-mnist, mnist.* mean 'fashion-mnist'\?"):
        load_images("Fashion_Mnist")
    with pytest.raises(DataError, match="did you mean 'mnist'"):
        load_images("MNIST")
    with pytest.raises(DataError) as error:
        load_images(str(tmp_path / "nothing.npz"))
    assert "did you mean" not in str(error.value)
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(DataError, match=r"is not a data set .*, a folder, or a .npy"):
        load_images(str(tmp_path / "photo.jpg"))


def test_size_does_the_same_to_every_source(tmp_path):
    for channels in (1, 3):
        array = noise(3, 20, 30, channels)
        for number, pixels in enumerate(array.squeeze()):
            save(tmp_path / f"folder{channels}/{number}.png", pixels)
        np.save(tmp_path / "x.npy", array)
        folder = load_images(str(tmp_path / f"folder{channels}"), size=12)
        from_array = load_images(str(tmp_path / "x.npy"), size=12)
        assert folder.shape == (channels, 12, 12)
        assert torch.equal(folder.pixels, from_array.pixels)
        assert folder.notes == from_array.notes == ("cropped to squares and resized 20 x 30 to 12 x 12",)
    np.save(tmp_path / "x.npy", array / 255)
    assert load_images(str(tmp_path / "x.npy"), size=12).notes == (
        "converted floats in [0, 1] to 0..255",
        *folder.notes,
    )
    with pytest.raises(UsageError, match="--size must be a number of pixels from 1, got 0"):
        load_images(str(tmp_path / "x.npy"), size=0)


# Classes of a source


@pytest.fixture
def pets(tmp_path, monkeypatch) -> Path:
    """The current folder, with a folder of two readable cats, one fish, and an unreadable dog."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("cats/1.png", "cats/2.png", "fish/3.png"), 1):
        save(tmp_path / "pets" / name, np.full((4, 4), number, np.uint8))
    (tmp_path / "pets/dogs").mkdir()
    (tmp_path / "pets/dogs/bad.png").write_bytes(b"not an image")
    return tmp_path


def values(images: Images) -> list[int]:
    """The first pixel of every image."""
    return images.pixels[:, 0, 0, 0].tolist()


def test_one_class_of_a_folder_is_data_without_classes_and_no_other_file_is_decoded(pets):
    cats = load_images("pets[Cats]")
    assert (values(cats), cats.labels, cats.class_names) == ([1, 2], None, ())
    assert values(load_images("pets[2]")) == [3]  # byte order: cats, dogs, fish
    for source in ("pets", "pets[dogs]", "pets[cats,dogs]"):
        with pytest.raises(DataError, match=r"dogs.bad\.png"):
            load_images(source)


def test_several_classes_are_numbered_in_the_order_asked_for(pets):
    images = load_images("pets[fish, cats ,FISH]")
    assert images.class_names == ("fish", "cats")
    assert list(zip(values(images), images.labels.tolist(), strict=True)) == [(1, 1), (2, 1), (3, 0)]
    assert images.labels.dtype == torch.int64


def test_classes_of_idx_sets_and_arrays(nowhere, tmp_path):
    labels = np.array([3, 8, 5, 8, 0], np.uint8)
    pixels = np.arange(5, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 6), np.uint8)
    for stem, extra in (("train", 0), ("t10k", 100)):
        put_set(nowhere / "fashion-mnist", pixels + np.uint8(extra), labels, stem)
    np.savez(tmp_path / "x.npz", images=pixels, labels=labels)
    for source in ("fashion-mnist", str(tmp_path / "x.npz")):
        bags, both = load_images(f"{source}[8]", root=nowhere), load_images(f"{source}[8,5]", root=nowhere)
        assert (values(bags), bags.labels, bags.class_names) == ([1, 3], None, ())
        assert (values(both), both.labels.tolist()) == ([1, 2, 3], [0, 1, 0])
    test = held_out("fashion-mnist[Bag,sandal]", root=nowhere)
    assert (values(test), test.labels.tolist(), test.class_names) == ([101, 102, 103], [0, 1, 0], ("Bag", "Sandal"))
    small = load_images("fashion-mnist[Bag]", root=nowhere, size=3)
    assert (small.shape, values(small)) == ((1, 3, 3), [1, 3])
    assert small.notes[0] == "cropped to squares and resized 4 x 6 to 3 x 3"  # only the 2 images of this class


def test_the_range_of_floats_is_that_of_the_whole_array(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.array([-1.0, 1.0]).reshape(2, 1, 1) * np.ones((2, 4, 4)), labels=[0, 1])
    assert values(load_images(f"{tmp_path}/x.npz[1]")) == [255]
    np.savez(tmp_path / "x.npz", images=np.array([-1.0, 0.0]).reshape(2, 1, 1) * np.ones((2, 4, 4)), labels=[0, 1])
    assert values(load_images(f"{tmp_path}/x.npz[1]")) == [128]  # in [0, 1], 0 would be black


def test_the_name_of_images_loads_them_again(pets):
    np.savez("x.npz", images=noise(3, 4, 4), labels=[0, 1, 1])
    save(Path("digits/1.png"), noise(4, 4))  # with the name of a data set
    for source in ("./pets[cats]", "pets[fish,cats]", "x.npz", "x.npz[1]", "./digits", "pets/../pets/[fish]"):
        images = load_images(source)
        assert images.name == source
        assert load_images(images.name).fingerprint == images.fingerprint


def test_a_folder_whose_name_ends_in_brackets_is_that_folder(pets):
    save(Path("pets[cats]/9.png"), np.full((4, 4), 9, np.uint8))
    assert values(load_images("pets[cats]")) == [9]
    save(Path("a[1]/b[2]/c/9.png"), np.full((4, 4), 9, np.uint8))
    assert values(load_images("a[1]/b[2][c]")) == [9]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("pets[cat]", "'pets' has no class 'cat': its classes are 0 cats, 1 dogs, 2 fish; did you mean 'cats'?"),
        ("pets[cats,3]", "'pets' has no class '3': its classes are 0 cats, 1 dogs, 2 fish"),
        ("pets[-1]", "'pets' has no class '-1': its classes are 0 cats, 1 dogs, 2 fish"),
        ("pets[]", "'pets' has no class '': its classes are 0 cats, 1 dogs, 2 fish"),
        ("pets/cats[1]", "'pets/cats' has no classes: leave out [1]"),
        ("x.npz[1]", "'x.npz' has no image of class '1': choose another class"),
        ("x.npz[2,1]", "'x.npz' has no image of class '1': choose another class"),
        (
            "many.npz[500]",
            f"'many.npz' has no class '500': its classes are {', '.join(map(str, range(12)))} and 8 more",
        ),
    ],
)
def test_classes_that_are_not_there_are_refused_with_those_that_are(pets, source, message):
    np.savez("x.npz", images=ZEROS, labels=[0, 2])
    np.savez("many.npz", images=noise(20, 4, 4), labels=np.arange(20))
    with pytest.raises(DataError) as error:
        load_images(source)
    assert str(error.value) == message


def test_names_come_before_numbers_and_may_hold_commas():
    names = ("10", "tench, Tinca tinca", "shark", "Shark", "1")
    labels = torch.arange(5)

    def chosen(wanted: str) -> list[int]:
        return select("x", wanted, labels, names)[0].tolist()

    assert chosen("10") == [0]
    assert chosen("1") == [4]
    assert chosen("2") == [2]
    assert chosen("Tench, Tinca tinca") == [1]
    assert [chosen(word) for word in ("shark", "Shark", "SHARK")] == [[2], [3], [2]]
    assert chosen("2,0") == [0, 2]


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("fashion-mnist", "fashion-mnist"),
        ("fashion-mnist[T-shirt/top, Bag]", "fashion-mnist-T-shirt-top-Bag"),
        ("../data/x.npz[2]", "x-2"),
        ("hub:owner/some-set[n01443537]", "some-set-n01443537"),
        ("my photos/", "my-photos"),
    ],
)
def test_the_stem_of_a_name_can_be_part_of_a_path(name, stem):
    assert Images(name, torch.zeros(1, 1, 2, 2, dtype=torch.uint8)).stem == stem
