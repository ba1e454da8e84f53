"""`fit`: a whole training in one call, for scripts and lessons; `run.py` is the one that saves, logs and resumes."""

import sys
from itertools import islice

import torch
from tqdm import tqdm

from .data.batches import batches
from .data.images import Images
from .denoiser import Denoiser
from .ema import EMA, Decay
from .losses import Loss, denoising_loss
from .optimizers import adamw
from .training import train, warmup_linear


def fit(
    denoiser: Denoiser,
    images: Images,
    steps: int,
    *,
    loss: Loss = denoising_loss,
    optimizer: torch.optim.Optimizer | None = None,
    lr: float = 3e-3,
    batch: int = 64,
    decay: Decay | None = None,
    seed: int = 0,
) -> EMA[Denoiser]:
    """Train for so many updates, and return the averaged denoiser as `.model`; `denoiser` keeps the last weights.

    denoiser   of images `[B, C, H, W]`; trained where it is
    images     all of them, as `load_images` gives them; they are moved to the denoiser's device
    steps      updates to train for
    loss       (denoiser, x0, cond, draws) -> `[B]`, in which augmentation and dropped labels are wrapped
    optimizer  of the denoiser's parameters, `adamw` by default
    lr         peak of the learning rate: up over the first 3 % of the steps, then straight down to 0
    batch      images an update
    decay      how the average forgets, `power_decay(0.05)` by default (`EMA`)
    seed       of the order of the images, of their noise and its levels; the weights are the caller's

    Raises DivergedError at the first loss or gradient that is not finite.
    """
    ema, device = EMA(denoiser, decay), next(denoiser.parameters()).device
    stream = islice(batches(images, batch, seed=seed, device=device), steps)
    updates = train(
        denoiser,
        stream,
        optimizer or adamw(denoiser),
        loss=loss,
        lr=lambda n: lr * warmup_linear((n - 1) / steps),
    )
    bar = tqdm(updates, total=steps, unit=" steps", leave=False, disable=not sys.stderr.isatty())
    for step in bar:
        ema.update(denoiser, step.n)
        if step.n % 20 == 0:
            bar.set_postfix_str(f"loss {step.loss:.3f}")
    denoiser.eval()
    return ema
