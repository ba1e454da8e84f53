"""A run that stops anywhere and goes on comes to the bits of the run that never stopped."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from faults import after_step, assert_equal, assert_same_run, ends, fails, forked, hit, rows, stopped_after, tree

import simple_diffusion.run.trainer as run
from simple_diffusion.model.build import ModelSpec
from simple_diffusion.model.model_file import read
from simple_diffusion.run.checkpoint import latest
from simple_diffusion.validation import HeldOut

STEPS = 12
KINDS = {
    # 16 of the 96 images are held out: an epoch is five steps of 16. A row of the log comes each 3 steps.
    "adamw": ("optimizer=adamw", "dropout=0.2", "augment=mirror", "held_out=0.1667", "patience=1", "snapshot=0.4"),
    "muon": ("optimizer=muon", "dropout=0.2", "augment=symmetries", "held_out=0.1667", "snapshot=0.4", "lr=0.01"),
}
STOPS = {1: "the first step", 3: "mid-epoch", 5: "the edge of an epoch", 11: "the last step but one"}


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    """Rows and checks that do not come with each step, so that stops fall between them."""
    monkeypatch.setattr(run, "ROWS", 4)
    monkeypatch.setattr(run, "CHECKS", 3)


def command(squares: Path, out: Path, kind: str = "adamw") -> list[str]:
    settings = [f"--set={pair}" for pair in KINDS[kind]]
    return ["train", str(squares), "--steps", str(STEPS), "--out", str(out), *TINY, "--set=sampler_steps=2", *settings]


@pytest.fixture(scope="module")
def unbroken(squares, tmp_path_factory) -> dict[str, Path]:
    """The folders of the runs that never stop."""
    folders = {kind: tmp_path_factory.mktemp("unbroken") / kind for kind in KINDS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "ROWS", 4)
        patch.setattr(run, "CHECKS", 3)
        for kind, folder in folders.items():
            assert ends(command(squares, folder, kind)) == 0
    return folders


def drawn(folder: Path, out: Path) -> dict[str, bytes]:
    """The files of three samples."""
    assert ends(["sample", str(folder), "--n", "3", "--out", str(out)]) == 0
    return tree(out)


QUICK = [("adamw", 5), ("muon", 3)]
REST = [
    pytest.param(kind, stop, marks=pytest.mark.slow) for kind in KINDS for stop in STOPS if (kind, stop) not in QUICK
]


@pytest.mark.parametrize(("kind", "stop"), [*QUICK, *REST], ids=lambda value: STOPS.get(value, value))
def test_resuming_is_bit_exact(squares, tmp_path, unbroken, kind, stop):
    argv = command(squares, tmp_path / "run", kind)
    stopped_after(stop, argv)
    assert latest(tmp_path / "run").numbers.n == stop
    assert read(tmp_path / "run").step == stop  # a model to draw from is there at once
    assert ends([*argv, "--resume"]) == 0
    assert_same_run(tmp_path / "run", unbroken[kind])
    assert drawn(tmp_path / "run", tmp_path / "a") == drawn(unbroken[kind], tmp_path / "b")


def test_stopping_after_every_step_changes_nothing(squares, tmp_path, unbroken):
    argv = command(squares, tmp_path / "run")
    stopped_after(1, argv)
    for step in range(2, STEPS, 2):
        stopped_after(step, [*argv, "--resume"], signal.SIGINT)
    assert ends([*argv, "--resume"]) == 0
    assert_same_run(tmp_path / "run", unbroken["adamw"])


def test_resuming_keeps_the_best_weights(squares, tmp_path, monkeypatch):
    """With a held-out loss that rises while the run learns, the first weights measured stay the best ones."""
    real = HeldOut.measure
    monkeypatch.setattr(HeldOut, "measure", lambda held_out, denoiser: 10 - real(held_out, denoiser))
    argv = command(squares, tmp_path / "run")
    stopped_after(11, argv)
    assert latest(tmp_path / "run").numbers.best_progress < 0.5
    assert ends([*argv, "--resume"]) == 0
    assert ends(command(squares, tmp_path / "unbroken")) == 0
    assert_same_run(tmp_path / "run", tmp_path / "unbroken")


def test_resuming_writes_the_same_last_picture(squares, tmp_path, unbroken):
    argv = command(squares, tmp_path / "run")
    stopped_after(STEPS, argv)  # all steps are done, the picture is not
    assert latest(tmp_path / "run").numbers.done
    assert ends([*argv, "--resume"]) == 0
    picture = Path("samples", f"step-{STEPS:08d}.png")
    assert (tmp_path / "run" / picture).read_bytes() == (unbroken["adamw"] / picture).read_bytes()


def test_a_killed_run_resumes_at_its_checkpoint_and_rewrites_later_rows(squares, tmp_path, unbroken):
    folder = tmp_path / "run"
    argv = command(squares, folder)
    stopped_after(4, argv)

    def killed() -> None:
        with after_step(11, lambda: hit(signal.SIGKILL)):
            ends([*argv, "--resume"])

    assert forked(killed) == -signal.SIGKILL
    assert latest(folder).numbers.n == 4
    assert rows(folder) == rows(unbroken["adamw"])[:4]  # steps 3, 6 and 9: two are of steps that are lost
    with (folder / "log.csv").open("a") as file:
        file.write("10,160,0.1")  # half a row
    assert ends([*argv, "--resume"]) == 0
    assert_same_run(folder, unbroken["adamw"])


@pytest.mark.parametrize("content", [None, b"1,2,3,4,5,6,7\n\xff\x00,,\n\x80,,,,,,\na,b,c,d,e,f,g\n4,64"])
def test_a_run_resumes_with_a_lost_or_truncated_log(squares, tmp_path, unbroken, content):
    folder = tmp_path / "run"
    argv = command(squares, folder)
    stopped_after(5, argv)
    (folder / "log.csv").unlink()
    if content is not None:
        (folder / "log.csv").write_bytes(content)
    assert ends([*argv, "--resume"]) == 0
    assert rows(folder)[-3:] == rows(unbroken["adamw"])[-3:]  # steps 6, 9 and 12
    assert_equal(latest(folder).tensors, latest(unbroken["adamw"]).tensors)


def test_resuming_a_finished_run_changes_nothing(squares, tmp_path, unbroken, capsys):
    folder = tmp_path / "run"
    shutil.copytree(unbroken["adamw"], folder)
    assert ends([*command(squares, folder), "--resume"]) == 0
    assert_same_run(folder, unbroken["adamw"])
    assert tree(folder)["samples/step-00000012.png"] == tree(unbroken["adamw"])["samples/step-00000012.png"]
    assert f"{STEPS} steps" in (said := capsys.readouterr().out)
    assert "nan" not in said


# --- what is no resume ------------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(squares, tmp_path) -> Path:
    """The folder of a run that stopped after four steps."""
    stopped_after(4, command(squares, tmp_path / "run"))
    return tmp_path / "run"


def test_changed_settings_are_listed_and_refused(squares, stopped, capsys):
    before = tree(stopped)
    changes = ["--set=batch=8", "--set=lr=0.5", "--set=widths=8,24", "--steps=30", "--seed=3"]
    words = ("batch is 8 and was 16", "lr is 0.5 and was 0.003", "widths is (8, 24) and was (8, 16)")
    said = fails(
        capsys,
        [*command(squares, stopped), *changes, "--resume"],
        2,
        *words,
        "steps is 30 and was 12",
        "seed is 3 and was 0",
    )
    assert said.count(" was ") == 5
    assert tree(stopped) == before


def test_changed_data_is_refused(squares, tmp_path, capsys):
    data = tmp_path / "data.npz"
    shutil.copy(squares, data)
    argv = command(data, tmp_path / "run")
    stopped_after(4, argv)
    before = tree(tmp_path / "run")
    with np.load(data) as file:
        images, labels = file["images"], file["labels"]
    other_pixels, other_labels = images.copy(), labels.copy()
    other_pixels[50, 3, 3, 0] ^= 1
    other_labels[:2] = labels[1::-1]
    for changed in ((other_pixels, labels), (images, other_labels), (images[:-3], labels[:-3])):
        np.savez(data, images=changed[0], labels=changed[1])
        fails(capsys, [*argv, "--resume"], 3, "data", "changed")
        assert tree(tmp_path / "run") == before
    shutil.copy(squares, data)
    assert ends([*argv, "--resume"]) == 0


def test_resuming_without_a_run_is_an_error(squares, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "nowhere"):
        fails(capsys, [*command(squares, Path(folder)), "--resume"], 5, folder, "--resume")
    fails(capsys, ["train", str(squares), "--steps", "1", "--resume"], 2, "--out")
    assert [str(path) for path in Path().rglob("*")] == ["empty"]


def test_resuming_needs_no_settings(squares, stopped, unbroken, monkeypatch):
    assert ends(["train", "--resume", "--out", str(stopped)]) == 0
    assert_same_run(stopped, unbroken["adamw"])


def test_skipped_steps_are_counted_across_a_resume(squares, tmp_path, monkeypatch, capsys):
    """Two in a row may be left out. The run stops after the second: the third is one too many all the same."""
    real = ModelSpec.training_loss

    def poisoned(spec):
        loss = real(spec)
        return lambda d, x0, cond, draws: loss(d, x0, cond, draws) * (float("nan") if draws.step > 5 else 1.0)

    monkeypatch.setattr(ModelSpec, "training_loss", poisoned)
    argv = [*command(squares, tmp_path / "run"), "--set=max_skipped=2"]
    stopped_after(7, argv)
    fails(capsys, [*argv, "--resume"], 4, "step 8")
    assert os.listdir(tmp_path / "run" / "checkpoints")[-1]


def test_resuming_reports_a_changed_environment(squares, stopped, monkeypatch, capsys):
    real = latest(stopped).made_by
    monkeypatch.setattr("simple_diffusion.run.checkpoint.made_by", lambda: {**real, "torch": "9.9"})
    capsys.readouterr()
    assert ends([*command(squares, stopped), "--resume", "--dry-run"]) == 0
    assert f"torch is 9.9 and was {real['torch']}" in capsys.readouterr().out
