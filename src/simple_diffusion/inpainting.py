"""Editing with a model as it was trained: draw a part of an image anew; go from one image to another."""

import math
from collections.abc import Iterator, Sequence
from itertools import count

import torch
from torch import Tensor

from .denoiser import PosteriorMean
from .samplers import Noise, grid_steps, renoised, unit_noise


class Inpainted:
    """A posterior mean of images of which a part is known: there the known pixels are its answer.

    So any sampler brings that part of x_t to the known pixels, and the network sees it at the right level all the way
    (Song et al. 2021, "Score-based generative modeling", appendix I.2). Called as `PosteriorMean` is. The sampler for
    it is `repaint`: others leave a seam.

    denoiser   of the model
    x0         the image `[C, H, W]`, or one an image `[N, C, H, W]`, in [-1, 1]
    mask       bool `[H, W]`, or any shape that goes with x0: True where the model draws
    """

    def __init__(self, denoiser: PosteriorMean, x0: Tensor, mask: Tensor):
        self.denoiser, self.x0, self.mask, self.schedule = denoiser, x0, mask, denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
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
    """The sampler for `Known`: each step is undone with fresh noise and made again (Lugmayr et al. 2022, algorithm 1).

    The first time the part that is drawn has heard of the known one only through the network's guess; each repetition
    brings the two nearer together. Few steps draw too little variety, as with `ddpm`, and repetitions do not mend that.

    repeats   how often a step is made, 1 or more: once is `ddim` with fresh noise alone

    Takes and yields what `ddpm` does: x `[B, ...]`, times `[n]`, cond `[B]`.
    """
    numbers = count()

    def next_noise(step: int, x: Tensor) -> Tensor:
        return noise(next(numbers), x)

    for i in grid_steps(denoiser.schedule, times, x):
        for left in reversed(range(1 if i.s is None else repeats)):
            x_s = renoised(i, x, denoiser(x, i.t, cond), 1.0, next_noise)
            if left:  # back to t: q(x_t | x_s)
                ratio = i.alpha_t / i.alpha_s
                x = ratio * x_s + math.sqrt(i.sigma_t**2 - (ratio * i.sigma_s) ** 2) * next_noise(i.number, x_s)
            else:
                x = x_s
        yield x


def slerp(one: Tensor, other: Tensor, shares: Sequence[float]) -> Tensor:
    """Noises on the great circle from one to another (Shoemake 1985; Song et al. 2021, "DDIM", eq. 67): `[N, *shape]`.

    All are as long as noise is, which their mean would not be, so that each of them is drawn to an image by a sampler
    without fresh noise: the way from one image to the other.

    one, other   unit noise of one shape
    shares       of the way, each in [0, 1]; both ends are exact
    """
    likeness = torch.cosine_similarity(one.double().flatten(), other.double().flatten(), 0).item()
    angle = math.acos(max(-1.0, min(likeness, 1.0)))
    if angle < 1e-6:
        return torch.stack([one] * len(shares))
    mixed = [
        (math.sin((1 - share) * angle) * one.double() + math.sin(share * angle) * other.double()) / math.sin(angle)
        for share in shares
    ]
    return torch.stack(mixed).to(one)
