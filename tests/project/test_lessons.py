"""The lessons: each runs from top to bottom, keeps its form, and its notebook shows what it says now."""

import re
import sys
from pathlib import Path

import nbformat
import pytest

sys.path.append(str(Path(__file__).parents[2] / "lessons"))
from make_notebooks import LESSONS, converted, lessons, notebook_of, run, sources

import simple_diffusion as sd

NAMES = [lesson.stem for lesson in lessons()]


def lesson_of(name: str) -> Path:
    return LESSONS / f"{name}.py"


def test_the_lessons_are_numbered_without_a_gap():
    assert [int(name[:2]) for name in NAMES] == list(range(1, len(NAMES) + 1))
    assert len(NAMES) >= 12


@pytest.mark.parametrize("name", NAMES)
def test_a_lesson_runs_as_a_notebook(name, monkeypatch):
    """In seconds: FAST shortens its trainings. What it prints at the end is the number that moved."""
    monkeypatch.setenv("FAST", "1")
    notebook = run(converted(lesson_of(name)))
    printed = "".join(
        o.get("text", "") for c in notebook.cells for o in c.get("outputs", []) if o.get("name") == "stdout"
    )
    assert re.search(r"\d\.\d", printed)
    assert any("image/png" in o.get("data", {}) for c in notebook.cells for o in c.get("outputs", []))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_its_lesson_executed(name):
    path = notebook_of(lesson_of(name))
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert sources(notebook) == sources(converted(lesson_of(name))), f"stale: run lessons/make_notebooks.py {name[:2]}"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count, f"{path.name} was not executed"
            assert not any(output.output_type == "error" for output in cell.outputs)
    assert path.stat().st_size < 500_000


@pytest.mark.parametrize("name", NAMES)
def test_a_lesson_keeps_its_form(name):
    text = lesson_of(name).read_text()
    number = int(name[:2])
    assert 80 <= len(text.splitlines()) <= 150
    assert text.startswith(f"# %% [markdown]\n# # {number} · ")
    assert "The number that moved" in text
    assert f"simple-diffusion check {number} my_solution.py" in text
    if number > 1:
        block = re.search(rf"What is new since lesson {number - 1}\*\*.*?# ```python\n(.*?)# ```", text, re.DOTALL)
        assert block
        assert 2 <= len(block[1].splitlines()) <= 5


@pytest.mark.parametrize("name", NAMES)
def test_a_lesson_calls_what_there_is_and_links_to_files(name):
    text = lesson_of(name).read_text()
    for attribute in set(re.findall(r"\bsd\.(\w+)", text)):
        assert attribute in sd.__all__, attribute
    prose = "\n".join(line for line in text.splitlines() if line.startswith("# "))
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", prose)
    assert links
    for link in links:
        assert (LESSONS / link).exists(), link
