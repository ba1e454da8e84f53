"""The documentation: links, commands and code examples work, and public docstrings are complete."""

import ast
import builtins
import importlib.util
import inspect
import json
import re
import shlex
import sys
import textwrap
import unicodedata
from functools import cache, cached_property, partial
from importlib import import_module
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import simple_diffusion as sd
from simple_diffusion import augmentation, guidance, losses, samplers, schedules, targets
from simple_diffusion.cli.main import parser
from simple_diffusion.evaluation import metrics
from simple_diffusion.learn import explain
from simple_diffusion.model.config import parse_settings
from simple_diffusion.model.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
NAV = re.findall(r"^ +- .+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")


# --- links -----------------------------------------------------------------------------------------------------------


def prose(text: str) -> str:
    """A page without its blocks of code. Inline code remains, because it may be the text of a link."""
    return FENCE.sub("", text)


def headings(text: str) -> list[str]:
    return [re.sub(r"\[(.*?)\]\(.*?\)|[`*]", r"\1", h) for h in re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)]


def anchors(text: str) -> set[str]:
    """The anchors of a page that are equal on the site and in a view of the repository."""
    of_repository, of_site = set(), set()
    for heading in headings(text):
        of_repository.add(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-"))
        letters = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
        of_site.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", letters).strip().lower()))
    return of_repository & of_site


@pytest.mark.parametrize("name", NAMES)
def test_every_link_anchor_and_image_exists(name):
    page = ROOT / name
    for mark, label, target in re.findall(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", prose(page.read_text())):
        assert label.strip(), f"the link to {target} has no text"
        if re.match(r"\w+:", target):
            assert target.startswith("https://"), target
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file() or (file.is_dir() and page.parent == ROOT), target  # the site has no pages for folders
        assert not mark or file.suffix in (".png", ".webp", ".gif", ".svg"), target
        assert not anchor or anchor in anchors(file.read_text()), target


def test_the_page_on_architecture_lists_every_module_once():
    tree = ARCHITECTURE.partition("## Modules")[2].partition("\n## ")[0]
    listed, folder = [], ""
    for line in tree.splitlines():
        if match := re.fullmatch(r"  (\w+/)", line):
            folder = match[1]
        elif names := re.match(r" +(\w+\.py(  \w+\.py)*)", line):
            listed += [folder + name for name in names[1].split()]
    source = Path(sd.__file__).parent
    modules = [path.relative_to(source).as_posix() for path in source.rglob("*.py") if not path.name.startswith("__")]
    assert sorted(listed) == sorted(modules)


def test_anchors_are_found():
    assert anchors("# A `b`, and [c](d.md)\n\n```\n# no\n```\n## E & f") == {
        "a-b-and-c"
    }  # the site and the repository have different anchors for E & f


def test_the_navigation_has_every_page_once():
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    lessons = {f"lessons/{lesson.stem}.md" for lesson in (ROOT / "lessons").glob("[0-9][0-9]_*.py")}
    assert len(NAV) == len(set(NAV))
    assert set(NAV) == pages | lessons


def test_the_overview_has_every_lesson_in_order():
    linked = re.findall(r"notebooks/(\w+)\.ipynb", (DOCS / "lessons.md").read_text())
    assert linked == sorted(lesson.stem for lesson in (ROOT / "lessons").glob("[0-9][0-9]_*.py"))
    assert [f"lessons/{name}.md" for name in linked] == [page for page in NAV if page.startswith("lessons/")]


# --- commands --------------------------------------------------------------------------------------------------------

PLACEHOLDERS = {"N": "3", "NN": "03", "K": "2", "SCALE": "1.5", "TIME": "10min", "FIRST": "host"}


def code_of(text: str) -> list[str]:
    """All code of a page: lines of fenced and indented blocks, and inline code."""
    blocks = [block.replace("\\\n", " ") for _, block in FENCE.findall(text)]
    lines = [line for block in blocks for line in block.splitlines()]
    return lines + re.findall(r"^    .+$", prose(text), re.MULTILINE) + INLINE.findall(prose(text))


SAID = re.compile(r"(?:^|[\s/])(?<!import )simple[-_]diffusion +([a-z\-].*?)(?=$| {2,}| && | \| | # )")


def commands(text: str) -> list[str]:
    """The arguments of `simple-diffusion`, also after torchrun, up to a comment, another command or a second column."""
    return [said.strip() for line in code_of(text) for said in SAID.findall(line)]


COMMANDS = sorted({(name, said) for name in NAMES for said in commands((ROOT / name).read_text())})


@pytest.mark.parametrize(("name", "said"), COMMANDS)
def test_every_command_is_valid(name, said):
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(said)]
    words += ["--help"] if len(words) == 1 else []  # the name of a command in a sentence
    if "--help" in words:
        with pytest.raises(SystemExit) as stopped:
            parser().parse_args(words)
        assert stopped.value.code == 0
        return
    args = parser().parse_args(words)  # raises UsageError
    assert getattr(args, "preset", None) in (None, "list", *PRESETS)
    parse_settings([pair for pair in getattr(args, "set", []) if pair != "help"])
    assert args.command != "explain" or args.name in (None, "NAME", *explain.ENTRIES)
    assert getattr(args, "schedule", None) in (None, *schedules.SCHEDULES)


def test_commands_are_found():
    text = (
        "```\nphotos/  simple-diffusion data a --out b.png     what is in it\n.venv/bin/simple-diffusion train && x\n"
    )
    text += "```\nSay `simple-diffusion sample RUN`.\n\n    torchrun -m -- simple_diffusion train a\n"
    assert commands(text) == ["data a --out b.png", "train", "train a", "sample RUN"]
    assert len(COMMANDS) > 60
    assert {"train", "sample", "evaluate", "data", "schedules", "explain"} <= {said.split()[0] for _, said in COMMANDS}


@pytest.mark.parametrize("name", NAMES)
def test_every_script_exists(name):
    for line in code_of((ROOT / name).read_text()):
        for script in re.findall(r"\bpython3? ([\w/]+\.py)", line):
            assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("page", ["docs/get-started.md", "README.md"])
def test_the_python_example_runs(page, tmp_path, monkeypatch):
    """In few steps, with a small network and few images."""
    (code,) = (block for kind, block in FENCE.findall((ROOT / page).read_text()) if kind == "python")
    code, count = re.subn(r"steps ?= ?\d+", "steps=2", code)
    assert count == 1
    code = code.replace("(80, ", "(10, ").replace("repeat_interleave(8)", "repeat_interleave(1)")
    unet = sd.UNet
    monkeypatch.setattr(sd, "UNet", lambda **options: unet(**{**options, "widths": (8, 16)}))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "few.npz", images=pixels, labels=np.arange(40) % 10)
    few = sd.load_images(str(tmp_path / "few.npz"))
    monkeypatch.setattr(sd, "load_images", lambda name: few)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, page, "exec"), names)
    assert names["x0"].shape == (10, 1, 28, 28)
    assert list(tmp_path.glob("*.png"))


