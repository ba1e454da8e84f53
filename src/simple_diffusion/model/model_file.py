"""A model on disk: one file that holds the weights and everything needed to use them.

What its header says is checked against the closed list of settings: data, never code.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.info import DataInfo
from ..denoiser import Denoiser, PosteriorMean
from ..errors import CheckpointError, SimpleDiffusionError
from ..samplers import Sampler
from ..system.device import pick_device
from ..system.files import damaged, fits, from_json, load_weights, read_tensors, write_tensors
from .build import ModelSpec
from .config import Config, fitted, memory_format
from .migrate import migrated

MODEL_FILE = "model.safetensors"

GUIDE = "guide."  # in front of the names of the guide's weights


@dataclass(frozen=True)
class Model:
    """A trained denoiser, its specification, and how long it trained.

    spec        the precision of its configuration is the one for sampling on this machine
    step        updates
    guide       an early snapshot of the same training, for autoguidance, or None
    trained_in  precision of the training, None where it is the configuration's
    """

    denoiser: Denoiser
    spec: ModelSpec
    step: int
    seconds: float
    guide: Denoiser | None = None
    trained_in: str | None = None

    @property
    def config(self) -> Config:
        return self.spec.config

    @property
    def info(self) -> DataInfo:
        return self.spec.info

    def changed(self, **settings: Any) -> "Model":
        """The same weights with other settings. Raises UsageError for a value that is not allowed."""
        return replace(self, spec=self.spec.changed(**settings))

    def sampler(self) -> tuple[PosteriorMean, Tensor, Sampler]:
        """(denoiser with guidance and clipping, grid of times, sampler), as `ModelSpec.sampler`."""
        return self.spec.sampler(self.denoiser, self.guide)

    @property
    def training_config(self) -> Config:
        """The config that it was trained by, whatever this machine draws in."""
        return replace(self.config, precision=self.trained_in or self.config.precision)


def save(path: Path, model: Model) -> None:
    """Write the model to one file, whole or not at all. Raises ResourceError."""
    record = {"config": asdict(model.training_config), "info": asdict(model.info)}
    record |= {"step": model.step, "seconds": round(model.seconds, 1)}
    guide = {} if model.guide is None else model.guide.state_dict()
    write_tensors(path, model.denoiser.state_dict() | {GUIDE + name: w for name, w in guide.items()}, record)


def model_file(path: str | Path) -> Path:
    """The file of a model that is named by its run folder, or by itself."""
    return Path(path) / MODEL_FILE if Path(path).is_dir() else Path(path)


def read(path: str | Path, device: str = "auto", precision: str = "auto") -> Model:
    """The model of a run folder or of a file. Raises CheckpointError, naming the path, if there is none.

    precision   "auto" is what suits this machine, whatever the model was trained in
    """
    file = model_file(path)
    if not file.is_file():
        raise CheckpointError(f"there is no model at {file}: name a run folder or a .safetensors file of `train`")
    where = pick_device(device)
    tensors, record = read_tensors(file)
    try:
        record = migrated(record)
        config = fitted(replace(from_json(Config, record["config"]), precision=precision), where)
        spec = ModelSpec(config, from_json(DataInfo, record["info"]))
        step, seconds = record["step"], record["seconds"]
        if type(step) is not int or not fits(seconds, float) or min(step, seconds) < 0:
            raise ValueError(f"it says that it trained for {step!r} steps in {seconds!r} s")
        weights = {name: w for name, w in tensors.items() if not name.startswith(GUIDE)}
        denoiser = denoiser_of(weights, spec, where)
        guide = {name.removeprefix(GUIDE): w for name, w in tensors.items() if name.startswith(GUIDE)}
        early = denoiser_of(guide, spec, where) if guide else None
        model = Model(denoiser, spec, step, seconds, early, record["config"]["precision"])
    except (KeyError, TypeError, ValueError, RuntimeError, SimpleDiffusionError) as error:
        raise damaged(file, error) from error
    return model


def denoiser_of(weights: dict[str, Tensor], spec: ModelSpec, device: torch.device) -> Denoiser:
    """The denoiser with these weights, ready to sample. Raises ValueError where they are not those of the config."""
    with torch.device("meta"):  # shapes are compared before a byte is spent on them
        denoiser = spec.denoiser()
    load_weights(denoiser, weights)
    denoiser = denoiser.to(device).to(memory_format=memory_format(spec.config))  # pyrefly: ignore[no-matching-overload]
    return denoiser.eval().requires_grad_(False)


def load(path: str | Path, device: str = "auto") -> Denoiser:
    """The denoiser of a run folder or file, ready to sample: x_t `[B, C, H, W]` in, the same shape out.

    path     of a run folder of `train`, or of a .safetensors file
    device   "auto", "cpu", "cuda" or "mps"

    Raises CheckpointError, naming the path, if there is no model; UsageError for a device that is not there.
    """
    return read(path, device).denoiser
