"""Checkpoints survive what happens to machines: kill -9 at any moment, bad disks, full disks.

The children are forked, and /proc names their files: these tests are for Linux.
"""

import random
import resource
import shutil
import signal
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from conftest import TINY
from faults import (
    TOKEN,
    Countdown,
    assert_equal,
    assert_same_run,
    ends,
    fails,
    forked,
    full,
    stopped_after,
    tree,
    watched,
)

import simple_diffusion.run.trainer as run
from simple_diffusion.errors import ResourceError
from simple_diffusion.run.checkpoint import checkpoints, latest, read_checkpoint, room_for
from simple_diffusion.system.files import read_tensors, write_tensors

STEPS = 4
EVERY = ["--set=save_seconds=0", "--set=snapshot=0.5", "--set=held_out=0.1", "--set=sampler_steps=1"]


def command(squares: Path, out: Path, *more: str) -> list[str]:
    """A run that saves after every step."""
    return ["train", str(squares), "--steps", str(STEPS), "--out", str(out), *TINY, *EVERY, *more]


@pytest.fixture(scope="module", autouse=True)
def few_drawings():
    """Pictures are not what is tested here, but for the last and one before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "PICTURES", (0.5,))
        patch.setattr(run, "MAX_PICTURE_SHARE", 1.0)
        patch.setattr(run, "CHECKS", 2)
        yield


@pytest.fixture(scope="module")
def unbroken(squares, tmp_path_factory) -> Path:
    """The folder of the run that nothing happens to."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert ends(command(squares, folder)) == 0
    return folder


# --- kill -9 ----------------------------------------------------------------------------------------------------------


def goes_on(argv: list[str], folder: Path, unbroken: Path) -> None:
    """The same command with --resume finishes the run; where none was saved yet, the very same command does."""
    if checkpoints(folder):
        assert ends([*argv, "--resume"]) == 0
    else:
        assert ends([*argv, "--resume"]) == 5
        assert ends(argv) == 0
    assert_same_run(folder, unbroken)


def killed_at(number: int, argv: list[str]) -> int:
    """How a child ends that runs the command and is killed before this event of its files."""

    def work() -> int:
        with watched(Countdown(number)):
            return ends(argv)

    return forked(work)


def events(argv: list[str], out: Path) -> list[tuple[str, str]]:
    """What a command does to files, in order: (what, name)."""
    seen: list[tuple[str, str]] = []
    with watched(lambda what, path, size: seen.append((what, path.name))):
        assert ends([*argv, "--out", str(out)]) == 0
    return seen


def test_a_run_survives_kill_at_the_events_of_a_save(squares, tmp_path, unbroken):
    """Here where the kind of event changes, every second time; in the slow test below at every event of a run."""
    seen = events(command(squares, tmp_path), tmp_path / "counted")
    first = seen.index(("open", "step-00000002.safetensors.tmp")) - 1  # the log's fsync before it
    last = seen.index(("unlink", "step-00000000.safetensors")) + 2  # the oldest is removed after it
    assert {what for what, _ in seen[first:last]} >= {"write", "fsync", "read", "replace", "unlink"}
    kinds = [what for what, _ in seen]
    at_each = [number for number in range(first, last) if kinds[number] != kinds[number - 1]]
    for number in at_each[::2]:
        folder = tmp_path / str(number)
        assert killed_at(number, command(squares, folder)) == -signal.SIGKILL
        assert {path.name for path in checkpoints(folder)} >= {"step-00000001.safetensors"}
        goes_on(command(squares, folder), folder, unbroken)


def test_a_run_survives_kill_before_the_first_checkpoint(squares, tmp_path, unbroken):
    for number in (1, 9):
        folder = tmp_path / str(number)
        assert killed_at(number, command(squares, folder)) == -signal.SIGKILL
        goes_on(command(squares, folder), folder, unbroken)


@pytest.mark.slow
def test_a_run_survives_kill_at_every_event(squares, tmp_path, unbroken):
    number, how = 1, -signal.SIGKILL
    while how == -signal.SIGKILL:
        folder = tmp_path / str(number)
        how = killed_at(number, command(squares, folder))
        goes_on(command(squares, folder), folder, unbroken)
        shutil.rmtree(folder)
        number += 1
    assert how == 0
    assert number > 100


@pytest.mark.slow
def test_a_run_survives_kill_at_25_random_times(squares, tmp_path, unbroken):
    """By an alarm clock, within the time that the run takes here: whatever the process is doing then."""
    begun = time.perf_counter()
    assert forked(lambda: ends(command(squares, tmp_path / "timed"))) == 0
    whole = time.perf_counter() - begun
    times = random.Random(0)
    killed = 0
    for number in range(25):
        folder = tmp_path / str(number)

        seconds = times.uniform(0.05, 1.0) * whole

        def work(folder=folder, seconds=seconds) -> int:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # it kills
            signal.setitimer(signal.ITIMER_REAL, seconds)
            return ends(command(squares, folder))

        how = forked(work)
        killed += how == -signal.SIGALRM
        assert how in (0, -signal.SIGALRM)
        goes_on(command(squares, folder), folder, unbroken)
        shutil.rmtree(folder)
    assert killed > 5


