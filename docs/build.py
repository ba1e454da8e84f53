"""The site: the pages of docs/ and the lessons, with all that they link to, in build/site.

    pip install -c constraints.txt -e '.[docs]'
    python docs/build.py                          # then open build/site/index.html

The pages are written to be read where they lie, too. On the way into build/docs their links to files of the repository
become links to copies, notebooks become pages, and formulas become MathML, which browsers draw without a script. What
is broken ends it with exit code 1: a link, a picture, a formula.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import math_core

ROOT = Path(__file__).resolve().parents[1]
PAGES, SITE = ROOT / "build" / "docs", ROOT / "build" / "site"

CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<!\w)\$(?=\S)((?:[^$\n]|\n(?!\n))+)(?<=\S)\$(?!\w)", re.DOTALL)
LINK = re.compile(r"(?<=\]\()[^)\s]+(?=\))")

WIDE = "---\nhide: [navigation, toc]\n---\n\n"
"""Head of a page that is a file of code: it leaves room for its lines."""


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """The text with `change` made wherever it is not code."""
    return "".join(part if i % 2 else change(part) for i, part in enumerate(CODE.split(text)))


def mathml(match: re.Match) -> str:
    """A formula, $...$ or $$...$$. Raises ValueError for what is none."""
    block, inline = match.groups()
    try:
        converter = math_core.LatexToMathML(fancy_error=False)
        made = converter.convert_with_local_state(block or inline, displaystyle=bool(block))
    except math_core.LatexError as error:
        raise ValueError(f"{match[0]}: {error}") from error
    made = made.replace("|", "&#124;")  # which would end the cell of a table
    return made if block else f"<span>{made}</span>"  # a line that begins with <math> would be a block


def place_of(path: PurePosixPath) -> PurePosixPath:
    """Where in build/docs a file of the repository is shown."""
    if path.parts[0] == "docs":
        return path.relative_to("docs")
    if path == PurePosixPath("README.md"):
        return PurePosixPath("index.md")
    if path.suffix == ".ipynb":
        return PurePosixPath("lessons", f"{path.stem}.md")
    return PurePosixPath("files", f"{path}.md" if path.suffix == ".py" else path)


class Pages:
    """What is laid out in build/docs. Paths are relative to the top of the repository."""

    def __init__(self) -> None:
        self.linked: set[PurePosixPath] = set()

    def write(self, place: PurePosixPath, content: bytes) -> None:
        (PAGES / place).parent.mkdir(parents=True, exist_ok=True)
        (PAGES / place).write_bytes(content)

    def copy(self, path: PurePosixPath, place: PurePosixPath) -> None:
        self.write(place, (ROOT / path).read_bytes())

    def link(self, match: re.Match, page: PurePosixPath) -> str:
        """A link of a page, from where the page is shown to where its target is. Raises ValueError without a target."""
        url = urlsplit(match[0])
        if url.scheme or not url.path:
            return match[0]
        path = PurePosixPath(os.path.relpath(ROOT / page.parent / unquote(url.path), ROOT))
        if not (ROOT / path).is_file():
            raise ValueError(f"{page} links to {match[0]}, which is no file")
        self.linked.add(path)
        place = os.path.relpath(place_of(path), place_of(page).parent)
        return f"{place}#{url.fragment}" if url.fragment else place

    def shown(self, text: str, page: PurePosixPath) -> str:
        """The Markdown of a page, as the site takes it."""
        text = outside_code(text, lambda part: LINK.sub(partial(self.link, page=page), part))
        return outside_code(text, lambda part: FORMULA.sub(mathml, part))

    def add(self, page: PurePosixPath) -> None:
        self.write(place_of(page), self.shown((ROOT / page).read_text(), page).encode())

    def add_lesson(self, notebook: PurePosixPath) -> None:
        """A notebook as a page: its prose, its code, and what that printed and drew."""
        place, name = place_of(notebook), notebook.stem
        originals = {"notebook": notebook, "script": PurePosixPath("lessons", f"{name}.py")}
        for path in originals.values():
            self.copy(path, PurePosixPath("files", path))
        links = ", ".join(f"[{kind}](../files/{path})" for kind, path in originals.items())
        title, _, *cells = json.loads((ROOT / notebook).read_text())["cells"]  # the second says how to run a notebook
        heading, _, opening = "".join(title["source"]).partition("\n")
        parts, figures = [heading, f"*To run it: {links}.*", self.shown(opening, notebook)], 0
        for cell in cells:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                parts.append(self.shown(source, notebook))
                continue
            parts.append(f"```python\n{source}\n```")
            for output in cell["outputs"]:
                if "image/png" in output.get("data", {}):
                    figures += 1
                    picture = f"{name}-{figures}.png"
                    self.write(place.with_name(picture), base64.b64decode("".join(output["data"]["image/png"])))
                    parts.append(f"![Figure {figures}]({picture})")
                elif output.get("name") == "stdout":
                    parts.append("```text\n{}\n```".format("".join(output["text"]).rstrip()))
        self.write(place, "\n\n".join(parts).encode())

    def add_linked(self) -> None:
        """What the pages link to and the site has not: code as pages, all else as it is."""
        for path in sorted(self.linked):
            place = place_of(path)
            if path.suffix == ".py":
                code = (ROOT / path).read_text()
                self.write(place, f"{WIDE}# {path}\n\n````python\n{code}````\n".encode())
            elif not (PAGES / place).exists():
                self.copy(path, place)


def lay_out() -> None:
    """Fill build/docs."""
    shutil.rmtree(PAGES, ignore_errors=True)
    pages = Pages()
    for path in sorted((ROOT / "docs").rglob("*")):
        page = PurePosixPath(path.relative_to(ROOT))
        if page.suffix == ".md":
            pages.add(page)
        elif path.is_file() and page.suffix != ".py" and "__pycache__" not in page.parts:
            pages.copy(page, place_of(page))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        pages.add_lesson(PurePosixPath(path.relative_to(ROOT)))
    pages.add_linked()


class Names(HTMLParser):
    """What a page of the site points at, and what in it can be pointed at."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.anchors: set[str] = {""}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name in ("href", "src"):
                self.targets.add(value)
            elif value and name == "id":
                self.anchors.add(value)


def broken(site: Path) -> list[str]:
    """Links and pictures of a built site that lead nowhere, and whatever it would fetch from elsewhere."""
    names: dict[Path, Names] = {}
    for page in sorted(site.rglob("*.html")):
        if page == site / "404.html":  # for a server: its paths begin at the top
            continue
        names[page] = Names()
        names[page].feed(page.read_text())
    found = []
    for page, of_page in names.items():
        for target in sorted(of_page.targets):
            url = urlsplit(target)
            if url.scheme or url.netloc:
                continue
            file = (page.parent / unquote(url.path)).resolve() if url.path else page
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file() or (file in names and unquote(url.fragment) not in names[file].anchors):
                found.append(f"{page.relative_to(site)}: {target}")
    return found


def main() -> None:
    try:
        lay_out()
    except ValueError as error:
        raise SystemExit(str(error)) from error
    zensical = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    code = subprocess.run(zensical, cwd=ROOT).returncode  # noqa: S603  nothing from outside
    if code:
        raise SystemExit(code)
    if bad := broken(SITE):
        raise SystemExit("broken links:\n" + "\n".join(bad))
    print(f"{SITE.relative_to(ROOT) / 'index.html'}: no broken link")


if __name__ == "__main__":
    main()
