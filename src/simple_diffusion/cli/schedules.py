"""`simple-diffusion schedules`: draw noise schedules on common axes, and an image on its way through each."""

import argparse
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .options import command, data_options, load, path, png_only, say

TIMESTEPS = 1000  # of a table
PANELS = 17  # moments of an image's way into noise


def add(commands: Any) -> None:
    sub = command(commands, "schedules", run, "draw noise schedules on common axes")
    sub.add_argument("names", nargs="*", metavar="NAME", help="linear, cosine, ... (default all curves)")
    sub.add_argument("--data", default="digits", metavar="DATA", help="whose first image is noised (default digits)")
    sub.add_argument("--out", type=path, default=Path("schedules.png"), metavar="FILE.png")
    data_options(sub)


def run(args: argparse.Namespace) -> dict[str, Any]:
    png_only(args.out)

    import torch

    from ..data.images import to_unit
    from ..data.info import DataInfo
    from ..losses import LogNormal
    from ..model.build import ModelSpec
    from ..model.config import Config
    from ..schedules import BETAS, SCHEDULES, Discrete
    from ..system.files import write_atomic
    from ..viz.plots import plot_schedules
    from ..viz.trajectory import noise_images

    tables = {name: (lambda name=name: Discrete(BETAS[name](TIMESTEPS))) for name in BETAS}
    known = tables | SCHEDULES  # a table is drawn where there is no curve of its name
    for name in args.names:
        if name not in known:
            raise UsageError(f"no schedule is called {name!r}: choose among {', '.join(sorted(known))}")
    chosen = {name: known[name]() for name in args.names or SCHEDULES}
    images = load(args, args.data, args.size, args.skip_bad)
    x0, moments = to_unit(images.pixels[:1]), torch.linspace(0, 1, PANELS)
    films = {name: noise_images(x0, schedule, moments)[:, 0] for name, schedule in chosen.items()}
    usual = ModelSpec(Config(), DataInfo.of(images)).density
    assert isinstance(usual, LogNormal)
    write_atomic(args.out, plot_schedules(chosen, films, (usual.mean, usual.std)))
    say(args, f"{', '.join(chosen)}, on an image of {images.name}: {args.out}")
    t = torch.linspace(0, 1, 11, dtype=torch.float64)[1:]
    return {
        name: {"t": t.tolist(), "alpha": s.alpha(t).tolist(), "sigma": s.sigma(t).tolist()}
        for name, s in chosen.items()
    }
