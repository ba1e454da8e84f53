"""The length of the average, chosen after training."""

import json
from dataclasses import replace

import pytest
from conftest import TINY
from faults import ends, fails, stopped_after, tree

from simple_diffusion.cli.main import main
from simple_diffusion.errors import CheckpointError, UsageError
from simple_diffusion.model.config import Config
from simple_diffusion.model.model_file import read
from simple_diffusion.model.posthoc_ema import (
    ema_lengths,
    posthoc_model,
    remove_averages_after,
    save_averages,
    saved_averages,
)
from simple_diffusion.system.files import read_tensors, write_tensors

STEPS = 50


def command(squares, out, *more: str) -> list[str]:
    return ["train", str(squares), "--steps", str(STEPS), "--out", str(out), *TINY, "--set=sampler_steps=2", *more]


@pytest.fixture(scope="module")
def run(squares, tmp_path_factory):
    folder = tmp_path_factory.mktemp("averages") / "run"
    main(command(squares, folder))
    return folder


def away(one, other) -> float:
    """The distance of two models' weights."""
    pairs = zip(one.denoiser.parameters(), other.denoiser.parameters(), strict=True)
    return sum((a - b).square().sum().item() for a, b in pairs) ** 0.5


def test_a_run_keeps_its_averages_at_each_fifth(run):
    assert [*saved_averages(run)] == [10, 20, 30, 40, 50]
    model = read(run)
    for width in (0.05, 0.1):
        assert (posthoc_model(run, model, width).step, posthoc_model(run, model, width).config) == (50, model.config)
    assert away(posthoc_model(run, model, 0.05), model) < 1e-6  # it is what the run was drawn from
    assert away(posthoc_model(run, model, 0.1), model) > 1e-3


@pytest.mark.parametrize("width", [0.15, pytest.param(0.08, marks=pytest.mark.slow)])
def test_it_is_the_average_of_a_run_that_was_made_with_that_width(squares, tmp_path, run, width):
    """Of the same training, which does not depend on its average."""
    main(command(squares, tmp_path / "other", f"--set=ema_length={width}"))
    wanted, model = read(tmp_path / "other"), read(run)
    assert away(posthoc_model(run, model, width), wanted) < 0.1 * away(model, wanted)


def test_sample_draws_with_it(squares, tmp_path, run):
    main(command(squares, tmp_path / "other", "--set=ema_length=0.1"))
    for folder, more in ((tmp_path / "other", []), (run, ["--ema", "0.1"]), (run, [])):
        out = tmp_path / f"{folder.name}{len(more)}.npz"
        assert ends(["sample", str(folder), "--n", "3", "--out", str(out), *more]) == 0
    files = [(tmp_path / name).read_bytes() for name in ("other0.npz", "run2.npz", "run0.npz")]
    assert files[0] == files[1] != files[2]


def test_what_cannot_be_mixed_is_refused(squares, tmp_path, run, capsys, run_folder):
    fails(capsys, ["sample", str(run), "--ema", "0.02"], 2, "0.02", "nearer to 0.05 and 0.1")
    fails(capsys, ["sample", str(run / "model.safetensors"), "--ema", "0.08"], 2, "folder of a run")
    for settings in (["--set=ema_decay=0.99"], ["--set=held_out=0.2", "--set=patience=0.5"]):
        folder = tmp_path / str(len(settings))
        main(["train", str(squares), "--steps", "20", "--out", str(folder), *TINY, *settings])
        assert not (folder / "averages").exists()
        fails(capsys, ["sample", str(folder), "--ema", "0.08"], 2, "has no averages")
    with pytest.raises(UsageError, match="too far from"):
        posthoc_model(run_folder, read(run_folder), 0.27)


@pytest.mark.parametrize("stop", [30, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (8, 49))])
def test_a_stop_does_not_show(squares, tmp_path, run, stop):
    argv = command(squares, tmp_path / "run")
    stopped_after(stop, argv)
    assert ends([*argv, "--resume"]) == 0
    assert tree(tmp_path / "run" / "averages") == tree(run / "averages")


