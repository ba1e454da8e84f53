"""Several processes: the same run as one process, to the bit; they decide alike, and none waits for one that is gone.

Most tests fork two children that join as torchrun's do, for torch takes seconds to import; a hang ends by SIGALRM.
"""

import importlib
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from conftest import TINY
from faults import after_step, assert_equal, assert_same_run, begun, ended, ends, forked, hit, rows

from simple_diffusion.errors import DataError, DivergedError, ResourceError, UsageError
from simple_diffusion.model.build import ModelSpec
from simple_diffusion.run import budget
from simple_diffusion.run import trainer as run
from simple_diffusion.run.checkpoint import checkpoints, latest
from simple_diffusion.system import distributed as ranks

COMMANDS = [f"simple_diffusion.cli.{name}" for name in ("main", "options", "train", "sample", "evaluate")]


def together(folder, work, world=2):
    """Do the work in so many processes of one run. Returns how each ended, and what it said."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def child(number):
        signal.alarm(120)
        os.environ |= {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(world)}
        for name in COMMANDS:
            module = importlib.import_module(name)
            for constant, value in (("SHARED", True), ("FIRST", number == 0)):
                if hasattr(module, constant):
                    setattr(module, constant, value)
        return work(number)

    outs = [folder / f"said-{number}" for number in range(world)]
    children = [begun(lambda number=number: child(number), outs[number]) for number in range(world)]
    codes = [ended(child) for child in children]
    return codes, [out.read_text() for out in outs]


def command(argv, *contexts):
    """A command in every process, each of which may be disturbed: (number) -> context manager, or None."""

    def work(number):
        with ExitStack() as stack:
            for context in contexts:
                if (disturbance := context(number)) is not None:
                    stack.enter_context(disturbance)
            return ends(argv)

    return work


def only(number, disturb):
    """The disturbance of one process."""
    return lambda me: disturb() if me == number else None


def training(squares, folder, *more, steps=8):
    return ["train", str(squares), "--steps", str(steps), "--out", str(folder), "--device=cpu", *TINY, *more]


# --- the parts -------------------------------------------------------------------------------------------------------


def test_messages(tmp_path):
    def work(me):
        with ranks.process_group():
            assert (ranks.rank(), ranks.world_size()) == (me, 2)
            assert ranks.all_max(me, -me, 5) == [1, 0, 5]
            assert ranks.broadcast(10 + me, True, -me) == [10, 1, 0]
            a = torch.arange(24.0).view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)
            b, c = ranks.all_sum([a * (me + 1), torch.tensor(2.0 + me)])
            assert torch.equal(b, 3 * a)
            assert b.stride() == a.stride()
            assert c == 5
            assert c.shape == ()
            assert ranks.same_everywhere([b"ab", b"c"])
            assert not ranks.same_everywhere([b"01" if me else b"10"])  # the same bytes in another order
            ranks.check_same_settings({"lr": 1})
            ranks.check_same_weights([a, torch.tensor(1.0)])
            for check, thing, error in (
                (ranks.check_same_settings, {"lr": me}, UsageError),
                (ranks.check_same_weights, [torch.tensor([0.0, 1.0]).roll(me)], DivergedError),
                (ranks.check_same_weights, [torch.tensor(0.0 if me else -0.0)], DivergedError),
            ):
                with pytest.raises(error):
                    check(thing)

    codes, said = together(tmp_path, work)
    assert codes == [0, 0], said


def test_what_the_first_does_alone(tmp_path):
    did = tmp_path / "did"

    def work(me):
        def writes():
            did.write_text(did.read_text() + "x" if did.exists() else "x")

        def fails():
            raise ResourceError("the disk is full")

        with ranks.process_group():
            ranks.on_rank0(writes)
            with pytest.raises(ResourceError, match="rank 0" if me else "full") as caught:
                ranks.on_rank0(fails)
            assert caught.value.exit_code == 6

    codes, said = together(tmp_path, work)
    assert codes == [0, 0], said
    assert did.read_text() == "x"


# --- the same as one process -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "more"), [("adamw", ["--precision=fp32"]), ("muon", ["--set=batch=17", "--set=dropout=0.2"])]
)
def test_two_processes_are_two_parts_of_a_batch_to_the_bit(squares, tmp_path, optimizer, more):
    more = [*more, f"--set=optimizer={optimizer}", "--set=held_out=0.1", "--set=patience=0.9", "--set=snapshot=0.3"]
    assert ends(training(squares, tmp_path / "one", "--set=accumulate=2", *more, steps=20)) == 0
    codes, said = together(tmp_path, command(training(squares, tmp_path / "two", *more, steps=20)))
    assert codes == [0, 0], said
    assert said[1] == ""
    one, two = latest(tmp_path / "one"), latest(tmp_path / "two")
    assert (two.numbers.n, two.made_by["processes"]) == (20, 2)
    assert two.numbers.best == one.numbers.best is not None
    assert_equal(two.tensors, one.tensors)
    assert rows(tmp_path / "two") == rows(tmp_path / "one")


def test_two_processes_are_one_large_batch_to_rounding(squares, tmp_path):
    """For some steps only: where a gradient is nearly 0, AdamW makes much of its last bits."""
    more = ["--precision=fp32", "--set=optimizer=adamw"]
    assert ends(training(squares, tmp_path / "one", *more, steps=5)) == 0
    assert together(tmp_path, command(training(squares, tmp_path / "two", *more, steps=5)))[0] == [0, 0]
    one, two = ({k: t for k, t in latest(tmp_path / f).tensors.items() if "model." in k} for f in ("one", "two"))
    far = [torch.linalg.vector_norm(two[k] - t) for k, t in one.items()]
    norm = torch.stack([torch.linalg.vector_norm(t) for t in one.values()]).norm()
    assert torch.stack(far).norm() < 1e-6 * norm


def test_two_processes_draw_and_score_the_same_images(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("simple_diffusion.evaluation.classifier.SEEN", 20 * 86 * 32**2)  # enough for squares

    def both(name, *argv):
        argv = [argv[0], str(run_folder), *argv[1:], "--out"]
        assert ends([*argv, str(tmp_path / f"one-{name}")]) == 0
        codes, said = together(tmp_path, command([*argv, str(tmp_path / f"two-{name}")]))
        assert (codes, said[1]) == ([0, 0], "")
        return tmp_path / f"one-{name}", tmp_path / f"two-{name}"

    for name, argv in {
        "some.npz": ["--n", "200"],  # batches for both
        "few.png": ["--n", "3"],  # none for the second
        "film.png": ["--film", "--n", "2"],
    }.items():
        one, two = both(name, "sample", *argv)
        assert one.read_bytes() == two.read_bytes(), name
    one, two = both("scores", "evaluate", "--n", "140")
    files = sorted(path.name for path in one.iterdir())
    assert files == sorted(path.name for path in two.iterdir())
    for file in files:
        texts = [re.sub(rb'"sampling_seconds": [\d.]+', b"", (f / file).read_bytes()) for f in (one, two)]
        assert texts[0] == texts[1], file


# --- all decide alike ------------------------------------------------------------------------------------------------


def fast_clock():
    """A clock that is ahead, and ten times too fast."""
    real = time.perf_counter
    return patch.object(budget.time, "perf_counter", lambda: 100 + 10 * real())


def test_the_clock_is_that_of_the_first(squares, tmp_path):
    argv = training(squares, tmp_path / "run", "--set=save_seconds=0.3")
    argv[2:4] = ["--for", "3s"]
    codes, said = together(tmp_path, command(argv, only(1, fast_clock)))
    assert codes == [0, 0], said
    assert 2.5 < latest(tmp_path / "run").numbers.seconds < 60
    assert len(rows(tmp_path / "run")) > 2


def test_a_signal_to_one_stops_all_and_they_go_on(squares, tmp_path):
    assert together(tmp_path, command(training(squares, tmp_path / "unbroken")))[0] == [0, 0]
    stopped, argv = tmp_path / "stopped", training(squares, tmp_path / "stopped")
    codes, said = together(tmp_path, command(argv, only(1, lambda: after_step(5, lambda: hit(signal.SIGTERM)))))
    assert codes == [143, 143], said
    assert "after 5 steps" in said[0]
    assert latest(stopped).numbers.n == 5
    codes, said = together(tmp_path, command([*argv, "--resume"]))
    assert codes == [0, 0], said
    assert "last bits" not in said[0]
    assert_same_run(stopped, tmp_path / "unbroken")


def test_a_run_goes_on_with_another_number_of_processes(squares, tmp_path, capsys):
    argv = training(squares, tmp_path / "run")
    stop = lambda number: after_step(4, lambda: hit(signal.SIGTERM))  # noqa: E731
    assert together(tmp_path, command(argv, stop))[0] == [143, 143]
    assert ends([*argv, "--resume"]) == 0
    assert "processes is 1 and was 2" in capsys.readouterr().out
    assert latest(tmp_path / "run").numbers.done


def test_a_signal_to_one_at_the_very_end_does_not_part_them(squares, tmp_path):
    real = run.Trainer.finish

    def finish(trainer):
        hit(signal.SIGTERM)
        return real(trainer)

    argv = training(squares, tmp_path / "run")
    codes, said = together(tmp_path, command(argv, only(1, lambda: patch.object(run.Trainer, "finish", finish))))
    assert codes == [143, 143], said


def poisoned():
    """A loss that is not finite in the steps 3 and 4, for one sample."""
    real = ModelSpec.training_loss

    def spoilt_loss(spec):
        loss = real(spec)

        def spoilt(denoiser, x0, cond, draws):
            losses = loss(denoiser, x0, cond, draws)
            return (
                losses * torch.where(torch.arange(len(losses)) == 2, torch.nan, 1.0) if draws.step in (3, 4) else losses
            )

        return spoilt

    return patch.object(ModelSpec, "training_loss", spoilt_loss)


def test_a_loss_that_is_not_finite_in_one_stops_all_in_the_same_step(squares, tmp_path):
    codes, said = together(tmp_path, command(training(squares, tmp_path / "run"), only(1, poisoned)))
    assert codes == [4, 4], said
    assert all("the loss of step 3 is not finite" in text for text in said)
    assert "process 1" in said[1]


def test_a_step_that_is_left_out_in_one_is_left_out_in_all(squares, tmp_path):
    argv = training(squares, tmp_path / "run", "--set=max_skipped=2", "--set=save_seconds=0")
    codes, said = together(tmp_path, command(argv, only(1, poisoned)))
    assert codes == [0, 0], said  # and after every step they held the same weights
    assert said[0].count("was left out") == 2
    assert "was left out" not in said[1]


def test_other_settings_are_refused(squares, tmp_path):
    work = lambda me: ends(training(squares, tmp_path / "run", f"--set=lr={0.001 + me / 1000}"))  # noqa: E731
    codes, said = together(tmp_path, work)
    assert codes == [2, 2], said
    assert "different settings or data" in said[0]


def test_other_weights_are_found_before_they_are_saved(squares, tmp_path):
    def drift():
        def work():
            weights = next(trainers[0].state.denoiser.parameters())
            weights.data.view(-1)[0] += 1e-6

        real, trainers = run.Trainer.train, []

        def train(trainer):
            trainers.append(trainer)
            return real(trainer)

        stack = ExitStack()
        stack.enter_context(patch.object(run.Trainer, "train", train))
        stack.enter_context(after_step(4, work))
        return stack

    argv = training(squares, tmp_path / "run", "--set=save_seconds=0")
    codes, said = together(tmp_path, command(argv, only(1, drift)))
    assert codes == [4, 4], said
    assert "different weights" in said[0]
    assert latest(tmp_path / "run").numbers.n == 3


# --- one goes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", [1, 0])
def test_when_one_is_killed_the_other_says_so(squares, tmp_path, victim):
    argv = training(squares, tmp_path / "run", "--set=save_seconds=0")
    kill = only(victim, lambda: after_step(4, lambda: hit(signal.SIGKILL)))
    codes, said = together(tmp_path, command(argv, kill))
    assert (codes[victim], codes[1 - victim]) == (-signal.SIGKILL, 6), said
    assert f"rank {victim} of this run failed" in said[1 - victim]
    assert latest(tmp_path / "run").numbers.n == 3


@pytest.mark.slow
def test_of_four_the_one_that_is_killed_is_named_by_all(squares, tmp_path):
    kill = only(2, lambda: after_step(4, lambda: hit(signal.SIGKILL)))
    codes, said = together(tmp_path, command(training(squares, tmp_path / "run"), kill), world=4)
    assert codes == [6, 6, -9, 6], said
    for number in (0, 1, 3):
        assert "rank 2 of this run failed" in said[number]


def test_an_error_of_one_ends_the_other(squares, tmp_path):
    def broken(*args, **kwargs):
        raise DataError("no such data here")

    spoil = only(1, lambda: patch("simple_diffusion.data.sources.load_images", broken))
    codes, said = together(tmp_path, command(training(squares, tmp_path / "run"), spoil))
    assert codes == [6, 3], said
    assert "rank 1 of this run failed" in said[0]
    assert said[1].strip() == "simple-diffusion (process 1): no such data here"


def no_large_files():
    """From step 4 on the disk takes no file of more than 1000 bytes."""
    return after_step(4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY)))


def folder_is_a_file(folder):
    def spoil():
        for path in checkpoints(folder):
            path.unlink()
        (folder / "checkpoints").rmdir()
        (folder / "checkpoints").write_text("")

    return after_step(4, spoil)


@pytest.mark.parametrize("how", ["limit", "file"])
def test_when_the_first_cannot_save_all_end(squares, tmp_path, how):
    folder = tmp_path / "run"
    spoil = no_large_files if how == "limit" else lambda: folder_is_a_file(folder)
    argv = training(squares, folder, "--set=save_seconds=0")
    codes, said = together(tmp_path, command(argv, only(0, spoil)))
    assert codes == [6, 6], said
    assert "can't be written" in said[0]
    assert "rank 0 of this run failed" in said[1]


def test_without_the_others_the_sentence_says_so(tmp_path):
    """The port that they would meet at belongs to somebody else."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        def work():
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "WORLD_SIZE": "2"}
            with (
                pytest.raises(ResourceError, match="this process could not join the other processes of the run: "),
                ranks.process_group(),
            ):
                raise AssertionError

        assert forked(work, tmp_path / "said") == 0, (tmp_path / "said").read_text()


