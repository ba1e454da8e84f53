"""The command `simple-diffusion`.

Each other file of this package is one command: `add` defines its options, `run` runs it and returns its result for
--json. Commands import torch in `run`, so that `--help` and errors in options are fast.
"""

import argparse
import os
import sys
from typing import Any

from ..errors import SimpleDiffusionError, is_out_of_memory, memory_asked_for, printable
from ..system.signals import exit_on_sigterm
from ..system.terminal import any_streams, note, show
from . import (
    check,
    classifier,
    compare,
    data,
    doctor,
    evaluate,
    explain,
    play,
    report,
    sample,
    schedules,
    sweep,
    train,
)
from .options import FIRST, SHARED, Parser

# A waiting OpenMP thread sleeps instead of spinning. This must be set before torch is imported. On two idle cores it
# cost 13 % of the speed; beside one other busy program spinning cost half of it or more (docs/notes/network.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

GROUPS = {
    "Train and sample": (train, sample, play),
    "Measure": (evaluate, compare, sweep, report, doctor),
    "Data and schedules": (data, schedules, classifier),
    "Learn": (explain, check),
}
COMMANDS = tuple(command for group in GROUPS.values() for command in group)

DISTRIBUTED = ("train", "sample", "evaluate")
"""Commands that several processes can share. All others run in the first process alone."""


def parser() -> Parser:
    """All commands with their options."""
    top = Parser(
        prog="simple-diffusion",
        usage="simple-diffusion COMMAND [options]",
        description="Train a diffusion model on images and generate images with it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="store_true", help="print the version")
    commands = top.add_subparsers(
        dest="command", metavar="COMMAND", prog=top.prog, parser_class=Parser, help=argparse.SUPPRESS
    )
    for command in COMMANDS:
        command.add(commands)
    summaries = {action.dest: action.help for action in commands._choices_actions}
    lines = []
    for title, group in GROUPS.items():
        names = [command.__name__.rpartition(".")[2] for command in group]
        lines += [f"{title}:", *(f"  {name:<12}{summaries[name]}" for name in names), ""]
    top.epilog = "\n".join([*lines, "`simple-diffusion COMMAND --help` lists the options of a command."])
    return top


def current_names(argv: list[str]) -> list[str]:
    """The command line with the new name of a renamed command, which is printed on stderr."""
    if argv[:1] != ["race"]:
        return argv
    if FIRST:
        note("`race` is now called `sweep`")
    return ["sweep", *argv[1:]]


def execute(args: argparse.Namespace) -> None:
    """Run a command, in a process group where several processes share it, and print its result with --json."""
    result: dict[str, Any] = {}
    if SHARED and args.command in DISTRIBUTED:
        from ..system.distributed import process_group

        with process_group():
            result = args.run(args)
    elif FIRST:
        result = args.run(args)
    if args.json and FIRST:
        from ..system.files import to_json

        show(to_json(result))


@any_streams()
@exit_on_sigterm()
def main(argv: list[str] | None = None) -> None:
    """Run a command and exit: 0 success, 1 wrong solution, 2 usage, 3 data, 4 diverged, 5 file, 6 disk, 7 in use, 130
    or 143 by a signal."""
    argv = current_names(sys.argv[1:] if argv is None else argv)
    args = None
    try:
        try:
            args = parser().parse_args(argv)
            if args.version:
                from .. import __version__

                print(__version__)
            elif args.command is None:
                parser().print_help()
            else:
                execute(args)
        finally:
            show("", end="")  # what argparse has printed
    except SimpleDiffusionError as error:
        if "--debug" in argv:
            raise
        rank = "" if FIRST else f" (rank {os.environ['RANK']})"
        note(f"simple-diffusion{rank}: {error}")
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        note("simple-diffusion: stopped")
        raise SystemExit(130) from None
    except (MemoryError, RuntimeError, OSError) as error:
        no_memory = is_out_of_memory(error)
        if "--debug" in argv or not (no_memory or isinstance(error, OSError)):
            raise
        what, fix = getattr(args, "memory", ("for this command", "use fewer or smaller images"))
        memory = f"there is not enough memory{memory_asked_for(error)} {what}: {fix}"
        disk = f"{printable(str(error))}: free disk space or choose another folder"
        note(f"simple-diffusion: {memory if no_memory else disk}")
        raise SystemExit(6) from None
