"""report.html: all of a run on one page that asks for nothing from elsewhere."""

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
from simple_diffusion.losses import loss_of_error
from simple_diffusion.model.build import ModelSpec
from simple_diffusion.model.model_file import model_file, read, save
from simple_diffusion.run.folder import hold
from simple_diffusion.run.report import curves, rows_of_log, ticks, write_report

ALONE = {"meta", "link", "img", "br", "hr", "input"}  # elements without an end


class Page(HTMLParser):
    """What a browser would see: the text, the attributes, and whether every element is closed in order."""

    def __init__(self, folder):
        super().__init__()
        self.html = (folder / "report.html").read_text()
        self.open, self.attributes, self.text, self.tags = [], [], "", []
        self.feed(self.html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in ALONE:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def run(squares, tmp_path):
    folder = tmp_path / "run"
    data = shutil.copy(squares, tmp_path / "squares.npz")
    main(["train", str(data), "--steps", "12", "--out", str(folder), "--set", "held_out=0.2", *TINY])
    return folder


def test_a_finished_run(run):
    page = Page(run)
    for words in (
        "What it draws",
        "Learning",
        "loss by noise level",
        "Scores",
        "Data",
        "Settings",
        "12 steps",
        "96",
        "simple-diffusion train",
    ):
        assert words in page.text
    assert "refresh" not in page.html
    assert page.tags.count("svg") == 4
    assert f"simple-diffusion evaluate {run}" in page.text


def test_it_asks_for_nothing_from_elsewhere(run):
    page = Page(run)
    asked = [
        value for _, name, value in page.attributes if name in ("src", "href", "action", "data", "srcset", "poster")
    ]
    assert asked
    assert all(value.startswith("data:image/png;base64,") for value in asked)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert not re.search(r"url\(|@import|https?:", page.html)


def test_it_is_there_and_renews_itself_while_the_run_goes_on(squares, tmp_path, monkeypatch):
    from simple_diffusion.run import trainer as module

    seen = []
    real = module.write_report

    def spy(folder, *args, **options):
        real(folder, *args, **options)
        seen.append((options["progress"], options["live"], 'http-equiv="refresh"' in Page(folder).html))

    monkeypatch.setattr(module, "write_report", spy)
    main(["train", str(squares), "--steps", "20", "--out", str(tmp_path / "run"), *TINY])
    assert len(seen) > 1
    assert (
        [live for _, live, _ in seen] == [refreshing for *_, refreshing in seen] == [True] * (len(seen) - 1) + [False]
    )
    assert sorted(seen) == seen
    assert seen[-1][0] == 1


def test_the_loss_by_level_has_its_bounds(squares, tmp_path):
    """Nothing lies below the lower one; where the loss is no square there are none."""
    main(["train", str(squares), "--steps", "300", "--out", str(tmp_path / "run"), *TINY])
    page = Page(tmp_path / "run")
    assert "Wiener denoiser (upper bound), dashed" in page.text
    assert "ideal denoiser of 96 images (lower bound), dashed" in page.text
    main(["train", str(squares), "--steps", "2", "--out", str(tmp_path / "l1"), *TINY, "--set=criterion=l1"])
    assert "Wiener denoiser" not in Page(tmp_path / "l1").text

    denoiser, images = read(tmp_path / "run").denoiser, load_images(str(squares))
    above, below = (curve.points for curve in loss_bounds(denoiser, images))
    learned = model_error(denoiser, to_unit(images.pixels), images.labels)
    loss = loss_of_error(denoiser, LEVELS, learned)
    for (level, high), (same, low), value in zip(above, below, loss.tolist(), strict=True):
        assert level == same
        assert low < value + 1e-9
        assert low < high


def test_names_are_text_and_nothing_else(run):
    model = read(run)
    evil = '<script>alert("1")</script>&amp;'
    info = replace(model.info, name=evil, class_names=(evil, "b", "c"))
    before = Page(run)
    write_report(run, ModelSpec(replace(model.config, data=evil), info), f"simple-diffusion train '{evil}'")
    page = Page(run)
    assert "script" not in page.tags
    assert page.text.count(evil) >= 3
    assert len(page.tags) <= len(before.tags)


def test_report_adds_film_and_levels_and_evaluate_the_scores(run, capsys):
    before = Page(run)
    assert "Out of noise" not in before.text
    main(["report", str(run), "--json"])
    assert json.loads(capsys.readouterr().out)["report"] == str(run / "report.html")
    page = Page(run)
    assert "Out of noise" in page.text
    assert "linear denoiser (upper bound), dashed; model, training images (orange)" in page.text
    assert page.tags.count("svg") == 4
    main(["evaluate", str(run), "--n", "60"])
    main(["report", str(run)])
    page = Page(run)
    for words in ("95 %", "real images", "KID", "nearest to a training image in pixels"):
        assert words in page.text


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "{",
        "[]",
        "3",
        '{"extractors": 3}',
        '{"levels": [1], "errors": {"a": [1.0]}}',
        '{"curves": [{"points": [1]}]}',
        '{"curves": [{"name": "a", "points": [1]}]}',
        "null",
    ],
)
def test_a_damaged_file_is_left_out_with_a_sentence(run, wrong):
    model = read(run)
    (run / "evaluation").mkdir()
    (run / "evaluation" / "scores.json").write_text(wrong)
    (run / "levels.json").write_text(wrong)
    (run / "log.csv").write_bytes(b"step,images\n\xff\n1,2,3,4\n" + (run / "log.csv").read_bytes())
    write_report(run, model.spec, "x")
    page = Page(run)
    assert "evaluate" in page.text
    assert "simple-diffusion report" in page.text


