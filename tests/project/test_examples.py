"""The examples are short, and run from an empty folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem == "own_data_set" else pytest.mark.slow)
        for path in EXAMPLES
    ],
)
def test_an_example_runs_and_saves_a_picture(example, tmp_path):
    assert len(example.read_text().splitlines()) <= 40
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(example), "4"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pictures = [Image.open(path) for path in tmp_path.glob(f"{example.stem}*.png")]
    assert pictures
    assert all(
        min(picture.size) > 30 and picture.getextrema()[0][0] < picture.getextrema()[0][1] for picture in pictures
    )
