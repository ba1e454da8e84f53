"""A user's type checker sees the signatures of the public names."""

import subprocess
import sys
from pathlib import Path

import simple_diffusion

USE = """
import torch
import simple_diffusion as sd

times: torch.Tensor = sd.karras_grid(sd.Karras(), 10)
ema = sd.fit(sd.Denoiser(sd.UNet(), sd.Karras(), sd.targets.v), sd.load_images("digits"), steps=1)
averaged: sd.Denoiser = ema.model
"""
MISUSE = """
import simple_diffusion as sd

a: int = sd.karras_grid(sd.Karras(), 10)
sd.karras_grid(sd.Karras(), steps=10)
sd.Denoiser(sd.UNet(), sd.Karras())
"""


def errors(folder: Path, code: str) -> str:
    (folder / "user.py").write_text(code)
    (folder / "pyrefly.toml").write_text(f"search-path = [{str(Path(simple_diffusion.__file__).parents[1])!r}]\n")
    command = [
        Path(sys.executable).with_name("pyrefly"),
        "check",
        "user.py",
        "--python-interpreter-path",
        sys.executable,
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout


def test_the_package_says_that_it_is_typed():
    assert (Path(simple_diffusion.__file__).parent / "py.typed").is_file()


def test_right_use_passes_and_wrong_use_is_seen(tmp_path):
    assert "ERROR" not in errors(tmp_path, USE)
    found = errors(tmp_path, MISUSE)
    for word in ("bad-assignment", "unexpected-keyword", "missing-argument"):
        assert word in found, found
