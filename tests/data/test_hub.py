"""Data sets in the formats of huggingface.co: they are read as written, and missing ones are reported at once."""

import os
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simple_diffusion.data import hub
from simple_diffusion.data.folder import load_folder
from simple_diffusion.data.sources import held_out, load_images
from simple_diffusion.errors import DataError, UsageError

for key, value in hub.QUIET.items():  # the fixtures import `datasets` before the loader does
    os.environ.setdefault(key, value)
datasets = pytest.importorskip("datasets")

RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, np.uint8)


def png(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def cell(content: bytes | None) -> dict:
    return {"bytes": content, "path": None}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    """Where `datasets` keeps its copies: nothing goes to the user's cache."""
    path = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", path)
    return path


def parquet(folder: Path, contents: list, labels: list | None, split: str = "train", names=("cat", "dog", "fish")):
    """A split as huggingface.co keeps it: a column that is no image, the images, then the labels."""
    columns = {"id": list(range(len(contents))), "image": [c and cell(c) for c in contents]}
    kinds = {"id": datasets.Value("int64"), "image": datasets.Image()}
    if labels is not None:
        columns |= {"target": labels, "other": [0] * len(contents)}
        kinds |= {"target": datasets.ClassLabel(names=list(names)), "other": datasets.ClassLabel(names=["none"])}
    path = folder / "data" / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, datasets.Features(kinds)).to_parquet(path)


@pytest.fixture
def pets(tmp_path) -> Path:
    """Parquet with a dog that no decoder can read."""
    pictures = [png(np.full((4, 4), value, np.uint8)) for value in range(5)]
    parquet(tmp_path / "pets", [*pictures[:3], b"not an image", pictures[4]], [2, 0, 2, 1, 0])
    return tmp_path / "pets"


def values(images) -> list[int]:
    return images.pixels[:, 0, 0, 0].tolist()


def test_parquet_gives_its_images_and_its_first_labels(tmp_path):
    pictures = [noise(6, 5, 3) for _ in range(4)]
    parquet(tmp_path, [png(picture) for picture in pictures], [1, 0, 2, 1])
    images = load_images(f"hub:{tmp_path}")
    assert torch.equal(images.pixels, torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2))
    assert (images.labels.tolist(), images.class_names) == ([1, 0, 2, 1], ("cat", "dog", "fish"))
    assert images.labels.dtype == torch.int64
    assert (images.name, images.notes) == (f"hub:{tmp_path}", ("did not use the columns id, other",))
    assert load_images(f"hub:{tmp_path}", size=3).shape == (3, 3, 3)


def test_no_image_of_another_class_is_decoded(pets):
    fish = load_images(f"hub:{pets}[Fish]")
    assert (values(fish), fish.labels, fish.class_names) == ([0, 2], None, ())
    assert (fish.name, fish.fingerprint) == (f"hub:{pets}[Fish]", load_images(fish.name).fingerprint)
    both = load_images(f"hub:{pets}[2,cat]")
    assert (values(both), both.labels.tolist(), both.class_names) == ([0, 1, 2, 4], [0, 1, 0, 1], ("fish", "cat"))
    for source in (f"hub:{pets}", f"hub:{pets}[dog]"):
        with pytest.raises(DataError, match=r"cannot read 1 of \d images: row 3 of 'hub:.*pets': not a JPEG"):
            load_images(source)
    with pytest.raises(DataError, match=r"no class 'dogs': its classes are 0 cat, 1 dog, 2 fish; did you mean 'dog'\?"):
        load_images(f"hub:{pets}[dogs]")


def test_skip_bad_leaves_out_the_rows_that_cannot_be_read(tmp_path):
    grey = [png(np.full((4, 4), value, np.uint8)) for value in range(3)]
    parquet(tmp_path, [grey[0], b"not an image", grey[1], None, grey[2]], [2, 1, 0, 2, 1])
    images = load_images(f"hub:{tmp_path}", skip_bad=True)
    assert (values(images), images.labels.tolist()) == ([0, 1, 2], [2, 0, 1])
    assert list(images.left_out) == [f"row {row} of 'hub:{tmp_path}'" for row in (1, 3)]
    parquet(tmp_path, [grey[0], b"not an image"], [0, 1], "test")
    with pytest.raises(DataError, match=r"no image of class 'dog' of .* can be read"):
        held_out(f"hub:{tmp_path}", skip_bad=True)
    assert values(held_out(f"hub:{tmp_path}[cat]", skip_bad=True)) == [0]