def test_the_python_example_on_samplers_runs(monkeypatch):
    text = (DOCS / "how-to" / "choosing-a-sampler.md").read_text()
    (code,) = (block for kind, block in FENCE.findall(text) if kind == "python")
    net = sd.UNet(widths=(8, 16), blocks=(1, 1)).eval()
    monkeypatch.setattr(sd, "load", lambda folder, device: sd.Denoiser(net, sd.Karras(), sd.targets.v))
    names: dict = {}
    exec(code, names)
    assert names["x0"].shape == (16, 1, 28, 28)


# --- docstrings ------------------------------------------------------------------------------------------------------

LEARNT_FROM = """
    samplers sampling schedules targets losses guidance ema augmentation denoiser training data.images
    evaluation.metrics
""".split()  # noqa: SIM905
"""Modules that the lessons show. The tests check all their names, and the public names of `simple_diffusion`."""

ARCHITECTURE = (DOCS / "architecture.md").read_text()
NOTATION = set(re.findall(r"^\| (`.*?) \|", ARCHITECTURE.partition("## Notation")[2].partition("\n## ")[0], re.M))
NOTATION = {name for cell in NOTATION for name in INLINE.findall(cell)}
"""Names that have the same meaning everywhere."""

SHAPE = re.compile(r"`[^`]*\[.*?\][^`]*`|\bshape|\belement(wise)?\b", re.DOTALL)
MEASURE = re.compile(
    r"\d|\bshares?\b|\bprobability\b|\bratio|\bdeviation\b|\bnorm\b|\bnumber\b|\brate\b|\bunits?\b|\bmean\b|\blevels\b"
)
"""Words for the unit or the range of a number."""


