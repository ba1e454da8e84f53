"""A model on disk: one safetensors file that holds the weights and, as JSON in its header, everything else.

Reading one executes nothing: safetensors is numbers, JSON is checked against the closed list of settings.
"""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from .config import Card, Config, build, fitted, memory_format
from .denoiser import Denoiser
from .errors import CheckpointError, UsageError
from .files import write_atomic
from .hardware import pick_device

FORMAT = 1
MODEL_FILE = "model.safetensors"


@dataclass(frozen=True)
class Model:
    """A trained denoiser with the config that made it, the card of its data, and how long it trained."""

    denoiser: Denoiser
    config: Config
    card: Card
    step: int
    seconds: float


def save(path: Path, model: Model) -> None:
    """Write the model to one file, whole or not at all. Raises ResourceError."""
    about = {
        "format": FORMAT,
        "config": asdict(model.config),
        "card": asdict(model.card),
        "step": model.step,
        "seconds": round(model.seconds, 1),
    }
    tensors = {name: tensor.contiguous() for name, tensor in model.denoiser.state_dict().items()}
    write_atomic(path, to_bytes(tensors, {"simple-diffusion": json.dumps(about)}))


def read(path: str | Path, device: str = "auto", precision: str = "auto") -> Model:
    """The model of a run folder or of a file. Raises CheckpointError, naming the path, if there is none.

    precision   "auto" is what suits this machine, whatever the model was trained in
    """
    file = Path(path) / MODEL_FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise CheckpointError(f"there is no model at {file}: name a run folder or a .safetensors file of `train`")
    where = pick_device(device)
    try:
        with safe_open(file, framework="pt") as content:
            about = json.loads((content.metadata() or {})["simple-diffusion"])
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  not a dict
        if about["format"] > FORMAT:
            raise CheckpointError(f"{file} was made by a newer version: upgrade simple-diffusion")
        config = fitted(replace(_record(Config, about["config"]), precision=precision), where)
        card = _record(Card, about["card"])
        with torch.device("meta"):  # shapes are compared before a byte is spent on them
            denoiser = build(config, card)
        denoiser.load_state_dict(tensors, assign=True)
        step, seconds = int(about["step"]), float(about["seconds"])
    except (
        SafetensorError,
        OSError,
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
        UsageError,
        RecursionError,
    ) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise CheckpointError(f"{file} is not a model of simple-diffusion, or is damaged: {reason}") from error
    denoiser = denoiser.to(where).to(memory_format=memory_format(config))  # pyrefly: ignore[no-matching-overload]
    denoiser = denoiser.eval().requires_grad_(False)
    return Model(denoiser, config, card, step, seconds)


def load(path: str | Path, device: str = "auto") -> Denoiser:
    """The denoiser of a run folder or file, ready to sample. Raises CheckpointError."""
    return read(path, device).denoiser


def _record(kind: type, values: dict[str, Any]) -> Any:
    """The dataclass from JSON, whose lists are its tuples; an unknown or missing key is a TypeError or KeyError."""
    if set(values) != {f.name for f in fields(kind)}:
        raise KeyError(f"the {kind.__name__.lower()} has other keys than this version's")
    return kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
