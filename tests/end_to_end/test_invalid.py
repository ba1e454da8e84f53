"""Settings and options that can't be: exit code 2, one line with the key and what it may be, nothing written."""

import argparse
import json
import math
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from simple_diffusion.cli.main import main, parser
from simple_diffusion.errors import UsageError
from simple_diffusion.model.config import Config
from simple_diffusion.model.presets import PRESETS
from simple_diffusion.samplers import SAMPLERS

FIELDS = {f.name: f for f in fields(Config)}


def fails(capsys, argv: list[str], *words: str) -> str:
    """The command ends with 2, one line on stderr that holds the words, and no new file where it runs."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main(argv)
    out, err = capsys.readouterr()
    assert stop.value.code == 2, err
    assert out == ""
    assert err.startswith("simple-diffusion: ")
    assert err.endswith("\n")
    assert err[:-1].isprintable(), err
    for word in words:
        assert word in err
    assert sorted(Path().rglob("*")) == before
    return err


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)


# --- settings


def bad_texts(name: str) -> list[str]:
    """What can't stand behind NAME= on the command line."""
    default, rule = FIELDS[name].default, FIELDS[name].metadata
    if rule["among"]:
        return ["", "nonsense", f"{default}x", default.upper(), f" {default}", "1", "None", "nan"]
    if isinstance(default, str):
        return [""]
    low, high = rule["low"], rule["high"]
    if isinstance(default, tuple):
        some = int(low)
        texts = [
            "",
            ",",
            f"{some},",
            f"{some},x",
            f"{some}.5,{some}",
            f"[{some}]",
            ",".join([f"{some}"] * 9),
            "nan,nan",
        ]
        return [*texts, f"{some - 1},{some}", f"{some},{int(high) + 1}", f"{some},-{some}", "9" * 5000]
    texts = ["", "many", "nan", "inf", "-inf", "1e400", "True", "None", "1,2", "0x10", "--", "1 2", "½", "9" * 5000]
    texts += [f"{int(low) - 1}", f"{2 * int(high) + 1}", "1e300", "-1e300"]
    return [*texts, "1.5", "1e3"] if isinstance(default, int) else texts


def says_what_is_allowed(err: str, name: str) -> None:
    default, rule = FIELDS[name].default, FIELDS[name].metadata
    assert name in err
    for word in rule["among"]:
        assert word in err
    if not isinstance(default, str):
        assert f"from {rule['low']:g} to {rule['high']:g}" in err
    if isinstance(default, (int, tuple)):
        assert "integer" in err


@pytest.mark.parametrize("name", FIELDS)
def test_a_setting_that_cannot_be(capsys, name):
    data = [] if name == "data" else ["nowhere.npz"]  # what can be would end there, with another code
    texts = bad_texts(name)
    assert len(texts) >= 8 or name == "data"
    for text in texts:
        says_what_is_allowed(fails(capsys, ["train", *data, "--set", f"{name}={text}"]), name)


def test_there_are_two_hundred_of_them():
    assert sum(len(bad_texts(name)) for name in FIELDS) >= 200


@pytest.mark.parametrize("name", FIELDS)
def test_a_setting_that_there_is_not(capsys, name):
    for typo in (name[:-1], name + "s", name.upper(), f" {name}", f"{name} ", f"_{name}_"):
        if typo not in FIELDS:
            fails(capsys, ["train", "nowhere.npz", "--set", f"{typo}=1"], repr(typo))
    if len(name) > 3:
        fails(capsys, ["train", "nowhere.npz", "--set", f"{name}x=1"], f"did you mean {name!r}?")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", math.nan),
        ("lr", math.inf),
        ("lr", True),
        ("lr", "1e-3"),
        ("lr", None),
        ("lr", 10**400),
        ("seed", False),
        ("seed", 1.0),
        ("seed", 2**63),
        ("steps", [5]),
        ("widths", [8, 16]),
        ("widths", (8, True)),
        ("widths", (8.0, 16)),
        ("widths", ()),
        ("widths", 8),
        ("schedule", None),
        ("schedule", ("karras",)),
        ("data", 5),
        ("data", b"digits"),
    ],
)
def test_a_value_of_another_type_from_python(name, value):
    with pytest.raises(UsageError, match=name) as caught:
        Config(**{name: value})
    says_what_is_allowed(str(caught.value), name)


