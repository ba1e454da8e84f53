"""What the README says is there, and what it shows runs."""

import re
from pathlib import Path

import simple_diffusion
from simple_diffusion.cli.main import parser

README = Path(__file__).resolve().parents[2] / "README.md"
TEXT = README.read_text()


def test_the_python_example_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    for shown, small in (('"fashion-mnist"', '"digits"'), ("steps = 2000", "steps = 2"), ("(48, 96)", "(8, 16)")):
        assert code.count(shown) == 1
        code = code.replace(shown, small)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, str(README), "exec"), names)
    assert names["x0"].shape == (80, 1, 28, 28)
    assert names["ema"].model.net is not names["net"]
    assert (tmp_path / "samples.png").is_file()


def test_its_commands_are_the_commands():
    shown = set(re.findall(r"^\| `simple-diffusion (\w+)", TEXT, re.MULTILINE))
    (commands,) = [a.choices for a in parser()._actions if a.dest == "command"]
    assert shown == set(commands)


def test_its_files_and_names_are_there():
    folder = Path(simple_diffusion.__file__).parent
    for name in re.findall(r"[\w/]+\.py\b", TEXT):
        assert any((place / name).is_file() for place in (folder, README.parent, README.parent / "tests")), name
    for name in re.findall(r"`sd\.(\w+)", TEXT):
        assert name in simple_diffusion.__all__, name
    for path in re.findall(r"\]\((\S+?)\)", TEXT):
        assert (README.parent / path).exists(), path
