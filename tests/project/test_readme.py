"""The README: it lists every command, and every file and name in it is there."""

import re
from pathlib import Path

import simple_diffusion
from simple_diffusion.cli.main import parser

README = Path(__file__).resolve().parents[2] / "README.md"
TEXT = README.read_text()


def test_its_commands_are_the_commands():
    shown = set(re.findall(r"^\| `simple-diffusion (\w+)", TEXT, re.MULTILINE))
    (commands,) = [a.choices for a in parser()._actions if a.dest == "command"]
    assert shown == set(commands)


def test_its_files_and_names_are_there():
    places = (Path(simple_diffusion.__file__).parent, README.parent, README.parent / "tests")
    for name in re.findall(r"[\w/]+\.py\b", TEXT):
        assert any((place / name).is_file() for place in places), name
    for name in re.findall(r"`sd\.(\w+)", TEXT):
        assert name in simple_diffusion.__all__, name
    for path in re.findall(r"\]\((\S+?)\)", TEXT):
        assert path.startswith("https://") or (README.parent / path.partition("#")[0]).exists(), path
