"""Post-hoc EMA: the EMA length is chosen after training (Karras et al. 2024, section 3).

Besides the averaged weights for sampling, a run keeps a second average with another EMA length. At each fifth of the
run it saves both to a file. Linear combinations of them approximate averages with nearby EMA lengths.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from ..denoiser import Denoiser
from ..ema import mixture
from ..errors import UsageError
from ..system.files import damaged, fits, read_tensors, write_tensors
from .config import Config
from .model_file import Model, denoiser_of

FOLDER = "averages"

SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Shares of the run after which the averages are saved."""

MAX_DISTANCE = 0.1
"""Largest relative distance of a combination's averaging profile from the requested one. From the averages at SHARES
with EMA lengths 0.05 and 0.10, all lengths from 0.04 to 0.16 are within it."""


def ema_lengths(config: Config) -> tuple[float, ...]:
    """The EMA lengths that a run keeps, the one for sampling first.

    Empty where post-hoc EMA is impossible: with a constant decay, and with `patience`, which may select earlier
    weights.
    """
    if config.ema_decay or config.patience:
        return ()
    return config.ema_length, 2 * config.ema_length if config.ema_length <= 0.1 else config.ema_length / 2


def save_averages(folder: Path, n: int, averages: Mapping[float, Denoiser]) -> None:
    """Save averages by EMA length, after n updates, to a file in FOLDER/averages. Raises ResourceError."""
    states = [model.state_dict() for model in averages.values()]
    tensors = {f"{i}.{name}": weight for i, state in enumerate(states) for name, weight in state.items()}
    write_tensors(folder / FOLDER / f"step-{n:08d}.safetensors", tensors, {"n": n, "widths": [*averages]})


def saved_averages(folder: Path) -> dict[int, Path]:
    """The files of a run by their number of updates, in rising order."""
    paths = (folder / FOLDER).glob("step-*.safetensors")
    return dict(sorted((int(path.stem[5:]), path) for path in paths if re.fullmatch(r"[0-9]{8,18}", path.stem[5:])))


def remove_averages_after(folder: Path, n: int) -> None:
    """Remove files of more than n updates: a run that was killed after its last checkpoint may leave them."""
    for step, path in saved_averages(folder).items():
        if step > n:
            with suppress(OSError):
                path.unlink()


def read_averages(path: Path, n: int, model: Model) -> dict[float, Denoiser]:
    """The averages of one file by EMA length.

    Raises CheckpointError if the file is damaged, does not belong to n updates, or belongs to another model.
    """
    tensors, record = read_tensors(path)
    try:
        lengths = record["widths"]
        distinct = fits(lengths, tuple[float, ...]) and len({*lengths}) == len(lengths)
        if not distinct or record["n"] != n or n <= 0 or not all(0 < length < 0.28 for length in lengths):
            raise ValueError(f"its EMA lengths {lengths!r} or its number of updates {record['n']!r} are impossible")
        averages = {}
        for i, length in enumerate(lengths):
            weights = {name.partition(".")[2]: w for name, w in tensors.items() if name.startswith(f"{i}.")}
            averages[length] = denoiser_of(weights, model.spec, torch.device("cpu"))
        return averages
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise damaged(path, error) from error


def posthoc_model(folder: str | Path, model: Model, length: float) -> Model:
    """The model with the averaged weights of another EMA length, at the last point that the run saved.

    folder   of the run that made the model
    length   standard deviation of the averaging profile relative to the length of the run, as in `power_decay`

    Raises UsageError if the folder has no averages or none near that length, and CheckpointError if a file is damaged
    or belongs to another model.
    """
    profiles, averages = [], []
    for n, path in saved_averages(Path(folder)).items():
        for each, denoiser in read_averages(path, n, model).items():
            profiles.append((each, n))
            averages.append(denoiser)
    if not profiles:
        raise UsageError(
            f"{folder} has no averages for --ema: it must be the folder of a run without ema_decay and patience, "
            f"{SHARES[0]:.0%} of which or more is done"
        )
    last = profiles[-1][1]
    factors, distance = mixture(profiles, (length, last))
    if distance > MAX_DISTANCE:
        near = " and ".join(f"{each:g}" for each in sorted({each for each, _ in profiles}))
        raise UsageError(
            f"EMA length {length:g} is too far from those of the averages in {folder}: choose one nearer to {near}"
        )

    combined = dict(averages[-1].state_dict())  # with the latest buffers
    for name, latest in averages[-1].named_parameters():
        weights = torch.stack([average.get_parameter(name) for average in averages]).double()
        combined[name] = torch.tensordot(torch.tensor(factors, dtype=torch.float64), weights, 1).to(latest)
    device = next(model.denoiser.parameters()).device
    return replace(model, denoiser=denoiser_of(combined, model.spec, device), step=last)
