"""Model files: the weights of a model and everything needed to sample from it, in one file.

The header contains settings, which are checked against the list of known ones. It is data, and nothing in it is run.
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

GUIDE = "guide."  # prefix of the names of the guide's weights


@dataclass(frozen=True)
class Model:
    """A trained denoiser with its specification and the length of its training.

    spec        the precision in its configuration is the one for sampling on this machine
    step        number of updates
    seconds     length of the training
    guide       early snapshot of the averaged weights for autoguidance, or None
    trained_in  precision in training, None if it is that of the configuration
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
        """The model with other settings and the same weights. Raises UsageError for a value that is not allowed."""
        return replace(self, spec=self.spec.changed(**settings))

    def sampler(self) -> tuple[PosteriorMean, Tensor, Sampler]:
        """(denoiser with guidance and clipping, time grid, sampler), as from `ModelSpec.sampler`."""
        return self.spec.sampler(self.denoiser, self.guide)

    @property
    def training_config(self) -> Config:
        """The configuration in training, with the precision of that time."""
        return replace(self.config, precision=self.trained_in or self.config.precision)


def save(path: Path, model: Model) -> None:
    """Write the model to a file, which is complete or does not appear. Raises ResourceError."""
    record = {"config": asdict(model.training_config), "info": asdict(model.info)}
    record |= {"step": model.step, "seconds": round(model.seconds, 1)}
    guide = {} if model.guide is None else model.guide.state_dict()
    write_tensors(path, model.denoiser.state_dict() | {GUIDE + name: w for name, w in guide.items()}, record)


def model_file(path: str | Path) -> Path:
    """The model file of a run folder, or the path itself if it is not a folder."""
    return Path(path) / MODEL_FILE if Path(path).is_dir() else Path(path)


def read(path: str | Path, device: str = "auto", precision: str = "auto") -> Model:
    """Read the model of a run folder or file. Raises CheckpointError, which names the path, if there is none.

    device      "auto", "cpu", "cuda" or "mps"
    precision   "auto" is what suits this machine, whatever the precision in training was
    """
    file = model_file(path)
    if not file.is_file():
        raise CheckpointError(f"there is no model at {file}: give a run folder or a .safetensors file of `train`")
    where = pick_device(device)
    tensors, record = read_tensors(file)
    try:
        record = migrated(record)
        config = fitted(replace(from_json(Config, record["config"]), precision=precision), where)
        spec = ModelSpec(config, from_json(DataInfo, record["info"]))
        step, seconds = record["step"], record["seconds"]
        if type(step) is not int or not fits(seconds, float) or min(step, seconds) < 0:
            raise ValueError(f"its step {step!r} and seconds {seconds!r} must be numbers of 0 or more")
        weights = {name: w for name, w in tensors.items() if not name.startswith(GUIDE)}
        denoiser = denoiser_of(weights, spec, where)
        guide = {name.removeprefix(GUIDE): w for name, w in tensors.items() if name.startswith(GUIDE)}
        early = denoiser_of(guide, spec, where) if guide else None
        model = Model(denoiser, spec, step, seconds, early, record["config"]["precision"])
    except (KeyError, TypeError, ValueError, RuntimeError, SimpleDiffusionError) as error:
        raise damaged(file, error) from error
    return model


def denoiser_of(weights: dict[str, Tensor], spec: ModelSpec, device: torch.device) -> Denoiser:
    """The denoiser with these weights, ready to sample. Raises ValueError if they do not fit the configuration."""
    with torch.device("meta"):  # shapes are compared before memory is allocated
        denoiser = spec.denoiser()
    load_weights(denoiser, weights)
    denoiser = denoiser.to(device).to(memory_format=memory_format(spec.config))  # pyrefly: ignore[no-matching-overload]
    return denoiser.eval().requires_grad_(False)


def load(path: str | Path, device: str = "auto") -> Denoiser:
    """The denoiser of a run folder or file, ready to sample: x_t `[B, C, H, W]` in, the same shape out.

    path     of a run folder of `train`, or of a .safetensors file
    device   "auto", "cpu", "cuda" or "mps"

    Raises CheckpointError, which names the path, if there is no model, and UsageError if there is no such device.
    """
    return read(path, device).denoiser
