"""Small real data, and a small trained run, for the tests of the product."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from simple_diffusion.cli import train
from simple_diffusion.cli.main import main
from simple_diffusion.run import estimate as forecast

torch.set_num_threads(1)  # small tensors: threads would only wait for each other
os.environ["OMP_NUM_THREADS"] = "1"  # the same for commands in processes of their own
forecast.MEASURED = 0.1  # a dry run measures only how fast this machine is
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background jobs ignore Ctrl-C

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
if SHARED.is_dir():
    os.environ.setdefault("SIMPLE_DIFFUSION_DATA", str(SHARED))

TINY = [f"--set={pair}" for pair in ("widths=8,16", "blocks=1,1", "batch=16", "sampler_steps=4")]


def pytest_runtest_setup() -> None:
    """The clock of `train` starts with the test, not when the command was imported."""
    train.STARTED = time.perf_counter()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory) -> None:
    """Nothing is read from or left in the user's cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def squares(tmp_path_factory) -> Path:
    """An .npz of 96 colour images, 12 x 16, in three classes: a square at the left, in the middle, at the right."""
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 3
    images = rng.integers(0, 40, (96, 12, 16, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[3:9, 1 + 5 * label : 5 + 5 * label] = rng.integers(180, 255, 3)
    path = tmp_path_factory.mktemp("data") / "squares.npz"
    np.savez(path, images=images, labels=labels)
    return path


@pytest.fixture(scope="session")
def run_folder(squares, tmp_path_factory) -> Path:
    """The folder of a run of 20 steps on the squares."""
    folder = tmp_path_factory.mktemp("runs") / "squares"
    main(["train", str(squares), "--steps", "20", "--out", str(folder), *TINY])
    return folder
