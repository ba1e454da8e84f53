"""A training run: the loop with its budget, its averaged weights, its log, and its folder.

FOLDER/
  config.toml          every setting, and the command that repeats the run
  log.csv              step, images, seconds, loss, learning_rate, images_per_second, held_out_loss
  left-out.csv         the images that could not be read, and why; only where some were left out
  checkpoints/         all that `--resume` needs, the newest two
  averages/            averages of two widths at each fifth of the way, for `--ema`
  model.safetensors    what `sample` uses: averaged weights and config; rewritten with each picture and at every stop
  samples/             grids drawn from fixed noise while it trained
  report.html          all of it on one page, renewed with each picture
  lock                 who holds the folder
"""

import json
import math
import shlex
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.images import Images, left_out_csv, to_unit
from ..data.info import DataInfo
from ..denoiser import Denoiser
from ..denoising_error import LEVELS, ideal_error, wiener_error
from ..ema import EMA, power_decay
from ..errors import DivergedError
from ..losses import loss_by_level, loss_of_error
from ..model import posthoc_ema
from ..model.build import ModelSpec
from ..model.config import Config, memory_format
from ..model.generate import generate
from ..model.model_file import MODEL_FILE, Model, save
from ..randomness import permutation
from ..system.distributed import all_max, broadcast, check_same_task, check_same_weights, on_rank0, rank
from ..system.files import damaged, remove_parts, write_atomic
from ..system.signals import Stopped, stop_on_signals
from ..training import NotFiniteError
from ..validation import HeldOut, keep_out
from ..viz.grids import make_grid, png
from ..viz.plots import Points
from .budget import Budget
from .checkpoint import Checkpoint, State, latest, room_for, save_checkpoint
from .estimate import outlook
from .folder import hold, refuse_taken
from .log import Log
from .milestones import PICTURES
from .report import write_report
from .steps import decay_of, learner, suspects, updates

DRAWING = 0.05

PREVIEW: dict[str, Any] = {"sampler": "dpmpp", "grid": "karras"}
"""How pictures are drawn while it trains, in at most PREVIEW_STEPS steps: DDPM's thousand would take longer than it."""
PREVIEW_STEPS = 10

SETTLED = 2  # steps after which a speed can be measured
LOOK = 4.0  # seconds of steps behind the outlook

CHECKS = 20  # measurements of the held-out loss in a run
ROWS = 200  # of the log
RECENT = 0.2  # weight of a row in the running means
BOUNDED = 1000  # images that the bounds of the loss are computed from


def preview_labels(classes: int, rows: int = 10, columns: int = 10) -> Tensor | None:
    """One label for each image of a grid that has one class a row: int64 `[N]`, or None without classes."""
    return torch.arange(min(classes, rows)).repeat_interleave(columns) if classes else None


def command_of(config: Config, steps: int = 0) -> str:
    """The command that repeats a run; a run by the clock is repeated by the steps that its time gave it."""
    if steps:
        config = replace(config, steps=steps, seconds=0.0)
    words = ["simple-diffusion", "train", config.data]
    for key, value in asdict(config).items():
        if value != asdict(Config())[key] and key != "data":
            words += ["--set", f"{key}={','.join(map(str, value)) if isinstance(value, tuple) else value}"]
    return shlex.join(words)


def config_toml(config: Config, steps: int = 0) -> bytes:
    """config.toml: JSON's strings, numbers and lists are TOML's too."""
    lines = ["# every setting of this run; the command that repeats it:", f"# {command_of(config, steps)}", ""]
    lines += [f"{key} = {json.dumps(value)}" for key, value in asdict(config).items()]
    return ("\n".join(lines) + "\n").encode()


def bounds_of_loss(spec: ModelSpec, images: Images, denoiser: Denoiser) -> dict[str, Points]:
    """What the loss by noise level lies between, from BOUNDED images, so that it takes a second: what the best blur
    makes of it, and the denoiser that knows them by heart. Empty for a measure other than the square."""
    if spec.config.criterion != "l2":
        return {}
    some = permutation(len(images), 0, "levels")[:BOUNDED]
    x0 = to_unit(images.pixels[some]).cpu()
    labels = None if images.labels is None else images.labels[some].cpu()
    low, high = denoiser.schedule.ratio(torch.tensor([0.0, 1.0], dtype=torch.float64))
    reached = (low <= LEVELS) & (high >= LEVELS)
    by_heart = ideal_error(x0.flatten(1), torch.arange(min(len(x0), 64)), labels)
    bounds: dict[str, Points] = {}
    for name, error in (
        ("-above: the best blur", wiener_error(x0)),
        (f"-below: {len(x0):,} images by heart", by_heart),
    ):
        loss = loss_of_error(denoiser, LEVELS[reached], error[reached], spec.weight)
        bounds[name] = list(zip(LEVELS[reached].tolist(), loss.tolist(), strict=True))
    return bounds


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    folder: Path
    step: int
    images: int
    seconds: float
    loss: float
    images_per_second: float
    signal: int
    picture: Path | None
    held_out_loss: float | None = None  # the lowest
    gave_up: bool = False  # it stopped because the held-out loss had not fallen for long


