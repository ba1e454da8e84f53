"""Too little memory: one sentence with the sizes and the options that help, before or instead of a traceback."""

import math
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from faults import forked
from PIL import Image

from simple_diffusion import load_images
from simple_diffusion.cli.main import main
from simple_diffusion.errors import CheckpointError, ResourceError, is_out_of_memory, memory_asked_for
from simple_diffusion.model.generate import generate
from simple_diffusion.model.model_file import read
from simple_diffusion.system import files
from simple_diffusion.system.memory import free_memory, require_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limit of a process's memory is that of Linux")
GIGABYTE = 10**9


def limited(work: Callable[[], object], out: Path, kind: int = resource.RLIMIT_AS, spare: int = GIGABYTE) -> int:
    """Do the work in a child process that can take only `spare` more bytes of memory. Returns its exit code."""

    def child() -> None:
        column = 0 if kind == resource.RLIMIT_AS else 5  # all memory, or that which is no copy of a file
        used = int(Path("/proc/self/statm").read_text().split()[column]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(kind, (used + spare, used + spare))
        work()

    return forked(child, out)


def huge(folder: Path, n: int, side: int) -> str:
    """An array that takes no room on the disk."""
    np.lib.format.open_memmap(folder / "huge.npy", mode="w+", dtype=np.uint8, shape=(n, side, side, 3))
    return str(folder / "huge.npy")


def test_the_free_memory_is_at_most_the_limit_of_the_process(tmp_path):
    assert 0 < free_memory() < math.inf
    assert limited(lambda: print(free_memory()), tmp_path / "out") == 0
    assert float((tmp_path / "out").read_text()) <= GIGABYTE
    require_memory(1, "it", "do it")
    with pytest.raises(ResourceError, match=r"^they need [0-9.,]+ GB of memory, and [0-9.,]+ GB are free: do less$"):
        require_memory(10**18, "they", "do less")


@pytest.mark.parametrize("command", [["data"], ["train", "--dry-run"], ["train", "--steps", "1"]])
def test_data_that_does_not_fit_is_refused_before_it_is_read(tmp_path, capsys, command):
    data = huge(tmp_path, 10**7, 64)
    with pytest.raises(SystemExit) as stopped:
        main([command[0], data, *command[1:]])
    assert stopped.value.code == 6
    error = capsys.readouterr().err
    assert "10,000,000 images of 64 x 64 pixels need 122.9 GB of memory, and " in error
    assert error.count("\n") == 1
    assert error.endswith("free: add --size 32, or save fewer\n")


def test_arrays_are_reduced_one_part_at_a_time(tmp_path):
    """An array of 240 MB is read with 100 MB of memory if it is resized; a limit of addresses is named."""
    data = huge(tmp_path, 80, 1000)
    small = resource.RLIMIT_DATA, GIGABYTE // 10
    assert limited(lambda: print(load_images(data, size=32).shape), tmp_path / "out", *small) == 0
    assert (tmp_path / "out").read_text() == "(3, 32, 32)\n"
    assert limited(lambda: load_images(data), tmp_path / "out", *small) == 99  # with its own size it does not fit
    data = huge(tmp_path, 20000, 256)
    assert limited(lambda: main(["data", data, "--size", "32"]), tmp_path / "out") == 6
    assert "there is not enough memory for this command" in (tmp_path / "out").read_text()


def test_a_folder_that_does_not_fit_is_refused_at_its_first_image(tmp_path):
    (tmp_path / "x").mkdir()
    for number in range(400):
        (tmp_path / f"x/{number}.png").symlink_to(tmp_path / "image.png")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "image.png")
    code = limited(lambda: main(["data", str(tmp_path / "x"), "--size", "1024"]), tmp_path / "out")
    assert code == 6
    said = (tmp_path / "out").read_text()
    assert "400 images of 1024 x 1024 pixels need 1.3 GB of memory" in said
    assert "Traceback" not in said


LIMITED = """
import resource, sys
from pathlib import Path
from simple_diffusion.cli.main import main
import simple_diffusion.run.trainer  # all that is imported later

used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 10**9, used + 10**9))
main(sys.argv[1:])
"""


@pytest.mark.slow  # two new processes
def test_training_without_memory_says_what_needs_it(squares, tmp_path):
    """In a new process, whose memory has no room left from earlier work."""
    sizes = ["--size", "128", "--set=batch=2048", "--set=precision=fp32", *TINY[:2]]
    for more in (["--dry-run"], ["--out", str(tmp_path / "run")]):
        argv = [sys.executable, "-c", LIMITED, "train", str(squares), "--steps", "2", *sizes, *more]
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode == 6, done.stderr
        assert "there is not enough memory (another " in done.stderr
        assert " to train on batches of 2048 images of 128 x 128 pixels: use --set accumulate=8, " in done.stderr
        assert "Traceback" not in done.stderr


def test_sampling_more_images_than_the_memory_holds_is_refused(run_folder):
    with pytest.raises(
        ResourceError, match=r"100,000,000,000 images of this size need .* GB .*: generate fewer with --n"
    ):
        generate(read(run_folder, "cpu"), 10**11, None, 0)


ERRORS = {
    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 17179869184 bytes. Error code 12": "17.2 GB",
    "DefaultCPUAllocator: not enough memory: you tried to allocate 4194304000 bytes.": "4.2 GB",
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB": "20.00 GiB",
    "MPS backend out of memory (MPS allocated: 17.00 GB). Tried to allocate 256 bytes on private pool": "0.0 GB",
    "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": None,
    "CUDA error: out of memory": None,
}


@pytest.mark.parametrize("message", ERRORS)
def test_every_error_of_torch_for_want_of_memory_is_known(message, run_folder, monkeypatch, capsys):
    """No GPU is needed: its errors are raised where the command samples."""
    error = torch.OutOfMemoryError(message) if message.startswith("CUDA out") else RuntimeError(message)
    assert is_out_of_memory(error)
    asked = ERRORS[message]
    assert memory_asked_for(error) == ("" if asked is None else f" (another {asked} asked for)")
    monkeypatch.setattr(
        "simple_diffusion.model.generate.generate", lambda *args, **options: (_ for _ in ()).throw(error)
    )
    with pytest.raises(SystemExit) as stopped:
        main(["sample", str(run_folder), "--n", "2", "--out", "x.png"])
    assert stopped.value.code == 6
    said = capsys.readouterr().err
    assert "not enough memory" in said
    assert "to sample batches of 64 images of 12 x 16 pixels on cpu: set OMP_NUM_THREADS=1" in said
    assert said.count("\n") == 1


def test_other_errors_are_not_for_want_of_memory():
    for error in (RuntimeError("shapes differ"), ValueError("out of memory"), OSError(28, "No space left on device")):
        assert not is_out_of_memory(error)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(OSError(12, "Cannot allocate memory"))


def test_want_of_memory_is_not_reported_as_a_damaged_file():
    with pytest.raises(RuntimeError, match="out of memory"):
        raise files.damaged(Path("model.safetensors"), RuntimeError("CUDA out of memory"))
    with pytest.raises(CheckpointError, match="damaged"):
        raise files.damaged(Path("model.safetensors"), RuntimeError("shapes differ"))
