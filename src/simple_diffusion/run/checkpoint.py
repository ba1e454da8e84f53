"""All that a stopped run needs to go on as if it had never stopped, and its checkpoints on disk.

Randomness is derived and the order of the data is a function of the step, so this is: weights, their average, the
optimiser's memory, and a few numbers.
"""

import platform
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..data.info import DataInfo
from ..denoiser import Denoiser
from ..ema import EMA
from ..errors import CheckpointError, DataError, ResourceError, SimpleDiffusionError, UsageError
from ..model.build import ModelSpec
from ..model.config import Config
from ..model.migrate import migrated
from ..model.posthoc_ema import SHARES
from ..system.distributed import world_size
from ..system.files import damaged, fits, from_json, read_tensors, write_tensors
from ..validation import HeldOut

KEPT = 2  # checkpoints: if the newest is damaged, there is the one before
FOLDER = "checkpoints"


@dataclass
class Numbers:
    """What a checkpoint keeps beside the tensors.

    n              updates done
    seconds        that the run has taken
    done           whether it came to its end
    bad            steps in a row, up to this one, that were left out
    held_out_loss  the last one measured
    best, best_progress   the lowest one, and the share of the run after which it was measured
    """

    n: int = 0
    seconds: float = 0.0
    done: bool = False
    bad: int = 0
    held_out_loss: float | None = None
    best: float | None = None
    best_progress: float = 0.0


@dataclass
class State:
    """What training changes.

    losses   of each sample since the last row of the log
    guide    averaged weights as they were early, for autoguidance
    second   an average of another width, for `averages.py`, or None
    """

    denoiser: Denoiser
    optimizer: torch.optim.Optimizer
    ema: EMA[Denoiser]
    held_out: HeldOut | None
    guide: Denoiser | None = None
    second: EMA[Denoiser] | None = None
    losses: list[Tensor] = field(default_factory=list)
    numbers: Numbers = field(default_factory=Numbers)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        parts = {"model": self.denoiser.state_dict(), "average": self.ema.model.state_dict(), "optimizer": {}}
        for name, parameter in self.denoiser.named_parameters():
            memory = self.optimizer.state.get(parameter, {})
            parts["optimizer"] |= {f"{name}.{key}": tensor for key, tensor in memory.items()}
        parts["guide"] = {} if self.guide is None else self.guide.state_dict()
        parts["second"] = {} if self.second is None else self.second.model.state_dict()
        parts["best"] = {} if self.held_out is None else self.held_out.weights or {}
        parts["log"] = {"losses": torch.cat(self.losses).float().cpu()} if self.losses else {}
        return {f"{part}.{name}": tensor for part, of_part in parts.items() for name, tensor in of_part.items()}

    def restore(self, tensors: dict[str, Tensor], numbers: Numbers) -> None:
        """Become what was saved. Raises ValueError where the tensors are not those of this network."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise ValueError(f"{name} holds a number that is not finite")
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        self.numbers = numbers
        try:
            self.denoiser.load_state_dict(parts.pop("model", {}))
            self.ema.model.load_state_dict(parts.pop("average", {}))
            if "guide" in parts:
                self.guide = self.ema.snapshot()
                self.guide.load_state_dict(parts.pop("guide"))
            if self.second is not None and "second" in parts:
                self.second.model.load_state_dict(parts.pop("second"))
            else:  # a checkpoint of before there were two
                self.second = None
            if self.held_out is not None and numbers.best is not None:  # they are loaded at the end of the run alone
                self.ema.snapshot().load_state_dict(parts.get("best", {}))
        except RuntimeError as error:  # of load_state_dict, many lines long
            raise ValueError(str(error)) from error
        if self.held_out is not None:
            self.held_out.best_progress = numbers.best_progress
            if numbers.best is not None:
                self.held_out.best, self.held_out.weights = numbers.best, parts.pop("best")
        device = next(self.denoiser.parameters()).device
        self.losses = [losses.to(device) for losses in parts.pop("log", {}).values()]
        memories = parts.pop("optimizer", {})
        for name, parameter in self.denoiser.named_parameters():
            for key in [key for key in memories if key.rpartition(".")[0] == name]:
                saved = memories.pop(key)
                if saved.shape not in (parameter.shape, torch.Size()):
                    raise ValueError(f"{key} is {tuple(saved.shape)}, not {tuple(parameter.shape)}")
                # In the layout and on the device of the weight; the count of updates stays where fused AdamW wants it.
                kept = torch.empty_like(parameter).copy_(saved) if saved.shape else saved.to(parameter.device)
                self.optimizer.state[parameter][key.rpartition(".")[2]] = kept
        if odd := sorted(memories) + sorted(parts):
            raise ValueError(f"{odd[0]} belongs to nothing here")


def made_by() -> dict[str, Any]:
    """What the last bits of a run depend on."""
    return {
        "simple-diffusion": __version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "processes": world_size(),
    }


def room_for(folder: Path, state: State) -> None:
    """Raise ResourceError unless the disk takes all the checkpoints that a run will keep, and one being written."""
    weights = sum(t.numel() * t.element_size() for t in state.denoiser.state_dict().values())
    two = state.second is not None
    # The weights, their average, the optimiser's two memories, the guide; the best ones; the second average.
    most = 5 + (state.held_out is not None) + two
    need = ((KEPT + 1) * most + 2 + two * 2 * len(SHARES)) * weights
    free = shutil.disk_usage(folder).free
    if free < need:
        raise ResourceError(f"{folder} has room for {free / 1e6:,.0f} MB and needs {need / 1e6:,.0f}: free the disk")


def save_checkpoint(folder: Path, spec: ModelSpec, state: State) -> Path:
    """Write FOLDER/checkpoints/step-N.safetensors, then remove all but it and the one before. Raises ResourceError."""
    path = folder / FOLDER / f"step-{state.numbers.n:08d}.safetensors"
    record = {
        "config": asdict(spec.config),
        "info": asdict(spec.info),
        "numbers": asdict(state.numbers),
        "made_by": made_by(),
    }
    write_tensors(path, state.tensors(), record)
    found = checkpoints(folder)
    here = found.index(path)
    for other in found[:here] + found[here + KEPT :]:  # those of later steps were damaged, or the run would be there
        with suppress(OSError):
            other.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first."""
    found = (folder / FOLDER).glob("step-*.safetensors")
    return sorted(found, key=lambda path: (len(path.name), path.name), reverse=True)  # a number may outgrow its zeros


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it was read: what it holds, and what was found damaged on the way to it."""

    path: Path
    spec: ModelSpec
    numbers: Numbers
    tensors: dict[str, Tensor]
    made_by: dict[str, Any]
    damaged: tuple[str, ...] = ()

    @property
    def config(self) -> Config:
        return self.spec.config

    @property
    def info(self) -> DataInfo:
        return self.spec.info

    def refuse_changes(self, spec: ModelSpec) -> None:
        """Raise UsageError or DataError, which list every difference, unless the run goes on as it was."""
        folder = self.path.parent.parent
        if changed := differences(asdict(self.spec.config), asdict(spec.config)):
            raise UsageError(f"{folder} is another run: {changed}; leave that out, or start a run with another --out")
        if changed := differences(asdict(self.spec.info), asdict(spec.info)):
            raise DataError(f"the data of {folder} has changed: {changed}; give it back its old data")

    def remarks(self) -> list[str]:
        """What the user should know before the run goes on."""
        changed = differences(self.made_by, made_by())
        bits = [f"the last bits may differ from those of an unbroken run: {changed}"] if changed else []
        return [*(f"{text}; going back to {self.path.name}" for text in self.damaged), *bits]


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Every key whose value changed, with both values."""
    return "; ".join(f"{key} is {now[key]} and was {before.get(key)}" for key in now if now[key] != before.get(key))


