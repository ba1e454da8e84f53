"""Folders of samples: what `sample --out DIR` writes is a data set, and `evaluate` scores it as a file of arrays."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import ends, fails, tree
from PIL import Image

import simple_diffusion as sd
from simple_diffusion.cli import sample
from simple_diffusion.cli.main import parser
from simple_diffusion.cli.options import open_model
from simple_diffusion.data.folder import _class_name, folder_name, load_folder
from simple_diffusion.evaluation import extractors

NAMES = (
    "T-shirt/top",
    "..",
    ".hidden",
    "a%2Fb",
    "50%",
    "100%25",
    "end. ",
    'a:b*?"<>|\\',
    "猫",
    "0",
    "plain name",
    "x\x1b\n",
)


def test_names_of_class_folders_are_safe_and_read_back():
    folders = [folder_name(name) for name in NAMES]
    assert len(set(folders)) == len(NAMES)
    assert [_class_name(folder) for folder in folders] == [*NAMES]
    for folder in folders:
        assert not set(folder) & set('<>:"/\\|?*')
        assert folder.strip(". ") == folder
        assert folder.isprintable()
    assert [folder_name(name) for name in ("猫", "0", "plain name")] == ["猫", "0", "plain name"]


@pytest.mark.parametrize("name", ["50%", "100%20cotton", "%zz", "a%2fb"])
def test_a_percent_sign_in_a_folder_of_the_user_stays(tmp_path, name):
    for folder in (name, "other"):
        (tmp_path / folder).mkdir()
        Image.new("L", (8, 8), 9).save(tmp_path / folder / "a.png")
    assert name in load_folder(tmp_path).class_names


@pytest.mark.parametrize("channels", [1, 3], ids=["gray", "color"])
def test_a_folder_of_samples_reads_back_with_labels_and_names(run_folder, tmp_path, channels):
    """The classes of the model get names that no folder can have."""
    model = open_model(parser().parse_args(["sample", str(run_folder)]))
    names = ("T-shirt/top", "猫", ".b")
    named = replace(model, spec=replace(model.spec, info=replace(model.info, class_names=names)))
    labels = torch.tensor([0, 1, 2, 0, 2])
    pixels = torch.randint(0, 256, (5, channels, *model.info.shape[1:]), dtype=torch.uint8)
    plan = sample.Plan(named, 5, 0, labels, labels, 0, None, tmp_path / "samples")
    sample.write_folder(plan, pixels)
    found = sd.load_images(tmp_path / "samples")
    assert set(found.class_names) == set(names)
    back = found.in_classes(names)
    for i, (label, file) in enumerate(zip(back.labels.tolist(), back.files, strict=True)):
        number = int(Path(file).stem)
        assert label == labels[number]
        assert torch.equal(back.pixels[i], pixels[number])
    assert len(back) == 5


def test_a_second_set_of_samples_is_not_mixed_into_the_first(run_folder, tmp_path, capsys):
    argv = ["sample", str(run_folder), "--n", "4", "--out"]
    (tmp_path / "empty").mkdir()
    for out in ("new", "empty"):
        assert ends([*argv, str(tmp_path / out)]) == 0
    before = tree(tmp_path)
    fails(capsys, [*argv, str(tmp_path / "new"), "--seed", "1"], 2, "new is not an empty folder", "name a new one")
    (tmp_path / "file").touch()
    fails(capsys, [*argv, str(tmp_path / "file")], 2, "file is not an empty folder")
    (tmp_path / "file").unlink()
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "argv",
    [
        ["sample", "RUN", "--n", "4", "--out", "D.npz"],
        ["sample", "RUN", "--n", "4", "--trajectory", "--out", "D.gif"],
        ["schedules", "--out", "D.png"],
        ["data", "digits", "--out", "D.png"],
        ["data", "digits", "--noised", "D.png"],
        ["compare", "RUN", "--set", "sampler=heun", "--out", "D.png"],
        ["sweep", "RUN", "--out", "D.png"],
        ["classifier", "digits", "--out", "D.safetensors"],
    ],
    ids=" ".join,
)
def test_a_folder_in_the_place_of_a_file_is_refused_before_the_work(run_folder, tmp_path, monkeypatch, capsys, argv):
    monkeypatch.chdir(tmp_path)
    name = next(word for word in argv if word.startswith("D."))
    Path(name).mkdir()
    fails(capsys, [str(run_folder) if word == "RUN" else word for word in argv], 2, f"{name} is a folder: name a file")


@pytest.fixture
def shipped(monkeypatch):
    """A shipped extractor instead of one that is trained for minutes."""
    gray = extractors.extractor_for(sd.Images("digits", torch.zeros(2, 1, 4, 4, dtype=torch.uint8)))

    class Gray:
        name, classes = "gray", 3

        def __call__(self, pixels):
            features, logits = gray(pixels.float().mean(1, keepdim=True).byte())
            return features, logits[:, :3]

    monkeypatch.setattr(extractors, "extractor_for", lambda *args, **options: Gray())


def scores_in(folder: Path) -> dict[str, float | None]:
    record = json.loads((folder / "scores.json").read_text())["extractors"][0]
    return {score["name"]: score["value"] for score in record["scores"]}


def test_a_folder_is_scored_as_the_file_of_the_same_samples(run_folder, squares, tmp_path, shipped):
    """Also with the labels: the accuracy of their classes is that of the file."""
    for out in ("file.npz", "folder"):
        assert ends(["sample", str(run_folder), "--n", "48", "--out", str(tmp_path / out)]) == 0  # all are compared
        assert ends(["evaluate", str(tmp_path / out), "--data", str(squares)]) == 0
    of_file, of_folder = (scores_in(tmp_path / name) for name in ("file/evaluation", "folder-evaluation"))
    assert of_file == pytest.approx(of_folder, nan_ok=True)
    assert of_file["accuracy"] is not None
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {"0", "1", "2"}  # the scores are not among them
    assert ends(["evaluate", str(tmp_path / "folder"), "--data", str(squares), "--n", "40"]) == 0
    record = json.loads((tmp_path / "folder-evaluation" / "scores.json").read_text())
    assert record["extractors"][0]["by_class"].keys() == {"0", "1", "2"}  # a part is taken of all classes


@pytest.mark.slow
def test_pictures_of_an_earlier_evaluation_do_not_stay(run_folder, squares, tmp_path, shipped):
    out = tmp_path / "out"
    argv = ["--n", "60", "--out", str(out)]
    assert ends(["evaluate", str(run_folder), *argv]) == 0
    assert (out / "levels.png").is_file()
    assert ends(["evaluate", str(squares), "--data", str(squares), *argv]) == 0
    assert not (out / "levels.png").exists()
    assert (out / "closest-in-pixels.png").is_file()


def folder_of(root: Path, *shapes: tuple[int, ...]) -> str:
    """A folder with an image of each shape."""
    root.mkdir()
    for i, shape in enumerate(shapes):
        Image.fromarray(np.full(shape, 100, np.uint8)).save(root / f"{i}.png")
    return str(root)


def test_a_folder_that_does_not_fit_the_data_is_refused_in_one_sentence(squares, run_folder, tmp_path, capsys):
    data, good = ["--data", str(squares)], (12, 16, 3)
    small = folder_of(tmp_path / "small", good, good, (12, 12, 3))
    large = folder_of(tmp_path / "large", (128, 128, 3), (128, 128, 3))
    one = folder_of(tmp_path / "one", good)
    gray = folder_of(tmp_path / "gray", (12, 16), (12, 16))
    (tmp_path / "empty").mkdir()
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    Image.new("RGB", (16, 12)).save(tmp_path / "pets" / "cat" / "a.png")
    folder_of(tmp_path / "pets" / "dog", good)
    fails(capsys, ["evaluate", small, *data], 3, "has images of 12 x 12 pixels", "of 12 x 16", "--size")
    fails(capsys, ["evaluate", large, *data], 3, "has images of 128 x 128 pixels", "of 12 x 16", "--size")
    fails(capsys, ["evaluate", one, *data], 3, "at least two samples")
    fails(capsys, ["evaluate", gray, *data], 3, "1 x 12 x 16", "3 x 12 x 16")
    fails(capsys, ["evaluate", str(tmp_path / "empty"), *data], 3, "no image in")
    fails(capsys, ["evaluate", str(tmp_path / "pets"), *data], 3, "cat", "dog", "--data")
    fails(capsys, ["evaluate", small], 2, "holds samples and no model", "add --data")
    fails(capsys, ["compare", small, str(run_folder)], 5, "there is no model at")
