"""The size of network that a time is given."""

import json
from dataclasses import asdict, replace
from itertools import pairwise
from unittest.mock import patch

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from simple_diffusion.cli.main import main
from simple_diffusion.data.images import Images
from simple_diffusion.data.info import DataInfo
from simple_diffusion.model.build import ModelSpec
from simple_diffusion.model.config import Config
from simple_diffusion.model.presets import PRESETS
from simple_diffusion.run import estimate as sizing
from simple_diffusion.run.estimate import MATMUL_SHARE, SIZES, choose_size, matmul_speed, training_flops
from simple_diffusion.run.steps import start_training
from simple_diffusion.system.device import PRECISIONS, pick_precision

CPU = torch.device("cpu")
PIXELS = torch.randint(0, 256, (64, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IMAGES = Images("noise", PIXELS, torch.arange(64) % 10, tuple("0123456789"))
INFO = DataInfo.of(IMAGES)


def at(speed: float):
    """A machine of so many FLOP/s."""
    return patch.object(sizing, "matmul_speed", lambda dtype, device: speed)


def test_a_training_step_takes_what_is_reckoned():
    config = Config(widths=(32, 64), batch=8, precision="fp32", optimizer="adamw")
    _, steps = start_training(ModelSpec(config, INFO), IMAGES, CPU, lambda n: 1e-3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what runs in other threads is not counted
    try:
        next(steps)  # the first step also looks whether threads can share a step
        with FlopCounterMode(display=False) as counter:
            next(steps)
    finally:
        torch.set_num_threads(threads)
    # Nothing is sent back through the first layer to the image.
    assert training_flops(ModelSpec(config, INFO)) == pytest.approx(counter.get_total_flops() / 8, rel=0.03)


def test_a_convolution_is_two_flops_a_weight_and_position_three_times():
    small, large = Config(widths=(32,), blocks=(1,)), Config(widths=(32,), blocks=(2,))
    more = training_flops(ModelSpec(large, INFO)) - training_flops(ModelSpec(small, INFO))
    attention = 4 * 32 * 32 * 196 + 2 * 32 * 196 * 196  # qkv, out; weights, values
    block = 2 * 9 * 32 * 32 * 196 + 64 * 32  # two convolutions; the embedding's layer
    assert more == 3 * 2 * (attention + block)


def test_images_of_twice_the_side_cost_four_times_as_much():
    wide = replace(INFO, height=56, width=56)
    config = Config(blocks=(1, 1))
    assert (
        4 < training_flops(ModelSpec(config, wide)) / training_flops(ModelSpec(config, INFO)) < 4.6
    )  # attention's square grows faster


def test_more_time_is_never_a_smaller_network():
    with at(1e11):
        chosen = [
            choose_size(ModelSpec(Config(precision="fp32", seconds=10.0 * 16**i), INFO), CPU)[0] for i in range(5)
        ]
    order = [list(SIZES["cpu"]).index(name) for name in chosen]
    assert order == sorted(order)
    assert len(set(order)) > 1


STEPS_UP = [(kind, *pair) for kind, sizes in SIZES.items() for pair in pairwise(sizes)]


@pytest.mark.parametrize(("kind", "before", "size"), STEPS_UP)
def test_a_size_is_taken_from_the_images_on_that_it_needs(kind, before, size):
    needs = SIZES[kind][size] * training_flops(ModelSpec(Config(**PRESETS[size][1]), INFO)) / MATMUL_SHARE[kind]
    device = torch.device("cpu" if kind == "cpu" else "cuda")  # which is only asked for its name
    with at(1e11):
        assert choose_size(ModelSpec(Config(precision="fp32", seconds=needs / 1e11 * 1.001), INFO), device)[0] == size
        assert choose_size(ModelSpec(Config(precision="fp32", seconds=needs / 1e11 * 0.999), INFO), device)[0] == before


def test_the_machine_is_measured():
    for dtype in {torch.float32, PRECISIONS[pick_precision("auto", CPU)]}:  # those that it would train in
        assert 1e9 < matmul_speed(dtype, CPU, times=1) < 1e15  # one core of 1995, and a rack of today


@pytest.mark.parametrize(
    ("options", "widths", "batch"),
    [
        ((), PRESETS["large"][1]["widths"], PRESETS["large"][1]["batch"]),
        (("--set=batch=8",), PRESETS["large"][1]["widths"], 8),
        (("--preset=tiny",), PRESETS["tiny"][1]["widths"], Config().batch),
        (("--set=widths=16,24",), (16, 24), Config().batch),
        (("--steps=3",), Config().widths, Config().batch),
    ],
)
def test_what_is_said_counts_more_than_the_time(squares, capsys, options, widths, batch):
    chosen = lambda config, images, device: {"text": "", "config": asdict(config)}  # noqa: E731
    with at(1e16), patch.object(sizing, "dry_run", chosen):
        main(
            ["train", str(squares), "--for", "2min", *options, "--dry-run", "--json"]
            if "steps" not in str(options)
            else ["train", str(squares), *options, "--dry-run", "--json"]
        )
    config = json.loads(capsys.readouterr().out)["config"]
    assert (tuple(config["widths"]), config["batch"]) == (widths, batch)
