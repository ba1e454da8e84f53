"""`simple-diffusion schedules`: draw noise schedules on common axes."""

import argparse
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .options import command, path, say

TIMESTEPS = 1000  # of a table


def add(commands: Any) -> None:
    sub = command(commands, "schedules", run, "draw noise schedules on common axes")
    sub.add_argument("names", nargs="*", metavar="NAME", help="linear, cosine, ... (default all curves)")
    sub.add_argument("--out", type=path, default=Path("schedules.png"), metavar="FILE.png")


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.out.suffix != ".png":
        raise UsageError(f"--out {args.out} has another ending than .png: use .png")

    import torch

    from ..figures import schedule_curves
    from ..files import write_atomic
    from ..schedules import BETAS, SCHEDULES, Discrete

    tables = {name: (lambda name=name: Discrete(BETAS[name](TIMESTEPS))) for name in BETAS}
    known = tables | SCHEDULES  # a table is drawn where there is no curve of its name
    for name in args.names:
        if name not in known:
            raise UsageError(f"no schedule is called {name!r}: choose among {', '.join(sorted(known))}")
    chosen = {name: known[name]() for name in args.names or SCHEDULES}
    write_atomic(args.out, schedule_curves(chosen))
    say(args, f"{', '.join(chosen)}: {args.out}")
    t = torch.linspace(0, 1, 11, dtype=torch.float64)[1:]
    return {
        name: {"t": t.tolist(), "alpha": s.alpha(t).tolist(), "sigma": s.sigma(t).tolist()}
        for name, s in chosen.items()
    }
