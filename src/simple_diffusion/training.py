"""The training loop (Ho et al. 2020, algorithm 1), as a generator that yields after every update."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .data.batches import Batch
from .denoiser import Denoiser
from .errors import DivergedError
from .losses import Loss, denoising_loss

LearningRate = Callable[[int], float]
"""Number of the step, 1, 2, ... -> learning rate."""


@dataclass(frozen=True)
class Step:
    """What an update leaves behind: its number, the loss of each sample `[B]`, the rate, the gradient's norm."""

    n: int
    losses: Tensor
    lr: float
    grad_norm: Tensor

    @property
    def loss(self) -> float:
        return self.losses.mean().item()


def warmup_linear(progress: float, warmup: float = 0.03) -> float:
    """Share of the peak learning rate at a share of the run: up over `warmup`, then straight down to 0 at the end."""
    return min(progress / warmup, (1 - progress) / (1 - warmup))


def warmup_constant(progress: float, warmup: float = 0.03) -> float:
    """Share of the peak learning rate at a share of the run: up over `warmup`, and there it stays."""
    return min(progress / warmup, 1.0)


LEARNING_RATES: dict[str, Callable[[float, float], float]] = {"linear": warmup_linear, "constant": warmup_constant}
"""Shapes of the learning rate by name: (progress, warmup), shares of the run -> share of the peak."""


def adamw(model: nn.Module, lr: float = 3e-3, betas: tuple[float, float] = (0.9, 0.99)) -> torch.optim.AdamW:
    """AdamW without weight decay (Loshchilov & Hutter 2019), fused."""
    return torch.optim.AdamW(model.parameters(), lr=lr, betas=betas, weight_decay=0.0, fused=True)


def train(
    denoiser: Denoiser,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    loss: Loss = denoising_loss,
    lr: LearningRate,
    clip: float = 1.0,
    start: int = 0,
) -> Iterator[Step]:
    """Train on each batch in turn and yield after each update, until the batches end or the caller stops.

    loss   (denoiser, x0, cond, draws) -> `[B]`
    lr     the learning rate of step n = start + 1, start + 2, ...
    clip   largest norm of the gradient

    Raises DivergedError, before anything is changed, at the first gradient that is not finite.
    """
    denoiser.train()
    for n, batch in enumerate(batches, start + 1):
        losses = loss(denoiser, batch.x0, batch.cond, batch.draws)
        optimizer.zero_grad(set_to_none=True)
        losses.mean().backward()
        grad_norm = nn.utils.clip_grad_norm_(denoiser.parameters(), clip)
        if not torch.isfinite(grad_norm):
            raise DivergedError(f"the gradient of step {n} is not finite: lower the learning rate (--set lr=...)")
        rate = lr(n)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        yield Step(n, losses.detach(), rate, grad_norm)
