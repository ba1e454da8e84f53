"""JSON where a number is missing, NaN or infinite: it stays JSON, which has none of them."""

import json
import math
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from conftest import TINY
from faults import ends

import simple_diffusion
from simple_diffusion.denoising_error import ErrorCurve
from simple_diffusion.run.checkpoint import Numbers, latest, read_checkpoint
from simple_diffusion.run.report import LEVELS_FILE, error_plot
from simple_diffusion.system.files import read_tensors, to_json, write_tensors

NAN, INF = math.nan, math.inf


def strict(text: str) -> dict:
    """The value of a text that any reader of JSON accepts."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_numbers_that_json_lacks_become_null():
    value = {"a": NAN, "b": [INF, 1.5, (-INF, "NaN", None)], "c": {"d": True, "e": 10**400}, "猫": 1}
    text = to_json(value)
    assert strict(text) == {"a": None, "b": [None, 1.5, [None, "NaN", None]], "c": {"d": True, "e": 10**400}, "猫": 1}
    assert text.isascii()


def test_only_one_function_writes_json():
    source = Path(simple_diffusion.__file__).parent
    found = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        if re.search(r"json\.dumps?\(", path.read_text(encoding="utf-8"))
    }
    assert found == {"system/files.py", "run/command.py"}  # the latter writes TOML


def test_a_finished_run_whose_log_is_gone_gives_json(run_folder, squares, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    (folder / "log.csv").unlink()
    capsys.readouterr()
    assert ends(["train", str(squares), "--resume", "--out", str(folder), "--json"]) == 0
    assert strict(capsys.readouterr().out)["loss"] is None


def test_a_run_whose_held_out_loss_is_not_finite_can_be_resumed(squares, tmp_path):
    argv = ["train", str(squares), "--steps", "2", "--set=held_out=0.1", "--out", str(tmp_path / "run"), *TINY]
    assert ends(argv) == 0
    path = latest(tmp_path / "run").path
    tensors, record = read_tensors(path)
    record["numbers"] = asdict(Numbers(n=2, progress=1.0, done=True, held_out_loss=NAN, best=INF))
    del record["format"]
    write_tensors(path, {name: x for name, x in tensors.items() if not name.startswith("best.")}, record)
    numbers = read_checkpoint(path).numbers
    assert (numbers.held_out_loss, numbers.best) == (None, None)
    assert ends([*argv, "--resume"]) == 0


@pytest.mark.parametrize("gap", ["null", "NaN"])
def test_a_gap_in_a_curve_leaves_the_rest_of_its_plot(tmp_path, gap):
    curve = ErrorCurve("model", [(0.1, 1.0), (1.0, NAN), (10.0, 2.0), (20.0, 3.0)])
    text = json.dumps({"curves": [asdict(curve)]}).replace("NaN", gap)
    (tmp_path / LEVELS_FILE).write_text(text)
    plot = error_plot(tmp_path)
    assert plot is not None
    whole = replace(curve, points=[curve.points[0], *curve.points[2:]])
    (tmp_path / LEVELS_FILE).write_text(to_json({"curves": [asdict(whole)]}))
    assert plot == error_plot(tmp_path)
