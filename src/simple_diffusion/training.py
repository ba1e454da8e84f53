"""The training loop (Ho et al. 2020, algorithm 1) as a generator of steps, learning-rate schedules, and `fit`."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_callable, check_integer, check_number, check_type, shown
from .data.batches import Batch, batches
from .data.images import Images
from .denoiser import Denoiser, check_denoiser
from .ema import EMA, Decay
from .errors import DivergedError
from .losses import Loss, denoising_loss
from .networks.dropout import dropout_seed
from .networks.embedding import check_classes
from .optimizers import adamw
from .randomness import torch_seed
from .system.data_parallel import shares_state, sum_over_parts
from .system.terminal import progress_bar

LearningRate = Callable[[int], float]
"""Number of a step, 1, 2, ... -> its learning rate."""

Capture = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Work on a batch -> a function that does the same work, such as a CUDA graph that replays it."""


@dataclass(frozen=True)
class Step:
    """The record of one training step.

    n           number of the step, 1, 2, ...
    losses      loss of each sample, `[B]`
    lr          learning rate
    grad_norm   Euclidean norm of the gradient before clipping, a tensor of shape `[]`
    batch       the samples of the step
    finite      whether losses and gradient are finite; if not, the step changed no weight
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
    """Linear warm-up, then linear decay to 0: the learning rate relative to its peak, in [0, 1].

    progress   fraction of the run that is done, in [0, 1]
    warmup     fraction of the run over which the rate rises, in (0, 1)
    """
    return min(progress / warmup, (1 - progress) / (1 - warmup))


def warmup_constant(progress: float, warmup: float = 0.03) -> float:
    """Linear warm-up, then constant: the learning rate relative to its peak, in [0, 1].

    progress   fraction of the run that is done, in [0, 1]
    warmup     fraction of the run over which the rate rises, in (0, 1)
    """
    return min(progress / warmup, 1.0)


LEARNING_RATES: dict[str, Callable[[float, float], float]] = {"linear": warmup_linear, "constant": warmup_constant}
"""Learning-rate schedules: name -> (progress, warmup) -> learning rate relative to its peak."""


def losses_of(loss: Loss, denoiser: Denoiser, batch: Batch) -> Tensor:
    """The loss of each sample `[B]`. Raises ValueError for a loss of another shape, which would be scaled wrongly."""
    losses = loss(denoiser, batch.x0, batch.cond, batch.draws)
    if not isinstance(losses, Tensor) or losses.shape != (len(batch.x0),):
        raise ValueError(f"`loss` must return a number for each of {len(batch.x0)} samples, got {shown(losses)}")
    return losses


def needs_turns(loss: Loss, denoiser: Denoiser, batch: Batch) -> bool:
    """Whether the threads of a CPU can't share a step, because `shares_state` is true of the loss of this network.

    Raises ValueError for a loss that is not `[B]`.
    """
    if batch.x0.device.type != "cpu":
        return False
    with dropout_seed(0):
        return shares_state(lambda: losses_of(loss, denoiser, batch[:2]), denoiser)


def backward(loss: Loss, denoiser: Denoiser, batch: Batch, accumulate: int = 1, in_turn: bool = False) -> Tensor:
    """Set the gradients of the mean loss of a batch, and return the loss of each sample `[B]`.

    The processes of the run and the threads of a CPU share the batch (`sum_over_parts`).

    accumulate  gradient accumulation steps: parts of a batch that are computed one after another, to save memory
    in_turn     as by `needs_turns`: compute no parts at the same time, and seed PyTorch's generator for each

    Raises ValueError for a loss that is not `[B]`.
    """
    parameters = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    zeros = batch.x0.new_zeros(len(batch.x0))

    def losses_and_gradients(rows: slice) -> list[Tensor | None]:
        part = batch[rows]
        seed = part.draws.seed_of("dropout")
        with dropout_seed(seed), torch_seed(seed) if in_turn else nullcontext():
            part_losses = losses_of(loss, denoiser, part)
        losses = zeros.clone()
        losses[rows] = part_losses.detach()
        return [losses, *torch.autograd.grad(part_losses.sum() / len(batch.x0), parameters, allow_unused=True)]

    losses, *gradients = sum_over_parts(losses_and_gradients, len(batch.x0), [zeros, *parameters], accumulate, in_turn)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    assert losses is not None
    return losses


def uncaptured(work: Callable[..., Any]) -> Callable[..., Any]:
    """The work itself, for `train(capture=)`."""
    return work


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameters; a rate that is a tensor keeps its place in memory."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


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
    skipped: int = 0,
    capture: Capture = uncaptured,
) -> Iterator[Step]:
    """Train on each batch in turn, and yield after each update, until the batches end or the caller stops.

    denoiser     is put into training mode
    batches      as `batches` makes them: x0 `[B, ...]`, cond `[B]` or None, and their random numbers
    optimizer    of the denoiser's parameters; its learning rate is set before each update
    loss         (denoiser, x0, cond, draws) -> `[B]`
    lr           the learning rate of step n = start + 1, start + 2, ...
    clip         largest Euclidean norm of the gradient of all weights together
    start        number of steps that are already done
    accumulate   gradient accumulation steps
    max_skipped  largest number of consecutive steps that are skipped because the loss or gradient is not finite
    skipped      number of consecutive steps just before `start` that were skipped
    capture      wraps the two halves of a step, batch -> (losses, norm of the gradient) and the optimizer's update,
                 in functions that do the same work

    Raises DivergedError, before any weight changes, if more than `max_skipped` consecutive steps are not finite, and
    ValueError or TypeError for an argument that is not allowed.
    """
    check_type("batches", batches, Iterable, "an iterable of Batch, such as sd.batches(images, 32)")
    check_callable("loss", loss, "a function such as sd.denoising_loss")
    check_callable("lr", lr, "a function of the number of the step, such as lambda n: 1e-3")
    check_number("clip", clip, 0, math.inf, "(]")
    check_integer("accumulate", accumulate, 1)
    check_integer("start", start, 0)
    check_optimizer(optimizer, denoiser)
    in_turn: bool | None = None

    def gradient(batch: Batch) -> tuple[Tensor, Tensor]:
        losses = backward(loss, denoiser, batch, accumulate, bool(in_turn))
        return losses, nn.utils.clip_grad_norm_(denoiser.parameters(), clip)

    denoiser.train()
    gradient, update = capture(gradient), capture(optimizer.step)
    for n, batch in enumerate(batches, start + 1):
        check_type("batches", batch, Batch, "an iterable of Batch, such as sd.batches(images, 32)")
        if in_turn is None:
            in_turn = needs_turns(loss, denoiser, batch)
        losses, grad_norm = gradient(batch)
        finite = bool(torch.isfinite(grad_norm) & losses.isfinite().all())
        step = Step(n, losses, lr(n), grad_norm, batch, finite)
        skipped = 0 if finite else skipped + 1
        if skipped > max_skipped:
            raise NotFiniteError(step)
        if finite:
            check_number("lr", step.lr, 0, math.inf, "[)")  # a negative rate would climb
            set_learning_rate(optimizer, step.lr)
            update()
        yield step


def check_optimizer(optimizer: torch.optim.Optimizer, denoiser: nn.Module) -> None:
    """Raise TypeError or ValueError unless the optimizer updates weights of the denoiser."""
    check_type("optimizer", optimizer, torch.optim.Optimizer, "an optimizer such as sd.adamw(denoiser)")
    trained = {id(p) for p in denoiser.parameters() if p.requires_grad}
    if not trained:
        raise ValueError("no weight of the denoiser requires a gradient: call denoiser.requires_grad_(True)")
    if trained.isdisjoint(id(p) for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("`optimizer` holds no weight of the denoiser: make it with sd.adamw(denoiser)")


class NotFiniteError(DivergedError):
    """The loss or gradient of a step is NaN or infinite. Exit code 4."""

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
    """Train a denoiser and return its EMA, whose weights are in `.model`; `denoiser` itself ends with the last weights.

    denoiser   of images `[B, C, H, W]`, on any device
    images     the training set, as `load_images` returns it; it is moved to the denoiser's device
    steps      number of updates
    loss       (denoiser, x0, cond, draws) -> `[B]`; to use augmentation or dropped labels, wrap it
    optimizer  of the denoiser's parameters, `adamw` by default
    lr         peak learning rate, after linear warm-up over 3 % of the steps and before linear decay to 0
    batch      images per update
    decay      decay of the EMA, `power_decay(0.05)` by default
    seed       of the order of the images and of the noise; it does not change the initial weights

    The random numbers of the network's own modules, such as nn.Dropout, also follow from `seed` on a CPU.

    Raises DivergedError at the first loss or gradient that is not finite, and ValueError or TypeError for an argument
    that is not allowed, or labels that the network has no classes for.
    """
    check_denoiser(denoiser)
    check_type("images", images, Images, "Images, as sd.load_images returns them")
    check_integer("steps", steps, 1)
    check_integer("batch", batch, 1)
    check_number("lr", lr, 0)
    check_classes(denoiser, images.labels)

    def rate(n: int) -> float:
        return lr * warmup_linear((n - 0.5) / steps)  # in the middle of step n: no step is lost at rate 0

    ema, device = EMA(denoiser, decay), next(denoiser.parameters()).device
    stream = islice(batches(images, batch, seed=seed, device=device), steps)
    updates = train(denoiser, stream, optimizer or adamw(denoiser), loss=loss, lr=rate)
    bar = progress_bar(updates, total=steps, unit=" steps", leave=False)
    for step in bar:
        ema.update(denoiser, step.n)
        if step.n % 20 == 0:
            bar.set_postfix_str(f"loss {step.loss:.3f}")
    denoiser.eval()
    return ema
