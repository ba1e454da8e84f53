"""The commands end to end, and every way to use them wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from faults import ends, forked
from PIL import Image

import simple_diffusion
from simple_diffusion import load, sample_batches
from simple_diffusion.cli.main import COMMANDS, GROUPS, current_names, main, parser
from simple_diffusion.cli.train import settings_of
from simple_diffusion.data.sources import load_images
from simple_diffusion.errors import CheckpointError
from simple_diffusion.model.build import ModelSpec
from simple_diffusion.model.config import Config
from simple_diffusion.model.model_file import read
from simple_diffusion.model.presets import PRESETS
from simple_diffusion.validation import HeldOut, keep_out


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def fails(capsys, argv: list[str], code: int, *words: str) -> None:
    """The command ends with `code` and one sentence on stderr that holds all the words."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in argv])
    err = capsys.readouterr().err
    assert stop.value.code == code, err
    assert err.startswith("simple-diffusion: ")
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"]])
def test_help_does_not_import_torch_or_numpy(argv):
    code = (
        f"import sys\nfrom simple_diffusion.cli.main import main\ntry: main({argv})\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_help_lists_every_command_and_its_summary_in_groups(capsys):
    main([])
    out = capsys.readouterr().out
    for title, group in GROUPS.items():
        assert f"\n{title}:\n" in out
        for module in group:
            assert re.search(rf"^  {module.__name__.rpartition('.')[2]} +\w", out, re.MULTILINE), module
    assert len(COMMANDS) == len({*COMMANDS}) == out.count("\n  ") - 2  # and two options


def test_the_old_name_of_a_command_works_and_prints_the_new_one(capsys, monkeypatch):
    fails_with = "simple-diffusion: --out x.jpg must end in .png"
    with pytest.raises(SystemExit):
        main(["race", "nowhere.safetensors", "--out", "x.jpg"])
    assert capsys.readouterr().err == f"`race` is now called `sweep`\n{fails_with}\n"
    monkeypatch.setattr("simple_diffusion.cli.main.FIRST", False)  # another process than the first prints nothing
    assert current_names(["race", "RUN"]) == ["sweep", "RUN"]
    assert not capsys.readouterr().err


def test_presets_and_settings_are_listed_without_data(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"{simple_diffusion.__version__}\n"
    main(["train", "--preset", "list", "--json"])
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads(json.dumps({name: values for name, (_, values) in PRESETS.items()}))
    assert all(f"  {name} " in err and about in err for name, (about, _) in PRESETS.items())
    columns = {row.index(about) for row, (about, _) in zip(err.splitlines(), PRESETS.values(), strict=True)}
    assert len(columns) == 1
    main(["train", "--set", "help"])
    rows = capsys.readouterr().out.splitlines()
    table = {row.split()[0]: row.split()[1:] for row in rows[::2]}
    assert list(table) == list(vars(Config()))
    assert (table["lr"][0], table["widths"][0]) == (str(Config().lr), ",".join(map(str, Config().widths)))


def test_every_public_name_is_listed_and_there():
    assert set(simple_diffusion.__all__) <= set(dir(simple_diffusion))
    assert all(getattr(simple_diffusion, name) is not None for name in simple_diffusion.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = simple_diffusion.nothing


def test_train_leaves_a_whole_run_folder(run_folder):
    config = tomllib.loads((run_folder / "config.toml").read_text())
    assert config["steps"] == 20
    assert config["widths"] == [8, 16]
    assert config["precision"] in ("fp32", "bf16")  # decided, not "auto"
    rows = (run_folder / "log.csv").read_text().splitlines()
    assert rows[0] == "step,images,seconds,loss,learning_rate,images_per_second,held_out_loss"
    assert [int(row.split(",")[0]) for row in rows[1:]] == list(range(1, 21))
    assert [int(row.split(",")[1]) for row in rows[1:]] == [16 * n for n in range(1, 21)]
    pictures = sorted((run_folder / "samples").glob("step-*.png"))
    assert pictures[-1].name == "step-00000020.png"
    assert pixels(pictures[-1]).shape == (2 + 3 * (12 * 4 + 2), 2 + 10 * (16 * 4 + 2), 3)


def test_the_command_in_config_toml_repeats_the_run(run_folder, tmp_path):
    command = (run_folder / "config.toml").read_text().splitlines()[1].removeprefix("# simple-diffusion ")
    main([*command.split(), "--out", str(tmp_path / "again")])
    again = read(tmp_path / "again").denoiser.state_dict()
    for name, tensor in read(run_folder).denoiser.state_dict().items():
        assert torch.equal(tensor, again[name]), name
    assert tree(run_folder)["samples/step-00000020.png"] == tree(tmp_path / "again")["samples/step-00000020.png"]


def test_epochs_are_passes_over_the_data(squares, tmp_path, capsys):
    main(["train", str(squares), "--epochs", "2", "--out", str(tmp_path / "run"), "--json", *TINY])
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 12  # 2 x 96 images in batches of 16
    assert result["images"] == 192


DDPM = ("timesteps=50", "density=steps", "target=noise", "grid=uniform")


@pytest.mark.parametrize(
    ("settings", "runs"),
    [
        (("network=annotated", "criterion=l1", "schedule=linear", "sampler=ddpm", *DDPM), 1),
        (("network=double-conv", "schedule=sigmoid", "sampler=ddpm-beta", "ema_decay=0.9", "ema_warmup=2", *DDPM), 1),
        (("augment=symmetries", "dropout=0.2", "held_out=0.1", "lr_schedule=constant", "criterion=huber"), 2),
        (("augment=mirror", "augment_conditioning=no", "schedule=quadratic", "density=uniform", "weight=min-snr"), 1),
    ],
    ids=lambda settings: settings[0] if isinstance(settings, tuple) else f"{settings} times",
)
def test_every_kind_of_run_trains_and_samples_and_with_dropout_the_same_twice(squares, tmp_path, settings, runs):
    options = [*TINY, *(f"--set={pair}" for pair in settings)]
    for i in range(runs):
        main(["train", str(squares), "--steps", "2", "--out", str(tmp_path / f"run{i}"), *options])
    weights = [read(tmp_path / f"run{i}").denoiser.state_dict() for i in range(runs)]
    assert all(torch.equal(tensor, weights[-1][key]) for key, tensor in weights[0].items())
    main(["sample", str(tmp_path / "run0"), "--n", "2", "--steps", "2", "--out", str(tmp_path / "s.npz")])
    assert arrays(tmp_path / "s.npz")["images"].shape == (2, 12, 16, 3)


def test_no_label_is_the_network_without_one(run_folder, tmp_path):
    """`--label none` and guidance 0 draw the same images, whatever the labels, and an .npz of them holds no labels."""
    for name, options in (("none", ["--label", "none"]), ("zero", ["--guidance", "0"])):
        main(["sample", str(run_folder), "--n", "6", *options, "--out", str(tmp_path / f"{name}.npz")])
    none, zero = (arrays(tmp_path / f"{name}.npz") for name in ("none", "zero"))
    assert np.abs(none["images"].astype(int) - zero["images"]).max() <= 1  # two passes of half the batch, or one
    assert "labels" not in none
    assert zero["labels"].tolist() == [0, 1, 2, 0, 1, 2]


def test_an_augmentation_is_generated_only_on_request(squares, tmp_path, capsys):
    options = [*TINY, "--set=augment=symmetries", "--set=lr=0.02"]
    main(["train", str(squares), "--steps", "12", "--out", str(tmp_path / "run"), *options])
    made = []
    for number in ("0", "3"):
        out = tmp_path / f"{number}.npz"
        main(["sample", str(tmp_path / "run"), "--n", "3", "--augmentation", number, "--out", str(out)])
        made.append(arrays(out))
    assert (made[0]["images"] != made[1]["images"]).any()
    assert made[1]["labels"].tolist() == [0, 1, 2]  # the classes, whatever the augmentation
    capsys.readouterr()
    fails(capsys, ["sample", tmp_path / "run", "--augmentation", "4"], 2, "from 0 to 3", "got 4")  # of a rectangle


def test_a_run_stops_when_the_held_out_loss_stops_falling_and_keeps_the_best_weights(squares, tmp_path, capsys):
    # At a learning rate this high the loss soon rises; the averaged weights of the best check are what is kept.
    settings = ("held_out=0.2", "patience=0.1", "lr=0.3", "lr_schedule=constant", "warmup=0.0001", "ema_decay=0.01")
    options = [*TINY, *(f"--set={pair}" for pair in settings)]
    main(["train", str(squares), "--steps", "80", "--out", str(tmp_path / "run"), "--json", *options])
    result, said = json.loads(capsys.readouterr().out), tmp_path / "run" / "log.csv"
    assert 8 <= result["steps"] < 80
    losses = [float(row.split(",")[-1]) for row in said.read_text().splitlines()[1:] if row.split(",")[-1]]
    assert result["held_out_loss"] == pytest.approx(min(losses), rel=1e-5)
    model, images = read(tmp_path / "run"), load_images(str(squares))
    _, kept = keep_out(images, 0.2, seed=0)
    assert (
        HeldOut(kept, ModelSpec(model.config, model.info).loss(), 0).measure(model.denoiser) == result["held_out_loss"]
    )


def test_the_last_setting_of_the_length_of_a_run_is_in_force():
    lengths = (
        (["--steps", "7"], (7, 0)),
        (["--for", "9s"], (0, 9)),
        (["--set", "seconds=5"], (0, 5)),
        ([], (64000, 0)),
    )
    for options, length in lengths:
        values = settings_of(parser().parse_args(["train", "x.npz", "--preset", "annotated-goldfish", *options]))
        assert (values["steps"], values["seconds"]) == length
        assert values["network"] == "annotated"


def test_dry_run_writes_nothing(squares, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["train", str(squares), "--dry-run", "--steps", "100", "--json", *TINY])
    result = json.loads(capsys.readouterr().out)
    assert result["parameters"] == sum(p.numel() for p in load_denoiser(squares, tmp_path).parameters())
    assert result["images"] == 1600


def load_denoiser(squares, tmp_path):
    assert list(tmp_path.iterdir()) == []  # the dry run left nothing
    main(["train", str(squares), "--steps", "1", "--out", str(tmp_path / "run"), *TINY])
    return load(tmp_path / "run")


def test_sample_png_npz_and_folder_hold_the_same_images(run_folder, tmp_path):
    main(["sample", str(run_folder), "--n", "7", "--out", str(tmp_path / "s.npz")])
    drawn = arrays(tmp_path / "s.npz")
    assert drawn["images"].shape == (7, 12, 16, 3)
    assert drawn["labels"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    main(["sample", str(run_folder), "--n", "7", "--out", str(tmp_path / "folder")])
    for i, label in enumerate(drawn["labels"]):
        assert np.array_equal(pixels(tmp_path / "folder" / str(label) / f"{i:06d}.png"), drawn["images"][i])
    main(["sample", str(run_folder), "--n", "7", "--out", str(tmp_path / "s.png")])
    sheet = pixels(tmp_path / "s.png")
    # One class a row: the second row begins with image 1, enlarged four times after a gap of 2.
    top, left = 2 + 12 * 4 + 2, 2
    assert np.array_equal(sheet[top : top + 48 : 4, left : left + 64 : 4], drawn["images"][1])


def test_sample_needs_only_the_file(run_folder, tmp_path):
    (tmp_path / "copy.safetensors").write_bytes((run_folder / "model.safetensors").read_bytes())
    for model, out in ((run_folder, "a.npz"), (tmp_path / "copy.safetensors", "b.npz")):
        main(["sample", str(model), "--n", "3", "--out", str(tmp_path / out)])
    assert (arrays(tmp_path / "a.npz")["images"] == arrays(tmp_path / "b.npz")["images"]).all()


def test_sample_options_reach_the_sampler(run_folder, tmp_path):
    argv = ["sample", str(run_folder), "--n", "4", "--label", "2,0", "--guidance", "3", "--steps", "6"]
    main([*argv, "--sampler", "ddpm", "--seed", "9", "--out", str(tmp_path / "s.npz")])
    model = read(run_folder)
    config = type(model.config)(**{**vars(model.config), "guidance": 3.0, "sampler_steps": 6, "sampler": "ddpm"})
    denoiser, times, sampler = ModelSpec(config, model.info).sampler(model.denoiser)
    labels = torch.tensor([2, 0, 2, 0])
    (x,) = sample_batches(denoiser, (4, 3, 12, 16), times, labels, sampler=sampler, seed=9)
    expected = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(arrays(tmp_path / "s.npz")["images"], expected)
    assert arrays(tmp_path / "s.npz")["labels"].tolist() == labels.tolist()


def test_a_snapshot_of_the_training_guides_the_samples(squares, tmp_path, capsys, run_folder):
    main(["train", str(squares), "--steps", "10", "--out", str(tmp_path / "run"), "--set", "snapshot=0.4", *TINY])
    model, plain = read(tmp_path / "run"), read(run_folder)
    assert plain.guide is None
    again = tmp_path / "again"  # the snapshot is the average after four tenths of the very same run
    main(["train", str(squares), "--steps", "10", "--out", str(again), "--set", "snapshot=0.9", *TINY])
    assert not same_weights(model.guide, model.denoiser)
    assert same_weights(read(again).denoiser, model.denoiser)
    assert not same_weights(read(again).guide, model.guide)
    sample = ["sample", str(tmp_path / "run"), "--n", "3"]
    main([*sample, "--autoguidance", "3", "--out", str(tmp_path / "a.npz")])
    main([*sample, "--out", str(tmp_path / "b.npz")])
    main([*sample, "--autoguidance", "1", "--out", str(tmp_path / "c.npz")])
    guided, default, none = (arrays(tmp_path / f"{name}.npz")["images"] for name in "abc")
    assert np.array_equal(default, none)
    assert not np.array_equal(guided, none)
    with pytest.raises(SystemExit) as stop:
        main(["sample", str(run_folder), "--n", "3", "--autoguidance", "2", "--out", str(tmp_path / "d.npz")])
    assert stop.value.code == 2
    assert "snapshot" in capsys.readouterr().err


def same_weights(a, b) -> bool:
    return all(torch.equal(v, b.state_dict()[name]) for name, v in a.state_dict().items())


def test_a_dry_run_of_sample_prints_its_plan_and_writes_nothing(run_folder, tmp_path, capsys):
    main(
        ["sample", str(run_folder), "--n", "7", "--steps", "3", "--dry-run", "--out", str(tmp_path / "s.npz"), "--json"]
    )
    out, err = capsys.readouterr()
    assert json.loads(out) == {"n": 7, "out": str(tmp_path / "s.npz")}
    assert all(word in err for word in ("7 images", "in 3 steps", str(tmp_path / "s.npz")))
    assert list(tmp_path.iterdir()) == []


def test_samples_can_be_trained_on(run_folder, tmp_path):
    main(["sample", str(run_folder), "--n", "9", "--out", str(tmp_path / "s.npz")])
    main(["train", str(tmp_path / "s.npz"), "--steps", "2", "--out", str(tmp_path / "run"), *TINY])
    assert read(tmp_path / "run").info.classes == 3


def test_a_folder_of_images_trains_without_set_up(tmp_path):
    rng = np.random.default_rng(1)
    for kind in ("cats", "dogs"):
        (tmp_path / "pets" / kind).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 255, (40, 50 + i, 3), np.uint8)).save(
                tmp_path / "pets" / kind / f"{i}.JPEG"
            )
    main(["train", str(tmp_path / "pets"), "--steps", "2", "--out", str(tmp_path / "run"), *TINY])
    info = read(tmp_path / "run").info
    assert info.class_names == ("cats", "dogs")
    assert info.shape == (3, 32, 32)
    main(["sample", str(tmp_path / "run"), "--label", "dogs", "--n", "2", "--out", str(tmp_path / "dogs.npz")])
    assert arrays(tmp_path / "dogs.npz")["labels"].tolist() == [1, 1]


def test_a_sheet_of_data_without_classes_shows_each_image_once(squares, tmp_path):
    main(["data", f"{squares}[0]", "--out", str(tmp_path / "sheet.png")])
    sheet = pixels(tmp_path / "sheet.png")
    assert sheet.shape == (2 + 4 * (12 * 4 + 2), 2 + 8 * (16 * 4 + 2), 3)
    shown = [sheet[2 + 50 * (i // 8) :, 2 + 66 * (i % 8) :][:48:4, :64:4] for i in range(32)]
    expected = arrays(squares)["images"][::3]
    assert sorted(image.tobytes() for image in shown) == sorted(image.tobytes() for image in expected)


def test_data_and_schedules(squares, tmp_path, capsys):
    main(["data", str(squares), "--out", str(tmp_path / "sheet.png"), "--json"])
    info = json.loads(capsys.readouterr().out)
    assert info["classes"] == {"0": 32, "1": 32, "2": 32}
    data = arrays(squares)["images"] / 127.5 - 1
    assert info["mean"] == pytest.approx(data.mean(), abs=1e-9)
    assert info["std"] == pytest.approx(data.std(), abs=1e-9)
    assert pixels(tmp_path / "sheet.png").shape == (2 + 3 * (12 * 4 + 2), 2 + 10 * (16 * 4 + 2), 3)
    main(["schedules", "cosine", "flow", "--data", str(squares), "--out", str(tmp_path / "curves.png"), "--json"])
    curves = json.loads(capsys.readouterr().out)
    assert list(curves) == ["cosine", "flow"]
    assert curves["flow"]["sigma"] == pytest.approx([n / 10 for n in range(1, 11)])
    assert pixels(tmp_path / "curves.png").std() > 5


@pytest.mark.slow
def test_ctrl_c_leaves_a_usable_model_and_says_where(squares, tmp_path):
    """A process of its own; both signals at every step, in this one, are in test_signals.py."""
    out = tmp_path / "run"
    argv = [sys.executable, "-m", "simple_diffusion", "train", str(squares), "--for", "10min", "--out", str(out), *TINY]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (out / "log.csv").exists() or not (out / "log.csv").read_text().count("\n"):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert str(out) in stdout
    assert read(out).step >= 1


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    def work() -> int:
        there, here = os.pipe()
        os.close(there)
        sys.stdout = open(here, "w")  # noqa: SIM115
        return ends(["train", "--set", "help"])

    assert forked(work, tmp_path / "said") == 0
    assert (tmp_path / "said").read_text() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full")
def test_a_result_that_finds_no_room_is_one_sentence(tmp_path):
    def work(*options: str) -> int:
        sys.stdout = open("/dev/full", "w")  # noqa: SIM115
        return ends(["train", "--set", "help", *options])

    assert forked(work, tmp_path / "said") == 6
    sentence = (tmp_path / "said").read_text()
    assert sentence.startswith("simple-diffusion: ")
    assert "No space left" in sentence
    assert sentence.count("\n") == 1
    assert forked(lambda: work("--debug"), tmp_path / "said") == 99
    assert "Traceback" in (tmp_path / "said").read_text()


# --- wrong use: one sentence, the right exit code, nothing written

ABSENT = "cuda" if torch.backends.mps.is_available() else "mps"  # no machine has both


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["train", "--device", ABSENT], 2, [ABSENT, "auto"]),
        (["train", "fashion-mnits"], 3, ["fashion-mnits", "fashion-mnist"]),
        (["train", "no/such/folder"], 3, ["no/such/folder"]),
        (["train", "empty"], 3, ["empty"]),
        (["train", "broken"], 3, ["broken/page.png"]),
        (["data", "nowhere.npz"], 3, ["nowhere.npz"]),
        (["sample", "nothing"], 5, ["nothing"]),
        (["sample", "text.safetensors"], 5, ["text.safetensors"]),
    ],
)
def test_wrong_use(capsys, tmp_path, monkeypatch, argv, code, words):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/page.png").write_text("<html>404</html>")
    Path("text.safetensors").write_text("not a model")
    before = tree(tmp_path)
    fails(capsys, argv, code, *words)
    assert tree(tmp_path) == before
    assert not Path("runs").exists()


def test_wrong_use_of_a_model_writes_nothing(capsys, tmp_path, monkeypatch, run_folder):
    monkeypatch.chdir(tmp_path)
    before = tree(run_folder)
    fails(capsys, ["sample", run_folder, "--label", "cat"], 2, "'cat'", "0, 1, 2")
    assert list(tmp_path.iterdir()) == []
    assert tree(run_folder) == before


def test_a_run_folder_is_never_overwritten(capsys, squares, run_folder):
    before = tree(run_folder)
    fails(capsys, ["train", squares, "--steps", "1", "--out", run_folder], 2, str(run_folder), "exists")
    assert tree(run_folder) == before


def test_debug_raises_the_error():
    with pytest.raises(CheckpointError):
        main(["sample", "nothing", "--debug"])
