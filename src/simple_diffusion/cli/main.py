"""The command `simple-diffusion`: options in, library calls, a few plain sentences out.

Each file of `commands/` is one command: `add` gives its options, `run` does it and returns its result for --json.
torch is imported inside the commands, so that `--help` answers at once.
"""

import json
import os
import sys
from typing import Any

from ..errors import SimpleDiffusionError
from ..system.signals import exit_on_sigterm
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

# A thread that waits for another one sleeps instead of spinning. It must be said before torch is imported. On two quiet
# cores it costs a tenth; beside one other busy program spinning costs nine tenths (docs/notes/network.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

COMMANDS = (train, sample, play, evaluate, compare, sweep, report, doctor, data, schedules, classifier, explain, check)

SEVERAL = ("train", "sample", "evaluate")
"""What several processes can share; of the rest the first process does all."""


def parser() -> Parser:
    """All commands with their options."""
    top = Parser(
        prog="simple-diffusion",
        description="Train a diffusion model on images, and draw images from it.",
        epilog="simple-diffusion COMMAND --help tells more.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="store_true", help="print the version")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        command.add(commands)
    return top


def current_names(argv: list[str]) -> list[str]:
    """The command line with the new name of a renamed command, which is printed on stderr."""
    if argv[:1] != ["race"]:
        return argv
    print("`race` is now called `sweep`", file=sys.stderr)
    return ["sweep", *argv[1:]]


@exit_on_sigterm()
def main(argv: list[str] | None = None) -> None:
    """Run a command and exit: 0 ok, 1 a wrong solution, 2 usage, 3 data, 4 diverged, 5 file, 6 disk, 7 in use, 130 or
    143 by a signal."""
    argv = current_names(sys.argv[1:] if argv is None else argv)
    try:
        args = parser().parse_args(argv)
        if args.version:
            from .. import __version__

            print(__version__)
        elif args.command is None:
            parser().print_help()
        else:
            result: dict[str, Any] = {}
            if SHARED and args.command in SEVERAL:
                from ..system.distributed import process_group

                with process_group():
                    result = args.run(args)
            elif FIRST:  # the other commands are work for one
                result = args.run(args)
            if args.json and FIRST:
                print(json.dumps(result))
    except SimpleDiffusionError as error:
        if "--debug" in argv:
            raise
        who = "" if FIRST else f" (process {os.environ['RANK']})"
        print(f"simple-diffusion{who}: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("simple-diffusion: stopped", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except OSError as error:
        if "--debug" in argv:
            raise
        print(f"simple-diffusion: {error}: free the disk or choose another place", file=sys.stderr)
        raise SystemExit(6) from None
