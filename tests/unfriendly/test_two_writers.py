"""Two processes that write the same file or folder at once, and files of other programs beside ours."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY
from faults import begun, ended, fails, hit

from simple_diffusion.data.images import Images
from simple_diffusion.errors import BusyError
from simple_diffusion.evaluation.features import cached_features
from simple_diffusion.run.folder import HOLDER, LOCK, free_folder, hold, refuse_held
from simple_diffusion.system.files import read_tensors, remove_parts, write_atomic, write_tensors


def at_once(*works: Callable[[], object]) -> list[int]:
    """The exit codes of child processes that do the works at the same time."""
    return [ended(child) for child in [begun(work) for work in works]]


def test_two_writers_of_one_file_both_succeed_and_leave_one_whole_file(tmp_path):
    path = tmp_path / "file.safetensors"

    def work(value: float) -> Callable[[], None]:
        def write() -> None:
            for _ in range(60):
                write_tensors(path, {"x": torch.full((5000,), value)}, {})
                assert read_tensors(path)[0]["x"].unique().numel() == 1

        return write

    assert at_once(work(1.0), work(2.0), work(3.0)) == [0, 0, 0]
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_of_the_greatest_length_can_be_written(tmp_path):
    for name in ("a" * 255, "猫" * 85, "\udcff" * 255):
        write_atomic(tmp_path / name, b"content")
    assert {path.stat().st_size for path in tmp_path.iterdir()} == {7}


def test_the_unfinished_file_of_a_killed_writer_is_removed(tmp_path):
    def killed() -> None:
        real = os.fsync
        os.fsync = lambda descriptor: hit(9) if not real(descriptor) else None
        write_atomic(tmp_path / "model.safetensors", b"half")

    assert at_once(killed) == [-9]
    (part,) = tmp_path.iterdir()
    assert part.read_bytes() == b"half"
    remove_parts(tmp_path)
    assert not part.exists()


def test_files_of_other_programs_stay_in_a_run_folder(squares, tmp_path, capsys):
    """A new run refuses a folder that holds any of them; test_faults.py has a resumed run, which leaves them alone."""
    folder = tmp_path / "run"
    folder.mkdir()
    note = folder / "notes.tmp"
    note.write_text("mine")
    argv = ["train", str(squares), "--steps", "2", "--out", str(folder), *TINY]
    fails(capsys, argv, 2, "already exists")
    assert note.read_text() == "mine"


def test_runs_that_start_at_once_take_different_folders(tmp_path):
    names: list[str] = []
    threads = [threading.Thread(target=lambda: names.append(free_folder(tmp_path, "a").name)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names) == [f"a-{number}" for number in range(1, 9)]


def test_two_processes_fill_the_cache_of_features_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images = Images("x", torch.arange(96, dtype=torch.uint8).view(6, 1, 4, 4))

    def extractor(pixels):
        return pixels.flatten(1).float(), torch.zeros(len(pixels), 2)

    def work() -> None:
        for n in range(20):
            assert len(cached_features(images, extractor, f"extractor-{n}")) == 6

    assert at_once(work, work) == [0, 0]
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("emptied", [False, True], ids=["kept", "emptied"])
def test_the_process_that_holds_a_folder_is_named(tmp_path, emptied):
    """Also where filelock empties the file that it locks, as versions 3.13.0 and some later ones do."""
    with hold(tmp_path):
        if emptied:
            Path(tmp_path / LOCK).write_bytes(b"")
        with pytest.raises(BusyError, match=f"in use by process {os.getpid()} on .* since "):
            refuse_held(tmp_path)
    assert (tmp_path / HOLDER).is_file()
    refuse_held(tmp_path)