PAIRS = {
    "widths=8,16 blocks=1": ["widths", "blocks", "one number for each level"],
    "widths=8 blocks=1,1": ["widths", "blocks", "one number for each level"],
    "seconds=0": ["seconds", "steps"],
    "steps=5 seconds=5": ["seconds", "steps"],
    "patience=0.3": ["patience", "held_out=0.1"],
    "ema_warmup=100": ["ema_warmup", "ema_decay=0.995"],
    "density=steps": ["density=steps", "timesteps=1000"],
    "timesteps=100": ["karras", "cosine", "timesteps=0"],
    "timesteps=9 schedule=linear": ["linear", "9"],
    "schedule=linear-unscaled": ["linear-unscaled", "timesteps=1000"],
    "network=annotated widths=9,18": ["annotated", "(9, 18)", "multiples of 4"],
    "network=double-conv widths=10,20": ["double-conv", "(10, 20)", "multiples of 4"],
    "network=annotated widths=16,24": ["annotated", "(16, 24)", "multiples"],
    "network=double-conv widths=16,48": ["double-conv", "(16, 48)", "double"],
    "guidance_low=6": ["guidance_low 6", "guidance_high 5"],
    "guidance_high=0": ["guidance_low 0.1", "guidance_high 0"],
    "widths=4096,4096 blocks=64,64": ["widths", "blocks", "the limit is 2 billion"],
    "network=double-conv blocks=1,64": ["widths", "blocks", "the limit is 2 billion"],
    "network=annotated widths=2048,4096,4096,4096 blocks=1,1,1,1": ["widths", "the limit is 2 billion"],
}


@pytest.mark.parametrize("pair", PAIRS)
def test_settings_that_contradict_each_other(capsys, pair):
    settings = [word for setting in pair.split() for word in ("--set", setting)]
    fails(capsys, ["train", "nowhere.npz", *settings], *PAIRS[pair])


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be(preset):
    values = PRESETS[preset][1]
    Config(**values)


# --- options

NOT_WHOLE = ["0", "-1", "1.5", "1e9", "nan", "inf", "", "many", "9" * 100, "٣", "+1", " 1", "0x1", "1_0"]
WIDTHS = ["", "0", "0.009", "0.28", "nan", "inf", "wide", "0,05"]
SEEDS = ["-1", "1.5", "1e9", "nan", "", "x", str(2**63), "9" * 100]
SCALES = ["-1", "nan", "inf", "-inf", "1e400", "101", "", "strong", "1,5"]
DEVICES = ["", "tpu", "gpu", "CUDA", "cuda:0", "0"]
LARGER = ["1000001"]  # than a million
MODEL = ["nowhere.safetensors"]

OF_DATA_AND_DEVICE: dict[str, tuple[list[str], list[str]]] = {
    "--data-root": ([""], ["path"]),
    "--size": (["0", "1025"], ["from 1 to 1,024"]),
    "--device": (DEVICES, ["auto", "cpu", "cuda", "mps"]),
    "--precision": (["fp16"], ["auto", "fp32", "bf16"]),
}

