"""Training speed of the two published networks, as this project runs them and as plain PyTorch runs them.

    python benchmarks/predecessors.py [--networks double-conv annotated] [--batch 32] [--steps 4] [--precision auto]

Both variants are the same network with the same weights, the same images and the same noise, at 32 x 32:

    fast   the precision that suits this machine, channels-last, fused attention, fused Adam
    plain  float32, channels first, attention with its softmax written out, Adam one parameter at a time

The variants take their steps in turn, so that other programs on the machine slow down both. Numbers are medians over
the steps, after one warm-up step.
"""

import argparse
import time
from collections.abc import Callable
from importlib import import_module
from statistics import median
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simple_diffusion.denoiser import Denoiser
from simple_diffusion.losses import denoising_loss
from simple_diffusion.randomness import Draws
from simple_diffusion.schedules import Discrete
from simple_diffusion.system.device import PRECISIONS, pick_device, pick_precision
from simple_diffusion.targets import noise

NETWORKS = {  # name -> module, class, published setting, number of labels
    "double-conv": ("double_conv", "DoubleConvUNet", {"channels": 1, "num_classes": 10}, 10),
    "annotated": ("annotated", "AnnotatedUNet", {"channels": 3}, 0),
}
BETAS = torch.linspace(1e-4, 0.02, 1000)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Vaswani et al. 2017, eq. 1, with the matrix of all weights in memory."""
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v


def network(name: str) -> nn.Module:
    module, kind, settings, _ = NETWORKS[name]
    torch.manual_seed(0)
    return getattr(import_module(f"simple_diffusion.networks.{module}"), kind)(**settings)


def stepper(name: str, fast: bool, precision: str, batch: int, device: torch.device) -> Callable[[int], float]:
    """A function that takes training step n and returns its loss."""
    net, classes = network(name).to(device), NETWORKS[name][3]
    layout = torch.channels_last if fast else torch.contiguous_format
    net = net.to(memory_format=layout)  # pyrefly: ignore[no-matching-overload]
    denoiser = Denoiser(net, Discrete(BETAS), noise, dtype=PRECISIONS[precision if fast else "fp32"])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=fast, foreach=False)
    x0 = torch.rand(batch, NETWORKS[name][2]["channels"], 32, 32, generator=torch.Generator().manual_seed(0))
    x0 = (2 * x0 - 1).to(device).contiguous(memory_format=layout)
    cond = torch.arange(batch, device=device) % classes if classes else None

    def step(n: int) -> float:
        with patch.object(
            F, "scaled_dot_product_attention", F.scaled_dot_product_attention if fast else softmax_attention
        ):
            loss = denoising_loss(denoiser, x0, cond, Draws(0, n, range(batch), total=batch)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        return loss.item()

    return step


def measure(name: str, precision: str, batch: int, steps: int, device: torch.device) -> tuple[list[float], list[float]]:
    """Seconds of each step, fast and plain. Asserts that the first losses agree, so that both compute the same."""
    variants = [stepper(name, fast, precision, batch, device) for fast in (True, False)]
    first, other = (step(0) for step in variants)
    if abs(first - other) > 0.02 * other:
        raise SystemExit(
            f"{name}: the first loss is {first:.4f} fast and {other:.4f} plain, which should be one number"
        )
    seconds: tuple[list[float], list[float]] = ([], [])
    for n in range(1, steps + 1):
        for step, times in zip(variants, seconds, strict=True):
            began = time.perf_counter()
            step(n)
            times.append(time.perf_counter() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    parser.add_argument("--steps", type=int, default=4, help="steps to measure for each variant")
    parser.add_argument(
        "--precision", default="auto", choices=["auto", *PRECISIONS], help="precision of the fast variant"
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    args = parser.parse_args()
    device = pick_device(args.device)
    precision = pick_precision(args.precision, device)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, batch {args.batch}, 32 x 32\n")
    print(
        f"| network | M parameters | fast ({precision}), images/s | plain, images/s | fast / plain (range over steps) |"
    )
    print("|---|---|---|---|---|")
    for name in args.networks:
        parameters = sum(p.numel() for p in network(name).parameters()) / 1e6
        fast, plain = measure(name, precision, args.batch, args.steps, device)
        ratios = [b / a for a, b in zip(fast, plain, strict=True)]
        print(
            f"| {name} | {parameters:.2f} | {args.batch / median(fast):.1f} | {args.batch / median(plain):.1f} "
            f"| {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
