"""Build the site in build/site: the pages of docs/, the lessons, and the files that they link to.

    pip install -c constraints.txt -e '.[docs]'
    python docs/build.py                          # then open build/site/index.html

The pages are readable in the repository, too. In build/docs, links to files of the repository become links to copies,
notebooks become pages, and formulas become MathML, which browsers show without a script. A broken link, picture or
formula ends the program with exit code 1.
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
"""Front matter of a page that shows a file of code: without side bars, there is space for long lines."""


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """Apply `change` to the parts of a text that are not code."""
    return "".join(part if i % 2 else change(part) for i, part in enumerate(CODE.split(text)))


def mathml(match: re.Match) -> str:
    """The MathML of a formula, $...$ or $$...$$. Raises ValueError for an invalid formula."""
    block, inline = match.groups()
    try:
        converter = math_core.LatexToMathML(fancy_error=False)
        made = converter.convert_with_local_state(block or inline, displaystyle=bool(block))
    except math_core.LatexError as error:
        raise ValueError(f"{match[0]}: {error}") from error
    made = made.replace("|", "&#124;")  # "|" would end the cell of a table
    return made if block else f"<span>{made}</span>"  # Markdown takes a line that begins with <math> as a block


def place_of(path: PurePosixPath) -> PurePosixPath:
    """The path in build/docs of a file of the repository."""
    if path.parts[0] == "docs":
        return path.relative_to("docs")
    if path == PurePosixPath("README.md"):
        return PurePosixPath("index.md")
    if path.suffix == ".ipynb":
        return PurePosixPath("lessons", f"{path.stem}.md")
    return PurePosixPath("files", f"{path}.md" if path.suffix == ".py" else path)


class Pages:
    """The files of build/docs. Paths are relative to the root of the repository."""

    def __init__(self) -> None:
        self.linked: set[PurePosixPath] = set()

    def write(self, place: PurePosixPath, content: bytes) -> None:
        (PAGES / place).parent.mkdir(parents=True, exist_ok=True)
        (PAGES / place).write_bytes(content)

    def copy(self, path: PurePosixPath, place: PurePosixPath) -> None:
        self.write(place, (ROOT / path).read_bytes())

    def link(self, match: re.Match, page: PurePosixPath) -> str:
        """The URL of a link in build/docs. Raises ValueError if its target is not a file."""
        url = urlsplit(match[0])
        if url.scheme or not url.path:
            return match[0]
        path = PurePosixPath(os.path.relpath(ROOT / page.parent / unquote(url.path), ROOT))
        if not (ROOT / path).is_file():
            raise ValueError(f"{page} links to {match[0]}, which is not a file: correct the link")
        self.linked.add(path)
        place = os.path.relpath(place_of(path), place_of(page).parent)
        return f"{place}#{url.fragment}" if url.fragment else place

    def convert(self, text: str, page: PurePosixPath) -> str:
        """The Markdown of a page for the site."""
        text = outside_code(text, lambda part: LINK.sub(partial(self.link, page=page), part))
        return outside_code(text, lambda part: FORMULA.sub(mathml, part))

    def add(self, page: PurePosixPath) -> None:
        self.write(place_of(page), self.convert((ROOT / page).read_text(), page).encode())

    def add_lesson(self, notebook: PurePosixPath) -> None:
        """Add a notebook as a page: text, code, printed output and figures."""
        place, name = place_of(notebook), notebook.stem
        originals = {"notebook": notebook, "script": PurePosixPath("lessons", f"{name}.py")}
        for path in originals.values():
            self.copy(path, PurePosixPath("files", path))
        links = ", ".join(f"[{kind}](../files/{path})" for kind, path in originals.items())
        title, _, *cells = json.loads((ROOT / notebook).read_text())[
            "cells"
        ]  # the second cell tells how to run a notebook
        heading, _, opening = "".join(title["source"]).partition("\n")
        parts, figures = [heading, f"*To run it: {links}.*", self.convert(opening, notebook)], 0
        for cell in cells:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                parts.append(self.convert(source, notebook))
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
        """Add the files that pages link to and that are not in the site: code as pages, other files as copies."""
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


class PageLinks(HTMLParser):
    """The link targets and the anchors of a page of the site."""

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


def broken_links(site: Path) -> list[str]:
    """The links and pictures of a built site whose file or anchor does not exist."""
    names: dict[Path, PageLinks] = {}
    for page in sorted(site.rglob("*.html")):
        if page == site / "404.html":  # its paths are absolute, for a web server
            continue
        names[page] = PageLinks()
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
    code = subprocess.run(zensical, cwd=ROOT).returncode  # noqa: S603  the command is constant
    if code:
        raise SystemExit(code)
    if bad := broken_links(SITE):
        raise SystemExit("broken links:\n" + "\n".join(bad))
    print(f"{SITE.relative_to(ROOT) / 'index.html'}: no broken links")


if __name__ == "__main__":
    main()