@dataclass
class Trainer:
    """A run under way: what it trains, and what it leaves behind. Only rank 0 writes.

    drawing   seconds spent on pictures
    saved     when the last checkpoint was written, on the budget's clock
    recent    running mean of the loss of each sample `[B]`, whose noise levels are stratified; None before there is one
    bounds    of the loss by noise level, computed with the first report
    """

    spec: ModelSpec
    images: Images
    folder: Path
    state: State
    budget: Budget
    stopped: Stopped
    drawing: float = 0.0
    saved: float = 0.0
    recent: Tensor | None = None
    bounds: dict[str, Points] | None = None
    pictures: list[float] = field(default_factory=list)

    @property
    def config(self) -> Config:
        return self.spec.config

    def model(self) -> Model:
        """The averaged weights, ready to be saved."""
        numbers = self.state.numbers
        return Model(self.state.ema.model, self.spec, numbers.n, self.budget.elapsed, self.state.guide)

    def save(self, log: Log | None = None) -> None:
        """Write a checkpoint. Raises ResourceError, on every process."""
        self.state.numbers.seconds = self.budget.elapsed
        check_same_weights(list(self.state.denoiser.parameters()))

        def write() -> None:
            if log is not None:
                log.sync()
            save_checkpoint(self.folder, self.spec, self.state)

        on_rank0(write)
        self.saved = self.budget.elapsed

    def keep_averages(self) -> None:
        """Write both averages as they are now."""
        assert self.state.second is not None
        models = self.state.ema.model, self.state.second.model
        named = dict(zip(posthoc_ema.widths_of(self.config), models, strict=True))
        on_rank0(lambda: posthoc_ema.keep(self.folder, self.state.numbers.n, named))

    def show(self, picture: bool) -> Path | None:
        """Save the averaged weights and draw a grid with them; what that takes is kept in reserve for the end."""
        began, path = self.budget.elapsed, None
        model = self.model()
        on_rank0(lambda: save(self.folder / MODEL_FILE, model))
        if picture:
            labels = preview_labels(self.spec.info.classes)
            count = 64 if labels is None else len(labels)
            quick = model.changed(**PREVIEW, sampler_steps=min(self.config.sampler_steps, PREVIEW_STEPS))
            pixels = generate(quick, count, labels, self.config.seed, stopped=self.stopped)
            if not any(all_max(self.stopped.number)):
                path = self.folder / "samples" / f"step-{self.state.numbers.n:08d}.png"
                sheet = png(make_grid(pixels, 8 if labels is None else 10))
                on_rank0(lambda: write_atomic(path, sheet))
            self.budget.expect(1.1 * (self.budget.elapsed - began) + 0.3)
        self.drawing += self.budget.elapsed - began
        return path

    def note(self, losses: list[Tensor]) -> float:
        """Take the losses of some steps into the running means. Returns their mean."""
        steps = torch.cat(losses).view(-1, self.config.batch)
        self.recent = steps.mean(0) if self.recent is None else self.recent.lerp(steps.mean(0), RECENT)
        return steps.mean().item()

    def levels(self) -> dict[str, Points]:
        """(sigma/alpha, loss) of late, and its bounds; empty before the first row of the log."""
        if self.recent is None:
            return {}
        if self.bounds is None:
            self.bounds = bounds_of_loss(self.spec, self.images, self.state.denoiser)
        schedule = self.state.denoiser.schedule
        return {"loss": loss_by_level(self.recent, self.spec.density, schedule)} | self.bounds

    def report(self, live: bool) -> None:
        """Renew report.html."""
        command = command_of(self.config, 0 if live else self.repeats())
        progress = self.budget.progress
        write_report(
            self.folder,
            self.spec,
            command,
            images=self.images,
            levels=self.levels(),
            progress=progress,
            live=live,
        )

    def repeats(self) -> int:
        """The steps that repeat a run by the clock; 0 where the config says how it ends."""
        return 0 if self.config.steps or self.exhausted() else self.state.numbers.n

    def exhausted(self) -> bool:
        """Has the held-out loss not fallen for longer than the config's patience?"""
        held_out, patience = self.state.held_out, self.config.patience
        return held_out is not None and 0 < patience <= self.budget.progress - held_out.best_progress