def test_only_temporary_files_of_the_killed_run_are_removed(squares, tmp_path, unbroken):
    folder = tmp_path / "run"
    stopped_after(2, command(squares, folder))
    own = ("samples/step-00000001.png", "checkpoints/step-00000009.safetensors", "log.csv")
    others = (f"samples/n100-seed0.png.{TOKEN}.tmp", "notes.tmp", "log.csv.tmp")  # of a `sample` at work, of the user
    for part in (*(f"{name}.{TOKEN}.tmp" for name in own), *others):
        (folder / part).parent.mkdir(exist_ok=True)
        (folder / part).write_bytes(b"half")
    assert ends([*command(squares, folder), "--resume"]) == 0
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.tmp")} == {*others}


# --- damaged files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(unbroken, tmp_path) -> tuple[Path, Path]:
    """The two checkpoints of a finished run, the newest first."""
    shutil.copytree(unbroken, tmp_path / "run")
    newest, before = checkpoints(tmp_path / "run")
    return newest, before


def assert_goes_back(newest: Path, before: Path) -> None:
    """The newest checkpoint is found damaged, and the one before taken for it; that is said, in words of one line."""
    found = latest(newest.parent.parent)
    assert found.path == before
    remark, *_ = found.remarks()
    assert newest.name in remark
    assert before.name in remark
    assert "\n" not in remark


def test_100_flipped_bits_are_detected(pair):
    newest, before = pair
    whole, places = newest.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    spots = [*range(8), *places.sample(range(8, header), 32), *places.sample(range(header, len(whole)), 60)]
    for spot in spots:
        bad = bytearray(whole)
        bad[spot] ^= 1 << places.randrange(8)
        newest.write_bytes(bad)
        assert_goes_back(newest, before)
    assert len(spots) == 100
    newest.write_bytes(whole)
    assert latest(newest.parent.parent).path == newest