def test_what_a_killed_run_left_behind_is_forgotten_and_made_again(squares, tmp_path, run):
    """It may be of steps that the run comes to at another moment, if it goes by the clock."""
    argv, folder = command(squares, tmp_path / "run"), tmp_path / "run"
    stopped_after(22, argv)
    model = read(folder)
    save_averages(folder, 24, {0.05: model.denoiser, 0.1: posthoc_model(folder, model, 0.1).denoiser})
    assert [*saved_averages(folder)] == [10, 20, 24]
    assert ends([*argv, "--resume"]) == 0
    assert tree(folder / "averages") == tree(run / "averages")


def test_a_checkpoint_of_before_there_were_two_averages_goes_on_without(squares, tmp_path):
    argv, folder = command(squares, tmp_path / "run"), tmp_path / "run"
    stopped_after(22, argv)
    for path in (folder / "checkpoints").iterdir():
        tensors, record = read_tensors(path)
        record.pop("format")
        write_tensors(path, {name: t for name, t in tensors.items() if not name.startswith("second.")}, record)
    assert ends([*argv, "--resume"]) == 0
    assert [*saved_averages(folder)] == [10, 20]


def test_forgetting_spares_what_is_no_later_and_what_is_none_of_ours(tmp_path, run):
    model = read(run).denoiser
    for n in (1, 2, 3):
        save_averages(tmp_path, n, {0.05: model})
    for name in ("notes.txt", "step-x.safetensors", "step-00000004.safetensors.tmp"):
        (tmp_path / "averages" / name).touch()
    remove_averages_after(tmp_path, 2)
    assert [*saved_averages(tmp_path)] == [1, 2]
    assert len([*(tmp_path / "averages").iterdir()]) == 5


LIES = {
    "no widths": {"widths": None},
    "no list": {"widths": 0.05},
    "a width that there is not": {"widths": [0.05, 0.3]},
    "one width twice": {"widths": [0.05, 0.05]},
    "a width too many": {"widths": [0.05, 0.1, 0.2]},
    "another step": {"n": 11},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_files_that_lie_are_refused(tmp_path, run, lie):
    model = read(run)
    tensors, record = read_tensors(saved_averages(run)[10])
    record.pop("format")
    path = tmp_path / "averages" / "step-00000010.safetensors"
    write_tensors(path, tensors, {key: value for key, value in (record | lie).items() if value is not None})
    with pytest.raises(CheckpointError, match=str(path)):
        posthoc_model(tmp_path, model, 0.05)


def test_the_widths_that_are_kept():
    assert ema_lengths(Config()) == (0.05, 0.1)
    assert ema_lengths(replace(Config(), ema_length=0.2)) == (0.2, 0.1)
    assert ema_lengths(replace(Config(), ema_decay=0.99)) == ()


@pytest.mark.slow
def test_a_sweep_of_ema_lengths(tmp_path, capsys):
    """--write saves the weights of the EMA length with the lowest FID."""
    run, out = tmp_path / "digits", tmp_path / "ema.png"
    main(["train", "digits", "--preset", "tiny", "--steps", "200", "--out", str(run)])
    model = read(run)
    assert ends(["sweep", str(run), "--n", "400", "--ema", "0.05,0.2"]) == 2  # before anything is sampled
    capsys.readouterr()
    main(["sweep", str(run), "--n", "400", "--ema", "0.05,0.15", "--out", str(out), "--write", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert [point["ema_length"] for point in answer["points"]] == [0.05, 0.15]
    best = answer["choice"]["ema_length"]
    assert best == min(answer["points"], key=lambda point: point["fid"])["ema_length"]
    assert out.read_bytes().startswith(b"\x89PNG")
    assert away(read(run), posthoc_model(run, model, best)) == 0
    assert read(run).config == replace(model.config, ema_length=best)
