"""A run in several processes is bit-exact with one process, all processes decide alike, and a failure ends all.

Most tests fork two children in place of torchrun, because to import torch takes seconds. SIGALRM ends one that hangs.
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
from simple_diffusion.run.checkpoint import latest
from simple_diffusion.system import distributed as ranks

importlib.import_module("torch._dynamo")  # once here instead of in each child
COMMANDS = [f"simple_diffusion.cli.{name}" for name in ("main", "options", "train", "sample", "evaluate")]


def together(folder, work, world=2):
    """Do the work in `world` processes of one run. Returns their exit codes and outputs."""
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

    outs = [folder / f"output-{number}" for number in range(world)]
    children = [begun(lambda number=number: child(number), outs[number]) for number in range(world)]
    codes = [ended(child) for child in children]
    return codes, [out.read_text() for out in outs]


def command(argv, *contexts):
    """A command for each process, inside contexts (number) -> context manager, or None."""

    def work(number):
        with ExitStack() as stack:
            for context in contexts:
                if (fault := context(number)) is not None:
                    stack.enter_context(fault)
            return ends(argv)

    return work


def only(number, fault):
    """A fault in one process."""
    return lambda me: fault() if me == number else None


def training(squares, folder, *more, steps=6):
    return ["train", str(squares), "--steps", str(steps), "--out", str(folder), "--device=cpu", *TINY, *more]


# --- functions -------------------------------------------------------------------------------------------------------


def test_collective_operations(tmp_path):
    written = tmp_path / "written"

    def work(me):
        def write():
            written.write_text(written.read_text() + "x" if written.exists() else "x")

        def fail():
            raise ResourceError("the disk is full")

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
            ranks.on_rank0(write)
            with pytest.raises(ResourceError, match="rank 0" if me else "full") as caught:
                ranks.on_rank0(fail)
            assert caught.value.exit_code == 6
            for check, thing, error in (
                (ranks.check_same_settings, {"lr": me}, UsageError),
                (ranks.check_same_weights, [torch.tensor([0.0, 1.0]).roll(me)], DivergedError),
                (ranks.check_same_weights, [torch.tensor(0.0 if me else -0.0)], DivergedError),
            ):
                with pytest.raises(error):
                    check(thing)

    codes, outputs = together(tmp_path, work)
    assert codes == [0, 0], outputs
    assert written.read_text() == "x"


# --- as one process --------------------------------------------------------------------------------------------------


def test_two_processes_are_bit_exact_with_two_gradient_accumulation_steps(squares, tmp_path):
    """With a batch that the processes share unevenly, dropout, held-out loss and snapshot."""
    more = [f"--set={pair}" for pair in ("batch=17", "dropout=0.2", "held_out=0.1", "patience=0.9", "snapshot=0.3")]
    assert ends(training(squares, tmp_path / "one", "--set=accumulate=2", *more)) == 0
    codes, outputs = together(tmp_path, command(training(squares, tmp_path / "two", *more)))
    assert codes == [0, 0], outputs
    assert outputs[1] == ""
    one, two = latest(tmp_path / "one"), latest(tmp_path / "two")
    assert (two.numbers.n, two.made_by["processes"]) == (6, 2)
    assert two.numbers.best == one.numbers.best is not None
    assert_equal(two.tensors, one.tensors)
    assert rows(tmp_path / "two") == rows(tmp_path / "one")


def test_two_processes_match_one_process_up_to_rounding(squares, tmp_path):
    """Only in the first steps: AdamW amplifies rounding errors where a gradient is almost 0."""
    more = ["--precision=fp32", "--set=optimizer=adamw"]
    assert ends(training(squares, tmp_path / "one", *more, steps=5)) == 0
    assert together(tmp_path, command(training(squares, tmp_path / "two", *more, steps=5)))[0] == [0, 0]
    one, two = ({k: t for k, t in latest(tmp_path / f).tensors.items() if "model." in k} for f in ("one", "two"))
    far = [torch.linalg.vector_norm(two[k] - t) for k, t in one.items()]
    norm = torch.stack([torch.linalg.vector_norm(t) for t in one.values()]).norm()
    assert torch.stack(far).norm() < 1e-6 * norm


def test_two_processes_generate_and_evaluate_the_same_images(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("simple_diffusion.evaluation.classifier.SEEN", 2 * 86 * 32**2)  # short training

    def both(name, *argv):
        argv = [argv[0], str(run_folder), *argv[1:], "--out"]
        assert ends([*argv, str(tmp_path / f"one-{name}")]) == 0
        codes, outputs = together(tmp_path, command([*argv, str(tmp_path / f"two-{name}")]))
        assert (codes, outputs[1]) == ([0, 0], "")
        return tmp_path / f"one-{name}", tmp_path / f"two-{name}"

    for name, argv in {
        "some.npz": ["--n", "70"],  # a batch for each process
        "few.png": ["--n", "3"],  # no batch for the second process
        "film.png": ["--trajectory", "--n", "2"],
    }.items():
        one, two = both(name, "sample", *argv)
        assert one.read_bytes() == two.read_bytes(), name
    one, two = both("scores", "evaluate", "--n", "70")
    files = sorted(path.name for path in one.iterdir())
    assert files == sorted(path.name for path in two.iterdir())
    for file in files:
        texts = [re.sub(rb'"sampling_seconds": [\d.]+', b"", (f / file).read_bytes()) for f in (one, two)]
        assert texts[0] == texts[1], file


# --- common decisions ------------------------------------------------------------------------------------------------


def fast_clock():
    """A clock that is 100 s ahead and ten times too fast."""
    real = time.perf_counter
    return patch.object(budget.time, "perf_counter", lambda: 100 + 10 * real())


def test_all_processes_follow_the_clock_of_rank_0(squares, tmp_path):
    argv = training(squares, tmp_path / "run", "--set=save_seconds=0.3")
    argv[2:4] = ["--for", "3s"]
    codes, outputs = together(tmp_path, command(argv, only(1, fast_clock)))
    assert codes == [0, 0], outputs
    assert 2.5 < latest(tmp_path / "run").numbers.seconds < 60


def test_a_signal_to_one_process_stops_all_and_they_resume(squares, tmp_path):
    assert together(tmp_path, command(training(squares, tmp_path / "unbroken")))[0] == [0, 0]
    stopped, argv = tmp_path / "stopped", training(squares, tmp_path / "stopped")
    codes, outputs = together(tmp_path, command(argv, only(1, lambda: after_step(3, lambda: hit(signal.SIGTERM)))))
    assert codes == [143, 143], outputs
    assert "after 3 steps" in outputs[0]
    assert latest(stopped).numbers.n == 3
    codes, outputs = together(tmp_path, command([*argv, "--resume"]))
    assert codes == [0, 0], outputs
    assert "last bits" not in outputs[0]
    assert_same_run(stopped, tmp_path / "unbroken")


def test_a_run_resumes_with_another_number_of_processes(squares, tmp_path, capsys):
    argv = training(squares, tmp_path / "run")
    stop = lambda number: after_step(4, lambda: hit(signal.SIGTERM))  # noqa: E731
    assert together(tmp_path, command(argv, stop))[0] == [143, 143]
    assert ends([*argv, "--resume"]) == 0
    assert "processes is 1 and was 2" in capsys.readouterr().out
    assert latest(tmp_path / "run").numbers.done


def test_a_signal_to_one_process_at_the_end_stops_all(squares, tmp_path):
    real = run.Trainer.finish

    def finish(trainer):
        hit(signal.SIGTERM)
        return real(trainer)

    argv = training(squares, tmp_path / "run")
    codes, outputs = together(tmp_path, command(argv, only(1, lambda: patch.object(run.Trainer, "finish", finish))))
    assert codes == [143, 143], outputs


def poisoned():
    """The loss of one sample is NaN in steps 3 and 4."""
    real = ModelSpec.training_loss

    def loss_with_nan(spec):
        loss = real(spec)

        def with_nan(denoiser, x0, cond, draws):
            losses = loss(denoiser, x0, cond, draws)
            if draws.step in (3, 4):
                losses = losses * torch.where(torch.arange(len(losses)) == 2, torch.nan, 1.0)
            return losses

        return with_nan

    return patch.object(ModelSpec, "training_loss", loss_with_nan)


def test_a_loss_that_is_not_finite_in_one_process_stops_all_in_the_same_step(squares, tmp_path):
    codes, outputs = together(tmp_path, command(training(squares, tmp_path / "run"), only(1, poisoned)))
    assert codes == [4, 4], outputs
    assert all("the loss of step 3 is not finite" in text for text in outputs)
    assert "rank 1" in outputs[1]


def test_a_step_that_one_process_skips_is_skipped_by_all(squares, tmp_path):
    argv = training(squares, tmp_path / "run", "--set=max_skipped=2", "--set=save_seconds=0")
    codes, outputs = together(tmp_path, command(argv, only(1, poisoned)))
    assert codes == [0, 0], outputs  # the weights are compared after each step
    assert outputs[0].count("was skipped") == 2
    assert "was skipped" not in outputs[1]


def test_different_settings_are_refused(squares, tmp_path):
    work = lambda me: ends(training(squares, tmp_path / "run", f"--set=lr={0.001 + me / 1000}"))  # noqa: E731
    codes, outputs = together(tmp_path, work)
    assert codes == [2, 2], outputs
    assert "different settings or data" in outputs[0]


def test_different_weights_are_not_saved(squares, tmp_path):
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
    codes, outputs = together(tmp_path, command(argv, only(1, drift)))
    assert codes == [4, 4], outputs
    assert "different weights" in outputs[0]
    assert latest(tmp_path / "run").numbers.n == 3


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", [1, 0])
def test_if_one_process_is_killed_the_other_reports_it(squares, tmp_path, victim):
    argv = training(squares, tmp_path / "run", "--set=save_seconds=0")
    kill = only(victim, lambda: after_step(4, lambda: hit(signal.SIGKILL)))
    codes, outputs = together(tmp_path, command(argv, kill))
    assert (codes[victim], codes[1 - victim]) == (-signal.SIGKILL, 6), outputs
    assert f"rank {victim} of this run failed" in outputs[1 - victim]
    assert latest(tmp_path / "run").numbers.n == 3


@pytest.mark.slow
def test_if_one_of_four_processes_is_killed_the_others_name_it(squares, tmp_path):
    kill = only(2, lambda: after_step(4, lambda: hit(signal.SIGKILL)))
    codes, outputs = together(tmp_path, command(training(squares, tmp_path / "run"), kill), world=4)
    assert codes == [6, 6, -9, 6], outputs
    for number in (0, 1, 3):
        assert "rank 2 of this run failed" in outputs[number]


def test_an_error_in_one_process_ends_the_other(squares, tmp_path):
    def broken(*args, **kwargs):
        raise DataError("no such data here")

    spoil = only(1, lambda: patch("simple_diffusion.data.sources.load_images", broken))
    codes, outputs = together(tmp_path, command(training(squares, tmp_path / "run"), spoil))
    assert codes == [6, 3], outputs
    assert "rank 1 of this run failed" in outputs[0]
    assert outputs[1].strip() == "simple-diffusion (rank 1): no such data here"


def no_large_files():
    """From step 4 on, no file can be larger than 1000 bytes."""
    return after_step(4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY)))


def test_if_rank_0_cannot_save_all_processes_end(squares, tmp_path):
    argv = training(squares, tmp_path / "run", "--set=save_seconds=0")
    codes, outputs = together(tmp_path, command(argv, only(0, no_large_files)))
    assert codes == [6, 6], outputs
    assert "can't be written" in outputs[0]
    assert "rank 0 of this run failed" in outputs[1]


def test_a_process_that_cannot_join_reports_it(tmp_path):
    """Another program uses the port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        def work():
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "WORLD_SIZE": "2"}
            with (
                pytest.raises(ResourceError, match="this process could not join the other processes of the run: "),
                ranks.process_group(),
            ):
                raise AssertionError

        assert forked(work, tmp_path / "output") == 0, (tmp_path / "output").read_text()


def test_rank_0_alone_runs_the_other_commands(squares, tmp_path):
    codes, outputs = together(tmp_path, lambda me: ends(["data", str(squares), "--out", str(tmp_path / f"{me}.png")]))
    assert codes == [0, 0], outputs
    assert [path.name for path in tmp_path.glob("*.png")] == ["0.png"]


# --- torchrun itself -------------------------------------------------------------------------------------------------


def torchrun(argv, **kwargs):
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "--", "simple_diffusion", *argv]
    return subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)


def worker(launcher, number):
    """The process id of a rank."""
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


@pytest.mark.slow
def test_torchrun(squares, tmp_path, run_folder):
    """The real torchrun. It must pass `--n` on to the command."""
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
