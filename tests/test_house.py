"""The house: imports point one way, public names are there and say what they do."""

import ast
from pathlib import Path

import pytest

import simple_diffusion

SOURCE = Path(simple_diffusion.__file__).parent
ORDER = """
    errors lock signals ranks randomness cores schedules targets metrics denoiser networks.dropout networks.embedding
    networks.unet networks.annotated networks.double_conv networks.classifier ema losses guidance augmentation samplers
    files data.images data.digits data.download data.idx data.folder data.arrays data.hub data.sources data.batches
    graphs training validation hardware optimizers fitting classification config checkpoint averages extractors
    inception copies levels film editing figures drawing studio play evaluation comparing racing budget log report state
    outlook run doctor sizing forecast explain exercises judging commands.options commands.train commands.sample
    commands.evaluate commands.data commands.schedules commands.classifier commands.explain commands.check
    commands.compare commands.race commands.report commands.doctor commands.play cli __main__
""".split()  # noqa: SIM905  a list would be a line a name
"""The order of reading: a module may import only what stands before it."""


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


MODULES = sorted(module_of(p) for p in SOURCE.rglob("*.py") if p.name != "__init__.py")


def imported(module: str) -> set[str]:
    """The modules of the package that `module` imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse((SOURCE / (module.replace(".", "/") + ".py")).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = module.split(".")[: -node.level]
            target = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found |= {target} if target in MODULES else {f"{target}.{alias.name}".strip(".") for alias in node.names}
    return found & set(MODULES)


def test_every_module_has_its_place():
    assert sorted(ORDER) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    later = {name for name in imported(module) if ORDER.index(name) >= ORDER.index(module)}
    assert not later, f"{module} imports {later}, which stand after it"


@pytest.mark.parametrize("name", simple_diffusion.__all__)
def test_public_names_are_there_and_say_what_they_do(name):
    assert (getattr(simple_diffusion, name).__doc__ or "").strip()


def test_no_word_that_runs_data_as_code():
    forbidden = ("import pickle", "torch.load(", "eval(", "exec(", "shell=True", "nan_to_num", "allow_pickle=True")
    for module in MODULES:
        text = (SOURCE / (module.replace(".", "/") + ".py")).read_text()
        for word in forbidden:
            assert word not in text.replace(".eval()", ""), f"{module}: {word}"
