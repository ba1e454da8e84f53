"""Inpainting with a model as it was trained: generate a part of an image again, given the rest."""

import math
from collections.abc import Iterator
from itertools import count

import torch
from torch import Tensor

from .checks import broadcasts_to, check_floats, check_integer, shown
from .denoiser import PosteriorMean, check_denoiser
from .samplers import Noise, grid_steps, renoised, unit_noise


class Inpainted:
    """A posterior mean for images of which a part is known: it returns the known pixels in that part.

    Every sampler then moves that part of x_t to the known pixels, and the network always sees it at the noise level of
    the step (Song et al. 2021, "Score-based generative modeling", appendix I.2). It is called like `PosteriorMean`. Use
    it with the sampler `repaint`; the others leave a visible seam.

    denoiser   of the model
    x0         the image `[C, H, W]`, or an image for each sample `[N, C, H, W]`, in [-1, 1]
    mask       bool `[H, W]`, or any shape that broadcasts to x0: True where the model generates

    Raises TypeError or ValueError for another image or mask, and if x_t has another shape than the image.
    """

    def __init__(self, denoiser: PosteriorMean, x0: Tensor, mask: Tensor):
        check_denoiser(denoiser)
        check_floats("x0", x0, "an image in [-1, 1], such as sd.to_unit(pixels)")
        if x0.abs().max() > 2:  # samples of a model may exceed 1 a little
            raise ValueError(f"`x0` must have pixels in [-1, 1], got values up to {x0.abs().max():g}")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(f"`mask` must be a tensor of bool, True where the model generates, got {shown(mask)}")
        if not broadcasts_to(mask.shape, x0.shape):
            raise ValueError(f"`mask` must broadcast to x0 {tuple(x0.shape)}, got {shown(mask)}")
        self.denoiser, self.x0, self.mask, self.schedule = denoiser, x0, mask, denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        if not broadcasts_to(self.x0.shape, x_t.shape):
            raise ValueError(
                f"`x0` {tuple(self.x0.shape)} must be one image, or one for each image of a batch {tuple(x_t.shape)}"
            )
        return torch.where(self.mask.to(x_t.device), self.denoiser(x_t, t, cond), self.x0.to(x_t))


def repaint(
    denoiser: PosteriorMean,
    x: Tensor,
    times: Tensor,
    cond: Tensor | None = None,
    noise: Noise = unit_noise,
    *,
    repeats: int = 4,
) -> Iterator[Tensor]:
    """The sampler for `Inpainted`: each step is undone with new noise and repeated (Lugmayr et al. 2022, algorithm 1).

    After one pass the generated part depends on the known part only through the x0 prediction. Every repetition brings
    the two parts closer together. With few steps the samples vary too little, as with `ddpm`; repeating does not help.

    repeats   how often each step is made, 1 or more; 1 is `ddim` with eta = 1

    Takes and yields the same as `ddpm`: x `[B, ...]`, times `[n]`, cond `[B]`. Raises ValueError for other repeats.
    """
    check_integer("repeats", repeats, 1)
    numbers = count()

    def next_noise(step: int, x: Tensor) -> Tensor:
        return noise(next(numbers), x)

    for i in grid_steps(denoiser.schedule, times, x):
        for left in reversed(range(1 if i.s is None else repeats)):  # repetitions that follow
            x_s = renoised(i, x, denoiser(x, i.t, cond), 1.0, next_noise)
            if left:  # back to t: q(x_t | x_s)
                ratio = i.alpha_t / i.alpha_s
                x = ratio * x_s + math.sqrt(i.sigma_t**2 - (ratio * i.sigma_s) ** 2) * next_noise(i.number, x_s)
            else:
                x = x_s
        yield x
