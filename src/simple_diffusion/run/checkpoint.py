"""Checkpoints: the state from which a run resumes bit-exactly.

Random numbers and the order of the data are functions of the step. The state is therefore only the weights, their
averages, the optimizer's buffers and a few numbers.
"""

import platform
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
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

KEPT = 2  # checkpoints; the second one is for the case that the newest is damaged
FOLDER = "checkpoints"


@dataclass
class Numbers:
    """The numbers of a checkpoint.

    n              number of updates
    seconds        that the run has taken
    progress       share of the training that is over
    done           whether the run has reached its end
    bad            how many of the last steps in a row were skipped
    held_out_loss  the latest, None if it was not measured
    best           the lowest held-out loss, None if it was not measured
    best_progress  share of the run after which the lowest was measured
    """

    n: int = 0
    seconds: float = 0.0
    progress: float = 0.0
    done: bool = False
    bad: int = 0
    held_out_loss: float | None = None
    best: float | None = None
    best_progress: float = 0.0


@dataclass
class State:
    """The state of a training run: all that training changes.

    losses   of each sample since the last row of the log
    guide    early snapshot of the averaged weights for autoguidance, or None
    second   average with another EMA length for post-hoc EMA, or None
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
        """All tensors of the state by name, as in a checkpoint."""
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
        """Set the state to that of a checkpoint. Raises ValueError if the tensors do not fit the network."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise ValueError(f"{name} contains NaN or infinity")
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
            else:  # older checkpoints have no second average
                self.second = None
            if self.held_out is not None and numbers.best is not None:  # only checked here
                self.ema.snapshot().load_state_dict(parts.get("best", {}))
        except RuntimeError as error:  # by load_state_dict
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
                    raise ValueError(f"{key} must have shape {tuple(parameter.shape)}, got {tuple(saved.shape)}")
                # Buffers take the memory format and device of the weight; fused AdamW needs its count on that device.
                kept = torch.empty_like(parameter).copy_(saved) if saved.shape else saved.to(parameter.device)
                self.optimizer.state[parameter][key.rpartition(".")[2]] = kept
        if odd := sorted(memories) + sorted(parts):
            raise ValueError(f"{odd[0]} does not belong to this network")


def made_by() -> dict[str, Any]:
    """The versions and hardware on which the bits of a run depend. Noise and order are NumPy's random numbers."""
    return {
        "simple-diffusion": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "processes": world_size(),
    }


def room_for(folder: Path, state: State) -> None:
    """Raise ResourceError unless the disk has room for all files of a run, with one checkpoint being written."""
    weights = sum(t.numel() * t.element_size() for t in state.denoiser.state_dict().values())
    two = state.second is not None
    # In a checkpoint: weights, average, two buffers of the optimizer and guide; best weights; second average.
    most = 5 + (state.held_out is not None) + two
    need = ((KEPT + 1) * most + 2 + two * 2 * len(SHARES)) * weights
    free = shutil.disk_usage(folder).free
    if free < need:
        raise ResourceError(
            f"{folder} needs {need / 1e6:,.0f} MB, and the disk has room for {free / 1e6:,.0f} MB: free the disk"
        )


def save_checkpoint(folder: Path, spec: ModelSpec, state: State) -> Path:
    """Write FOLDER/checkpoints/step-N.safetensors and remove all but it and the one before. Raises ResourceError."""
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
    # Checkpoints of later steps are damaged, or the run would have resumed from them.
    for other in found[:here] + found[here + KEPT :]:
        with suppress(OSError):
            other.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first."""
    found = (folder / FOLDER).glob("step-*.safetensors")
    # Step numbers may have more than eight digits: longer names are newer.
    return sorted(found, key=lambda path: (len(path.name), path.name), reverse=True)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read.

    damaged   errors of newer checkpoints that could not be read
    """

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
        """Raise UsageError or DataError, with all differences, if the settings or the data have changed.

        The data may have another name or place: the fingerprint decides.
        """
        folder = self.path.parent.parent
        if changed := differences(asdict(self.spec.config), asdict(replace(spec.config, data=self.spec.config.data))):
            raise UsageError(
                f"the run in {folder} has other settings: {changed}; omit these options, or use another --out"
            )
        if self.info.fingerprint != spec.info.fingerprint:
            facts = ("count", "channels", "height", "width", "class_names")
            before, now = ({fact: getattr(info, fact) for fact in facts} for info in (self.info, spec.info))
            changed = differences(before, now) or "its pixels or labels are others"
            raise DataError(
                f"the data of {folder} has changed: {changed}; restore it, or name the place of the original: "
                f"simple-diffusion train DATA --resume --out {folder}"
            )

    def remarks(self) -> list[str]:
        """Notes for the user before the run resumes."""
        now = {key: value for key, value in made_by().items() if key in self.made_by}  # older files record fewer
        changed = differences(self.made_by, now)
        bits = [f"the bits may differ from those of an uninterrupted run: {changed}"] if changed else []
        return [*(f"{text}; resuming from {self.path.name} instead" for text in self.damaged), *bits]


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """All keys whose value changed, with both values."""
    return "; ".join(f"{key} is {now[key]} and was {before.get(key)}" for key in now if now[key] != before.get(key))


def latest(folder: Path) -> Checkpoint:
    """The newest checkpoint that is not damaged. Raises CheckpointError if there is none."""
    found = checkpoints(folder)
    if not found:
        raise CheckpointError(f"there is no checkpoint in {folder}: start the run without --resume")
    broken: list[str] = []
    for path in found:
        try:
            return read_checkpoint(path, tuple(broken))
        except CheckpointError as error:
            broken.append(str(error))
    raise CheckpointError(f"all checkpoints in {folder} are damaged: {broken[0]}")


def read_checkpoint(path: Path, damaged_before: tuple[str, ...] = ()) -> Checkpoint:
    """Read a checkpoint. Raises CheckpointError, which names the path, if it is damaged."""
    tensors, record = read_tensors(path)
    try:
        record = migrated(record)
        made = record["made_by"]
        if not fits(made, dict[str, str | int]):
            raise TypeError(f"made_by must be a table of texts and integers, got {made!r}")
        numbers = from_json(Numbers, record["numbers"])
        if (
            {f.name for f in fields(Numbers)} != set(record["numbers"])
            or numbers.n < 0
            or not 0 <= numbers.progress <= 1
        ):
            raise ValueError("its numbers are incomplete or out of range")
        spec = ModelSpec(from_json(Config, record["config"]), from_json(DataInfo, record["info"]))
    except (KeyError, TypeError, ValueError, SimpleDiffusionError) as error:
        raise damaged(path, error) from error
    return Checkpoint(path, spec, numbers, tensors, made, damaged_before)
