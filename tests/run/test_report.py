"""report.html: all of a training run on one page that loads nothing from elsewhere."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import TINY

from simple_diffusion.cli.main import main
from simple_diffusion.data.images import to_unit
from simple_diffusion.data.sources import load_images
from simple_diffusion.denoising_error import LEVELS, loss_bounds, model_error
from simple_diffusion.evaluation.scores import Evaluation, Score
from simple_diffusion.losses import loss_of_error
from simple_diffusion.model.build import ModelSpec
from simple_diffusion.model.model_file import model_file, read, save
from simple_diffusion.run import trainer
from simple_diffusion.run.folder import hold
from simple_diffusion.run.report import read_log, write_report

VOID = {"meta", "link", "img", "br", "hr", "input"}  # elements without an end tag
SECTIONS = [
    "Progress",
    "Samples",
    "Loss",
    "Denoising error by noise level",
    "Scores",
    "Data",
    "Settings",
    "Reproduce",
]


class Page(HTMLParser):
    """What a browser would parse: text, headings, tags and attributes. Fails if an element is not closed in order."""

    def __init__(self, folder):
        super().__init__()
        self.html = (folder / "report.html").read_text()
        self.open, self.attributes, self.text, self.tags, self.sections = [], [], "", [], []
        self.feed(self.html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open[-1:] == ["h2"]:
            self.sections.append(data)

    @property
    def reloads(self):
        return 'http-equiv="refresh"' in self.html


@pytest.fixture(scope="module")
def trained(squares, tmp_path_factory):
    """(folder of a run, its data, (progress, live, whether the browser reloads) of each page written meanwhile)."""
    path = tmp_path_factory.mktemp("report")
    data, folder = shutil.copy(squares, path / "squares.npz"), path / "run"
    written, real = [], trainer.write_report

    def spy(folder, *args, **options):
        real(folder, *args, **options)
        written.append((options["progress"], options["live"], Page(folder).reloads))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "write_report", spy)
        options = ["--steps", "12", "--set", "held_out=0.2", "--precision", "fp32"]
        main(["train", str(data), "--out", str(folder), *options, *TINY])
    return folder, data, written


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run folder."""
    return shutil.copytree(trained[0], tmp_path / "run")


def test_the_page_of_a_finished_run_has_all_sections(trained):
    folder, _, _ = trained
    page = Page(folder)
    assert page.sections == SECTIONS
    for words in ("12 steps", "96 color images", "Recent loss by noise level", "held-out", "Command that reproduces"):
        assert words in page.text
    assert "simple-diffusion train" in page.text
    assert f"simple-diffusion evaluate {folder}" in page.text
    assert page.tags.count("svg") == 4
    assert not page.reloads


def test_the_page_loads_nothing_from_elsewhere(trained):
    page = Page(trained[0])
    sources = ("src", "href", "action", "data", "srcset", "poster")
    loaded = [value for _, name, value in page.attributes if name in sources]
    assert loaded
    assert all(value.startswith("data:image/png;base64,") for value in loaded)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert not re.search(r"url\(|@import|https?:", page.html)


def test_the_page_is_renewed_during_training_and_reloads_until_the_end(trained):
    _, _, written = trained
    assert len(written) > 1
    assert [live for _, live, _ in written] == [True] * (len(written) - 1) + [False]
    assert [live for _, live, _ in written] == [reloads for *_, reloads in written]
    assert sorted(written) == written
    assert written[-1][0] == 1


def test_the_loss_by_noise_level_has_bounds_if_it_is_a_squared_error(trained, squares, tmp_path):
    bounds = ("Wiener denoiser (upper bound)", "ideal denoiser of 77 images (lower bound)")
    assert all(bound in Page(trained[0]).text for bound in bounds)
    main(["train", str(squares), "--steps", "1", "--out", str(tmp_path / "l1"), *TINY, "--set=criterion=l1"])
    text = Page(tmp_path / "l1").text
    assert "Recent loss by noise level" in text
    assert "bound)" not in text


def test_the_loss_lies_above_its_lower_bound(trained):
    folder, data, _ = trained
    denoiser, images = read(folder).denoiser, load_images(str(data))
    upper, lower = (curve.points for curve in loss_bounds(denoiser, images))
    loss = loss_of_error(denoiser, LEVELS, model_error(denoiser, to_unit(images.pixels), images.labels))
    for (level, high), (same, low), value in zip(upper, lower, loss.tolist(), strict=True):
        assert level == same
        assert low < value + 1e-9
        assert low < high


def test_names_are_escaped(run):
    model = read(run)
    hostile = '<script>alert("1")</script>&amp;'
    info = replace(model.info, name=hostile, class_names=(hostile, "b", "c"))
    spec = ModelSpec(replace(model.config, data=hostile), info)
    before = Page(run)
    (run / "levels.json").write_text(json.dumps({"curves": [{"name": hostile, "points": [[1, 1], [2, 2]]}] * 2}))
    score = Score(hostile, hostile, 5, "train", None, note=hostile)
    write_scores(run, Evaluation([score], {hostile: [replace(score, value=1.0)]}))
    write_report(run, spec, f"simple-diffusion train '{hostile}'")
    page = Page(run)
    assert "script" not in page.tags
    places = {"subtitle": 1, "caption": 1, "legend": 2, "scores": 3, "by class": 2, "settings": 2, "command": 1}
    assert page.text.count(hostile) == sum(places.values())
    assert len([tag for tag in page.tags if tag == "h2"]) == len(before.sections)


