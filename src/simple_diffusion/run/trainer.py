"""A training run: the loop with its budget, averaged weights, log and folder.

FOLDER/
  config.toml          every setting, and the command that repeats the run
  log.csv              step, images, seconds, loss, learning_rate, images_per_second, held_out_loss
  left-out.csv         the images that could not be read, with the reason; only if there are any
  checkpoints/         the two newest checkpoints, for `--resume`
  averages/            averaged weights of two EMA lengths at each fifth of the run, for `--ema`
  model.safetensors    averaged weights and configuration, for `sample`; written with each picture and at every stop
  samples/             grids of samples from the same noise, made during training
  report.html          all of this on one page; written with each picture
  lock, lock.txt       the lock of the folder, and the process that uses it
"""

import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.images import Images, left_out_csv
from ..data.info import DataInfo
from ..denoising_error import ErrorCurve, loss_bounds
from ..ema import EMA, power_decay
from ..errors import DivergedError
from ..losses import loss_by_level
from ..model import posthoc_ema
from ..model.build import ModelSpec
from ..model.config import Config, memory_format
from ..model.generate import generate
from ..model.model_file import MODEL_FILE, Model, save
from ..system.distributed import all_max, broadcast, check_same_settings, check_same_weights, on_rank0, rank
from ..system.files import damaged, remove_parts, write_atomic
from ..system.signals import Stopped, stop_on_signals
from ..training import NotFiniteError, Step
from ..validation import HeldOut, keep_out
from ..viz.grids import make_grid, png
from .budget import Budget, Throughput
from .checkpoint import Checkpoint, State, latest, room_for, save_checkpoint
from .command import command_of, config_toml
from .display import Display
from .estimate import forecast
from .folder import hold, refuse_taken
from .log import Log
from .milestones import CHECKS, PICTURES, ROWS, Milestones
from .report import write_report
from .steps import decay_of, learner, suspects, updates

MAX_PICTURE_SHARE = 0.05
"""Largest share of the time so far that pictures may have taken when the next one is sampled."""

PREVIEW: dict[str, Any] = {"sampler": "dpmpp", "grid": "karras"}
"""How pictures are sampled during training, in at most PREVIEW_STEPS steps: DDPM's thousand steps take too long."""
PREVIEW_STEPS = 10

SETTLED = 2  # steps after which the speed is measured
LOOK = 4.0  # seconds for which it is measured

RECENT = 0.2  # weight of a row of the log in the running mean of the losses


def preview_labels(classes: int, rows: int = 10, columns: int = 10) -> Tensor | None:
    """Labels for a grid that has one class in each row: int64 `[N]`, or None without classes."""
    return torch.arange(min(classes, rows)).repeat_interleave(columns) if classes else None


@dataclass(frozen=True)
class Result:
    """How a run ended.

    loss           of the last row of the log
    signal         that stopped the run, 0 for none
    picture        the last grid of samples, None if a signal interrupted it
    held_out_loss  the lowest one, None if it was not measured
    gave_up        whether the run stopped early because the held-out loss no longer fell
    """

    folder: Path
    step: int
    images: int
    seconds: float
    loss: float
    images_per_second: float
    signal: int
    picture: Path | None
    held_out_loss: float | None = None
    gave_up: bool = False