@pytest.mark.parametrize(
    ("kind", "labels", "test_labels", "classes"),
    [
        ("string", ["b", "a", "b"], ["c", "b", "a"], ("a", "b")),
        ("int64", [7, 3, 7], [0, 7, 3], ("3", "7")),
    ],
)
def test_a_column_with_a_usual_name_holds_labels_and_the_rest_is_named(tmp_path, kind, labels, test_labels, classes):
    for split, values in (("train", labels), ("test", test_labels)):
        path = tmp_path / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        columns = {"image": [cell(png(noise(4, 4)))] * 3, "Label": values, "caption": ["x"] * 3}
        kinds = {"image": datasets.Image(), "Label": datasets.Value(kind), "caption": datasets.Value("string")}
        datasets.Dataset.from_dict(columns, datasets.Features(kinds)).to_parquet(path)
    train = load_images(f"hub:{tmp_path}")
    assert (train.class_names, train.labels.tolist()) == (classes, [1, 0, 1])
    assert train.notes[0] == "did not use the columns caption"
    test = held_out(f"hub:{tmp_path}", class_names=train.class_names)
    assert (test.class_names, test.labels.tolist()) == (classes, [1, 0])  # without the class that is not trained


def test_names_of_classes_can_be_printed(tmp_path):
    parquet(tmp_path, [png(noise(4, 4))] * 2, [0, 1], names=("\x1b[31mred\n", "blue"))
    assert load_images(f"hub:{tmp_path}").class_names == (r"\x1b[31mred\n", "blue")


def test_images_are_decoded_by_the_rules_of_folders(tmp_path):
    grey, sideways = noise(8, 8), Image.Exif()
    sideways[0x0112] = 6
    contents = {
        "0.png": png(noise(8, 10).astype(np.uint16) * 257),  # 16 bits
        "1.png": png(noise(8, 6, 4)),  # alpha
        "2.png": png(grey),
        "3.jpg": png(noise(9, 7, 3), "JPEG", exif=sideways),
        "4.webp": png(noise(80, 70, 3), "WEBP"),
    }
    (tmp_path / "folder").mkdir()
    for name, content in contents.items():
        (tmp_path / "folder" / name).write_bytes(content)
    parquet(tmp_path / "parquet", list(contents.values()), None)
    for size in (None, 8):
        ours = load_images(f"hub:{tmp_path / 'parquet'}", size=size)
        theirs = load_folder(tmp_path / "folder", size)
        assert torch.equal(ours.pixels, theirs.pixels)
        assert ours.notes == ("did not use the columns id", *theirs.notes)
        assert theirs.notes != ()
        assert (ours.labels, ours.class_names) == (None, ())


def test_a_folder_of_images_gives_what_it_gives_without_the_hub(tmp_path):
    for split, shift in (("train", 0), ("test", 100)):
        for number, name in enumerate(("cats/1.png", "cats/2.png", "dogs/3.png")):
            path = tmp_path / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(np.full((4, 4, 3), number + shift, np.uint8)))
    (tmp_path / "train/dogs/bad.png").write_bytes(b"not an image")
    cats, test = load_images(f"hub:{tmp_path}[cats]"), held_out(f"hub:{tmp_path}")
    assert torch.equal(cats.pixels, load_images(f"{tmp_path}/train[cats]").pixels)
    assert test.fingerprint == load_folder(tmp_path / "test").fingerprint
    assert test.class_names == ("cats", "dogs")
    assert values(held_out(f"hub:{tmp_path}[dogs]")) == [102]
    with pytest.raises(DataError, match="row 3 of"):
        load_images(f"hub:{tmp_path}")


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ({}, None),
        ({"validation": [0, 1]}, "validation"),
        ({"validation": [0, 1], "test": [1, 0]}, "test"),
        ({"validation": [0, 1], "test": [-1, -1]}, "validation"),  # -1: a contest keeps them to itself
        ({"test": [-1, -1]}, None),
    ],
)
def test_the_test_split_is_held_out_or_else_the_validation_split(tmp_path, splits, expected):
    fill = {split: number for number, split in enumerate(("train", "validation", "test"))}
    for split, labels in {"train": [0, 1], **splits}.items():
        parquet(tmp_path, [png(np.full((4, 4), fill[split], np.uint8))] * 2, labels, split)
    assert values(load_images(f"hub:{tmp_path}")) == [0, 0]
    test = held_out(f"hub:{tmp_path}")
    assert (test and values(test)) == (expected and [fill[expected]] * 2)
    dog = held_out(f"hub:{tmp_path}[dog]")
    assert (dog and values(dog)) == (expected and [fill[expected]])
    if test is None:
        with pytest.raises(DataError, match="no split 'test'"):
            load_images(f"hub:{tmp_path}", split="test")