def test_50_truncated_files_are_detected(pair):
    newest, before = pair
    whole = newest.read_bytes()
    lengths = [0, 1, 7, 8, 9, *(len(whole) * i // 44 for i in range(1, 44)), len(whole) - 1, len(whole) + 1]
    for length in lengths:
        newest.write_bytes((whole + b"\0")[:length])
        assert_goes_back(newest, before)
    assert len(lengths) == 50


def test_intact_files_give_no_false_alarm(pair, tmp_path):
    found = latest(pair[0].parent.parent)
    for number in range(20):
        generator = torch.Generator().manual_seed(number)
        tensors = {name: torch.randn(t.shape, generator=generator) for name, t in found.tensors.items()}
        about = {"config": vars(found.config), "info": vars(found.info), "made_by": found.made_by}
        write_tensors(tmp_path / "good.safetensors", tensors, {**about, "numbers": vars(found.numbers)})
        assert_equal(read_checkpoint(tmp_path / "good.safetensors").tensors, tensors)


ODD = {
    "a folder": lambda path: path.mkdir(),
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "text": lambda path: path.write_text("hello"),
}


@pytest.mark.parametrize(
    "make", [pytest.param(make, id=name, marks=[pytest.mark.slow] * ("link" in name)) for name, make in ODD.items()]
)
def test_a_file_that_is_not_a_checkpoint_is_skipped_and_later_removed(squares, unbroken, tmp_path, capsys, make):
    """Two of them, so that the newest two names are both bad: what is saved next must not be taken for the oldest."""
    folder = tmp_path / "run"
    stopped_after(1, command(squares, folder))
    odd = [folder / "checkpoints" / f"step-0000000{n}.safetensors" for n in (7, 8)]
    for path in odd:
        make(path)
    capsys.readouterr()
    stopped_after(2, [*command(squares, folder), "--resume"])
    said = capsys.readouterr().out
    assert all(path.name in said for path in odd)
    assert "resuming from step-00000001" in said
    assert latest(folder).numbers.n == 2
    assert ends([*command(squares, folder), "--resume"]) == 0
    for path in folder.glob("checkpoints/step-0000000[78].*"):
        path.rmdir()  # a folder is not removed: somebody made it
    assert_same_run(folder, unbroken)


def test_a_checkpoint_that_cannot_be_opened_is_skipped(pair, monkeypatch):
    newest, before = pair

    def opened(path, *args, **kwargs):
        if path == newest:
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, *args, **kwargs)

    monkeypatch.setattr("simple_diffusion.system.files.open", opened, raising=False)
    assert_goes_back(newest, before)


def test_a_run_without_an_intact_checkpoint_is_refused(squares, pair, capsys):
    for path in pair:
        path.write_bytes(path.read_bytes()[:-1])
    folder = pair[0].parent.parent
    before = tree(folder)
    fails(capsys, [*command(squares, folder), "--resume"], 5, "are damaged", pair[0].name)
    assert tree(folder) == before


def test_the_error_for_nan_names_the_tensor(squares, pair, capsys):
    newest, _ = pair
    folder, found = newest.parent.parent, latest(newest.parent.parent)
    name = "model.net.head.weight"
    found.tensors[name].view(-1)[5] = float("nan")
    about = {"config": vars(found.config), "info": vars(found.info), "made_by": found.made_by}
    write_tensors(newest, found.tensors, {**about, "numbers": vars(found.numbers)})
    before = tree(folder)
    fails(capsys, [*command(squares, folder), "--resume"], 5, name, "NaN or infinity")
    assert {**tree(folder), "lock.txt": before["lock.txt"]} == before
    model = folder / "model.safetensors"
    weights, record = read_tensors(model)
    weights["net.head.weight"].view(-1)[5] = float("inf")
    write_tensors(model, weights, {key: value for key, value in record.items() if key != "format"})
    fails(capsys, ["sample", str(folder)], 5, "net.head.weight", "NaN or infinity")


# --- full disks -------------------------------------------------------------------------------------------------------

STEP_2 = "step-00000002.safetensors"
FULL = {
    **{f"checkpoint at byte {k:,}": ("write", f"{STEP_2}.tmp", k) for k in (0, 1, 200_000, 340_000)},
    "checkpoint, opened": ("open", f"{STEP_2}.tmp", 0),
    "checkpoint, fsync": ("fsync", f"{STEP_2}.tmp", 0),
    "checkpoint, replace": ("replace", f"{STEP_2}.tmp", 0),
    "checkpoint, folder's fsync": ("fsync", "checkpoints", 0),
    "log, its row": ("write", "log.csv", 100),
    "log, fsync": ("fsync", "log.csv", 0),
    "log, opened": ("open", "log.csv", 0),
    "picture": ("write", "step-00000002.png.tmp", 0),
    "samples": ("mkdir", "samples", 0),
    "model": ("write", "model.safetensors.tmp", 0),
    "settings": ("write", "config.toml.tmp", 0),
}


SAME_LINES = {  # as another case
    "checkpoint at byte 0",
    "checkpoint at byte 1",
    "checkpoint at byte 200,000",
    "checkpoint, fsync",
    "samples",
    "model",
    "settings",
}


@pytest.mark.parametrize(
    "where",
    [
        pytest.param(where, id=name, marks=[pytest.mark.slow] if name in SAME_LINES else [])
        for name, where in FULL.items()
    ],
)
def test_a_full_disk_gives_one_message_and_saved_files_remain(squares, tmp_path, unbroken, capsys, where):
    folder = tmp_path / "run"
    with watched(full(*where)):
        fails(capsys, command(squares, folder), 6, str(folder), "No space left", "free the disk")
    saved = latest(folder)
    assert saved.damaged == ()
    assert read_checkpoint(saved.path).numbers == saved.numbers
    assert ends([*command(squares, folder), "--resume"]) == 0
    assert_same_run(folder, unbroken)


def test_a_disk_that_is_full_from_the_first_byte_gives_one_message(squares, tmp_path, unbroken, capsys):
    folder = tmp_path / "run"
    with watched(full("write", ".tmp")):
        fails(capsys, command(squares, folder), 6, str(folder), "No space left")
    assert not checkpoints(folder)
    goes_on(command(squares, folder), folder, unbroken)


@pytest.mark.parametrize("bytes_", [pytest.param(10_000, marks=pytest.mark.slow), 60_000])
def test_a_limit_on_the_file_size_gives_one_message(squares, tmp_path, unbroken, bytes_):
    """A real short write: the kernel takes a part, and then no more."""
    folder = tmp_path / "run"
    stopped_after(1, command(squares, folder))
    before = latest(folder)

    def work() -> int:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, hard))
        return ends([*command(squares, folder), "--resume"])

    assert forked(work, tmp_path / "said") == 6
    *_, sentence = (tmp_path / "said").read_text().splitlines()
    assert sentence.startswith("simple-diffusion: ")
    assert "File too large" in sentence
    assert_equal(latest(folder).tensors, before.tensors)
    goes_on(command(squares, folder), folder, unbroken)


def test_too_little_disk_space_is_an_error_before_the_first_step(squares, tmp_path, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 10**5, 10**5))
    monkeypatch.setattr("simple_diffusion.run.steps.train", None)  # no step is made
    fails(capsys, command(squares, tmp_path / "run"), 6, "needs", "room", "free the disk")
    assert list(tree(tmp_path / "run")) == ["lock", "lock.txt"]


def test_the_required_disk_space_is_enough(squares, tmp_path, unbroken):
    """What a run keeps, and one checkpoint more, in the optimiser that takes the most."""
    asked = []

    def room(folder, now):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(0))
            with pytest.raises(ResourceError) as refused:
                room_for(folder, now)
        asked.append(float(str(refused.value).rpartition(" needs ")[2].split(" MB")[0].replace(",", "")))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "room_for", room)
        stopped_after(2, command(squares, tmp_path / "run", "--set=optimizer=adamw", "--set=widths=32,64"))
    (newest, _), model = checkpoints(tmp_path / "run"), tmp_path / "run" / "model.safetensors"
    taken = (3 * newest.stat().st_size + 2 * model.stat().st_size) / 1e6
    assert 0.8 * taken < asked[0] < 2 * taken
