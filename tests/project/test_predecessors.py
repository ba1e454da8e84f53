"""docs/predecessors.md: every row is present, and every name in it exists. Also tests for rows without another test."""

import ast
import inspect
import itertools
import math
import re
import shlex
import sys
import tomllib
from collections import Counter
from dataclasses import fields
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from oracles import ALL, Gaussian

import simple_diffusion
import simple_diffusion.run.steps as steps_of_a_run
import simple_diffusion.run.trainer as running
from simple_diffusion.cli.main import parser
from simple_diffusion.data.info import DataInfo
from simple_diffusion.data.sources import load_images
from simple_diffusion.denoiser import Denoiser
from simple_diffusion.errors import UsageError
from simple_diffusion.model.build import ModelSpec
from simple_diffusion.model.config import Config, fitted, parse_settings, schedule_of
from simple_diffusion.model.model_file import Model, load, read, save
from simple_diffusion.model.presets import PRESETS
from simple_diffusion.networks.annotated import AnnotatedUNet
from simple_diffusion.networks.double_conv import DoubleConvUNet
from simple_diffusion.run.milestones import PICTURES
from simple_diffusion.samplers import ddpm, karras_grid
from simple_diffusion.sampling import sample
from simple_diffusion.schedules import BETAS, Discrete, linear_betas, sigmoid_betas
from simple_diffusion.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(simple_diffusion.__file__).parent
PAGE = ROOT / "docs" / "predecessors.md"
TEXT = PAGE.read_text()
CODE = re.findall(r"`([^`\n]+)`", TEXT) + re.findall(r"^simple-diffusion .*$", TEXT, re.MULTILINE)
ROWS = "F1-8 S1-8 L1-3 UN1-23 PN1-17 C1-7 E1-5 SA1-5 T1-6 D1-5 V1-6 K1-1 M1-6 N1-3 U1-22 P1-35"
SETTINGS = {f.name: f for f in fields(Config)}


def starting(*words: str) -> list[str]:
    found = sorted({code for code in CODE if code.startswith(words)})
    assert found
    return found


# --- the page --------------------------------------------------------------------------------------------------------


def test_every_row_is_present_once():
    shown = re.findall(r"^\| ([A-Z]+\d+) \|", TEXT, re.MULTILINE)
    wanted = [(kind, int(last)) for kind, last in re.findall(r"([A-Z]+)1-(\d+)", ROWS)]
    assert Counter(shown) == Counter(f"{kind}{n}" for kind, last in wanted for n in range(1, last + 1))


def test_every_row_names_a_test():
    for row in re.findall(r"^\| [A-Z]+\d+ \|.*$", TEXT, re.MULTILINE):
        assert row.count(" | ") == 3, row
        assert re.search(r"`tests/[\w/]*test_\w+\.py::test_", row.split(" | ")[3]), row


def test_its_objects_exist():
    for code in starting("simple_diffusion"):
        path, _, arguments = code.removesuffix(")").partition("(")
        found = resolve_name(path)
        if arguments:
            assert set(re.findall(r"(\w+)=", arguments)) <= set(inspect.signature(found).parameters), code


@cache
def functions(path: str) -> set[str]:
    return set(re.findall(r"^def (\w+)", (ROOT / path).read_text(), re.MULTILINE))


def test_its_tests_exist():
    named = [code.split("::") for code in starting("tests/") if "::" in code]
    assert [f"{path}::{name}" for path, name in named if name not in functions(path)] == []


def check_setting(pair: str) -> None:
    """Check that this is a setting with a valid value."""
    for key, value in parse_settings([pair]).items():
        rule = SETTINGS[key].metadata
        assert value in rule["among"] if rule["among"] else pair.count("=") == 1


@pytest.mark.parametrize("line", starting("simple-diffusion "))
def test_its_commands_are_valid(line):
    args = parser().parse_args(shlex.split(line)[1:])
    assert getattr(args, "preset", None) in (None, *PRESETS)
    for pair in getattr(args, "set", []):
        check_setting(pair)
    for name in ("sampler", "schedule"):
        if getattr(args, name, None):
            check_setting(f"{name}={getattr(args, name)}")


def test_its_settings_are_valid():
    pairs = {code for code in CODE if re.fullmatch(r"\w+=[\w.,-]+", code)}
    assert len(pairs) > 30
    for pair in pairs:
        check_setting(pair)


def test_its_files_exist(run_folder):
    codes = [code for code in CODE if not code.startswith("simple-diffusion")]
    words = [word.partition("::")[0] for code in codes for word in code.split()]
    names = {w for w in words if re.fullmatch(r"\w[\w-]*(/[\w.-]+)+|\w+\.(py|md|toml|txt|csv|safetensors)", w)}
    assert {"benchmarks/ladder.py", "model.safetensors", "pyproject.toml"} <= names
    for name in names:
        assert (ROOT / name).is_file() or (run_folder / name).is_file(), name
    for path in re.findall(r"\]\((\S+?)\)", TEXT):
        assert (PAGE.parent / path).is_file(), path


