"""A training run: the loop with its budget, its averaged weights, its log, and its folder.

FOLDER/
  config.toml          every setting, and the command that repeats the run
  left-out.csv         the images that could not be read, and why; only where some were left out
  log.csv              step, images, seconds, loss, learning_rate, images_per_second, held_out_loss
  model.safetensors    what `sample` uses: averaged weights and config; rewritten with each picture and at every stop
  samples/             grids drawn from fixed noise while it trained
"""

import json
import math
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .checkpoint import MODEL_FILE, Model, save
from .config import Card, Config, build, build_loss, build_sampler, build_training_loss, memory_format
from .data.batches import Batch, batches
from .data.images import Images, left_out_csv, to_uint8
from .ema import EMA, Decay, constant_decay, power_decay
from .errors import DivergedError, ResourceError, UsageError
from .figures import grid, png
from .files import write_atomic
from .optimizers import OPTIMIZERS
from .samplers import samples
from .training import LEARNING_RATES, train
from .validation import HeldOut, keep_out

PICTURES = (0.05, *(tenth / 10 for tenth in range(1, 10)))
"""Shares of the run after which the model is saved and a grid drawn; the end is one more. Later, where these pictures
would take more than DRAWING of the time."""

DRAWING = 0.05

PREVIEW: dict[str, Any] = {"sampler": "dpmpp", "grid": "karras"}
"""How pictures are drawn while it trains, in at most PREVIEW_STEPS steps: DDPM's thousand would take longer than it."""
PREVIEW_STEPS = 10

CHECKS = 20  # measurements of the held-out loss in a run


@dataclass
class Budget:
    """How much of a run is done, by the clock or by steps.

    config    gives the length
    started   `time.perf_counter()` when the command began: the clock counts everything since
    reserve   seconds to keep for what follows the last step; grows to what saving and drawing turn out to take
    """

    config: Config
    started: float
    reserve: float = 1.0

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def expect(self, seconds: float) -> None:
        """Keep so much in reserve, but never more than would end the run early by over 3 %."""
        self.reserve = min(seconds, 0.03 * self.config.seconds)

    def lr(self, step: int) -> float:
        """The learning rate of a step."""
        return self.config.lr * LEARNING_RATES[self.config.lr_shape](self.progress(step - 1), self.config.warmup)

    def progress(self, step: int) -> float:
        """Share of the run that is over after `step` updates, 1 at its end."""
        if self.config.steps:
            return step / self.config.steps
        return min(1.0, self.elapsed / max(self.config.seconds - self.reserve, 1e-9))


class Stopped:
    """Which signal asked the run to stop, if any did."""

    number: int | None = None


@contextmanager
def stop_on_signals() -> Iterator[Stopped]:
    """While inside, ctrl-C and SIGTERM only leave a note, which the loop reads between two steps."""
    stopped = Stopped()

    def note(number: int, frame: object) -> None:
        stopped.number = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def preview_labels(classes: int, rows: int = 10, columns: int = 10) -> Tensor | None:
    """One label for each image of a grid that has one class a row: int64 `[N]`, or None without classes."""
    return torch.arange(min(classes, rows)).repeat_interleave(columns) if classes else None


def draw(model: Model, n: int, labels: Tensor | None, seed: int, quiet: bool = True) -> Tensor:
    """n images of a model with the sampler of its config: uint8 `[n, C, H, W]` on the CPU."""
    denoiser, times, sampler = build_sampler(model.config, model.card, model.denoiser)
    device = next(model.denoiser.parameters()).device
    drawn = []
    with tqdm(total=n, unit=" images", disable=quiet or not sys.stderr.isatty()) as bar:
        for x in samples(denoiser, (n, *model.card.shape), times, labels, sampler=sampler, seed=seed, device=device):
            drawn.append(to_uint8(x).cpu())
            bar.update(len(x))
    return torch.cat(drawn)


def laid_out(stream: Iterator[Batch], config: Config) -> Iterator[Batch]:
    """The same batches in the network's memory format."""
    for batch in stream:
        yield replace(batch, x0=batch.x0.contiguous(memory_format=memory_format(config)))


