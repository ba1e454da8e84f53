"""All checks and timings of a GPU, in one run of a few minutes.

    python benchmarks/gpu.py --out gpu                                    # on a machine with an NVIDIA GPU
    python benchmarks/gpu.py --device cpu --for 5s --n 64 --presets tiny  # the same code, anywhere

First the checks: the GPU agrees with the CPU, a second run is bit-identical, and image i does not depend on the number
of samples. Then the speed by preset and precision, and the scores of a model trained for two minutes. A failed check
gives exit code 1; the measurements still run.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from quality import command
from throughput import noise_images, table
from torch import Tensor

from simple_diffusion.data.info import DataInfo
from simple_diffusion.denoiser import Denoiser
from simple_diffusion.model.build import ModelSpec
from simple_diffusion.model.config import Config
from simple_diffusion.model.presets import PRESETS
from simple_diffusion.run.estimate import SIZES
from simple_diffusion.run.steps import start_training
from simple_diffusion.sampling import sample
from simple_diffusion.system.device import PRECISIONS, pick_device

STEPS = 20


def trained(config: Config, device: torch.device) -> tuple[Denoiser, Tensor]:
    """A denoiser after some steps on the device, and their losses; on a GPU, a CUDA graph replays later steps."""
    images = noise_images(640)
    denoiser, steps = start_training(ModelSpec(config, DataInfo.of(images)), images, device, lambda n: config.lr)
    losses = [next(steps).loss for _ in range(STEPS)]
    return denoiser.eval(), torch.tensor(losses)


def drawn(config: Config, denoiser: Denoiser, n: int, device: torch.device) -> Tensor:
    """n samples of the denoiser, on the CPU."""
    info = DataInfo.of(noise_images(640))
    guided, times, sampler = ModelSpec(config, info).sampler(denoiser)
    return sample(guided, (n, *info.shape), times, torch.arange(n) % 10, sampler=sampler, device=device)


def checks(device: torch.device) -> Iterator[tuple[str, bool]]:
    """(what was compared, with the largest difference; whether it is within its tolerance)."""
    config = Config(**PRESETS["tiny"][1], precision="fp32")
    (here, on_cpu), (there, on_device) = trained(config, torch.device("cpu")), trained(config, device)
    gap = ((on_device - on_cpu) / on_cpu).abs().max().item()
    yield f"losses of {STEPS} steps in fp32 against the CPU's, largest relative difference: {gap:.1e}", gap < 1e-2
    there.load_state_dict(here.state_dict())
    gap = (drawn(config, there, 64, device) - drawn(config, here, 64, torch.device("cpu"))).abs().max().item()
    yield f"64 images of one model in fp32 against the CPU's, largest difference in [-1, 1]: {gap:.1e}", gap < 2e-2
    for precision in PRECISIONS:
        chosen = replace(config, precision=precision)
        (first, losses), (second, again) = trained(chosen, device), trained(chosen, device)
        pairs = zip(first.parameters(), second.parameters(), strict=True)
        gap = max((a - b).abs().max().item() for a, b in pairs)
        yield f"two trainings in {precision}, largest difference of weights: {gap:.1e}", gap == 0
        few, many = drawn(chosen, first, 10, device), drawn(chosen, first, 100, device)[:10]
        yield f"image i of 10 and of 100 in {precision}: bit-identical", torch.equal(few, many)
        yield f"losses in {precision} are finite", bool((losses.isfinite() & again.isfinite()).all())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--presets", nargs="+", default=list(SIZES["cpu"]), choices=list(PRESETS))
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument(
        "--for",
        dest="length",
        default="2min",
        metavar="TIME",
        help="training time of the model that is scored at the end",
    )
    parser.add_argument("--n", type=int, default=10000, help="samples to score")
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder of that model")
    args = parser.parse_args()
    device = pick_device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}\n", flush=True)
    failed = 0
    for words, right in checks(device):
        failed += not right
        print(f"{'ok    ' if right else 'FAILED'} {words}", flush=True)
    print()
    table(args.presets, list(PRECISIONS), 2.0, device)
    if device.type == "cuda":
        print(f"\npeak memory {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB")
    run = ("--out", str(args.out), "--device", args.device)
    trained_run = command("train", args.data, "--for", args.length, *run)
    scored = command("evaluate", str(args.out), "--n", str(args.n), "--device", args.device)
    print(f"\n{args.length}: {trained_run['images']:,} images, {trained_run['images_per_second']:,.0f} images/s")
    print(f"{args.n / scored['sampling_seconds']:,.0f} sampled images/s")
    for score in scored["extractors"][0]["scores"]:
        print(f"  {score['name']} {score['value']} (baseline {score['baseline']})")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
