"""Fault injection: signals, child processes, and file operations that fail or kill at a chosen moment."""

import errno
import io
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from simple_diffusion.cli.main import main
from simple_diffusion.model.model_file import read
from simple_diffusion.run import log, steps
from simple_diffusion.run.checkpoint import latest
from simple_diffusion.system import files

# --- commands and child processes ------------------------------------------------------------------------------------


def ends(argv: list[str]) -> int:
    """The exit code of a command."""
    try:
        main(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def forked(work: Callable[[], object], out: Path | None = None) -> int:
    """Do the work in a child process. Returns its exit code, or minus the signal that killed it."""
    return ended(begun(work, out))


def ended(child: int) -> int:
    """Wait for a child process. Returns its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def begun(work: Callable[[], object], out: Path | None = None) -> int:
    """Start a child process that does the work. Returns its process id.

    out   file for stdout and stderr of the child
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with other threads; they are idle
        child = os.fork()
    if child:
        return child
    code = 99
    try:
        descriptor = os.open(out or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        sys.stdout = sys.stderr = open(descriptor, "w", buffering=1, closefd=False)  # noqa: SIM115
        torch.set_num_threads(1)
        code = work() or 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def hit(number: int) -> None:
    """Send this process a signal. Its handler runs before this function returns."""
    os.kill(os.getpid(), number)


@contextmanager
def after_step(n: int, do: Callable[[], object]) -> Iterator[None]:
    """Call `do` after step n of a run, before the run uses the step."""
    real = steps.train

    def train(*args, **kwargs):
        for step in real(*args, **kwargs):
            if step.n == n:
                do()
            yield step

    with patch.object(steps, "train", train):
        yield


def stopped_after(n: int, argv: list[str], number: int = signal.SIGTERM) -> None:
    """Run a command that a signal stops after step n."""
    with after_step(n, lambda: hit(number)):
        assert ends(argv) == 128 + number


TOKEN = "0123456789abcdef"
"""In the name of an unfinished file, where each has its own."""

# --- files -----------------------------------------------------------------------------------------------------------


class Raw(io.FileIO):
    """A file that is written in several pieces and reports each piece before it is written."""

    def __init__(self, path: Path, mode: str, before: Callable[[str, Path, int], None]):
        super().__init__(path, mode)
        self.path, self.before, self.done = Path(path), before, 0

    def write(self, data) -> int:
        piece = memoryview(data).cast("B")
        piece = piece[: max(len(piece) // 2, 4096)]
        self.before("write", self.path, self.done + len(piece))
        self.done += len(piece)
        return super().write(piece)


@contextmanager
def watched(before: Callable[[str, Path, int], None]) -> Iterator[None]:
    """Each file operation of a run first calls `before(operation, path, bytes written to the file so far)`.

    The random part is left out of the name of an unfinished file.
    """
    tell = before

    def before(what: str, path: Path, size: int) -> None:
        tell(what, path.with_name(re.sub(r"\.[0-9a-f]{16}\.tmp$", ".tmp", path.name)), size)

    def opened(path, mode="r", **encoding):
        if mode == "rb":
            return open(path, mode)
        before("open", Path(path), 0)
        raw = Raw(path, mode.replace("b", ""), before)
        return io.BufferedWriter(raw) if "b" in mode else io.TextIOWrapper(io.BufferedWriter(raw), **encoding)

    def telling(what: str, real: Callable):
        def call(path, *args, **kwargs):
            named = Path(path) if isinstance(path, str | Path) else Path(os.readlink(f"/proc/self/fd/{path}"))
            before(what, named, 0)
            return real(path, *args, **kwargs)

        return call

    with (
        patch.object(files, "open", opened, create=True),
        patch.object(log, "open", opened, create=True),
        patch.object(os, "fsync", telling("fsync", os.fsync)),
        patch.object(os, "replace", telling("replace", os.replace)),
        patch.object(Path, "unlink", telling("unlink", Path.unlink)),
        patch.object(Path, "mkdir", telling("mkdir", Path.mkdir)),
        patch.object(Path, "read_bytes", telling("read", Path.read_bytes)),
    ):
        yield


class Countdown:
    """Kill the process with SIGKILL before the file operation of this number; 0 only counts."""

    def __init__(self, number: int):
        self.number, self.count = number, 0

    def __call__(self, what: str, path: Path, size: int) -> None:
        self.count += 1
        if self.count == self.number:
            hit(signal.SIGKILL)


def full(what: str, name: str, size: int = 0) -> Callable[[str, Path, int], None]:
    """The disk is full at this operation on a file of this name, from this byte on."""

    def before(event: str, path: Path, done: int) -> None:
        if event == what and str(path).endswith(name) and done >= size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return before


@contextmanager
def unprivileged() -> Iterator[None]:
    """Without the right of root to read and write all files."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if me == 0:
            os.seteuid(me)


def tree(folder: Path) -> dict[str, bytes]:
    """The contents of all files in a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- comparison of two runs ------------------------------------------------------------------------------------------


def rows(folder: Path) -> list[list[str]]:
    """The log without the columns that depend on the clock: seconds and images_per_second."""
    table = [line.split(",") for line in (folder / "log.csv").read_text().splitlines()]
    return [[cell for i, cell in enumerate(row) if i not in (2, 5)] for row in table]


def assert_equal(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    """The same names, and bit-exact tensors."""
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert tensor.isfinite().all(), name
        assert got[name].dtype == tensor.dtype, name
        assert got[name].contiguous().numpy().tobytes() == tensor.contiguous().numpy().tobytes(), name


def assert_same_run(folder: Path, unbroken: Path) -> None:
    """All files of a run, except for times, are bit-exact with those of the unbroken run: weights, EMA, optimizer
    state, best weights, snapshot, log, settings, and model file.
    """
    a, b = latest(folder), latest(unbroken)
    assert_equal(a.tensors, b.tensors)
    a.numbers.seconds = b.numbers.seconds
    assert (a.path.name, a.numbers, a.config, a.info) == (b.path.name, b.numbers, b.config, b.info)
    assert rows(folder) == rows(unbroken)
    assert (folder / "config.toml").read_bytes() == (unbroken / "config.toml").read_bytes()
    a, b = read(folder), read(unbroken)
    assert (a.step, a.guide is None) == (b.step, b.guide is None)
    assert_equal(a.denoiser.state_dict(), b.denoiser.state_dict())
    if a.guide is not None and b.guide is not None:
        assert_equal(a.guide.state_dict(), b.guide.state_dict())
    assert not list(folder.rglob("*.tmp"))


def fails(capsys: pytest.CaptureFixture[str], argv: Sequence[str | Path], code: int, *words: str) -> str:
    """The command ends with this code, and its last line on stderr contains the words. Returns that line."""
    capsys.readouterr()
    got, err = ends([str(word) for word in argv]), capsys.readouterr().err
    assert got == code, err
    *_, sentence = err.splitlines()
    assert sentence.startswith("simple-diffusion: ")
    assert "Traceback" not in err
    for word in words:
        assert word in sentence
    return sentence