def test_rows_that_lack_something_are_named(tmp_path):
    good = png(noise(4, 4))
    parquet(tmp_path / "label", [good] * 3, [0, None, 1])
    with pytest.raises(DataError, match=r"row 1 of 'hub:.*label' has no label"):
        load_images(f"hub:{tmp_path}/label")
    assert len(load_images(f"hub:{tmp_path}/label[cat,dog]")) == 2
    parquet(tmp_path / "image", [good, None, b""], None)
    with pytest.raises(DataError, match=r"2 of 3 images: row 1 of .*; row 2 of "):
        load_images(f"hub:{tmp_path}/image")
    with pytest.raises(DataError, match=r"has no classes: leave out \[cat\]"):
        load_images(f"hub:{tmp_path}/image[cat]")


def test_data_without_images_are_refused(tmp_path):
    datasets.Dataset.from_dict({"text": ["a"], "n": [1]}).to_parquet(tmp_path / "text" / "train.parquet")
    parquet(tmp_path / "other", [png(noise(4, 4))], [0], "test")
    (tmp_path / "empty").mkdir()
    (tmp_path / "script").mkdir()
    (tmp_path / "script/script.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/train.parquet").write_bytes(b"PAR1 and then nothing")
    for name, message in {
        "text": r"no column of images: it has text \(Value\), n \(Value\)",
        "other": "no split 'train': it has test",
        "empty": "cannot read 'hub:.*empty'",
        "script": "cannot read 'hub:.*script'",
        "damaged": "cannot read 'hub:.*damaged'",
        "missing": "neither a folder nor an OWNER/NAME",
    }.items():
        with pytest.raises(DataError, match=message) as error:
            load_images(f"hub:{tmp_path / name}")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_a_folder_with_brackets_in_its_name_is_read_as_a_folder(pets):
    pets.rename(pets.with_name("pets[fish]"))
    parquet(pets, [png(noise(4, 4))], [2])
    with pytest.raises(DataError, match=r"the path of 'hub:.*pets\[fish\]' contains .*rename the folder"):
        load_images(f"hub:{pets}[fish]")


def test_without_the_package_the_error_names_the_command_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = "reading hub:owner/name needs the package datasets: pip install 'simple-diffusion[hub]'"
    with pytest.raises(UsageError) as error:
        load_images("hub:owner/name[cat]")
    assert str(error.value) == message


# The hub itself, played by a server on this machine


@pytest.fixture
def server(monkeypatch):
    """Answers every request with `server.reply`; `server.asked` lists the paths."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            server.reply(self)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.reply = [], None
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", endpoint)
    files = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
    yield server
    server.shutdown()
    server.server_close()


def test_a_data_set_that_does_not_exist_is_named(server):
    def reply(handler):
        handler.send_response(404)
        handler.send_header("X-Error-Code", "RepoNotFound")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.reply = reply
    with pytest.raises(DataError, match="has no data set 'owner/nothing' that you may read: check the name"):
        load_images("hub:owner/nothing[cat]")
    assert server.asked == ["/api/datasets/owner/nothing"]


def test_an_empty_data_set_is_refused(server):
    def reply(handler):
        about = b'{"id": "owner/empty", "sha": "' + b"0" * 40 + b'", "siblings": [], "private": false, "tags": []}'
        handler.send_response(200 if handler.path.startswith("/api/datasets/owner/empty") else 404)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(about)))
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(about)

    server.reply = reply
    with pytest.raises(DataError, match="cannot read 'hub:owner/empty': ") as error:
        load_images("hub:owner/empty")
    assert "\n" not in str(error.value)
    assert server.asked[0] == "/api/datasets/owner/empty"
    assert len(server.asked) > 1  # it was there, so it was asked for more


def test_without_an_answer_only_one_request_is_made(server, monkeypatch):
    over = threading.Event()
    server.reply = lambda handler: over.wait()
    monkeypatch.setattr(hub, "TIMEOUT", 1.0)
    with pytest.raises(DataError, match=r"cannot reach huggingface\.co for 'hub:owner/set', which is not in the cache"):
        load_images("hub:owner/set")
    over.set()
    assert server.asked == ["/api/datasets/owner/set"]
    assert not datasets.config.HF_HUB_OFFLINE


def test_without_a_network_the_cache_is_read(server, cache, pets):
    expected = load_images(f"hub:{pets}[fish]")
    shutil.copytree(cache / "pets", cache / "owner___pets")  # as if it had come from there
    shutil.rmtree(pets)
    server.server_close()  # refuses every connection
    images = load_images("hub:owner/pets[fish]")
    assert images.name == "hub:owner/pets[fish]"
    assert images.fingerprint == expected.fingerprint
    with pytest.raises(DataError, match=r"cannot reach huggingface\.co for 'hub:owner/other'"):
        load_images("hub:owner/other")


def test_an_impossible_name_is_not_requested(server):
    for where in ("mnist", "a/b/c", "./no/where", "owner/na me", ""):
        with pytest.raises(DataError, match="neither a folder nor an OWNER/NAME"):
            load_images(f"hub:{where}")
    assert server.asked == []
