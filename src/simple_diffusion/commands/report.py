"""`simple-diffusion report`: a run on one page, with what it takes a minute to measure."""

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, DataError
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

    from ..checkpoint import read
    from ..data.sources import held_out
    from ..evaluation import level_errors
    from ..files import write_atomic
    from ..levels import LEVELS
    from ..report import FILE, FILM, LEVELS_FILE, write_report
    from ..run import command_of
    from .sample import film_file

    model = read(folder, args.device, args.precision)
    config, card = model.config, model.card
    labels = torch.arange(min(card.classes, FILMS)) if card.classes else None
    n = FILMS if labels is None else len(labels)
    write_atomic(folder / FILM, film_file(model, n, labels, 0, None, ".png"))
    images = None
    try:
        images = load(args, config.data, *read_as(args, config))
    except DataError as error:
        say(args, f"Without the data the page says less: {error}.")
    if images is not None:
        size, skip_bad = read_as(args, config)
        test = held_out(config.data, root=args.data_root, size=size or None, skip_bad=skip_bad)
        errors = {name: error.tolist() for name, error in level_errors(model.denoiser, images, test).items()}
        write_atomic(folder / LEVELS_FILE, json.dumps({"levels": LEVELS.tolist(), "errors": errors}).encode())
    write_report(folder, config, card, command_of(config, 0 if config.steps else model.step), images=images)
    say(args, f"Report: {folder / FILE}")
    return {"run": str(folder), "report": str(folder / FILE)}