def start_training(config: Config, card: Card, images: Images, device: torch.device, lr: Callable[[int], float]):
    """(denoiser, the generator of its steps): all of a run but its clock and its files."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # the weights; everything else is derived from (seed, purpose, step, sample)
        denoiser = build(config, card).to(device)
    stream = laid_out(batches(images, config.batch, seed=config.seed, device=device), config)
    optimizer = OPTIMIZERS[config.optimizer](denoiser, config.lr, (0.9, config.beta2))
    steps = train(denoiser, stream, optimizer, loss=build_training_loss(config, card), lr=lr, clip=config.clip)
    return denoiser, steps


def decay_of(config: Config) -> Decay:
    """How the averaged weights forget."""
    return constant_decay(config.ema_decay, config.ema_warmup) if config.ema_decay else power_decay(config.ema)


def refuse_taken(path: Path) -> None:
    """Raise UsageError unless a run can have this folder: nothing is there, or it is empty."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} exists already: choose another --out, or remove it")


def new_folder(path: Path) -> None:
    """Create the folder of a run. Raises UsageError if something is there."""
    refuse_taken(path)
    try:
        (path / "samples").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{path} can't be made ({error.strerror}): choose another --out") from error


def free_folder(parent: Path, name: str) -> Path:
    """parent/name-1, or the first number that is not taken."""
    number = 1
    while (parent / f"{name}-{number}").exists():
        number += 1
    return parent / f"{name}-{number}"


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


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    folder: Path
    step: int
    images: int
    seconds: float
    loss: float
    images_per_second: float
    signal: int | None
    picture: Path | None
    held_out_loss: float | None = None  # the lowest
    gave_up: bool = False  # it stopped because the held-out loss had not fallen for long


