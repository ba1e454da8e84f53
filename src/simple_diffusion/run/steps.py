"""The training steps of a run: network, optimizer and the stream of updates."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from ..data.batches import Batch, batches, order
from ..data.images import Images
from ..data.info import DataInfo
from ..denoiser import Denoiser
from ..ema import Decay, constant_decay, power_decay
from ..model.build import build, build_density, build_training_loss
from ..model.config import Config, memory_format
from ..optimizers import OPTIMIZERS
from ..system.distributed import world_size
from ..training import Step, train
from .cuda_graphs import cuda_graph


def laid_out(stream: Iterator[Batch], config: Config) -> Iterator[Batch]:
    """The same batches in the network's memory format."""
    for batch in stream:
        yield replace(batch, x0=batch.x0.contiguous(memory_format=memory_format(config)))


def learner(config: Config, info: DataInfo, device: torch.device) -> tuple[Denoiser, torch.optim.Optimizer]:
    """The untrained denoiser and its optimiser; the weights are those of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # the weights; everything else is derived from (seed, purpose, step, sample)
        denoiser = build(config, info).to(device)
    return denoiser, OPTIMIZERS[config.optimizer](denoiser, config.lr, (0.9, config.beta2))


def replayable(config: Config, device: torch.device) -> bool:
    """Is all of a step the same work on a GPU each time, with nothing left to the CPU?"""
    alike = config.accumulate == 1 and config.augment == "none" and config.dropout == 0 and not config.timesteps
    return device.type == "cuda" and world_size() == 1 and alike


def updates(
    config: Config,
    info: DataInfo,
    images: Images,
    denoiser: Denoiser,
    optimizer: torch.optim.Optimizer,
    lr: Callable[[int], float],
    start: int = 0,
    bad: int = 0,
) -> Iterator[Step]:
    """The steps start + 1, start + 2, ... of a run, without end: all of it but its clock and its files."""
    device = next(denoiser.parameters()).device
    return train(
        denoiser,
        laid_out(batches(images, config.batch, seed=config.seed, start=start, device=device), config),
        optimizer,
        loss=build_training_loss(config, info),
        lr=lr,
        clip=config.clip,
        start=start,
        accumulate=config.accumulate,
        max_skipped=config.max_skipped,
        bad=bad,
        record=cuda_graph if replayable(config, device) else None,
    )


def start_training(config: Config, info: DataInfo, images: Images, device: torch.device, lr: Callable[[int], float]):
    """(denoiser, the generator of its steps), from the beginning."""
    denoiser, optimizer = learner(config, info, device)
    return denoiser, updates(config, info, images, denoiser, optimizer, lr)


def decay_of(config: Config) -> Decay:
    """How the averaged weights forget."""
    return constant_decay(config.ema_decay, config.ema_warmup) if config.ema_decay else power_decay(config.ema_length)


def suspects(step: Step, images: Images, config: Config, info: DataInfo, most: int = 4) -> str:
    """Which images of a step, at which noise, have a loss that is not finite; all if only the gradient is not."""
    rows = (~step.losses.isfinite()).nonzero().flatten().tolist() or list(range(config.batch))
    index = order((step.n - 1) * config.batch, config.batch, len(images), config.seed)
    schedule = build(config, info).schedule
    ratio = schedule.ratio(build_density(config, info)(step.batch.draws.stratified("time"), schedule))
    named = [f"{images.name_of(int(index[row]))} at noise {ratio[row]:.3g}" for row in rows[:most]]
    return ", ".join(named) + (f" and {len(rows) - most} more" if len(rows) > most else "")
