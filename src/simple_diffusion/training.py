"""The training loop (Ho et al. 2020, algorithm 1), as a generator that yields after every update, and `fit`."""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .data.batches import Batch, batches
from .data.images import Images
from .denoiser import Denoiser
from .ema import EMA, Decay
from .errors import DivergedError
from .losses import Loss, denoising_loss
from .networks.dropout import dropout_seed
from .optimizers import adamw
from .run.cuda_graphs import Record, Replayed
from .system.distributed import all_sum, rank, world_size
from .system.threads import on_all_cores

LearningRate = Callable[[int], float]
"""Number of the step, 1, 2, ... -> learning rate."""


@dataclass(frozen=True)
class Step:
    """What an update leaves behind.

    n           its number, 1, 2, ...
    losses      of each sample, `[B]`
    lr          the learning rate
    grad_norm   Euclidean norm of the gradient before clipping, a tensor of shape `[]`
    batch       that it was made of
    finite      whether losses and gradient were; if not, nothing was changed
    """

    n: int
    losses: Tensor
    lr: float
    grad_norm: Tensor
    batch: Batch
    finite: bool = True

    @property
    def loss(self) -> float:
        """Mean of the losses."""
        return self.losses.mean().item()


def warmup_linear(progress: float, warmup: float = 0.03) -> float:
    """Share of the peak learning rate at a share of the run: up over `warmup`, then straight down to 0 at the end.

    progress, warmup   shares of the run, in [0, 1] and (0, 1)
    """
    return min(progress / warmup, (1 - progress) / (1 - warmup))


def warmup_constant(progress: float, warmup: float = 0.03) -> float:
    """Share of the peak learning rate at a share of the run: up over `warmup`, and there it stays.

    progress, warmup   shares of the run, in [0, 1] and (0, 1)
    """
    return min(progress / warmup, 1.0)


LEARNING_RATES: dict[str, Callable[[float, float], float]] = {"linear": warmup_linear, "constant": warmup_constant}
"""Shapes of the learning rate by name: (progress, warmup), shares of the run -> share of the peak."""


def backward(loss: Loss, denoiser: Denoiser, batch: Batch, accumulate: int = 1) -> Tensor:
    """Set the parameters' gradients to those of the mean loss of a batch; returns the loss of each sample `[B]`.

    Each process of the run takes a part of the batch, and on a CPU each core a part of that; `accumulate` cuts these
    into parts that are computed one after another, in less memory.
    """
    parameters = [p for p in denoiser.parameters() if p.requires_grad]

    def of_part(part: Batch) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        with dropout_seed(part.draws.seed_of("dropout")):
            losses = loss(denoiser, part.x0, part.cond, part.draws)
        share = losses.sum() / len(batch.x0)
        return losses.detach(), torch.autograd.grad(share, parameters, allow_unused=True)

    cores = torch.get_num_threads() if batch.x0.device.type == "cpu" else 1
    each = cores * accumulate
    everyone = batch.split(world_size() * each)
    before, mine = everyone[: rank() * each], everyone[rank() * each : (rank() + 1) * each]
    parts = list(map(of_part, mine) if cores == 1 else on_all_cores(of_part, mine))
    losses = batch.x0.new_zeros(len(batch.x0))
    row = sum(len(part.x0) for part in before)
    for of_samples, _ in parts:
        losses[row : row + len(of_samples)] = of_samples
        row += len(of_samples)
    gradients: list[Tensor | None] = []
    for parameter, *of_parts in zip(parameters, *(grads for _, grads in parts), strict=True):
        known = [gradient for gradient in of_parts if gradient is not None]
        absent = (
            torch.zeros_like(parameter) if world_size() > 1 else None
        )  # every process sends a number for each weight
        gradients.append(sum(known[1:], known[0]) if known else absent)
    losses, *there = all_sum([losses, *(gradient for gradient in gradients if gradient is not None)])
    rest = iter(there)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = None if gradient is None else next(rest)
    return losses


def train(
    denoiser: Denoiser,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    loss: Loss = denoising_loss,
    lr: LearningRate,
    clip: float = 1.0,
    start: int = 0,
    accumulate: int = 1,
    max_skipped: int = 0,
    bad: int = 0,
    record: Record | None = None,
) -> Iterator[Step]:
    """Train on each batch in turn and yield after each update, until the batches end or the caller stops.

    denoiser    in whatever mode; it is left in training mode
    batches     as `batches` makes them: x0 `[B, ...]`, cond `[B]` or None, and their random numbers
    optimizer   of the denoiser's parameters; its learning rate is set before each update
    loss        (denoiser, x0, cond, draws) -> `[B]`
    lr          the learning rate of step n = start + 1, start + 2, ...
    clip        largest Euclidean norm of the gradient of all weights together
    start       steps that were done already
    accumulate  parts of a batch that are computed one after another
    max_skipped    how many steps in a row may have a loss or gradient that is not finite; such a step changes nothing
    bad         how many the last steps before `start` were
    record      `cuda_graph`, for work that a GPU can replay: batches of one size, in one process and one part, and a
                loss and an optimiser that leave nothing to the CPU; None launches each step anew

    Raises DivergedError, before anything is changed, at the first one more.
    """
    denoiser.train()

    def gradient(batch: Batch) -> tuple[Tensor, Tensor]:
        losses = backward(loss, denoiser, batch, accumulate)
        return losses, nn.utils.clip_grad_norm_(denoiser.parameters(), clip)

    update: Callable[[], Any] = optimizer.step
    if record is not None:
        gradient, update = Replayed(gradient, record), Replayed(update, record)
        rate_there = torch.zeros((), device=next(denoiser.parameters()).device)  # where the recording reads it
        for group in optimizer.param_groups:
            group |= {"lr": rate_there, "capturable": True}
    for n, batch in enumerate(batches, start + 1):
        losses, grad_norm = gradient(batch)
        if record is not None:
            losses, grad_norm = losses.clone(), grad_norm.clone()
        finite = bool(torch.isfinite(grad_norm) & losses.isfinite().all())
        bad = 0 if finite else bad + 1
        rate = lr(n)
        step = Step(n, losses, rate, grad_norm, batch, finite)
        if bad > max_skipped:
            raise NotFiniteError(step)
        if finite:
            for group in optimizer.param_groups:
                group["lr"] = rate if record is None else group["lr"].fill_(rate)
            update()
        yield step


class NotFiniteError(DivergedError):
    """A step whose loss or gradient is not finite."""

    def __init__(self, step: Step):
        what = "gradient" if step.losses.isfinite().all() else "loss"
        super().__init__(f"the {what} of step {step.n} is not finite: lower the learning rate (--set lr=...)")
        self.step = step


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