def ours(thing: Any) -> bool:
    return (getattr(thing, "__module__", None) or "").startswith("simple_diffusion")


def exported() -> list[Any]:
    """The functions and classes of `simple_diffusion`; `targets` is a module."""
    return [thing for name in sd.__all__ if not inspect.ismodule(thing := getattr(sd, name))]


@cache
def public() -> dict[str, Any]:
    """Functions, classes and methods by their full names."""
    things = exported()
    for name in LEARNT_FROM:
        module = import_module(f"simple_diffusion.{name}")
        things += [
            thing
            for name, thing in vars(module).items()
            if not name.startswith("_")
            and (inspect.isfunction(thing) or inspect.isclass(thing))
            and thing.__module__ == module.__name__
        ]
    for owner in [thing for thing in things if inspect.isclass(thing)]:
        for name, member in vars(owner).items():
            kinds = {property: "fget", cached_property: "func", classmethod: "__func__"}
            function = getattr(member, kinds.get(type(member), ""), member)
            if inspect.isfunction(function) and not name.startswith("_"):
                things.append(function)
    return {f"{thing.__module__.partition('.')[2]}.{thing.__qualname__}": thing for thing in things}


def owner_of(thing: Any) -> Any:
    """The class of a method, None for a function."""
    scope: Any = sys.modules[thing.__module__]
    for name in thing.__qualname__.split(".")[:-1]:
        scope = getattr(scope, name)
    return scope if inspect.isclass(scope) else None


def docstring(thing: Any) -> str:
    """The docstring; of a class, with those of its base classes; of a method without one, that of the base class."""
    if inspect.isclass(thing):
        return "\n\n".join(inspect.cleandoc(c.__doc__ or "") for c in thing.__mro__ if ours(c))
    owner = owner_of(thing)
    same = [vars(c).get(thing.__name__) for c in (owner.__mro__ if owner else ())]
    return next((inspect.cleandoc(t.__doc__) for t in (thing, *same) if t is not None and t.__doc__), "")


def text_of(thing: Any) -> str:
    """The docstring, and those of the class of a method and of the function whose arguments it takes."""
    owner = None if inspect.isclass(thing) else owner_of(thing)
    texts = [docstring(thing), docstring(owner) if owner else ""]
    for name in re.findall(r"arguments are those of `(\w+)`", texts[0]):
        texts.append(docstring(vars(sys.modules[thing.__module__])[name]))
    return "\n\n".join(filter(None, texts))


def parameters(thing: Any) -> list[inspect.Parameter]:
    if getattr(thing, "_is_protocol", False) or (inspect.isclass(thing) and issubclass(thing, Exception)):
        return []
    return [p for p in inspect.signature(thing).parameters.values() if p.name not in ("self", "cls")]


def passages(text: str, name: str) -> list[str]:
    """The sentences and the table entries that contain a name."""
    found = []
    for paragraph in text.split("\n\n"):
        is_table = re.match(r"[\w, ]+ {2,}\S", paragraph)
        found += re.split(r"\n(?=\S)" if is_table else r"(?<=\.)\s+", paragraph)
    return [passage for passage in found if re.search(rf"\b{name}\b", passage)]


def is_bare_forward(name: str) -> bool:
    """A network's `forward` without a docstring: the class describes it."""
    return name.endswith(".forward") and not public()[name].__doc__


def test_docstrings_begin_with_a_sentence():
    said = {name: docstring(thing) for name, thing in public().items() if not is_bare_forward(name)}
    assert [name for name, text in said.items() if not re.match(r"[^\n]+(\n[^\n]+)*[.:]($|\n\n|\s)", text)] == []


def test_docstrings_name_the_parameters():
    """Each parameter is in the docstring, or in the notation, or its type says what it is."""
    missing = []
    for name, thing in public().items():
        for p in parameters(thing):
            documented = inspect.isclass(p.annotation) and ours(p.annotation) and p.annotation.__doc__
            known = documented or p.annotation in (nn.Module, torch.optim.Optimizer)
            if p.name not in NOTATION and not known and not re.search(rf"\b{p.name}\b", text_of(thing), re.IGNORECASE):
                missing.append(f"{name}: {p.name}")
    assert missing == []