# --- T1, D3, U6: the presets -----------------------------------------------------------------------------------------


def info(count: int, channels: int, size: int, classes: int) -> DataInfo:
    return DataInfo("x", count, channels, size, size, tuple(map(str, range(classes))), 0.0, 0.5, "")


@pytest.mark.parametrize(
    ("name", "count", "channels", "sizes", "classes", "epochs", "parameters", "betas", "settings"),
    [
        ("annotated-goldfish", 500, 3, (64, 32, 128), 0, 8000, 35_705_347, linear_betas(500), ("l1", 64, 1e-4, 8)),
        ("double-conv-fashion", 60_000, 1, (32, 28), 10, 25, 23_334_017, sigmoid_betas(1000), ("l2", 128, 3e-4, 1)),
    ],
)
def test_the_presets_are_the_published_configurations(
    name, count, channels, sizes, classes, epochs, parameters, betas, settings
):
    config = Config(**PRESETS[name][1])
    assert config.size == sizes[0]
    for size in sizes:  # the widths do not depend on the size
        with torch.device("meta"):
            net = ModelSpec(config, info(count, channels, size, classes)).network()
        assert sum(p.numel() for p in net.parameters()) == parameters
    assert schedule_of(config) == Discrete(betas)
    assert (config.target, config.density, config.grid) == ("noise", "steps", "uniform")
    assert config.sampler_steps == config.timesteps == len(betas)
    assert config.steps == epochs * math.ceil(count / config.batch)
    augmentations = ModelSpec(config, info(count, channels, sizes[0], classes)).augmentations
    assert (config.criterion, config.batch, config.lr, len(augmentations)) == settings
    if classes:
        assert (config.guidance, config.drop_labels) == (3.0, 0.1)
        assert (config.ema_decay, config.ema_warmup) == (0.995, 2000)
        first, last = Discrete(betas).ratio(torch.tensor([1 / len(betas), 1.0], dtype=torch.float64))
        assert config.guidance_low < first < last < config.guidance_high  # guidance acts at every step


# --- T5, U5, P8, P18, E4, P31: a run ---------------------------------------------------------------------------------

TINY = {"widths": (8, 16), "blocks": (1, 1), "batch": 8, "sampler_steps": 2, "seconds": 0.0}
CPU = torch.device("cpu")


def test_a_run_saves_its_model_with_every_grid_and_uses_the_same_noise(squares, tmp_path, monkeypatch):
    saved, drawn = [], []

    def watched_save(path, model):
        save(path, model)
        saved.append(read(path).step)  # the file is complete

    def watched_draw(model, n, labels, seed, **options):
        drawn.append((n, labels.tolist(), seed))
        return torch.zeros(n, *model.info.shape, dtype=torch.uint8)

    monkeypatch.setattr(running, "PICTURES", PICTURES)
    monkeypatch.setattr(running, "save", watched_save)
    monkeypatch.setattr(running, "generate", watched_draw)
    monkeypatch.setattr(running, "write_report", lambda *parts, **options: None)
    config = fitted(Config(steps=20, **TINY), CPU)
    running.train_run(config, load_images(str(squares)), tmp_path / "run", CPU, 0.0, quiet=True)
    assert saved == [1, *range(2, 21, 2)]
    assert drawn == [(30, [0] * 10 + [1] * 10 + [2] * 10, config.seed)] * 11


def test_the_model_of_a_run_is_its_averaged_weights(squares, tmp_path, monkeypatch):
    images = load_images(str(squares))
    monkeypatch.setattr(running, "write_report", lambda *parts, **options: None)
    monkeypatch.setattr(running.Trainer, "write_samples", lambda self, model: None)
    config = fitted(Config(steps=6, ema_decay=0.3, ema_warmup=2, **TINY), CPU)
    running.train_run(config, images, tmp_path / "run", CPU, 0.0, quiet=True)
    budget = running.Budget(config, 0.0)
    denoiser, steps = steps_of_a_run.start_training(ModelSpec(config, DataInfo.of(images)), images, CPU, budget.advance)
    average: dict[str, Any] = {}
    for step in itertools.islice(steps, 6):
        later = max(step.n - 3, 0)  # updates after the warm-up of two; the next one is a copy, too
        kept = min(0.3, later / (later + 10))
        for name, p in denoiser.named_parameters():
            average[name] = kept * average.get(name, 0.0) + (1 - kept) * p.detach()
    found = dict(load(tmp_path / "run").named_parameters())
    for name, want in average.items():
        torch.testing.assert_close(found[name], want, rtol=1e-5, atol=1e-7)
    assert any((found[name] - p).abs().max() > 1e-5 for name, p in denoiser.named_parameters())


