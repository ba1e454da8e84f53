"""`simple-diffusion report`: write a one-page report of a training run. The measurements take about a minute."""

import argparse
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import BusyError, CheckpointError, DataError, SimpleDiffusionError
from .options import command, data_options, device_options, load, optional, path, read_as, say

TRAJECTORIES = 4
"""Number of denoising trajectories; each is of another class."""


def add(commands: Any) -> None:
    sub = command(commands, "report", run, "write a one-page report of a run: samples, loss, scores, data and settings")
    sub.add_argument("run_folder", type=path, metavar="RUN", help="a run folder of `train`")
    data_options(sub)
    device_options(sub)


def run(args: argparse.Namespace) -> dict[str, Any]:
    folder: Path = args.run_folder
    if not folder.is_dir():
        raise CheckpointError(f"there is no run in {folder}: give a run folder of `train`")

    from ..denoising_error import error_curves
    from ..model.build import ModelSpec
    from ..model.model_file import read
    from ..run.command import command_of
    from ..run.report import FILE, LEVELS_FILE, TRAJECTORY_FILES, write_report
    from ..system.files import to_json, write_atomic

    model = read(folder, args.device, args.precision)
    config = model.training_config
    live = is_training(folder)
    progress = fraction_done(model, live)
    with optional(args, "a denoising trajectory"):
        write_atomic(folder / TRAJECTORY_FILES[0], trajectory_png(model))
    images, test = load_data(args, model)
    if images is not None:
        say(args, "Measuring the denoising error at each noise level: about a minute.")
        with optional(args, "a new denoising error by noise level"):
            curves = [asdict(curve) for curve in error_curves(model.denoiser, images, test)]
            write_atomic(folder / LEVELS_FILE, to_json({"curves": curves}).encode())
    reproduce = command_of(config, 0 if config.steps or progress < 1 else model.step)
    write_report(folder, ModelSpec(config, model.info), reproduce, images=images, progress=progress, live=live)
    say(args, f"Report: {folder / FILE}")
    return {"run": str(folder), "report": str(folder / FILE)}


def is_training(folder: Path) -> bool:
    """Whether another process trains in this run folder."""
    from ..run.folder import refuse_held

    try:
        refuse_held(folder)
    except BusyError:
        return True
    return False


def fraction_done(model: Any, live: bool) -> float:
    """Fraction of the run that is done, in [0, 1]; 1 for a run that ended early by `patience`."""
    from ..run.budget import MOST_RESERVE

    config = model.training_config
    fraction = model.step / config.steps if config.steps else model.seconds / config.seconds
    end = 1.0 if config.steps else 1 - MOST_RESERVE  # a timed run keeps a reserve for its last files
    if not live and (fraction >= end or config.patience):
        return 1.0
    return min(fraction, 1.0)


def trajectory_png(model: Any) -> bytes:
    """A few denoising trajectories as the content of a PNG file."""
    import torch

    from .sample import trajectory_file

    classes = model.info.classes
    labels = torch.arange(min(classes, TRAJECTORIES)) if classes else None
    return trajectory_file(model, TRAJECTORIES if labels is None else len(labels), labels, 0, None, ".png")


def load_data(args: argparse.Namespace, model: Any) -> tuple[Any, Any]:
    """(training images, held-out images) of the model; None for those that are not available."""
    from ..data.sources import held_out

    config = model.training_config
    size, skip_bad = read_as(args, config)
    try:
        images = load(args, config.data, size, skip_bad)
        if images.fingerprint != model.info.fingerprint:
            raise DataError(f"{config.data} has changed since the model was trained")
    except SimpleDiffusionError as error:
        say(args, f"The report leaves out what needs the training data: {error}.")
        return None, None
    with suppress(SimpleDiffusionError):
        return images, held_out(
            config.data, class_names=images.class_names, root=args.data_root, size=size or None, skip_bad=skip_bad
        )
    return images, None