def test_docstrings_give_shapes():
    """Of every tensor that goes in or comes out: `[B, C, H, W]`, or that the shape does not matter."""
    missing = []
    for name, thing in public().items():
        types = [p.annotation for p in parameters(thing)]
        types += [] if inspect.isclass(thing) else [inspect.signature(thing).return_annotation]
        text = docstring(owner_of(thing)) if is_bare_forward(name) else text_of(thing)
        tensors = [kind for kind in map(str, types) if "Tensor" in kind and "Callable" not in kind]
        if tensors and not SHAPE.search(text):
            missing.append(name)
    assert missing == []


def test_docstrings_give_units_or_ranges():
    missing = []
    for name, thing in public().items():
        for p in parameters(thing):
            if "float" in str(p.annotation) and "Tensor" not in str(p.annotation) and p.name not in NOTATION:
                said = passages(text_of(thing), p.name)
                if not any(MEASURE.search(re.sub(rf"\b{p.name}\b", "", passage)) for passage in said):
                    missing.append(f"{name}: {p.name}")
    assert missing == []


def caught(node: ast.AST) -> set[str]:
    """The names of the errors that a `try` or a `suppress` handles."""
    found: list[ast.expr] = []
    if isinstance(node, ast.Try):
        found = [h.type for h in node.handlers if h.type is not None]
    elif isinstance(node, ast.With):
        calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
        found = [word for call in calls if ast.unparse(call.func) == "suppress" for word in call.args]
    return {name.id for word in found for name in ast.walk(word) if isinstance(name, ast.Name)}


def names_of(error: type) -> set[str]:
    return {base.__name__ for base in error.__mro__ if base not in (Exception, BaseException, object)}


def raised(function: Any, seen: frozenset = frozenset()) -> set[type]:
    """The errors that a function raises, directly or through functions of its own module."""
    scope, seen = function.__globals__, seen | {function}

    def within(node: ast.AST) -> set[type]:
        found: set[type] = set()
        if isinstance(node, ast.Raise) and node.exc is not None:
            word = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            error = scope.get(ast.unparse(word), vars(builtins).get(ast.unparse(word)))
            found |= {error} if inspect.isclass(error) else set()
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and (node.args or node.keywords):
            called = scope.get(node.func.id)  # a call without arguments cannot pass invalid ones
            if inspect.isfunction(called) and called.__module__ == function.__module__ and called not in seen:
                found |= raised(called, seen)
        for child in ast.iter_child_nodes(node):
            hidden = caught(node) if not isinstance(node, ast.Try) or child in node.body else set()
            found |= {error for error in within(child) if not names_of(error) & hidden}
        return found

    return within(ast.parse(textwrap.dedent(inspect.getsource(function))))


def test_docstrings_name_the_errors():
    missing = []
    for name, thing in public().items():
        made_by = ("__init__", "__post_init__", "__call__")
        functions = [vars(thing).get(part) for part in made_by] if inspect.isclass(thing) else [thing]
        for function in functions:
            if ours(function) and Path(function.__code__.co_filename).is_file():  # not made by `dataclass`
                for error in raised(function):
                    if not any(re.search(rf"\b{word}\b", text_of(thing)) for word in names_of(error)):
                        missing.append(f"{name}: {error.__name__}")
    assert missing == []


def test_errors_are_found():
    """The test uses functions of the library, because `raised` looks up names in their modules."""
    assert raised(schedules.linear_betas) == {ValueError}  # through other functions of the module
    assert {error.__name__ for error in raised(metrics.jackknife)} == {"UsageError", "DataError"}
    assert raised(sd.EMA.__init__) == set()
    assert {error.__name__ for error in raised(sd.fid)} == {"DataError"}  # a CheckpointError is suppressed
    assert {error.__name__ for error in raised(sd.train)} == {"NotFiniteError", "ValueError"}


# --- sources ---------------------------------------------------------------------------------------------------------

CITATION = re.compile(r"[A-Z][\w'’-]+(?:, [A-Z][\w-]+)*(?: et al\.| & [A-Z][\w-]+)? (?:19|20)\d\d")


def bare(thing: Any) -> Any:
    return thing.func if isinstance(thing, partial) else thing