def train_run(
    config: Config,
    images: Images,
    folder: Path,
    device: torch.device,
    started: float,
    quiet: bool = False,
    resume: bool = False,
) -> Result:
    """Train as the config says, and leave the run folder behind.

    config    fitted to the device
    folder    new or empty, or that of the run to go on with
    started   `time.perf_counter()` at the beginning of the budget
    resume    go on from the newest checkpoint in the folder

    Raises UsageError where the folder is taken, BusyError where another process holds it, ResourceError where the disk
    takes no checkpoint, CheckpointError where there is none to go on from, and DivergedError after saving the last good
    weights.
    """
    with ExitStack() as stack:

        def take() -> None:
            stack.enter_context(hold(folder))
            if not resume:
                refuse_taken(folder)
            remove_parts(folder)

        on_rank0(take)
        return _train_held(config, images, folder, device, started, quiet, latest(folder) if resume else None)


def _train_held(
    config: Config,
    images: Images,
    folder: Path,
    device: torch.device,
    started: float,
    quiet: bool,
    checkpoint: Checkpoint | None,
) -> Result:
    """Train in a folder that nobody else holds, from the checkpoint or from the beginning."""
    spec = ModelSpec(config, DataInfo.of(images))
    check_same_task((spec, checkpoint and checkpoint.numbers.n))
    held_out = None
    if config.held_out:
        images, kept = keep_out(images, config.held_out, config.seed)
        held_out = HeldOut(kept, spec.loss(), config.seed, memory_format(config))
    denoiser, optimizer = learner(spec, device)
    state = State(denoiser, optimizer, EMA(denoiser, decay_of(config)), held_out)
    if widths := posthoc_ema.widths_of(config):
        state.second = EMA(denoiser, power_decay(widths[1]))
    if checkpoint is not None:
        try:
            state.restore(checkpoint.tensors, checkpoint.numbers)
        except ValueError as error:
            raise damaged(checkpoint.path, error) from error
    with stop_on_signals() as stopped:
        budget = Budget(config, started, before=state.numbers.seconds)
        run = Trainer(spec, images, folder, state, budget, stopped, saved=budget.before)
        if checkpoint is None:
            on_rank0(lambda: room_for(folder, state))
            run.save()  # first of all, so that a folder in which anything stands can be gone on with
        return finish(run, train_on(run, quiet))