OPTIONS: dict[str, dict[str, tuple[list[str], list[str]]]] = {
    "train": {
        "--for": (["0", "-1", "-3s", "0s", "soon", "nan", "inf", "1e9", "10 min", "1d", "", "9" * 12, "٣s"], ["10min"]),
        "--epochs": (NOT_WHOLE + LARGER, ["from 1 to 1,000,000"]),
        "--steps": ([*NOT_WHOLE, "1000000001"], ["from 1 to 1,000,000,000"]),
        "--preset": (["", "huge", "Tiny", "none"], [*PRESETS]),
        "--set": (["", "=", "=5", "lr", "help=1", "__class__=x", "lr==1", "\x1b[31m=1"], []),
        "--out": ([""], ["path"]),
        "--seed": (SEEDS, ["from 0 to 9,223,372,036,854,775,807"]),
        "--data-root": ([""], ["path"]),
        "--size": ([*NOT_WHOLE, "1025"], ["from 1 to 1,024"]),
        "--device": (DEVICES, ["auto", "cpu", "cuda", "mps"]),
        "--precision": (["", "fp16", "bf8", "FP32", "float32"], ["auto", "fp32", "bf16"]),
    },
    "sample": {
        "--n": (NOT_WHOLE + LARGER, ["from 1 to 1,000,000"]),
        "--view": (["-1", "8", "1.5", "", "plain"], ["from 0 to 7"]),
        "--shares": (["", "2", "-0.1", "nan", "a", "0,,1", "0,inf", ",".join(["0"] * 101)], ["from 0 to 1"]),
        "--guidance": (SCALES, ["from 0 to 100"]),
        "--autoguidance": (SCALES, ["from 0 to 100"]),
        "--ema": (WIDTHS, ["from 0.01 to 0.27"]),
        "--steps": ([*NOT_WHOLE, "10001"], ["from 1 to 10,000"]),
        "--sampler": (["", "dpm", "DDPM", "euler"], [*SAMPLERS]),
        "--seed": (SEEDS, ["from 0 to"]),
        "--out": (["", "x.jpeg", "x.gif", "x.pt", "x.npy", "x.png.exe", "x.PNG"], []),
        "--device": (DEVICES, ["auto", "cpu", "cuda", "mps"]),
        "--precision": (["fp16"], ["auto", "fp32", "bf16"]),
    },
    "play": {
        "--ema": (["0.3"], ["from 0.01 to 0.27"]),
        "--port": (["-1", "65536", "8e3", "", "http"], ["from 0 to 65,535"]),
        "--device": (DEVICES, ["auto", "cpu", "cuda", "mps"]),
        "--precision": (["fp16"], ["auto", "fp32", "bf16"]),
    },
    "evaluate": {
        "--ema": (["0.3"], ["from 0.01 to 0.27"]),
        "--n": ([*NOT_WHOLE, "1", *LARGER], ["from 2 to 1,000,000"]),
        "--guidance": (SCALES, ["from 0 to 100"]),
        "--autoguidance": (SCALES, ["from 0 to 100"]),
        "--steps": (["0", "10001"], ["from 1 to 10,000"]),
        "--sampler": (["dpm"], [*SAMPLERS]),
        "--seed": (SEEDS, ["from 0 to"]),
        "--extractor": (["", "vgg", "Inception"], ["classifier", "inception"]),
        "--extractor-seeds": (["0", "-1", "101", "many"], ["from 1 to 100"]),
        "--inception-weights": ([""], ["path"]),
        "--out": ([""], ["path"]),
        "--data-root": ([""], ["path"]),
        "--size": (["0", "1025"], ["from 1 to 1,024"]),
        "--device": (DEVICES, ["auto", "cpu", "cuda", "mps"]),
        "--precision": (["fp16"], ["auto", "fp32", "bf16"]),
    },
    "data": {
        "--out": (["", "x.jpg", "x", "x.npz"], []),
        "--noised": (["", "x.jpg", "x"], []),
        "--schedule": (["cosine"], ["--noised"]),
        "--data-root": ([""], ["path"]),
        "--size": (["0", "1025", "-1"], ["from 1 to 1,024"]),
    },
    "schedules": {
        "--out": (["", "x.jpg", "x", "x.svg"], []),
        "--data-root": ([""], ["path"]),
        "--size": (["0", "1025"], ["from 1 to 1,024"]),
    },
    "explain": {},
    "check": {},
    "compare": {
        "--set": (["", "=5", "nothing=1", "__class__=x", "sampler_steps=x"], []),
        "--n": ([*NOT_WHOLE, "1", *LARGER], ["from 2 to 1,000,000"]),
        "--seed": (SEEDS, ["from 0 to"]),
        "--out": (["", "x.jpg", "x"], []),
        **OF_DATA_AND_DEVICE,
    },
    "sweep": {
        "--n": ([*NOT_WHOLE, "1", *LARGER], ["from 2 to 1,000,000"]),
        "--seed": (SEEDS, ["from 0 to"]),
        "--nfe": (["", "1", "5,", "5;6", "-5", "5.5", "٣", "10001", ",".join(["5"] * 21)], ["from 2 to 10000"]),
        "--ema": ([*WIDTHS, "0.1,", ",".join(["0.1"] * 21)], ["number"]),
        "--guidance": (["", "1,", "1;2", "-1", "101", "x", "nan", ",".join(["1"] * 21)], ["number"]),
        "--out": (["", "x.jpg", "x"], []),
        **OF_DATA_AND_DEVICE,
    },
    "report": OF_DATA_AND_DEVICE,
    "doctor": {
        "--guidance": (SCALES, ["from 0 to 100"]),
        "--autoguidance": (SCALES, ["from 0 to 100"]),
        "--steps": (["0", "10001"], ["from 1 to 10,000"]),
        "--sampler": (["dpm"], [*SAMPLERS]),
        "--seed": (SEEDS, ["from 0 to"]),
        **OF_DATA_AND_DEVICE,
    },
    "classifier": {
        "--epochs": (NOT_WHOLE + LARGER, ["from 1 to 1,000,000"]),
        "--out": (["", "x.pt", "x", "x.npz"], []),
        "--seed": (SEEDS, ["from 0 to"]),
        "--device": (DEVICES, ["auto", "cpu", "cuda", "mps"]),
        "--data-root": ([""], ["path"]),
        "--size": (["0", "1025"], ["from 1 to 1,024"]),
    },
}
ELSEWHERE = {"--label", "--data"}  # any word; what it may be lies in the model, or in the data
NEEDED = {"train": ["nowhere.npz"], "sample": MODEL, "evaluate": MODEL, "data": ["nowhere.npz"], "schedules": []}


