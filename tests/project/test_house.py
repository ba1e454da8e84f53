"""The structure of the package: imports point one way, and every public name has a docstring."""

import ast
import pydoc
import subprocess
import sys
from functools import cache
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
"""From the bottom up: a module may import the modules of its own layer and of all layers below.

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


@cache
def imported(module: str) -> set[str]:
    """The modules of the package that `module` imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse((SOURCE / (module.replace(".", "/") + ".py")).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = module.split(".")[: -node.level]
            target = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found |= {target} if target in MODULES else {f"{target}.{alias.name}".strip(".") for alias in node.names}
    return found & set(MODULES)


def test_no_module_imports_a_higher_layer():
    arrows = [(module, name) for module in MODULES for name in imported(module) if not {module, name} & set(TOP)]
    assert [arrow for arrow in arrows if layer_of(arrow[0]) < layer_of(arrow[1])] == []


def test_imports_make_no_circle():
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


def test_init_files_import_nothing():
    for path in SOURCE.rglob("*/__init__.py"):
        assert not [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom | ast.Import)
        ]


def test_public_names_have_docstrings():
    assert [
        name for name in simple_diffusion.__all__ if not (getattr(simple_diffusion, name).__doc__ or "").strip()
    ] == []


def test_public_names_are_found_by_star_import_dir_and_help():
    found: dict[str, object] = {}
    exec("from simple_diffusion import *", found)
    assert set(simple_diffusion.__all__) == found.keys() - {"__builtins__"}
    assert set(simple_diffusion.__all__) <= set(dir(simple_diffusion))
    text = pydoc.plain(pydoc.render_doc(simple_diffusion))
    assert [name for name in simple_diffusion.__all__ if name not in text] == []
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = simple_diffusion.nothing


def test_the_package_alone_does_not_import_torch():
    code = "import sys, simple_diffusion; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_modules_are_attributes_of_the_package_and_are_imported_on_first_use():
    code = """
import pkgutil, sys, simple_diffusion as sd
assert sd.errors.UsageError.exit_code == 2
assert "torch" not in sys.modules
assert sd.samplers.SAMPLERS
assert "simple_diffusion.play" not in sys.modules
for _, name, _ in pkgutil.iter_modules(sd.__path__):
    assert name == "__main__" or getattr(sd, name).__name__ == f"simple_diffusion.{name}"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_call_runs_data_as_code():
    forbidden = ("import pickle", "torch.load(", "eval(", "exec(", "shell=True", "nan_to_num", "allow_pickle=True")
    for module in MODULES:
        text = (SOURCE / (module.replace(".", "/") + ".py")).read_text()
        for word in forbidden:
            assert word not in text.replace(".eval()", ""), f"{module}: {word}"