class Trainer:
    """A training run: its state, its milestones, and the files that it writes. Only rank 0 writes.

    spec      of the model
    images    to train on
    folder    of the run
    state     at the beginning of the run, or restored from a checkpoint
    budget    whose progress is that of the state
    stopped   a signal that stops the run
    quiet     print nothing
    """

    def __init__(
        self, spec: ModelSpec, images: Images, folder: Path, state: State, budget: Budget, stopped: Stopped, quiet: bool
    ):
        self.spec, self.images, self.folder, self.state = spec, images, folder, state
        self.budget, self.stopped = budget, stopped
        self.config, self.numbers = spec.config, state.numbers
        n, progress = self.numbers.n, budget.progress

        self.pictures = Milestones(PICTURES, progress=progress)
        self.rows = Milestones(range(1, ROWS + 1), ROWS, progress)
        self.checks = Milestones(range(1, CHECKS + 1), CHECKS, progress)
        self.averages = Milestones(missing_averages(folder) if state.second is not None else ())
        self.snapshot = Milestones([self.config.snapshot] if self.config.snapshot and state.guide is None else ())

        self.log = Log(folder, after=n) if rank() == 0 else None
        self.loss = math.nan if self.log is None else self.log.loss  # of the last row
        self.mean_losses: Tensor | None = None  # running mean over the rows, for each sample of the batch `[B]`
        self.bounds: list[ErrorCurve] | None = None  # of the loss by noise level
        self.display = Display(folder.name, quiet)

        now = budget.elapsed
        self.saved = self.numbers.seconds  # when the last checkpoint was written
        self.picture_seconds = 0.0
        self.first_step = n
        self.since_start = Throughput(self.config.batch, n, now)
        self.since_row = Throughput(self.config.batch, n, now)
        self.since_settled: Throughput | None = None  # None before the speed can be measured, and once it was printed

    def train(self) -> None:
        """Train until the end of the run or a signal. Raises DivergedError after saving the last good weights."""
        state, budget, numbers = self.state, self.budget, self.numbers
        learning = state.denoiser, state.optimizer, budget.advance
        budget.begin()
        if budget.start_note:
            self.display.print(budget.start_note)
        steps = updates(self.spec, self.images, *learning, start=numbers.n, skipped=numbers.bad)
        try:
            while not numbers.done:
                step = next(steps)
                self.take(step)
                self.print_forecast(step)

                signal = self.signal_of_any()
                self.keep_averages()
                self.validate()
                is_over = budget.progress >= 1 or self.out_of_patience()
                if self.rows.due(budget.progress) or is_over:
                    self.write_row(step)

                if is_over or signal:
                    numbers.done = is_over
                    self.stopped.number = self.stopped.number or signal
                    break
                self.checkpoint_and_sample()
        except NotFiniteError as error:
            self.save_model(with_picture=False)
            self.report(live=False)
            where = suspects(error.step, self.images, self.spec)
            raise DivergedError(f"{error}, or check {where}") from error
        finally:
            self.display.close()
            if self.log is not None:
                self.log.close()

    def take(self, step: Step) -> None:
        """Update the averaged weights with a step, or report that it was skipped."""
        state, numbers = self.state, self.numbers
        numbers.n, numbers.progress = step.n, self.budget.progress
        numbers.bad = 0 if step.finite else numbers.bad + 1
        if step.finite:
            state.ema.update(state.denoiser, step.n)
            if state.second is not None:
                state.second.update(state.denoiser, step.n)
            state.losses.append(step.losses)
        elif not self.display.quiet:
            where = suspects(step, self.images, self.spec)
            self.display.print(f"Step {step.n} was skipped, its loss or gradient is not finite: {where}")

    def print_forecast(self, step: Step) -> None:
        """Print once, after some seconds, how the run will end."""
        now = self.budget.elapsed
        if step.n - self.first_step == SETTLED:
            self.since_settled = Throughput(self.config.batch, step.n, now)
        elif self.since_settled is not None and now >= self.since_settled.time + LOOK:
            speed = self.since_settled.speed(step.n, now)
            seen, device = step.n * self.config.batch, step.losses.device
            self.display.print(str(forecast(self.config, len(self.images), speed, device, seen, now)))
            self.since_settled = None

    def keep_averages(self) -> None:
        """Keep the averaged weights where a milestone is reached: a snapshot for autoguidance, two EMA lengths."""
        state = self.state
        if self.snapshot.due(self.budget.progress):
            state.guide = state.ema.snapshot()
        if state.second is not None and self.averages.due(self.budget.progress):
            models = state.ema.model, state.second.model
            by_length = dict(zip(posthoc_ema.ema_lengths(self.config), models, strict=True))
            on_rank0(lambda: posthoc_ema.save_averages(self.folder, self.numbers.n, by_length))

    def validate(self) -> None:
        """Measure the held-out loss where it is due."""
        held_out, progress = self.state.held_out, self.budget.progress
        if held_out is not None and self.checks.due(progress):
            self.numbers.held_out_loss = held_out.check(self.state.ema.model, progress)
            self.numbers.best, self.numbers.best_progress = held_out.best, held_out.best_progress

    def out_of_patience(self) -> bool:
        """Whether the held-out loss has not fallen for longer than the configuration's `patience`."""
        held_out, patience = self.state.held_out, self.config.patience
        return held_out is not None and 0 < patience <= self.budget.progress - held_out.best_progress

    def write_row(self, step: Step) -> None:
        """Write a row of the log from the losses since the last one."""
        elapsed, progress, numbers = self.budget.elapsed, self.budget.progress, self.numbers
        self.loss = self.mean_loss()
        speed = self.since_row.speed(step.n, elapsed)
        held_out_loss = "" if numbers.held_out_loss is None else f"{numbers.held_out_loss:.6g}"
        cells = f"{step.n * self.config.batch}", f"{elapsed:.2f}", f"{self.loss:.6g}", f"{step.lr:.4g}", f"{speed:.0f}"
        if self.log is not None:
            self.log.row(step.n, *cells, held_out_loss)
        self.since_row.restart(step.n, self.budget.elapsed)
        self.display.update(progress, self.loss, speed, self.budget.left)

    def mean_loss(self) -> float:
        """The mean of the losses since the last row, which go into the running means; NaN if there are none."""
        if not self.state.losses:
            return math.nan
        losses = torch.cat(self.state.losses).view(-1, self.config.batch)
        self.state.losses.clear()
        recent = losses.mean(0)
        self.mean_losses = recent if self.mean_losses is None else self.mean_losses.lerp(recent, RECENT)
        return losses.mean().item()

    def checkpoint_and_sample(self) -> None:
        """Write a checkpoint, and save the model and sample from it, where they are due."""
        began, progress = self.budget.elapsed, self.budget.progress
        can_sample = self.pictures.reached(progress) and self.picture_seconds <= MAX_PICTURE_SHARE * began
        saves, samples = broadcast(began - self.saved >= self.config.save_seconds, can_sample)
        if saves:
            write_checkpoint(self.folder, self.spec, self.state, self.budget, self.log)
            self.saved = self.budget.elapsed
        if samples:
            self.pictures.due(progress)
            self.save_model(with_picture=True)
            self.report(live=True)
            self.display.picture(progress, self.numbers.n, self.loss)
        self.since_row.exclude(self.budget.elapsed - began)

    def save_model(self, with_picture: bool) -> Path | None:
        """Save the averaged weights, and a grid of samples from them unless a signal arrives. Returns its path.

        The time that this takes is reserved for the end of the run.
        """
        began, picture = self.budget.elapsed, None
        model = Model(self.state.ema.model, self.spec, self.numbers.n, began, self.state.guide)
        on_rank0(lambda: save(self.folder / MODEL_FILE, model))
        if with_picture:
            picture = self.write_samples(model)
            self.budget.expect(1.1 * (self.budget.elapsed - began) + 0.3)
        seconds = self.budget.elapsed - began
        self.picture_seconds += seconds
        self.since_start.exclude(seconds)
        return picture

    def write_samples(self, model: Model) -> Path | None:
        """Write a grid of samples, the same noise each time. Returns its path, None where a signal arrived."""
        labels = preview_labels(self.spec.info.classes)
        count = 64 if labels is None else len(labels)
        quick = model.changed(**PREVIEW, sampler_steps=min(self.config.sampler_steps, PREVIEW_STEPS))
        pixels = generate(quick, count, labels, self.config.seed, stopped=self.stopped)
        if self.signal_of_any():
            return None
        path = self.folder / "samples" / f"step-{self.numbers.n:08d}.png"
        sheet = png(make_grid(pixels, 8 if labels is None else 10))
        on_rank0(lambda: write_atomic(path, sheet))
        return path

    def signal_of_any(self) -> int:
        """The signal that any process has received, 0 for none."""
        return int(all_max(self.stopped.number)[0])

    def report(self, live: bool) -> None:
        """Write report.html; `live` says that the run goes on."""
        command = command_of(self.config, 0 if live else self.steps_to_repeat())

        def write() -> None:
            levels, progress = self.loss_by_level(), self.budget.progress
            write_report(
                self.folder, self.spec, command, images=self.images, levels=levels, progress=progress, live=live
            )

        on_rank0(write)

    def loss_by_level(self) -> list[ErrorCurve]:
        """The recent loss by noise level, with the bounds of a squared error; empty before the first row of the log."""
        if self.mean_losses is None:
            return []
        denoiser = self.state.denoiser
        if self.bounds is None:
            squared = self.config.criterion == "l2"
            self.bounds = loss_bounds(denoiser, self.images, self.spec.weight) if squared else []
        points = loss_by_level(self.mean_losses, self.spec.density, denoiser.schedule)
        return [ErrorCurve("loss", points), *self.bounds]

    def steps_to_repeat(self) -> int:
        """The number of steps that repeats a timed run, 0 where the configuration determines the end."""
        return 0 if self.config.steps or self.out_of_patience() else self.numbers.n

    def finish(self) -> Result:
        """Save the state that the run has reached, and with `patience` the weights of the lowest held-out loss."""
        config, numbers, held_out = self.config, self.numbers, self.state.held_out
        speed = self.since_start.speed(numbers.n, self.budget.elapsed)
        loss = torch.cat(self.state.losses).mean().item() if self.state.losses else self.loss
        write_checkpoint(self.folder, self.spec, self.state, self.budget)
        if held_out is not None and held_out.weights is not None and config.patience:
            self.state.ema.model.load_state_dict(held_out.weights)
        picture = self.save_model(with_picture=not self.signal_of_any())  # all processes sample, or none
        signal = self.signal_of_any()  # it may have arrived in the meantime
        gave_up = self.out_of_patience()
        on_rank0(lambda: write_atomic(self.folder / "config.toml", config_toml(config, self.steps_to_repeat())))
        self.report(live=False)
        images, seconds = numbers.n * config.batch, self.budget.elapsed
        return Result(self.folder, numbers.n, images, seconds, loss, speed, signal, picture, numbers.best, gave_up)


