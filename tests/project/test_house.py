"""The structure of the package: imports point one way, and every public name has a docstring."""

import ast
from pathlib import Path

import pytest

import simple_diffusion

SOURCE = Path(simple_diffusion.__file__).parent
LAYERS = (
    ("core",),
    ("viz", "evaluation"),
    ("model",),
    ("run",),
    ("doctor", "play", "learn"),
    ("cli",),
)
"""From the bottom up: a package may import its own layer's other modules and all layers below.

The core is what lies at the root, and `networks`, `data` and `system`.
"""
CORE = ("networks", "data", "system")
TOP = ("api", "__init__", "__main__")


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


MODULES = sorted(module_of(path) for path in SOURCE.rglob("*.py"))


def layer_of(module: str) -> int:
    package = module.partition(".")[0] if "." in module else "core"
    package = "core" if package in CORE else package
    return next(i for i, packages in enumerate(LAYERS) if package in packages)


def imported(module: str) -> set[str]:
    """The modules of the package that `module` imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse((SOURCE / (module.replace(".", "/") + ".py")).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = module.split(".")[: -node.level]
            target = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found |= {target} if target in MODULES else {f"{target}.{alias.name}".strip(".") for alias in node.names}
    return found & set(MODULES)


@pytest.mark.parametrize("module", [module for module in MODULES if module not in TOP])
def test_no_module_imports_a_higher_layer(module):
    higher = {name for name in imported(module) if name not in TOP and layer_of(name) > layer_of(module)}
    assert not higher, f"{module} imports {higher}, of a layer above it"


def test_no_circle_of_imports():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for other in imported(module):
                visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        if module not in TOP:
            visit(module, ())


def test_packages_import_nothing():
    for path in SOURCE.rglob("*/__init__.py"):
        assert not [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom | ast.Import)
        ]


@pytest.mark.parametrize("name", simple_diffusion.__all__)
def test_public_names_are_there_and_say_what_they_do(name):
    assert (getattr(simple_diffusion, name).__doc__ or "").strip()


def test_no_word_that_runs_data_as_code():
    forbidden = ("import pickle", "torch.load(", "eval(", "exec(", "shell=True", "nan_to_num", "allow_pickle=True")
    for module in MODULES:
        text = (SOURCE / (module.replace(".", "/") + ".py")).read_text()
        for word in forbidden:
            assert word not in text.replace(".eval()", ""), f"{module}: {word}"
