"""Training and sampling speed of each preset on this machine, and where the time of a training step goes.

    python benchmarks/throughput.py [--precision fp32 bf16] [--presets tiny small] [--seconds 4] [--device cuda]

Images are 28 x 28, gray, in ten classes, as in Fashion-MNIST. Numbers are medians over steps. One run measures each
preset in every precision, so that the ratios hold on a shared machine.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from simple_diffusion.data.images import Images
from simple_diffusion.data.info import DataInfo
from simple_diffusion.model.build import ModelSpec
from simple_diffusion.model.config import Config
from simple_diffusion.model.generate import sampling_batch
from simple_diffusion.model.presets import PRESETS
from simple_diffusion.run.estimate import SIZES, matmul_speed
from simple_diffusion.run.steps import start_training
from simple_diffusion.sampling import sample_batches
from simple_diffusion.system.device import PRECISIONS, pick_device

KINDS = {  # first part of an operation's name -> kind of work
    "convolution": ("aten::mkldnn_conv", "aten::convolution_back", "aten::cudnn_conv", "aten::_slow_conv"),
    "matrix product": ("aten::addmm", "aten::mm", "aten::bmm", "aten::linear", "aten::mkldnn_linear", "aten::baddbmm"),
    "attention": ("aten::_scaled_dot", "aten::_softmax", "aten::_flash", "aten::_efficient"),
    "normalisation": ("aten::native_group_norm", "aten::native_layer_norm"),
    "activation": ("aten::silu",),
    "optimizer, averages": ("aten::_fused_adam", "aten::_foreach", "Optimizer", "aten::linalg_vector_norm"),
    "casts and copies": ("aten::copy_", "aten::_to_copy", "aten::cat", "aten::clone", "aten::contiguous"),
    "resampling": ("aten::upsample", "aten::pixel", "aten::constant_pad", "aten::index"),
}


def kind_of(operation: str) -> str:
    for kind, names in KINDS.items():
        if operation.startswith(names):
            return kind
    return "other arithmetic" if operation.startswith("aten::") else "python, autograd"


CPU = torch.device("cpu")


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished its work; a CPU has already."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flops_of(steps: Iterator[Any]) -> int:
    """FLOP of one training step, forward and backward."""
    cores = torch.get_num_threads()
    torch.set_num_threads(1)  # the counter does not see other threads
    with FlopCounterMode(display=False) as counter:
        next(steps)
    torch.set_num_threads(cores)
    return counter.get_total_flops()


def noise_images(count: int) -> Images:
    """Noise in the shape of Fashion-MNIST: always the same, with nothing to load."""
    pixels = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images("noise", pixels, torch.arange(count) % 10, tuple("0123456789"))


def kinds_of(steps: Iterator[Any], count: int = 5) -> Counter:
    """Seconds of some training steps by kind of work, on one core."""
    cores = torch.get_num_threads()
    torch.set_num_threads(1)  # the profiler does not see other threads either
    next(steps)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(count):
            next(steps)
    torch.set_num_threads(cores)
    next(steps)
    kinds: Counter = Counter()
    for event in profiler.key_averages():
        kinds[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    return kinds


def measure(preset: str, precision: str, seconds: float, device: torch.device = CPU) -> tuple[str, Counter]:
    """One row of the table, and on a CPU the seconds by kind of work in some training steps."""
    images = noise_images(2048)
    config = replace(Config(**PRESETS[preset][1]), precision=precision)
    info = DataInfo.of(images)
    denoiser, steps = start_training(ModelSpec(config, info), images, device, lambda n: 1e-6)
    flops = flops_of(steps)  # of the first step: later ones may be replayed from a CUDA graph, which shows no operation
    for _ in range(3):
        next(steps)
    on_gpu = device.type == "cuda"
    kinds = Counter() if on_gpu else kinds_of(steps)
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        began = time.perf_counter()
        next(steps)
        wait_for(device)
        times.append(time.perf_counter() - began)
    step = median(times)

    guided, grid, sampler = ModelSpec(config, info).sampler(denoiser.eval())
    batch = sampling_batch(device, *info.shape[1:])
    n = 4 * batch if on_gpu else batch * torch.get_num_threads()  # a batch for each core
    labels, times = torch.arange(n) % 10, []
    for seed in range(4):
        began = time.perf_counter()
        list(
            sample_batches(
                guided, (n, *info.shape), grid, labels, sampler=sampler, seed=seed, batch=batch, device=device
            )
        )
        wait_for(device)
        times.append(time.perf_counter() - began)
    parameters = sum(p.numel() for p in denoiser.parameters()) / 1e6
    row = (
        f"| {preset} | {parameters:.2f} | {precision} | {config.batch / step:,.0f} | {flops / config.batch / 1e9:.2f} "
        f"| {flops / step / 1e9:,.0f} | {n / median(times[1:]):,.0f} |"
    )
    return row, kinds


def table(presets: list[str], precisions: list[str], seconds: float, device: torch.device) -> None:
    """Print the speed of every preset in every precision, and the time by kind of work."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device}", end="")
    for precision, dtype in PRECISIONS.items():
        print(f", matrix product {precision} {matmul_speed(dtype, device) / 1e9:,.0f} GFLOP/s", end="")
    print("\n\n| preset | M parameters | precision | training images/s | GFLOP/image | GFLOP/s | sampling images/s |")
    print("|---|---|---|---|---|---|---|")
    shares = {}
    for preset in presets:
        for precision in precisions:
            row, shares[preset, precision] = measure(preset, precision, seconds, device)
            print(row, flush=True)
    if device.type != "cpu":
        return
    kinds = [kind for kind, _ in sum(shares.values(), Counter()).most_common()]
    print(f"\nShare of a training step:\n\n| preset | precision | {' | '.join(kinds)} |")
    print("|---" * (len(kinds) + 2) + "|")
    for (preset, precision), spent in shares.items():
        total = sum(spent.values())
        print(f"| {preset} | {precision} | {' | '.join(f'{spent[k] / total:.0%}' for k in kinds)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", default=list(PRECISIONS), choices=list(PRECISIONS))
    parser.add_argument("--presets", nargs="+", default=list(SIZES["cpu"]), choices=list(PRESETS))
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds to measure each preset")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()
    table(args.presets, args.precision, args.seconds, pick_device(args.device))


if __name__ == "__main__":
    main()