def missing_averages(folder: Path) -> tuple[float, ...]:
    """The shares of the run at which its averaged weights are not saved yet, by the folder of rank 0."""
    saved = int(broadcast(len(posthoc_ema.saved_averages(folder)))[0])
    return posthoc_ema.SHARES[saved:]


def write_checkpoint(folder: Path, spec: ModelSpec, state: State, budget: Budget, log: Log | None = None) -> None:
    """Write a checkpoint, after the rows of the log that belong to it. Raises ResourceError, on every process.

    log   that is still open, or None
    """
    state.numbers.seconds = budget.elapsed
    check_same_weights(list(state.denoiser.parameters()))

    def write() -> None:
        if log is not None:
            log.sync()
        save_checkpoint(folder, spec, state)

    on_rank0(write)


def initial_state(spec: ModelSpec, held_out: Images | None, device: torch.device) -> State:
    """The state of a run before its first step.

    held_out   images on which a held-out loss is measured, or None
    """
    config = spec.config
    measure = None if held_out is None else HeldOut(held_out, spec.loss(), config.seed, memory_format(config))
    denoiser, optimizer = learner(spec, device)
    state = State(denoiser, optimizer, EMA(denoiser, decay_of(config)), measure)
    if lengths := posthoc_ema.ema_lengths(config):
        state.second = EMA(denoiser, power_decay(lengths[1]))
    return state


