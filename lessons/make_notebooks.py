"""Make the notebooks: convert each lesson, execute it, and keep its pictures and printed output.

    python lessons/make_notebooks.py            # the lessons that have changed
    python lessons/make_notebooks.py 03 07      # these lessons, changed or not

The lessons, in percent format, are the source. Edit a lesson, never its notebook; `tests/project/test_lessons.py` fails
for a stale notebook. If only the prose of a lesson has changed, its notebook keeps the outputs.
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

COLAB = """In Colab or a Jupyter without the package, copy this repository and run `%pip install ./simple-diffusion` \
first. *This notebook is made from `lessons/{name}` and was executed on two CPU cores.*"""


def lessons() -> list[Path]:
    return sorted(LESSONS.glob("[0-9][0-9]_*.py"))


def notebook_of(lesson: Path) -> Path:
    return NOTEBOOKS / f"{lesson.stem}.ipynb"


def converted(lesson: Path) -> NotebookNode:
    """The lesson as a notebook without outputs."""
    notebook = jupytext.read(lesson, fmt="py:percent")
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell(COLAB.format(name=lesson.name)))
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}  # equal in each conversion
    notebook.metadata = NotebookNode(kernelspec=KERNEL, language_info={"name": "python"})
    return notebook


def sources(notebook: NotebookNode) -> list[tuple[str, str]]:
    """Type and text of each cell."""
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def stale(lesson: Path) -> bool:
    """Whether the notebook is missing or its text differs from the lesson."""
    path = notebook_of(lesson)
    return not path.is_file() or sources(nbformat.read(path, as_version=4)) != sources(converted(lesson))


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def reprinted(lesson: Path) -> NotebookNode | None:
    """The lesson with the outputs of its notebook, or None if its code has changed."""
    if not notebook_of(lesson).is_file():
        return None
    new, old = converted(lesson), nbformat.read(notebook_of(lesson), as_version=4)
    if [cell.source for cell in code(new)] != [cell.source for cell in code(old)]:
        return None
    for cell, before in zip(code(new), code(old), strict=True):
        cell.outputs, cell.execution_count = before.outputs, before.execution_count
    return new


def run(notebook: NotebookNode, seconds: int = 1200) -> NotebookNode:
    """Execute all cells in a new kernel. Raises nbclient's CellExecutionError at the first cell that fails."""
    return NotebookClient(notebook, timeout=seconds, resources={"metadata": {"path": str(LESSONS)}}).execute()


def smaller(picture: str) -> str:
    """Reduce a PNG in base64 to 64 colors, or to 32 or 16 if it is still large. Plots and gray images need no more."""
    image, content = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"), b""
    for colors in (64, 32, 16):
        buffer = io.BytesIO()
        image.quantize(colors).save(buffer, "PNG", optimize=True)
        content = buffer.getvalue()
        if len(content) < 100_000:
            break
    return base64.b64encode(content).decode()


def tidy(notebook: NotebookNode) -> None:
    """Keep pictures and printed output; remove times, warnings and the repr of the pictures."""
    for cell in code(notebook):
        cell.metadata = {}
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                output.data = NotebookNode({"image/png": smaller(output.data["image/png"])})
                output.metadata = {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", metavar="NN", help="number of a lesson, such as 03")
    wanted = parser.parse_args().numbers
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads use no CPU time, as in the command line
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