def test_other_commands_are_done_by_the_first_alone(tmp_path):
    codes, said = together(tmp_path, lambda me: ends(["schedules", "flow", "--out", str(tmp_path / f"{me}.png")]))
    assert codes == [0, 0], said
    assert [path.name for path in tmp_path.glob("*.png")] == ["0.png"]


# --- torchrun itself -------------------------------------------------------------------------------------------------


def torchrun(argv, **kwargs):
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "--", "simple_diffusion", *argv]
    return subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)


def worker(launcher, number):
    """The process of torchrun that has this number."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text()
    for child in children.split():
        if f"RANK={number}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
            return int(child)
    raise AssertionError(number)


def await_rows(folder, count):
    for _ in range(1200):
        if (folder / "log.csv").exists() and len(rows(folder)) > count:
            return
        time.sleep(0.1)
    raise AssertionError("the run does not start")


def test_torchrun(squares, tmp_path, run_folder):
    """What the other tests play, once for real; `--n` is for us, and not for torchrun."""
    process = torchrun(["sample", str(run_folder), "--n", "70", "--json", "--out", str(tmp_path / "two.npz")])
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.count('"n": 70') == 1
    assert ends(["sample", str(run_folder), "--n", "70", "--out", str(tmp_path / "one.npz")]) == 0
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["torchrun", "process 1"])
def test_sigterm_under_torchrun(squares, tmp_path, whom):
    folder = tmp_path / "run"
    process = torchrun(training(squares, folder, steps=10**6))
    await_rows(folder, 0)
    time.sleep(1)
    os.kill(process.pid if whom == "torchrun" else worker(process, 1), signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "Stopped after" in out, err
    assert latest(folder).numbers.n > 0
    assert f"after {latest(folder).numbers.n:,} steps" in out


@pytest.mark.slow
def test_a_killed_process_under_torchrun(squares, tmp_path):
    folder = tmp_path / "run"
    process = torchrun(training(squares, folder, steps=10**6))
    await_rows(folder, 0)
    os.kill(worker(process, 1), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    root = err[err.index("Root Cause") :]
    assert "rank      : 1 " in root
    assert "SIGKILL" in root
