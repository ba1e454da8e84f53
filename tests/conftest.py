"""Small data, and a short training run, that all tests share."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from simple_diffusion.cli import train
from simple_diffusion.cli.main import main
from simple_diffusion.run import estimate, trainer

torch.set_num_threads(1)  # threads are slower than one core on tensors as small as these
os.environ["OMP_NUM_THREADS"] = "1"  # the same in child processes
estimate.MEASURED = 0.1  # a dry run measures only how fast this machine is
trainer.PICTURES = (0.5,)  # most of the time of a short run goes into pictures: one, and the last
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore Ctrl-C

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
if SHARED.is_dir():
    os.environ.setdefault("SIMPLE_DIFFUSION_DATA", str(SHARED))

TINY = [f"--set={pair}" for pair in ("widths=8,16", "blocks=1,1", "batch=16", "sampler_steps=4")]


def pytest_runtest_setup() -> None:
    """Start the clock of `train` with the test, not with the import of the command."""
    train.STARTED = time.perf_counter()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory) -> None:
    """Use an empty cache instead of the user's."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def squares(tmp_path_factory) -> Path:
    """An .npz file of 96 color images, 12 x 16, in three classes: a square on the left, in the middle, on the right."""
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
    """The folder of a training run of 20 steps on the squares."""
    folder = tmp_path_factory.mktemp("runs") / "squares"
    main(["train", str(squares), "--steps", "20", "--out", str(folder), *TINY])
    return folder


@pytest.fixture(scope="module")
def one_thread():
    """Thousands of tiny decompositions: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
