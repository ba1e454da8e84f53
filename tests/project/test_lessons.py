"""The lessons: each runs from top to bottom, has the common form, and its notebook shows its present text."""

import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "lessons"))
from make_notebooks import LESSONS, converted, lessons, notebook_of, run, sources

import simple_diffusion as sd
from simple_diffusion.data.digits import SIZES

NAMES = [lesson.stem for lesson in lessons()]


def lesson_of(name: str) -> Path:
    return LESSONS / f"{name}.py"


def test_the_lessons_are_numbered_without_a_gap():
    assert [int(name[:2]) for name in NAMES] == list(range(1, len(NAMES) + 1))
    assert len(NAMES) >= 12


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # matplotlib with tensors
@pytest.mark.parametrize(
    "name", [name if name[:2] in ("01", "03") else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_a_lesson_runs_as_a_script(name, monkeypatch, capsys):
    """With FAST and a few hundred digits this takes seconds. The last output is the measured result."""
    figures = []
    monkeypatch.setattr(plt, "show", lambda: (figures.append(plt.gcf()), plt.close("all")))
    monkeypatch.setenv("FAST", "1")
    monkeypatch.setitem(SIZES, "train", 500)
    monkeypatch.setitem(SIZES, "test", 200)
    text = lesson_of(name).read_text()
    with torch.random.fork_rng():
        exec(compile(text, name, "exec"), {"__name__": "__main__"})
    assert figures
    assert re.search(r"\d\.\d", capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_lesson_runs_as_a_notebook(name, monkeypatch):
    monkeypatch.setenv("FAST", "1")
    notebook = run(converted(lesson_of(name)))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    shown = [output for output in outputs if output.output_type != "stream"]
    assert all("image/png" in output.data for output in shown), "a cell ends with a value that nobody prints"


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_its_lesson_executed(name):
    path = notebook_of(lesson_of(name))
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert sources(notebook) == sources(converted(lesson_of(name))), f"stale: run lessons/make_notebooks.py {name[:2]}"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count, f"{path.name} was not executed"
            for output in cell.outputs:
                assert output.output_type == "stream" or "image/png" in output.data, f"{path.name} shows a value"
    assert path.stat().st_size < 500_000


@pytest.mark.parametrize("name", NAMES)
def test_a_lesson_has_the_common_form(name):
    text = lesson_of(name).read_text()
    number = int(name[:2])
    assert 80 <= len(text.splitlines()) <= 150
    assert text.startswith(f"# %% [markdown]\n# # {number} · ")
    assert "# ## Result\n" in text
    assert f"simple-diffusion check {number} my_solution.py" in text
    if number > 1:
        block = re.search(rf"New code since lesson {number - 1}:\*\*.*?# ```python\n(.*?)# ```", text, re.DOTALL)
        assert block
        assert 2 <= len(block[1].splitlines()) <= 5


@pytest.mark.parametrize("name", NAMES)
def test_a_lesson_uses_public_names_and_links_to_files(name):
    text = lesson_of(name).read_text()
    for attribute in set(re.findall(r"\bsd\.(\w+)", text)):
        assert attribute in sd.__all__, attribute
    prose = "\n".join(line for line in text.splitlines() if line.startswith("# "))
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", prose)
    assert links
    for link in links:
        assert (LESSONS / link).exists(), link
