"""`simple-diffusion explain`: the formula, paper, symbols and code of a schedule, target, sampler or metric."""

import argparse
from typing import Any

from ..errors import UsageError
from .options import command, say


def add(commands: Any) -> None:
    sub = command(
        commands, "explain", run, "show the formula, paper, symbols and code of a schedule, target, sampler or metric"
    )
    sub.add_argument(
        "name", nargs="?", metavar="NAME", help="such as cosine, v, dpmpp or fid (default: list all names)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from ..learn.explain import ENTRIES, PAPERS, code_of, explain

    if args.name is None:
        for name, entries in ENTRIES.items():
            say(args, f"{name:<14} {', '.join(entry.kind for entry in entries)}")
        return {"names": list(ENTRIES)}
    if args.name not in ENTRIES:
        raise UsageError(f"nothing to explain has the name {args.name!r}: choose among {', '.join(ENTRIES)}")
    say(args, explain(args.name))
    return {
        "name": args.name,
        "entries": [
            {
                "kind": entry.kind,
                "formula": entry.formula,
                "papers": [f"{PAPERS[paper]}: {where}" for paper, where in entry.sources],
                "file": code_of(entry.thing)[0],
                "line": code_of(entry.thing)[1],
            }
            for entry in ENTRIES[args.name]
        ],
    }