def train_on(run: Trainer, quiet: bool) -> tuple[float, float]:
    """Train until the run's end or a signal. Returns (loss of the last row, images/s)."""
    config, state, budget = run.config, run.state, run.budget
    numbers, held_out = state.numbers, state.held_out
    on_rank0(lambda: write_atomic(run.folder / "config.toml", config_toml(config)))
    if run.images.left_out:
        on_rank0(lambda: write_atomic(run.folder / "left-out.csv", left_out_csv(run.images.left_out)))
    quiet = quiet or rank() > 0
    on_rank0(lambda: posthoc_ema.forget_after(run.folder, numbers.n))
    (moments_kept,) = broadcast(len(posthoc_ema.kept(run.folder)))
    moments = list(posthoc_ema.SHARES[int(moments_kept) :]) if state.second is not None else []
    budget.advance(numbers.n, 0)
    rows, checks = int(budget.progress * ROWS), int(budget.progress * CHECKS)
    pictures = [share for share in PICTURES if share > budget.progress]
    log = Log(run.folder, after=numbers.n) if rank() == 0 else None
    loss = math.nan if log is None else log.loss
    first, row_step, row_time, before = numbers.n, numbers.n, budget.elapsed, budget.elapsed
    settled, told = math.inf, quiet
    form = "{desc} {percentage:3.0f}%|{bar}| {postfix}"
    over = numbers.done
    learning = state.denoiser, state.optimizer, budget.lr
    steps = updates(run.spec, run.images, *learning, start=numbers.n, bad=numbers.bad)
    with tqdm(total=1.0, desc=run.folder.name, bar_format=form, disable=quiet or not sys.stderr.isatty()) as bar:
        try:
            while not over:
                step = next(steps)
                numbers.n, numbers.bad = step.n, 0 if step.finite else numbers.bad + 1
                if step.finite:
                    state.ema.update(state.denoiser, step.n)
                    if state.second is not None:
                        state.second.update(state.denoiser, step.n)
                    state.losses.append(step.losses)
                elif not quiet:
                    where = suspects(step, run.images, run.spec)
                    print(f"step {step.n} was left out, it is not finite: {where}", file=sys.stderr)
                if step.n - first == SETTLED:
                    settled = budget.elapsed
                elif not told and budget.elapsed >= settled + LOOK:
                    told, rate = True, (step.n - first - SETTLED) * config.batch / (budget.elapsed - settled)
                    seen, device = step.n * config.batch, step.losses.device
                    expected = outlook(config, len(run.images), rate, device, seen, budget.elapsed)
                    bar.write(str(expected), file=sys.stderr)
                signal = budget.advance(step.n, run.stopped.number)
                progress = budget.progress
                if config.snapshot and state.guide is None and progress >= config.snapshot:
                    state.guide = state.ema.snapshot()
                if moments and progress >= moments[0]:
                    moments = [share for share in moments if share > progress]
                    run.keep_averages()
                if held_out is not None and progress * CHECKS >= checks + 1:
                    checks = int(progress * CHECKS)
                    numbers.held_out_loss = held_out.check(state.ema.model, progress)
                    numbers.best, numbers.best_progress = held_out.best, held_out.best_progress
                over = progress >= 1 or run.exhausted()
                if progress * ROWS >= rows + 1 or over:
                    loss = run.note(state.losses) if state.losses else math.nan
                    speed = (step.n - row_step) * config.batch / max(budget.elapsed - row_time, 1e-9)
                    unseen = "" if numbers.held_out_loss is None else f"{numbers.held_out_loss:.6g}"
                    cells = f"{step.n * config.batch}", f"{budget.elapsed:.2f}", f"{loss:.6g}", f"{step.lr:.4g}"
                    if log is not None:
                        log.row(step.n, *cells, f"{speed:.0f}", unseen)
                    rows, row_step, row_time = int(progress * ROWS), step.n, budget.elapsed
                    state.losses.clear()
                    left = budget.elapsed / progress - budget.elapsed
                    bar.set_postfix_str(f"loss {loss:.4f}, {speed:,.0f} images/s, {left:,.0f} s left")
                    bar.update(progress - bar.n)
                if over or signal:
                    numbers.done = over
                    run.stopped.number = run.stopped.number or signal
                    break
                paused = budget.elapsed
                saves, draws = broadcast(
                    paused - run.saved >= config.save_seconds,
                    bool(pictures) and progress >= pictures[0] and run.drawing <= DRAWING * paused,
                )
                if saves:
                    run.save(log)
                if draws:
                    pictures = [share for share in pictures if share > progress]
                    run.show(picture=True)
                    on_rank0(lambda: run.report(live=True))
                    if bar.disable and not quiet:
                        print(f"{progress:4.0%}  step {step.n}, loss {loss:.4f}", file=sys.stderr)
                row_time += budget.elapsed - paused
        except NotFiniteError as error:
            run.show(picture=False)
            on_rank0(lambda: run.report(live=False))
            where = suspects(error.step, run.images, run.spec)
            raise DivergedError(f"{error}, or look at {where}") from error
        finally:
            if log is not None:
                log.close()
    average = (numbers.n - first) * config.batch / max(budget.elapsed - before - run.drawing, 1e-9)
    if state.losses:
        loss = torch.cat(state.losses).mean().item()
    return loss, average


def finish(run: Trainer, trained: tuple[float, float]) -> Result:
    """Save what the run has come to; where it stopped by itself, with a picture and the weights that are best."""
    config, state, held_out = run.config, run.state, run.state.held_out
    run.save()
    if held_out is not None and held_out.weights is not None and config.patience:
        state.ema.model.load_state_dict(held_out.weights)
    picture = run.show(picture=not any(all_max(run.stopped.number)))  # all draw, or none
    signal = int(*all_max(run.stopped.number))  # it may have come while they drew
    gave_up = run.exhausted()
    on_rank0(lambda: write_atomic(run.folder / "config.toml", config_toml(config, run.repeats())))
    on_rank0(lambda: run.report(live=False))
    images, seconds = state.numbers.n * config.batch, run.budget.elapsed
    return Result(run.folder, state.numbers.n, images, seconds, *trained, signal, picture, state.numbers.best, gave_up)
