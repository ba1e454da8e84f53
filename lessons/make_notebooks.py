"""The notebooks: each lesson converted and executed, its small pictures and printed numbers kept.

    python lessons/make_notebooks.py            # those whose lesson has changed since
    python lessons/make_notebooks.py 03 07      # these, changed or not

A lesson, in percent format, is the source. Change it and not its notebook; `tests/project/test_lessons.py` finds a
stale one. Where only the prose has changed the outputs are kept.
"""

import argparse
import base64
import io
import os
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

LESSONS = Path(__file__).parent
NOTEBOOKS = LESSONS.parent / "notebooks"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}

COLAB = """In Colab or any Jupyter without the package, first run `%pip install ./simple-diffusion` on a copy of this \
repository. *This notebook is made from `lessons/{name}` and was run on two CPU cores.*"""


def lessons() -> list[Path]:
    return sorted(LESSONS.glob("[0-9][0-9]_*.py"))


def notebook_of(lesson: Path) -> Path:
    return NOTEBOOKS / f"{lesson.stem}.ipynb"


def converted(lesson: Path) -> NotebookNode:
    """The lesson as a notebook that was not run yet."""
    notebook = jupytext.read(lesson, fmt="py:percent")
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell(COLAB.format(name=lesson.name)))
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}  # the same at each conversion
    notebook.metadata = NotebookNode(kernelspec=KERNEL, language_info={"name": "python"})
    return notebook


def sources(notebook: NotebookNode) -> list[tuple[str, str]]:
    """What a reader sees of it before it runs: kind and text of each cell."""
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def stale(lesson: Path) -> bool:
    """Does its notebook show another text than the lesson has, or is there none?"""
    path = notebook_of(lesson)
    return not path.is_file() or sources(nbformat.read(path, as_version=4)) != sources(converted(lesson))


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def reprinted(lesson: Path) -> NotebookNode | None:
    """The lesson as it is now with the outputs that its notebook has; None if its code is another one."""
    if not notebook_of(lesson).is_file():
        return None
    new, old = converted(lesson), nbformat.read(notebook_of(lesson), as_version=4)
    if [cell.source for cell in code(new)] != [cell.source for cell in code(old)]:
        return None
    for cell, before in zip(code(new), code(old), strict=True):
        cell.outputs, cell.execution_count = before.outputs, before.execution_count
    return new


def run(notebook: NotebookNode, seconds: int = 1200) -> NotebookNode:
    """Execute every cell in a kernel of its own. Raises nbclient's CellExecutionError at the first that fails."""
    return NotebookClient(notebook, timeout=seconds, resources={"metadata": {"path": str(LESSONS)}}).execute()


def smaller(picture: str) -> str:
    """A PNG in base64 with few colours, which a plot or grey images do not miss: 64, or 32 where that is large."""
    image, content = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"), b""
    for colours in (64, 32):
        buffer = io.BytesIO()
        image.quantize(colours).save(buffer, "PNG", optimize=True)
        content = buffer.getvalue()
        if len(content) < 100_000:
            break
    return base64.b64encode(content).decode()


def tidy(notebook: NotebookNode) -> None:
    """Keep what a reader sees: pictures and what was printed, without times, warnings and the picture's repr."""
    for cell in code(notebook):
        cell.metadata = {}
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                output.data = NotebookNode({"image/png": smaller(output.data["image/png"])})
                output.metadata = {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", metavar="NN", help="of the lessons, like 03")
    wanted = parser.parse_args().numbers
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does, beside other programs
    NOTEBOOKS.mkdir(exist_ok=True)
    for lesson in lessons():
        if lesson.stem[:2] in wanted or (not wanted and stale(lesson)):
            print(lesson.stem, flush=True)
            notebook = None if wanted else reprinted(lesson)
            if notebook is None:
                notebook = run(converted(lesson))
                tidy(notebook)
            nbformat.write(notebook, notebook_of(lesson))


if __name__ == "__main__":
    main()