REGISTERED = {
    f"{kind} {name}": bare(thing)
    for kind, registry in {
        "schedule": schedules.SCHEDULES,
        "table": schedules.BETAS,
        "grid": samplers.GRIDS,
        "sampler": {name: info.function for name, info in samplers.SAMPLERS.items()},
        "target": targets.TARGETS,
        "measure": {name: measure for name, measure in losses.CRITERIA.items() if ours(measure)},
        "metric": {name: public()[name] for name in public() if re.fullmatch(r"evaluation\.metrics\.[a-z_]+", name)},
        "guidance": {n: getattr(guidance, n) for n in ("drop_labels", "Guided", "AutoGuided")},
        "loss": {n: getattr(losses, n) for n in ("denoising_loss", "uniform", "on_steps", "LogNormal", "MinSNR")},
        "other": {"augmented": augmentation.augmented, "adamw": sd.adamw, "muon": sd.muon, "EMA": sd.EMA},
    }.items()
    for name, thing in registry.items()
}


def test_docstrings_cite_a_source():
    assert [name for name, thing in REGISTERED.items() if not CITATION.search(docstring(thing))] == []


SOURCES = [
    (name, entry.thing, paper, where)
    for name, entries in explain.ENTRIES.items()
    for entry in entries
    for paper, where in entry.sources
]


def cited(text: str, paper: str, where: str) -> bool:
    """Whether the text cites this paper of `explain` and this place in it.

    For three or more authors, "et al." is enough. The place follows the year.
    """
    authors, year = re.match(r"(.*?) (\d{4}),", explain.PAPERS[paper]).groups()  # pyrefly: ignore[missing-attribute]
    first = re.split(r", | & | et al", authors)[0]
    names = authors if authors.count(" & ") and "," not in authors else f"(?:{re.escape(authors)}|{first} et al\\.)"
    places = re.findall(r"(?:eq\.|section|algorithm|table) ([\d.\- and]+)", where)
    numbers = {number for place in places for number in re.findall(r"[\d.-]*\d", place)}
    for match in re.finditer(rf"{names} {year}([^;\n]*(?:\n[^;\n|]*)?)", text.replace("–", "-")):
        if numbers <= set(re.findall(r"[\d.-]*\d", match[1])):
            return True
    return False


@pytest.mark.parametrize(("name", "thing", "paper", "where"), SOURCES)
def test_docstrings_explain_and_the_page_of_mathematics_agree(name, thing, paper, where):
    page = (DOCS / "mathematics.md").read_text()
    assert cited(docstring(thing), paper, where), f"the docstring of {name} does not cite {paper}, {where}"
    assert cited(page, paper, where), f"mathematics.md does not cite {paper}, {where}"
    assert f"`{thing.__name__}`" in page


# --- the site --------------------------------------------------------------------------------------------------------