def latest(folder: Path) -> Checkpoint:
    """The newest checkpoint that is whole. Raises CheckpointError if there is none."""
    found = checkpoints(folder)
    if not found:
        raise CheckpointError(f"there is no checkpoint in {folder}: start the run without --resume")
    broken: list[str] = []
    for path in found:
        try:
            return read_checkpoint(path, tuple(broken))
        except CheckpointError as error:
            broken.append(str(error))
    raise CheckpointError(f"no checkpoint in {folder} is whole: {broken[0]}")


def read_checkpoint(path: Path, damaged_before: tuple[str, ...] = ()) -> Checkpoint:
    """A checkpoint of a run. Raises CheckpointError, naming the path, unless it is whole."""
    tensors, record = read_tensors(path)
    try:
        record = migrated(record)
        made = record["made_by"]
        if not fits(made, dict[str, str | int]):
            raise TypeError(f"made_by can't be {made!r}")
        numbers = from_json(Numbers, record["numbers"])
        if {f.name for f in fields(Numbers)} != set(record["numbers"]) or numbers.n < 0:
            raise ValueError("its numbers are not all there")
        spec = ModelSpec(from_json(Config, record["config"]), from_json(DataInfo, record["info"]))
    except (KeyError, TypeError, ValueError, SimpleDiffusionError) as error:
        raise damaged(path, error) from error
    return Checkpoint(path, spec, numbers, tensors, made, damaged_before)
