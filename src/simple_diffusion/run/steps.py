"""The updates of a run: its network, its optimizer, and the stream of training steps."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from ..data.batches import Batch, batches, order
from ..data.images import Images
from ..denoiser import Denoiser
from ..ema import Decay, constant_decay, power_decay
from ..model.build import ModelSpec
from ..model.config import Config, memory_format, schedule_of
from ..optimizers import OPTIMIZERS
from ..system.distributed import world_size
from ..training import Capture, Step, train, uncaptured
from .cuda_graphs import Replayed, hold_learning_rate


def laid_out(stream: Iterator[Batch], config: Config) -> Iterator[Batch]:
    """The batches in the memory format of the network."""
    for batch in stream:
        yield replace(batch, x0=batch.x0.contiguous(memory_format=memory_format(config)))


def learner(spec: ModelSpec, device: torch.device) -> tuple[Denoiser, torch.optim.Optimizer]:
    """The untrained denoiser, initialized by the seed, and its optimizer."""
    config = spec.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # the weights alone use torch's global generator
        denoiser = spec.denoiser().to(device)
    return denoiser, OPTIMIZERS[config.optimizer](denoiser, config.lr, (0.9, config.beta2))


def replayable(config: Config, device: torch.device) -> bool:
    """Whether every step is the same work on a GPU and needs no CPU, so that a CUDA graph can replay it."""
    alike = config.accumulate == 1 and config.augment == "none" and config.dropout == 0 and not config.timesteps
    return device.type == "cuda" and world_size() == 1 and alike


def updates(
    spec: ModelSpec,
    images: Images,
    denoiser: Denoiser,
    optimizer: torch.optim.Optimizer,
    lr: Callable[[int], float],
    start: int = 0,
    skipped: int = 0,
) -> Iterator[Step]:
    """The endless steps start + 1, start + 2, ... of a run, without its clock and its files.

    lr        number of the step -> learning rate
    start     number of steps that are already done
    skipped   number of consecutive steps just before `start` that were skipped
    """
    config, device = spec.config, next(denoiser.parameters()).device
    capture: Capture = uncaptured
    if replayable(config, device):  # pragma: no cover (GPU)
        hold_learning_rate(optimizer, device)
        capture = Replayed
    return train(
        denoiser,
        laid_out(batches(images, config.batch, seed=config.seed, start=start, device=device), config),
        optimizer,
        loss=spec.training_loss(),
        lr=lr,
        clip=config.clip,
        start=start,
        accumulate=config.accumulate,
        max_skipped=config.max_skipped,
        skipped=skipped,
        capture=capture,
    )


def start_training(spec: ModelSpec, images: Images, device: torch.device, lr: Callable[[int], float]):
    """(denoiser, generator of its steps), from the beginning of a run."""
    denoiser, optimizer = learner(spec, device)
    return denoiser, updates(spec, images, denoiser, optimizer, lr)


def decay_of(config: Config) -> Decay:
    """The decay of the averaged weights."""
    return constant_decay(config.ema_decay, config.ema_warmup) if config.ema_decay else power_decay(config.ema_length)


def suspects(step: Step, images: Images, spec: ModelSpec, most: int = 4) -> str:
    """The images of a step whose loss is not finite, with their noise levels, in words.

    If only the gradient is not finite, these are all images of the step.

    most   images to name
    """
    config = spec.config
    rows = (~step.losses.isfinite()).nonzero().flatten().tolist() or list(range(config.batch))
    index = order((step.n - 1) * config.batch, config.batch, len(images), config.seed)
    schedule = schedule_of(config)
    ratio = schedule.ratio(spec.density(step.batch.draws.stratified("time"), schedule))
    named = [f"{images.name_of(int(index[row]))} at noise level {ratio[row]:.3g}" for row in rows[:most]]
    return ", ".join(named) + (f" and {len(rows) - most} more" if len(rows) > most else "")