@cache
def tool(name: str) -> ModuleType:
    """A script of docs/ as a module; lessons/build.py has the same name as docs/build.py."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def build(tmp_path, monkeypatch):
    """docs/build.py for a small repository."""
    pytest.importorskip("math_core", reason="the extra [docs] is not installed")
    made = tool("build")
    monkeypatch.setattr(made, "ROOT", tmp_path)
    monkeypatch.setattr(made, "PAGES", tmp_path / "out")
    for path, text in {
        "docs/index.md": "# A\n[b](how/b.md#c) [code](../src/a.py) [`l`](../notebooks/01_x.ipynb) [r](../README.md)\n",
        "docs/how/b.md": "# B\n## C\n[up](../index.md), $x_t$, `$y$`, [t](../../tests/data.csv), [w](https://a.b/c)\n",
        "docs/site.css": "p {}",
        "docs/build.py": "",
        "src/a.py": "a = 1\n",
        "tests/data.csv": "1,2\n",
        "README.md": "# R\n",
        "lessons/01_x.py": "# %%\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    cells = [
        {"cell_type": "markdown", "source": ["# 1 · X\n", "\n", "Read [`a.py`](../src/a.py)."]},
        {"cell_type": "markdown", "source": "In Colab"},
        {
            "cell_type": "code",
            "source": "print('`$1$`')",
            "outputs": [
                {"output_type": "stream", "name": "stdout", "text": ["$1$\n"]},
                {"output_type": "display_data", "data": {"image/png": "aGVsbG8="}},
            ],
        },
    ]
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_x.ipynb").write_text(json.dumps({"cells": cells}))
    return made


def test_the_site_has_what_its_pages_link_to(build):
    build.lay_out()
    out = build.PAGES
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {
        *("index.md", "how/b.md", "site.css", "lessons/01_x.md", "lessons/01_x-1.png", "files/src/a.py.md"),
        *("files/tests/data.csv", "files/notebooks/01_x.ipynb", "files/lessons/01_x.py"),
    }
    index = (out / "index.md").read_text()
    assert "[b](how/b.md#c) [code](files/src/a.py.md) [`l`](lessons/01_x.md) [r](index.md)" in index
    page = (out / "how" / "b.md").read_text()
    assert "[up](../index.md), <span><math>" in page
    assert "`$y$`, [t](../files/tests/data.csv), [w](https://a.b/c)" in page
    assert (out / "files" / "src" / "a.py.md").read_text().endswith("# src/a.py\n\n````python\na = 1\n````\n")


def test_a_notebook_becomes_a_page(build):
    build.lay_out()
    page = (build.PAGES / "lessons" / "01_x.md").read_text()
    to_run = "*To run it: [notebook](../files/notebooks/01_x.ipynb), [script](../files/lessons/01_x.py).*"
    assert page.startswith(f"# 1 · X\n\n{to_run}\n\n")
    assert "Read [`a.py`](../files/src/a.py.md)." in page
    assert "In Colab" not in page
    assert page.endswith("```python\nprint('`$1$`')\n```\n\n```text\n$1$\n```\n\n![Figure 1](01_x-1.png)")
    assert (build.PAGES / "lessons" / "01_x-1.png").read_bytes() == b"hello"


@pytest.mark.parametrize("text", ["[x](nowhere.md)", "[x](../src)", "$\\nosuchthing$"])
def test_a_broken_link_or_formula_is_an_error(build, text):
    (build.ROOT / "docs" / "index.md").write_text(text)
    with pytest.raises(ValueError, match=re.escape(re.sub(r".*\(|\)|\$", "", text))):
        build.lay_out()


@pytest.mark.parametrize(
    ("text", "inline", "blocks"),
    [
        ("a $x$ b $y_1$, and $z\n+ 1$.", 3, 0),
        ("$$x$$", 0, 1),
        ("costs 5$ or 6$, `$x$`", 0, 0),
        ("```\n$x$\n```\n$y$", 1, 0),
        ("| a | $\\lvert x \\rvert$ |", 1, 0),
    ],
)
def test_formulas_are_found_outside_of_code(build, text, inline, blocks):
    shown = build.Pages().convert(text, PurePosixPath("docs/index.md"))
    assert shown.count("<span><math") == inline
    assert shown.count('<math display="block"') == blocks
    assert shown.count("|") == text.count("|")


def test_broken_links_of_a_site_are_found(build, tmp_path):
    site = tmp_path / "site"
    (site / "sub").mkdir(parents=True)
    (site / "index.html").write_text('<p id="a"></p><a href="sub/">1</a><a href="#a">2</a><a href="https://x.y">3</a>')
    (site / "sub" / "index.html").write_text('<a href="../index.html#a">1</a><img src="../i.png">')
    (site / "404.html").write_text('<a href="/index.html">1</a>')
    assert build.broken_links(site) == ["sub/index.html: ../i.png"]
    (site / "i.png").write_text("")
    (site / "index.html").write_text('<a href="#a">2</a><a href="none.html">3</a>')
    assert build.broken_links(site) == ["index.html: #a", "index.html: none.html", "sub/index.html: ../index.html#a"]


def test_tables_of_parameters_become_lists():
    pytest.importorskip("griffe", reason="the extra [docs] is not installed")
    tables_to_lists = tool("docstrings").tables_to_lists
    text = "One. Two  words.\n\na, b   first\n       goes on\nlonger second\nc      third\n\nEnd."
    assert (
        tables_to_lists(text)
        == "One. Two  words.\n\n- `a, b`: first\n  goes on\n- `longer`: second\n- `c`: third\n\nEnd."
    )
    for plain in ("Only prose,\nin two lines.", "    code = 1  # as it is\n    more", "a  b\nnot a table"):
        assert tables_to_lists(plain) == plain


def test_the_reference_has_the_public_modules():
    pages = "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: simple_diffusion\.(\S+)$", pages, re.MULTILINE))
    homes = {thing.__module__.partition(".")[2] for thing in exported()}
    assert shown >= homes | set(LEARNT_FROM)
    for module in shown:
        import_module(f"simple_diffusion.{module}")
