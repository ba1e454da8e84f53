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
from simple_diffusion.cli.options import RENAMED, duration, ema_length, path, scale, seed, whole
from simple_diffusion.cli.sample import fractions
from simple_diffusion.cli.sweep import list_of, nfe_list
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
    """One text for each rule that NAME=text can break."""
    default, rule = FIELDS[name].default, FIELDS[name].metadata
    if rule["among"]:
        return ["", "nonsense", default.upper()]
    if isinstance(default, str):
        return [""]
    low, high = int(rule["low"]), int(rule["high"])
    if isinstance(default, tuple):
        return [f"{low},x", f"{low}.5,{low}", ",".join([f"{low}"] * 9), f"{low - 1},{low}", f"{low},{high + 1}"]
    texts = ["many", "nan", f"{low - 1}", f"{2 * high + 1}"]
    return [*texts, "1.5"] if isinstance(default, int) else texts


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
def test_an_invalid_setting_is_refused(capsys, name):
    data = [] if name == "data" else ["nowhere.npz"]  # an allowed setting would end there, with another code
    for text in bad_texts(name):
        says_what_is_allowed(fails(capsys, ["train", *data, "--set", f"{name}={text}"]), name)


@pytest.mark.parametrize(
    "text", ["", ",", "inf", "1e400", "True", "None", "1,2", "0x10", "--", "1 2", "½", "9" * 5000, "1e3"]
)
def test_text_that_is_not_a_number_is_refused(capsys, text):
    says_what_is_allowed(fails(capsys, ["train", "nowhere.npz", "--set", f"steps={text}"]), "steps")


def test_an_unknown_setting_is_refused(capsys):
    for typo in ("step", "stepss", "LR", " lr", "lr ", "_lr_"):
        fails(capsys, ["train", "nowhere.npz", "--set", f"{typo}=1"], repr(typo))
    fails(capsys, ["train", "nowhere.npz", "--set", "widthsx=1"], "did you mean 'widths'?")
    for text in ("", "=", "=5", "help=1", "__class__=x", "lr==1", "\x1b[31m=1"):
        fails(capsys, ["train", "nowhere.npz", "--set", text])


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
def test_a_value_of_a_wrong_type_is_refused_in_python(name, value):
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
def test_contradictory_settings_are_refused(capsys, pair):
    settings = [word for setting in pair.split() for word in ("--set", setting)]
    fails(capsys, ["train", "nowhere.npz", *settings], *PAIRS[pair])


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid(preset):
    values = PRESETS[preset][1]
    Config(**values)


# --- options

DEVICES = ["auto", "cpu", "cuda", "mps"]
MODEL = ["nowhere.safetensors"]

OF_DATA: dict[str, tuple[str, list[str]]] = {
    "--data-root": ("", ["path"]),
    "--size": ("1025", ["from 1 to 1,024"]),
}
OF_DATA_AND_DEVICE = OF_DATA | {"--device": ("gpu", DEVICES), "--precision": ("fp16", ["auto", "fp32", "bf16"])}
OF_SAMPLING: dict[str, tuple[str, list[str]]] = {
    "--guidance": ("101", ["from 0 to 100"]),
    "--autoguidance": ("-1", ["from 0 to 100"]),
    "--steps": ("10001", ["from 1 to 10,000"]),
    "--seed": ("-1", ["from 0 to 9,223,372,036,854,775,807"]),
}
COUNT = {"--n": ("1", ["from 2 to 1,000,000"]), "--seed": ("x", ["from 0 to"])}
EMA = {"--ema": ("0.3", ["from 0.01 to 0.27"])}

