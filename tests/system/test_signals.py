"""Ctrl-C and SIGTERM at any moment: the run is saved, and the exit code shows the signal. One run per folder."""

import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import TINY
from faults import (
    after_step,
    assert_same_run,
    begun,
    ended,
    ends,
    fails,
    forked,
    hit,
    tree,
    unprivileged,
    watched,
)
from filelock import FileLock

import simple_diffusion.model.generate as drawing
import simple_diffusion.run.folder as lock
import simple_diffusion.run.trainer as run
from simple_diffusion.errors import BusyError
from simple_diffusion.run.checkpoint import latest
from simple_diffusion.run.folder import hold

STEPS = 6
BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
TERM, INT = signal.SIGTERM, signal.SIGINT


def command(squares: Path, out: Path) -> list[str]:
    return ["train", str(squares), "--steps", str(STEPS), "--out", str(out), *TINY, "--set=sampler_steps=1"]


@pytest.fixture(scope="module")
def unbroken(squares, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert ends(command(squares, folder)) == 0
    return folder


@pytest.mark.parametrize(("number", "step"), [(TERM, 1), (INT, 3), (TERM, STEPS)])
def test_a_signal_saves_the_step_in_which_it_arrives(squares, tmp_path, unbroken, capsys, number, step):
    argv = command(squares, tmp_path / "run")
    with after_step(step, lambda: hit(number)):
        assert ends(argv) == 128 + number
    assert f"--resume --out {tmp_path / 'run'}" in capsys.readouterr().out
    assert latest(tmp_path / "run").numbers.n == step
    assert ends([*argv, "--resume"]) == 0
    assert_same_run(tmp_path / "run", unbroken)


def test_a_signal_during_sampling_stops_it_and_the_run_after_one_more_step(squares, tmp_path, unbroken, monkeypatch):
    monkeypatch.setattr(run, "PICTURES", (0.5,))
    real = drawing.to_uint8
    with monkeypatch.context() as patch:
        patch.setattr(drawing, "to_uint8", lambda x: (hit(INT), real(x))[1])
        assert ends(command(squares, tmp_path / "run")) == 128 + INT
    assert latest(tmp_path / "run").numbers.n == 4
    assert not (tmp_path / "run" / "samples").exists()
    assert ends([*command(squares, tmp_path / "run"), "--resume"]) == 0
    assert_same_run(tmp_path / "run", unbroken)


def test_a_signal_during_the_last_sampling(squares, tmp_path, unbroken, monkeypatch):
    real = drawing.to_uint8
    monkeypatch.setattr(run, "PICTURES", ())
    with monkeypatch.context() as patch:
        patch.setattr(drawing, "to_uint8", lambda x: (hit(signal.SIGTERM), real(x))[1])
        assert ends(command(squares, tmp_path / "run")) == 143
    assert latest(tmp_path / "run").numbers.done
    assert not (tmp_path / "run" / "samples").exists()
    assert ends([*command(squares, tmp_path / "run"), "--resume"]) == 0
    assert (tmp_path / "run" / "samples" / f"step-{STEPS:08d}.png").exists()
    assert_same_run(tmp_path / "run", unbroken)


def test_further_signals_during_the_save_do_no_harm(squares, tmp_path, unbroken):
    """SIGTERM in a step, then SIGINT at each file operation."""
    stopping = []

    def again(what: str, path: Path, size: int) -> None:
        if stopping:
            hit(signal.SIGINT)

    with watched(again), after_step(3, lambda: (stopping.append(1), hit(signal.SIGTERM))):
        assert ends(command(squares, tmp_path / "run")) == 130  # the last signal counts
    assert latest(tmp_path / "run").numbers.n == 3
    assert ends([*command(squares, tmp_path / "run"), "--resume"]) == 0
    assert_same_run(tmp_path / "run", unbroken)


# --- sample ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "name"), [(TERM, "s.png"), (INT, "s.npz"), (TERM, "folder")])
def test_an_interrupted_sample_command_leaves_no_file(run_folder, tmp_path, number, name):
    """At each operation on the output file: the file is complete or does not exist."""
    out = tmp_path / name
    argv = ["sample", str(run_folder), "--n", "2", "--steps", "1", "--out", str(out)]
    for event in ("open", "write", "fsync", "replace"):

        def work(event=event) -> int:
            with watched(lambda what, path, size: hit(number) if what == event else None):
                return ends(argv)

        assert forked(work, tmp_path / "output") == 128 + number
        assert "Traceback" not in (tmp_path / "output").read_text()
        assert [path.name for path in tmp_path.iterdir()] == ["output"]


@BOTH
def test_the_sample_command_stops_between_batches(run_folder, tmp_path, number):
    """With two threads."""
    real = drawing.to_uint8

    def work() -> int:
        torch.set_num_threads(2)
        drawing.to_uint8 = lambda x: (hit(number), real(x))[1]
        return ends(["sample", str(run_folder), "--n", "130", "--out", str(tmp_path / "s.npz")])

    assert forked(work, tmp_path / "output") == 128 + number
    assert (tmp_path / "output").read_text() == ("simple-diffusion: stopped\n" if number == signal.SIGINT else "")
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_the_signal_handler_is_restored(run_folder, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    assert ends(["sample", str(run_folder), "--n", "1", "--steps", "1", "--out", str(tmp_path / "s.png")]) == 0
    assert signal.getsignal(signal.SIGTERM) == before


# --- one run a folder ------------------------------------------------------------------------------------------------


def holder(folder: Path) -> int:
    """A child process that holds a folder forever."""
    ready, tell = os.pipe()

    def work() -> None:
        with hold(folder):
            os.write(tell, b"!")
            signal.pause()

    child = begun(work)
    assert os.read(ready, 1) == b"!"
    os.close(ready)
    os.close(tell)
    return child


def test_a_second_run_is_refused_until_the_first_one_dies(squares, tmp_path, unbroken, capsys):
    folder = tmp_path / "run"
    with after_step(2, lambda: hit(signal.SIGTERM)):
        ends(command(squares, folder))
    child = holder(folder)
    before = tree(folder)
    for more in ([], ["--resume"]):
        fails(capsys, [*command(squares, folder), *more], 7, str(folder), f"process {child} on {os.uname().nodename}")
    assert tree(folder) == before
    os.kill(child, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL
    assert ends([*command(squares, folder), "--resume"]) == 0
    assert_same_run(folder, unbroken)


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    for _ in range(3):
        child = holder(tmp_path / "run")
        with pytest.raises(BusyError, match=f"process {child} "), hold(tmp_path / "run"):
            pass
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL
        with hold(tmp_path / "run"):
            pass


def test_a_lock_without_the_name_of_its_process_is_respected(tmp_path):
    holder = FileLock(tmp_path / "lock")
    holder.acquire()
    with pytest.raises(BusyError, match="in use by another process"), hold(tmp_path):
        pass
    holder.release()


def test_a_process_that_releases_the_folder_before_its_name_is_read(tmp_path, monkeypatch):
    holder = FileLock(tmp_path / "lock")
    holder.acquire()
    monkeypatch.setattr(lock, "refuse_held", lambda folder: holder.release())
    with pytest.raises(BusyError, match="in use a moment ago: try again"), hold(tmp_path):
        pass
    with hold(tmp_path):
        pass


def test_a_folder_that_cannot_be_locked_is_reported(squares, tmp_path, capsys, monkeypatch):
    tmp_path.chmod(0o755)  # relative paths from here on: other users can't enter the parent folders
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    fails(capsys, command(squares, Path("file/run")), 6, "file/run cannot be used", "choose another --out")
    Path("run").mkdir()
    Path("run/lock").touch(0o444)
    before = tree(tmp_path)
    with unprivileged():
        fails(capsys, command(squares, Path("run")), 6, "run cannot be used", "Permission denied")
    assert tree(tmp_path) == before


def test_a_folder_that_another_rank_creates_meanwhile_is_not_taken(tmp_path, monkeypatch):
    folder, real = tmp_path / "run", Path.is_dir

    def late(path):
        answer = real(path)
        if path == folder:
            os.makedirs(folder, exist_ok=True)
        return answer

    monkeypatch.setattr(Path, "is_dir", late)
    lock.refuse_taken(folder)