def restore(state: State, checkpoint: Checkpoint) -> None:
    """Set the state to that of a checkpoint. Raises CheckpointError if they do not fit."""
    try:
        state.restore(checkpoint.tensors, checkpoint.numbers)
    except ValueError as error:
        raise damaged(checkpoint.path, error) from error


def begin_folder(folder: Path, config: Config, images: Images, n: int) -> None:
    """Write what is known before step n + 1, and remove averages of later steps."""
    write_atomic(folder / "config.toml", config_toml(config))
    if images.left_out:
        write_atomic(folder / "left-out.csv", left_out_csv(images.left_out))
    posthoc_ema.remove_averages_after(folder, n)


def train_run(
    config: Config,
    images: Images,
    folder: Path,
    device: torch.device,
    started: float,
    quiet: bool = False,
    resume: bool = False,
) -> Result:
    """Train as the configuration specifies, and write the run folder.

    config    fitted to the device
    folder    new or empty, or that of the run to resume
    started   `time.perf_counter()` at the beginning of the budget
    resume    continue from the newest checkpoint in the folder

    Raises UsageError if the folder is not empty, BusyError if another process uses it, ResourceError if the disk is
    full, CheckpointError if there is no checkpoint to resume from, and DivergedError after saving the last good
    weights.
    """
    with ExitStack() as stack:

        def take_folder() -> None:
            stack.enter_context(hold(folder))
            if not resume:
                refuse_taken(folder)
            remove_parts(folder)

        on_rank0(take_folder)
        checkpoint = latest(folder) if resume else None
        spec = ModelSpec(config, DataInfo.of(images))
        check_same_settings((spec, checkpoint and checkpoint.numbers.n))

        held_out = None
        if config.held_out:
            images, held_out = keep_out(images, config.held_out, config.seed)
        state = initial_state(spec, held_out, device)
        if checkpoint is not None:
            restore(state, checkpoint)

        stopped = stack.enter_context(stop_on_signals())
        budget = Budget(config, started, before=state.numbers.seconds, progress=state.numbers.progress)
        if checkpoint is None:
            on_rank0(lambda: room_for(folder, state))
            write_checkpoint(folder, spec, state, budget)  # first, so that a folder with any file can be resumed
        on_rank0(lambda: begin_folder(folder, config, images, state.numbers.n))
        trainer = Trainer(spec, images, folder, state, budget, stopped, quiet)
        trainer.train()
        return trainer.finish()