OPTIONS: dict[str, dict[str, tuple[str, list[str]]]] = {
    "train": {
        "--for": ("soon", ["10min"]),
        "--epochs": ("1000001", ["from 1 to 1,000,000"]),
        "--steps": ("0", ["from 1 to 1,000,000,000"]),
        "--preset": ("huge", [*PRESETS]),
        "--set": ("lr", []),
        "--out": ("", ["path"]),
        "--seed": (str(2**63), ["from 0 to"]),
        **OF_DATA_AND_DEVICE,
    },
    "sample": {
        "--n": ("1000001", ["from 1 to 1,000,000"]),
        "--augmentation": ("8", ["from 0 to 7"]),
        "--at": ("0,2", ["from 0 to 1"]),
        "--out": ("x.jpeg", [".png", ".npz"]),
        "--device": ("gpu", DEVICES),
        "--precision": ("fp16", ["auto", "fp32", "bf16"]),
        **OF_SAMPLING,
        **EMA,
    },
    "play": {
        "--port": ("65536", ["from 0 to 65,535"]),
        "--device": ("gpu", DEVICES),
        "--precision": ("fp16", ["auto", "fp32", "bf16"]),
        **EMA,
    },
    "evaluate": {
        "--extractor": ("vgg", ["classifier", "inception"]),
        "--extractor-seeds": ("101", ["from 1 to 100"]),
        "--inception-weights": ("", ["path"]),
        "--out": ("", ["path"]),
        **OF_DATA_AND_DEVICE,
        **OF_SAMPLING,
        **COUNT,
        **EMA,
    },
    "data": {
        "--out": ("x.jpg", [".png"]),
        "--noised": ("x", [".png"]),
        "--schedule": ("cosine", ["--noised"]),
        **OF_DATA,
    },
    "schedules": {"--out": ("x.svg", [".png"]), **OF_DATA},
    "explain": {},
    "check": {},
    "compare": {"--set": ("nothing=1", []), "--out": ("x.jpg", [".png"]), **COUNT, **OF_DATA_AND_DEVICE},
    "sweep": {
        "--nfe": ("5,1", ["from 2 to 10000"]),
        "--ema": ("0.1,0.3", ["number"]),
        "--guidance": ("1,101", ["number"]),
        "--out": ("x.jpg", [".png"]),
        **COUNT,
        **OF_DATA_AND_DEVICE,
    },
    "report": OF_DATA_AND_DEVICE,
    "doctor": {**OF_SAMPLING, **OF_DATA_AND_DEVICE},
    "classifier": {
        "--epochs": ("0", ["from 1 to 1,000,000"]),
        "--out": ("x.pt", [".safetensors"]),
        "--seed": ("1.5", ["from 0 to"]),
        "--device": ("gpu", DEVICES),
        **OF_DATA,
    },
}
"""Command -> option -> (a value that it refuses, words of the error)."""

REFUSED = {
    whole(1, 1024): [
        "0",
        "-1",
        "1.5",
        "1e9",
        "nan",
        "inf",
        "",
        "many",
        "9" * 100,
        "٣",
        "+1",
        " 1",
        "0x1",
        "1_0",
        "1025",
    ],
    seed: ["-1", "1.5", "1e9", "nan", "", "x", str(2**63), "9" * 100],
    scale: ["-1", "nan", "inf", "-inf", "1e400", "101", "", "strong", "1,5"],
    ema_length: ["", "0", "0.009", "0.28", "nan", "inf", "wide", "0,05"],
    duration: ["0", "-1", "-3s", "0s", "soon", "nan", "inf", "1e9", "10 min", "1d", "", "9" * 12, "٣s"],
    path: [""],
    fractions: ["", "2", "-0.1", "nan", "a", "0,,1", "0,inf", ",".join(["0"] * 101)],
    nfe_list: ["", "1", "5,", "5;6", "-5", "5.5", "٣", "10001", ",".join(["5"] * 21)],
    list_of(scale, "1,2"): ["", "1,", "1;2", "-1", "x", "nan", ",".join(["1"] * 21)],
}
"""Type of an option -> texts that it refuses."""

ELSEWHERE = {"--label", "--data", "--sampler"}  # any word; what it may be lies in the model, or in the data
NEEDED = {"train": ["nowhere.npz"], "sample": MODEL, "evaluate": MODEL, "data": ["nowhere.npz"], "schedules": []}


