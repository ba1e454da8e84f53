"""How well several samplers inpaint the lower half of images: the step at the seam, and the error.

    python benchmarks/seams.py MODEL

The images are the first 60 of the test set of the model's data, each with its label; seed 0.
"""

import sys
from functools import partial

import torch

from simple_diffusion.data.images import to_unit
from simple_diffusion.data.sources import held_out
from simple_diffusion.inpainting import Inpainted, repaint
from simple_diffusion.model.model_file import read
from simple_diffusion.samplers import SAMPLERS, karras_grid
from simple_diffusion.sampling import trajectory

COUNT = 60


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    model = read(sys.argv[1], "cpu")
    test = held_out(model.info.name)
    if test is None:
        raise SystemExit(f"{model.info.name} has no test set")
    x0, labels = to_unit(test.pixels[:COUNT]), None if test.labels is None else test.labels[:COUNT]
    half = x0.shape[2] // 2
    mask = (torch.arange(x0.shape[2]) >= half)[:, None].expand(x0.shape[2:])
    denoiser = model.sampler()[0]

    def step_of(x: torch.Tensor) -> float:
        return (x[:, :, half] - x[:, :, half - 1]).square().mean().item()

    print("| | squared step at the seam | squared error of the half |\n|---|---|---|")
    print(f"| real images | {step_of(x0):.3f} | |")
    runs = [("dpmpp", 10), ("dpmpp-sde", 10), ("ddpm", 18)]
    contestants = [(f"{name}, {steps} steps", SAMPLERS[name].function, steps) for name, steps in runs]
    contestants += [(f"repaint, 10 steps, each {k} times", partial(repaint, repeats=k), 10) for k in (2, 4, 8)]
    for name, sampler, steps in contestants:
        times = karras_grid(denoiser.schedule, steps)
        *_, x = trajectory(Inpainted(denoiser, x0, mask), x0.shape, times, labels, sampler=sampler, batch=len(x0))
        error = (x - x0)[:, :, half:].square().mean().item()
        print(f"| {name} | {step_of(x):.3f} | {error:.3f} |", flush=True)


if __name__ == "__main__":
    main()