def write_scores(folder, evaluation):
    (folder / "evaluation").mkdir(exist_ok=True)
    record = {"extractors": [evaluation.as_dict()]}
    (folder / "evaluation" / "scores.json").write_text(json.dumps(record))


def test_report_adds_a_trajectory_and_errors_by_noise_level_and_shows_scores(run, capsys):
    assert "Denoising trajectory" not in Page(run).text
    fid = Score("FID", "cnn", 1000, "train", 1.25, 0.5, 0.125, interval=(0.75, 2.25))
    scores = [fid, Score("IS", "cnn", 9, "", None, note="too few")]
    write_scores(run, Evaluation(scores, {"a": [Score("accuracy", "cnn", 9, "asked labels", 0.75)]}))
    shutil.copy(next((run / "samples").glob("*.png")), run / "evaluation" / "closest-in-pixels.png")
    main(["report", str(run), "--json"])
    assert json.loads(capsys.readouterr().out)["report"] == str(run / "report.html")
    page = Page(run)
    for words in (
        "Denoising trajectory",
        "linear denoiser (upper bound)",
        "model, training images",
        "real-data baseline",
        "0.75 to 2.25",
        "0.125",
        "1,000",
        "too few",
        "accuracy 0.75",
        "nearest to a training image in pixels",
    ):
        assert words in page.text
    assert page.tags.count("svg") == 4
    (run / "trajectory.png").rename(run / "film.png")  # the name in earlier versions
    write_report(run, read(run).spec, "x")
    assert "Denoising trajectory" in Page(run).text


def test_the_errors_that_version_0_1_measured_are_shown(run):
    """Their data may no longer be available, so that they cannot be measured again."""
    errors = {"mean and covariance only": [2, 3], "model, training images": [1, 2], "training set by heart": [0.5, 1]}
    (run / "levels.json").write_text(json.dumps({"levels": [0.1, 1], "errors": errors}))
    write_report(run, read(run).spec, "x")
    page = Page(run)
    for words in ("linear denoiser (upper bound)", "model, training images", "ideal denoiser (lower bound)"):
        assert words in page.text
    assert page.tags.count("svg") == 4


def test_a_damaged_file_is_replaced_by_the_command_that_makes_it(run):
    spec = read(run).spec
    (run / "evaluation").mkdir()
    (run / "log.csv").write_bytes(b"step,images\n\xff\n1,2,3,4\n" + (run / "log.csv").read_bytes())
    curve = '{"curves": [{"name": "a", "points": [1]}]}'
    for wrong in ("", "{", "[]", "3", '{"extractors": 3}', curve, '{"curves": [{"kind": 1}]}', "null"):
        (run / "evaluation" / "scores.json").write_text(wrong)
        (run / "levels.json").write_text(wrong)
        write_report(run, spec, "x")
        text = Page(run).text
        assert f"simple-diffusion evaluate {run}" in text
        assert f"simple-diffusion report {run}" in text


def test_without_the_training_data_the_page_leaves_out_its_measurements(run, trained, tmp_path, capsys):
    data = trained[1]
    moved = shutil.move(data, tmp_path / "moved.npz")
    try:
        main(["report", str(run)])
        assert "leaves out what needs the training data" in capsys.readouterr().out
        assert "Denoising trajectory" in Page(run).text
        images = load_images(str(moved))
        pixels = images.pixels.permute(0, 2, 3, 1).numpy()
        np.savez(data, images=pixels, labels=images.labels.flip(0).numpy())
        main(["report", str(run)])
        assert "has changed since the model was trained" in capsys.readouterr().out
    finally:
        shutil.move(moved, data)
    assert not (run / "levels.json").exists()


def test_an_unfinished_run_shows_its_progress_and_reloads_only_while_it_trains(run):
    save(model_file(run), replace(read(run), step=6))
    with hold(run):
        main(["report", str(run)])
        assert Page(run).reloads
    main(["report", str(run), "--precision", "bf16"])
    page = Page(run)
    assert not page.reloads
    assert 'value="0.5000"' in page.html
    assert "bf16" not in page.text  # the precision of training, not of the report


@pytest.mark.parametrize("argv", [["report", "nowhere"], ["report", "."]])
def test_a_missing_run_is_an_error_in_one_line(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        main(argv)
    assert error.value.code == 5
    assert capsys.readouterr().err.count("\n") == 1


def test_a_log_that_ends_in_half_a_row_is_read_up_to_there(run, tmp_path):
    spec = read(run).spec
    (run / "log.csv").write_text("step,loss,held_out_loss\n1,0.5,\n2,0.25,0.3\n3,0.")
    assert read_log(run) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "held_out_loss": 0.3}]
    (run / "log.csv").unlink()
    assert read_log(run) == []
    write_report(run, spec, "x")
    assert "half a percent" in Page(run).text