@pytest.mark.parametrize("kind", REFUSED)
def test_the_error_of_an_option_type_has_the_value_and_the_allowed_values(kind):
    for text in REFUSED[kind]:
        with pytest.raises(argparse.ArgumentTypeError) as caught:
            kind(text)
        assert str(caught.value).startswith("must be ")
        assert ", got '" in str(caught.value)


@pytest.mark.parametrize("command", OPTIONS)
def test_an_invalid_option_is_refused(capsys, command):
    for option, (text, words) in OPTIONS[command].items():
        argv = [command, *NEEDED.get(command, ["nowhere.npz"]), f"{option}={text}"]
        fails(capsys, argv, *([] if option == "--set" else [option]), *words)


@pytest.mark.parametrize("old", RENAMED)
def test_the_error_for_an_old_option_has_its_new_name(capsys, old):
    for argv in (["sample", "m", old, "1"], ["sample", "m", f"{old}=1"]):
        fails(capsys, argv, f"`{old}` is now called `{RENAMED[old]}`")
    (commands,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    known = {option for sub in commands.choices.values() for option in sub._option_string_actions}
    assert RENAMED[old] in known
    assert old not in known


def test_every_option_with_a_value_is_tested():
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
    "sample m --trajectory --out x.jpg": [".png", ".gif", ".webp"],
    "sample m --trajectory --n 65": ["64", "65"],
    "sample m --at 0,1": ["--at", "--trajectory"],
    "sample m --out x.gif": ["--trajectory"],
    "evaluate": ["WHAT"],
    "evaluate x.npz": ["--data"],
    "evaluate m --extractor inception --extractor-seeds 2": ["--extractor-seeds"],
    "evaluate m --inception-weights w.pth": ["--extractor inception"],
    "data nowhere.npz --noised x.png --schedule cosin": ["cosin", "cosine", "karras"],
    "schedules cosin": ["cosin", "cosine", "karras"],
    "explain cosin": ["cosin", "cosine", "dpmpp"],
    "check 13": ["13", "1 to 12"],
    "check three": ["three", "integer"],
    "check 3 nowhere.py": ["nowhere.py", "check 3"],
    "sweep m --guidance 1,2 --ema 0.05": ["--ema", "--guidance"],
    "schedules cosine flow cosin": ["cosin", "linear"],
}


@pytest.mark.parametrize("words", MISUSES)
def test_invalid_use_of_a_command_is_refused(capsys, words):
    argv = words.split() if words else [""]
    fails(capsys, argv, *MISUSES[words])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        *((f"--label={text}", ["no label", "0, 1, 2"]) for text in ("nonsense", "3", "", "0,", "٣")),
        ("--augmentation=1", ["--augmentation needs", "augment_conditioning=yes", "got 1"]),
        ("--autoguidance=2", ["snapshot"]),
        ("--sampler=dpm", ["sampler", *SAMPLERS, "dpm"]),
        ("--n=1000000 --out=x.png", ["268,435,456", ".npz"]),
        ("--n=1000000 --out=x.webp", ["16,383", ".png"]),
    ],
)
def test_options_that_a_model_does_not_support_are_refused(capsys, run_folder, options, words):
    fails(capsys, ["sample", str(run_folder), *options.split()], *words)


def test_scores_are_not_written_to_an_existing_file(capsys, run_folder):
    Path("scores.png").touch()
    fails(capsys, ["evaluate", str(run_folder), "--out", "scores.png"], "--out scores.png", "folder")


# --- as the user runs it


def test_the_parser_reports_errors_without_importing_torch():
    argvs = [
        [command, *NEEDED.get(command, ["nowhere.npz"]), f"{option}={text}"]
        for command, options in OPTIONS.items()
        for option, (text, _) in options.items()
        if option not in ("--set", "--preset")
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
        (["sample", "m", "--guidance", "nan"], ["--guidance", "from 0 to 100"]),
    ],
)
def test_a_process_of_its_own(argv, words):
    done = subprocess.run([sys.executable, "-m", "simple_diffusion", *argv], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr
    assert list(Path().iterdir()) == []