def train_run(
    config: Config, images: Images, folder: Path, device: torch.device, started: float, quiet: bool = False
) -> Result:
    """Train as the config says, and leave the run folder behind.

    config    fitted to the device
    folder    new or empty
    started   `time.perf_counter()` at the beginning of the budget

    Raises DivergedError, after saving the last good weights.
    """
    new_folder(folder)
    write_atomic(folder / "config.toml", config_toml(config))
    if images.left_out:
        write_atomic(folder / "left-out.csv", left_out_csv(images.left_out))
    card, budget = Card.of(images), Budget(config, started)
    held_out = None
    if config.held_out:
        images, kept = keep_out(images, config.held_out, config.seed)
        held_out = HeldOut(kept, build_loss(config, card), config.seed)
    denoiser, steps = start_training(config, card, images, device, budget.lr)
    ema = EMA(denoiser, decay_of(config))
    labels = preview_labels(card.classes)
    n, progress, checks, held_out_loss = 0, 0.0, 0, math.nan

    def keep(picture: bool) -> Path | None:
        """Save the averaged weights and draw a grid with them; what that takes is kept in reserve for the end."""
        began = time.perf_counter()
        model = Model(ema.model, config, card, n, budget.elapsed)
        save(folder / MODEL_FILE, model)
        path = None
        if picture:
            path = folder / "samples" / f"step-{n:08d}.png"
            count = 64 if labels is None else len(labels)
            quick = replace(config, **PREVIEW, sampler_steps=min(config.sampler_steps, PREVIEW_STEPS))
            drawn = draw(replace(model, config=quick), count, labels, config.seed)
            write_atomic(path, png(grid(drawn, 8 if labels is None else 10)))
            budget.expect(1.1 * (time.perf_counter() - began) + 0.3)
        return path

    pictures = list(PICTURES)
    unlogged: list[Tensor] = []
    loss, speed, rows, row_step, row_time = math.nan, 0.0, 0, 0, budget.elapsed
    before, drawing = budget.elapsed, 0.0  # time that was not training
    form = "{desc} {percentage:3.0f}%|{bar}| {postfix}"
    with (
        stop_on_signals() as stopped,
        open(folder / "log.csv", "w", buffering=1) as log,
        tqdm(total=1.0, desc=folder.name, bar_format=form, disable=quiet or not sys.stderr.isatty()) as bar,
    ):
        print("step,images,seconds,loss,learning_rate,images_per_second,held_out_loss", file=log)
        try:
            for step in steps:
                n = step.n
                ema.update(denoiser, n)
                unlogged.append(step.losses)
                progress = budget.progress(n)
                if held_out is not None and progress * CHECKS >= checks + 1:
                    checks, held_out_loss = int(progress * CHECKS), held_out.check(ema.model, progress)
                over = progress >= 1 or stopped.number is not None or exhausted(held_out, config, progress)
                if progress * 200 >= rows + 1 or over:
                    loss = torch.cat(unlogged).mean().item()
                    speed = (n - row_step) * config.batch / max(budget.elapsed - row_time, 1e-9)
                    unseen = "" if math.isnan(held_out_loss) else f"{held_out_loss:.6g}"
                    row = f"{n},{n * config.batch},{budget.elapsed:.2f},{loss:.6g},{step.lr:.4g},{speed:.0f},{unseen}"
                    print(row, file=log)
                    rows, row_step, row_time = int(progress * 200), n, budget.elapsed
                    unlogged.clear()
                    left = budget.elapsed / progress - budget.elapsed
                    bar.set_postfix_str(f"loss {loss:.4f}, {speed:,.0f} images/s, {left:,.0f} s left")
                    bar.update(progress - bar.n)
                if over:
                    break
                if pictures and progress >= pictures[0] and drawing <= DRAWING * budget.elapsed:
                    pictures = [share for share in pictures if share > progress]
                    paused = budget.elapsed
                    keep(picture=True)
                    drawing += budget.elapsed - paused
                    row_time += budget.elapsed - paused
                    if bar.disable and not quiet:
                        print(f"{progress:4.0%}  step {n}, loss {loss:.4f}, {speed:,.0f} images/s", file=sys.stderr)
        except DivergedError:
            keep(picture=False)
            raise
        average = n * config.batch / max(budget.elapsed - before - drawing, 1e-9)
        if held_out is not None and held_out.weights is not None and config.patience:
            ema.model.load_state_dict(held_out.weights)
        picture = keep(picture=stopped.number is None)
    gave_up = exhausted(held_out, config, progress)
    write_atomic(folder / "config.toml", config_toml(config, 0 if config.steps or gave_up else n))
    lowest = None if held_out is None else held_out.best
    return Result(folder, n, n * config.batch, budget.elapsed, loss, average, stopped.number, picture, lowest, gave_up)


def exhausted(held_out: HeldOut | None, config: Config, progress: float) -> bool:
    """Has the held-out loss not fallen for longer than the config's patience?"""
    return held_out is not None and 0 < config.patience <= progress - held_out.best_progress


def spelled(seconds: float) -> str:
    """A length of time in the largest unit of which there are two."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def forecast(config: Config, images: Images, device: torch.device, seconds: float = 4.0) -> dict:
    """What a run would take on this machine, measured over a few steps of it; writes nothing."""
    card = Card.of(images)
    denoiser, steps = start_training(config, card, images, device, lambda n: config.lr * 1e-3)
    next(steps), next(steps)  # the first ones warm up
    began, n = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(steps)
        n += 1
    speed = n * config.batch / (time.perf_counter() - began)
    length = config.steps * config.batch / speed if config.steps else config.seconds
    parameters = sum(p.numel() for p in denoiser.parameters())
    seen = speed * length
    text = (
        f"A U-Net of {parameters / 1e6:.2f} M parameters would train on {device.type} in {config.precision} at about "
        f"{speed:,.0f} images/s, batches of {config.batch}: {spelled(length)} to the end, {seen:,.0f} images, "
        f"{seen / len(images):.1f} epochs; the first pictures come after {spelled(length * PICTURES[0])}."
    )
    return {
        "text": text,
        "parameters": parameters,
        "images_per_second": round(speed),
        "seconds": round(length),
        "images": round(seen),
        "config": asdict(config),
    }
