"""The length of the average, chosen after training (Karras et al. 2024, section 3, "post-hoc EMA").

Beside the average that is drawn from, a run keeps a second one of another width. At each fifth of the way both go into
a file of their own; out of them any average of a width near theirs can be mixed, as it would stand at the latest of
these moments.
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
"""Shares of the run after which the averages are kept."""

MOST_OFF = 0.1
"""How far a mixture's profile may be from the wanted one: with these moments and widths of 0.05 and 0.10 all from 0.04
to 0.16 are nearer."""


def widths_of(config: Config) -> tuple[float, ...]:
    """The widths that a run keeps, the one that is drawn from first; none where its length can't be chosen afterwards:
    with a constant decay, and where the weights may be those of an earlier step than the last."""
    if config.ema_decay or config.patience:
        return ()
    return config.ema_length, 2 * config.ema_length if config.ema_length <= 0.1 else config.ema_length / 2


def keep(folder: Path, n: int, averages: Mapping[float, Denoiser]) -> None:
    """Write averages by width, as they are after n updates, to a file in FOLDER/averages. Raises ResourceError."""
    states = [model.state_dict() for model in averages.values()]
    tensors = {f"{i}.{name}": weight for i, state in enumerate(states) for name, weight in state.items()}
    write_tensors(folder / FOLDER / f"step-{n:08d}.safetensors", tensors, {"n": n, "widths": [*averages]})


def kept(folder: Path) -> dict[int, Path]:
    """The files of a run by the number of updates, rising."""
    paths = (folder / FOLDER).glob("step-*.safetensors")
    return dict(sorted((int(path.stem[5:]), path) for path in paths if re.fullmatch(r"[0-9]{8,18}", path.stem[5:])))


def forget_after(folder: Path, n: int) -> None:
    """Remove what a run left that was killed later than the checkpoint, after n updates, from which it goes on."""
    for step, path in kept(folder).items():
        if step > n:
            with suppress(OSError):
                path.unlink()


def posthoc_model(folder: str | Path, model: Model, width: float) -> Model:
    """The model of a run folder with an average of another width, as it would stand at the latest moment kept.

    folder   of the run that made the model
    width    standard deviation of the averaging profile relative to the length of the run, as in `power_decay`

    Raises UsageError where the folder keeps nothing, or nothing near that width; CheckpointError, naming the path, for
    a file that is damaged or none of this model's.
    """
    moments, parts = [], []
    for n, path in kept(Path(folder)).items():
        tensors, record = read_tensors(path)
        try:
            widths = record["widths"]
            sound = fits(widths, tuple[float, ...]) and len({*widths}) == len(widths) and record["n"] == n > 0
            if not sound or not all(0 < each < 0.28 for each in widths):
                raise ValueError(f"it says that it holds averages of widths {widths!r} after {record['n']!r} steps")
            for i, each in enumerate(widths):
                weights = {name.partition(".")[2]: w for name, w in tensors.items() if name.startswith(f"{i}.")}
                parts.append(denoiser_of(weights, model.spec, torch.device("cpu")))
                moments.append((each, n))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise damaged(path, error) from error
    if not moments:
        raise UsageError(
            f"{folder} keeps no averages to mix: --ema needs the folder of a run without ema_decay and patience, a "
            f"{SHARES[0]:.0%} of the way or later"
        )
    shares, off = mixture(moments, (width, moments[-1][1]))
    if off > MOST_OFF:
        near = " and ".join(f"{each:g}" for each in sorted({each for each, _ in moments}))
        raise UsageError(f"the averages of {folder} make none of width {width:g}, by {off:.0%}: stay nearer to {near}")
    device = next(model.denoiser.parameters()).device
    mixed = dict(parts[-1].state_dict())  # buffers are the latest ones
    for name, latest in parts[-1].named_parameters():
        weights = torch.stack([part.get_parameter(name) for part in parts]).double()
        mixed[name] = torch.tensordot(torch.tensor(shares, dtype=torch.float64), weights, 1).to(latest)
    denoiser = denoiser_of(mixed, model.spec, device)
    return replace(model, denoiser=denoiser, step=moments[-1][1])