def test_without_the_data_it_says_less(run, tmp_path, capsys):
    (tmp_path / "squares.npz").unlink()
    main(["report", str(run)])
    assert "Without the data the page says less" in capsys.readouterr().out
    assert "Out of noise" in Page(run).text


def test_other_data_than_it_was_trained_on_is_not_measured(run, tmp_path, capsys):
    images = load_images(str(tmp_path / "squares.npz"))
    pixels = images.pixels.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "squares.npz", images=pixels, labels=(images.labels + 3 * (images.labels > 1)).numpy())
    main(["report", str(run)])
    assert "is not what the model was trained on any more" in capsys.readouterr().out
    assert not (run / "levels.json").exists()


def test_a_run_that_goes_on_stays_live_and_one_that_stopped_says_how_far_it_is(run):
    model = read(run)
    save(model_file(run), replace(model, step=6))
    with hold(run):
        main(["report", str(run)])
        assert 'http-equiv="refresh"' in Page(run).html
    main(["report", str(run)])
    assert 'http-equiv="refresh"' not in Page(run).html
    assert 'value="0.5000"' in Page(run).html


def test_it_shows_the_precision_of_the_training(squares, tmp_path):
    folder = tmp_path / "run"
    main(["train", str(squares), "--steps", "2", "--precision", "fp32", "--out", str(folder), *TINY])
    main(["report", str(folder), "--precision", "bf16"])
    assert "precision=bf16" not in Page(folder).text


@pytest.mark.parametrize("argv", [["report", "nowhere"], ["report", "."]])
def test_no_run_is_one_sentence(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        main(argv)
    assert error.value.code == 5
    assert capsys.readouterr().err.count("\n") == 1


def test_points_lie_where_their_numbers_say():
    """On a linear axis the middle is the mean, on a logarithmic one the geometric mean."""
    for log, middle in ((False, 50.5), (True, 10.0)):
        svg = curves({"a": [(0, 1), (1, middle), (2, 100)]}, "title", "x", log_y=log)
        points = re.search(r'points="([^"]*)"', svg).group(1).split()
        (_, bottom), (_, half), (_, top) = ([float(v) for v in point.split(",")] for point in points)
        assert half == pytest.approx((bottom + top) / 2, abs=0.11)
        assert top < bottom
    assert curves({"a": [(0, float("nan"))]}, "title", "x") == ""


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.01, 0.07), (3, 3000), (1e-6, 2), (5, 5), (-3, 4)])
def test_ticks_are_few_and_round(low, high):
    for log in (False, True)[: 1 + (low > 0)]:
        found = ticks(low, high, log)
        assert len(found) <= 8
        assert all(low * (1 - 1e-9) - 1e-9 <= tick <= high * (1 + 1e-9) for tick in found)
        assert all(len(f"{tick:.3g}".replace("-", "").strip("0.")) <= 5 for tick in found)


def test_a_log_that_was_cut_is_read_as_far_as_it_goes(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss,held_out_loss\n1,0.5,\n2,0.25,0.3\n3,0.")
    assert rows_of_log(tmp_path) == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 0.25, "held_out_loss": 0.3},
    ]
    assert rows_of_log(tmp_path / "nowhere") == []