@pytest.mark.parametrize(
    ("command", "option"), [(command, option) for command, options in OPTIONS.items() for option in options]
)
def test_an_option_that_cannot_be(capsys, command, option):
    texts, words = OPTIONS[command][option]
    for text in texts:
        argv = [command, *NEEDED.get(command, ["nowhere.npz"]), f"{option}={text}"]
        fails(capsys, argv, *([] if option == "--set" else [option]), *words)


def test_every_option_that_takes_a_value_is_among_them():
    (commands,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, sub in commands.choices.items():
        takers = {action.option_strings[0] for action in sub._actions if action.option_strings and action.nargs != 0}
        assert takers - ELSEWHERE == set(OPTIONS[name])


MISUSES = {
    "paint": ["paint", "train", "sample"],
    "": ["choose from"],
    "--sped 3": ["choose from", "train"],
    "train --sped 3": ["--sped"],
    "train --step 3": ["--step"],
    "train digits extra": ["extra"],
    "train --for 1min --steps 3": ["--steps", "--for"],
    "train --epochs 1 --steps 3": ["--steps", "--epochs"],
    "train --steps": ["--steps"],
    "train --dry-run=yes": ["--dry-run"],
    "train --resume": ["--resume", "--out"],
    "train --preset huge": ["huge", *PRESETS],
    "train nowhere.npz --set steps=5 --set seconds=5": ["seconds", "steps"],
    "sample": ["MODEL"],
    "sample m --film --out x.jpg": [".png", ".gif", ".webp"],
    "sample m --film --n 65": ["64", "65"],
    "sample m --shares 0,1": ["--shares", "--film"],
    "sample m --out x.gif": ["--film"],
    "evaluate": ["WHAT"],
    "evaluate x.npz": ["--data"],
    "evaluate m --extractor inception --extractor-seeds 2": ["--extractor-seeds"],
    "evaluate m --inception-weights w.pth": ["--extractor inception"],
    "data nowhere.npz --noised x.png --schedule cosin": ["cosin", "cosine", "karras"],
    "schedules cosin": ["cosin", "cosine", "karras"],
    "explain cosin": ["cosin", "cosine", "dpmpp"],
    "check 13": ["13", "1 to 12"],
    "check three": ["three", "whole number"],
    "check 3 nowhere.py": ["nowhere.py", "check 3"],
    "sweep m --guidance 1,2 --ema 0.05": ["--ema", "--guidance"],
    "schedules cosine flow cosin": ["cosin", "linear"],
}


@pytest.mark.parametrize("words", MISUSES)
def test_misuse(capsys, words):
    argv = words.split() if words else [""]
    fails(capsys, argv, *MISUSES[words])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        *(
            (f"--label={text}", ["no label", "0, 1, 2"])
            for text in ("nonsense", "3", "-1", "", "0,9", "0,", "1.0", "٣")
        ),
        ("--view=1", ["no view 1", "0 is plain"]),
        ("--autoguidance=2", ["snapshot"]),
        ("--n=1000000 --out=x.png", ["268,435,456", ".npz"]),
        ("--n=1000000 --out=x.webp", ["16,383", ".png"]),
    ],
)
def test_what_a_model_cannot_do(capsys, run_folder, options, words):
    fails(capsys, ["sample", str(run_folder), *options.split()], *words)


def test_scores_do_not_go_into_a_file(capsys, run_folder):
    Path("scores.png").touch()
    fails(capsys, ["evaluate", str(run_folder), "--out", "scores.png"], "--out scores.png", "folder")


# --- as the user runs it


def test_what_the_parser_can_tell_it_tells_without_torch():
    argvs = [
        [command, *NEEDED.get(command, ["nowhere.npz"]), f"{option}={text}"]
        for command, options in OPTIONS.items()
        for option, (texts, _) in options.items()
        if option not in ("--set", "--preset")
        for text in texts
    ]
    code = (
        "import json, sys\nfrom simple_diffusion.cli.main import main\n"
        "for argv in json.load(sys.stdin):\n"
        "    try: main(argv)\n    except SystemExit as stop: assert stop.code == 2, argv\n"
        "    assert 'torch' not in sys.modules and 'numpy' not in sys.modules, argv\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps(argvs), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("\n") == len(argvs)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train", "--set", "lr=nan"], ["lr", "from 1e-08 to 10"]),
        (["sample", "m", "--guidance", "nan"], ["--guidance", "from 0 to 100"]),
        (["paint"], ["paint", "train"]),
    ],
)
def test_a_process_of_its_own(argv, words):
    done = subprocess.run([sys.executable, "-m", "simple_diffusion", *argv], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr
    assert list(Path().iterdir()) == []
