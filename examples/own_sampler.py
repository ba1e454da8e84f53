"""Your own sampler: a generator that yields the state after each step. Here, Euler's method on the ODE of EDM."""

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

import simple_diffusion as sd
from simple_diffusion.samplers import Noise, grid_steps, unit_noise


def euler(
    denoiser, x: Tensor, times: Tensor, cond: Tensor | None = None, noise: Noise = unit_noise
) -> Iterator[Tensor]:
    """dx/dsigma = (x - x0_hat) / sigma, one evaluation of the network a step (Karras et al. 2022, eq. 1 and 3).

    For schedules with alpha = 1. `grid_steps` gives the noise levels of each step as Python floats.
    """
    for step in grid_steps(denoiser.schedule, times, x):
        slope = (x - denoiser(x, step.t, cond)) / step.sigma_t
        x = x + (step.sigma_s - step.sigma_t) * slope
        yield x


steps = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
images = sd.load_images("digits")
net = sd.UNet(classes=images.classes, widths=(32, 64), blocks=(1, 2))
model = sd.fit(sd.Denoiser(net, sd.Karras(), sd.targets.v, images.std, images.mean), images, steps).model
times, labels = sd.karras_grid(model.schedule, 18), torch.arange(40) % 10
ours = sd.sample(model, (40, 1, 28, 28), times, labels, sampler=euler)
ddim = sd.sample(model, (40, 1, 28, 28), times, labels, sampler=sd.ddim)
print(f"largest difference from ddim, which is the same method: {(ours - ddim).abs().max():.1e}")
sd.make_grid(sd.to_uint8(ours), columns=10).save("own_sampler.png")
