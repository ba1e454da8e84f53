"""`simple-diffusion report`: a run on one page, with what it takes a minute to measure."""

import argparse
import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import BusyError, CheckpointError, DataError, SimpleDiffusionError
from .options import command, data_options, device_options, load, path, read_as, say

FILMS = 4
"""Images of the film, each of another class."""


def add(commands: Any) -> None:
    sub = command(commands, "report", run, "one page about a run: pictures, curves, scores, data and settings")
    sub.add_argument("run_folder", type=path, metavar="RUN", help="a run folder of `train`")
    data_options(sub)
    device_options(sub)


def run(args: argparse.Namespace) -> dict[str, Any]:
    folder: Path = args.run_folder
    if not folder.is_dir():
        raise CheckpointError(f"there is no run in {folder}: name a run folder of `train`")

    import torch

    from ..data.sources import held_out
    from ..denoising_error import error_curves
    from ..model.build import ModelSpec
    from ..model.model_file import read
    from ..run.budget import MOST_RESERVE
    from ..run.command import command_of
    from ..run.folder import refuse_held
    from ..run.report import FILE, FILM, LEVELS_FILE, write_report
    from ..system.files import write_atomic
    from .sample import film_file

    model = read(folder, args.device, args.precision)
    config, info = model.training_config, model.info
    spec = ModelSpec(config, info)
    try:
        refuse_held(folder)
        live = False
    except BusyError:  # it trains: a browser that follows it goes on following
        live = True
    progress = model.step / config.steps if config.steps else model.seconds / config.seconds
    ended = 1.0 if config.steps else 1 - MOST_RESERVE
    if not live and (progress >= ended or config.patience):
        progress = 1.0
    labels = torch.arange(min(info.classes, FILMS)) if info.classes else None
    n = FILMS if labels is None else len(labels)
    write_atomic(folder / FILM, film_file(model, n, labels, 0, None, ".png"))
    size, skip_bad = read_as(args, config)
    images = test = None
    try:
        images = load(args, config.data, size, skip_bad)
        if images.fingerprint != info.fingerprint:
            raise DataError(f"{config.data} is not what the model was trained on any more")
        with suppress(SimpleDiffusionError):
            test = held_out(config.data, root=args.data_root, size=size or None, skip_bad=skip_bad)
    except SimpleDiffusionError as error:
        images = None
        say(args, f"Without the data the page says less: {error}.")
    if images is not None:
        curves = [asdict(curve) for curve in error_curves(model.denoiser, images, test)]
        write_atomic(folder / LEVELS_FILE, json.dumps({"curves": curves}).encode())
    repeats = command_of(config, 0 if config.steps or progress < 1 else model.step)
    write_report(folder, spec, repeats, images=images, progress=min(progress, 1.0), live=live)
    say(args, f"Report: {folder / FILE}")
    return {"run": str(folder), "report": str(folder / FILE)}
