"""The training loop (Ho et al. 2020, algorithm 1), as a generator that yields after every update."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .cores import on_all_cores
from .data.batches import Batch
from .denoiser import Denoiser
from .errors import DivergedError
from .losses import Loss, denoising_loss
from .networks.dropout import dropout_seed

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


def backward(loss: Loss, denoiser: Denoiser, batch: Batch) -> Tensor:
    """Set the parameters' gradients to those of the mean loss of a batch; returns the loss of each sample `[B]`.

    On a CPU each core takes a part of the batch.
    """
    parameters = [p for p in denoiser.parameters() if p.requires_grad]

    def of_part(part: Batch) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        with dropout_seed(part.draws.seed_of("dropout")):
            losses = loss(denoiser, part.x0, part.cond, part.draws)
        share = losses.sum() / len(batch.x0)
        return losses.detach(), torch.autograd.grad(share, parameters, allow_unused=True)

    cores = torch.get_num_threads() if batch.x0.device.type == "cpu" else 1
    parts = list(map(of_part, [batch]) if cores == 1 else on_all_cores(of_part, batch.split(cores)))
    losses, gradients = zip(*parts, strict=True)
    for parameter, *of_parts in zip(parameters, *gradients, strict=True):
        known = [gradient for gradient in of_parts if gradient is not None]
        parameter.grad = sum(known[1:], known[0]) if known else None
    return torch.cat(losses)


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
        losses = backward(loss, denoiser, batch)
        grad_norm = nn.utils.clip_grad_norm_(denoiser.parameters(), clip)
        if not torch.isfinite(grad_norm):
            raise DivergedError(f"the gradient of step {n} is not finite: lower the learning rate (--set lr=...)")
        rate = lr(n)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        yield Step(n, losses, rate, grad_norm)