def test_seconds_have_two_decimals(run_folder):
    rows = (run_folder / "log.csv").read_text().splitlines()[1:]
    assert all(re.fullmatch(r"\d+\.\d\d", row.split(",")[2]) for row in rows)


# --- U7, U8, P2, P3, P12: schedules and samplers ---------------------------------------------------------------------


@pytest.mark.parametrize("T", [21, 50, 100, 500, 1000, 4000])
def test_a_scaled_table_ends_in_noise_whatever_its_length(T):
    """1 - b < exp(-b), and the sum of scaled betas is (0.1 + 20)/2, so alpha at the end is below exp(-10.05/2)."""
    end = torch.ones((), dtype=torch.float64)
    assert Discrete(linear_betas(T)).alpha(end) < math.exp(-10.05 / 2)
    unscaled = Discrete(linear_betas(T, scaled=False)).alpha(end)
    assert (unscaled > 0.079) == (T <= 500)  # at 500 steps, 8 % remains as published


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_levels_read_no_values_from_the_device(target):
    """Tensors on the meta device have no values, so reading one would be an error."""
    x, t = torch.zeros(4, 1, 2, 2, device="meta"), torch.zeros(4, device="meta")
    for schedule in (*ALL.values(), *(Discrete(table(50)) for table in BETAS.values())):
        alpha, sigma, *_ = Denoiser(torch.nn.Identity(), schedule, target).coefficients(t, x)
        assert {level.device.type for level in (alpha, sigma)} == {"meta"}
        assert (x + alpha * sigma).shape == x.shape


def test_a_model_samples_with_the_schedule_of_its_training(squares, tmp_path):
    info = DataInfo.of(load_images(str(squares)))
    config = fitted(Config(schedule="sigmoid", timesteps=50, steps=1, **TINY), CPU)
    spec = ModelSpec(config, info)
    save(tmp_path / "m.safetensors", Model(spec.denoiser(), spec, 1, 0.0))
    assert load(tmp_path / "m.safetensors").schedule == Discrete(sigmoid_betas(50))
    with pytest.raises(UsageError, match="--schedule"):
        parser().parse_args(["sample", "m.safetensors", "--schedule", "linear"])


def test_sampling_options_are_keyword_only():
    oracle = Gaussian(ALL["karras"])
    times = karras_grid(oracle.schedule, 2)
    assert sample(oracle, (2, 1), times, None, sampler=ddpm).shape == (2, 1)
    with pytest.raises(TypeError, match="positional"):
        sample(oracle, (2, 1), times, None, ddpm)  # pyrefly: ignore[bad-argument-count]


# --- U20, U21, P16: models -------------------------------------------------------------------------------------------


def test_a_loaded_model_is_in_eval_mode_without_gradients(run_folder):
    denoiser = load(run_folder)
    assert not any(module.training for module in denoiser.modules())
    assert not any(p.requires_grad for p in denoiser.parameters())


@pytest.mark.parametrize(
    ("net", "calls"),
    [
        (AnnotatedUNet(8, dim_mults=(1, 2), channels=1), 1),
        (DoubleConvUNet(1, base_channels=8, n_scaling=2, n_bottleneck=0), 4),
        (DoubleConvUNet(1, base_channels=8, n_scaling=2, n_bottleneck=0, attention=False), 0),
    ],
    ids=["annotated", "double-conv", "without"],
)
def test_attention_uses_the_fused_kernel(net, calls):
    name = "scaled_dot_product_attention"
    with patch.object(F, name, wraps=F.scaled_dot_product_attention) as fused:
        net(torch.zeros(1, 1, 8, 8), torch.zeros(1))
    assert fused.call_count == calls


# --- U18, U19: the package -------------------------------------------------------------------------------------------

CALLED = {
    "PIL": "pillow",
    "torch_fidelity": "torch-fidelity",
    "huggingface_hub": "datasets",
}  # the package that installs it
TREES = {path: ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")}


def test_every_import_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    wanted = [*project["dependencies"], *optional["fidelity"], *optional["hub"], *optional["play"]]
    declared = {re.split(r"[^\w-]", word)[0] for word in wanted}
    imported = set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    others = imported - set(sys.stdlib_module_names) - {"simple_diffusion"}
    assert {CALLED.get(name, name) for name in others} == declared


def test_environment_variables_are_only_read_or_set_if_unset():
    """The code uses `os.environ` only to read, and with `get` and `setdefault`."""
    done = Counter()
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
                assert isinstance(node.ctx, ast.Load), path
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os.environ":
                done[node.attr] += 1
            assert not (isinstance(node, ast.Attribute) and node.attr in ("putenv", "unsetenv")), path
    assert set(done) == {"get", "setdefault"}
