"""`simple-diffusion check`: what the exercise of a lesson asks for, or what is wrong with a solution of it, in words.

A solution is the user's own Python file, and running it is the point of the command. It runs in a process of its own
with a limit of time, so that a loop without an end or a crash is one sentence too.
"""

import argparse
import subprocess
import sys
from typing import Any

from ..errors import SimpleDiffusionError, UsageError
from .options import command, path, say, whole

SECONDS = 120
"""What the process may take, to start and to judge: the last resort, if it can't end itself."""


def add(commands: Any) -> None:
    sub = command(commands, "check", run, "what exercise N asks for, or what is wrong with a solution of it")
    sub.add_argument(
        "number", nargs="?", type=whole(1, 99), metavar="N", help="number of the lesson; without it, all exercises"
    )
    sub.add_argument(
        "solution", nargs="?", type=path, metavar="FILE.py", help="your own file, which is run; what it prints is shown"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.solution is not None:
        say(args, judged(args) + ".")
        return {"exercise": args.number, "solution": str(args.solution), "right": True}

    from ..learn.exercises import EXERCISES, described, exercise

    if args.number is not None:
        say(args, described(args.number))
        return {"exercise": args.number, "function": exercise(args.number).name}
    for number, asked in enumerate(EXERCISES, 1):
        say(args, f"{number:>3}  {asked.name}({', '.join(asked.arguments)})")
    return {"exercises": {number: asked.name for number, asked in enumerate(EXERCISES, 1)}}


def judged(args: argparse.Namespace) -> str:
    """What is said of a right solution. Raises SimpleDiffusionError for a wrong one, UsageError for none."""
    if not args.solution.is_file():
        raise UsageError(
            f"there is no file {args.solution}: simple-diffusion check {args.number} says what belongs in it"
        )
    child = [sys.executable, "-P", "-B", "-m", "simple_diffusion.learn.judge", str(args.number), str(args.solution)]
    try:
        done = subprocess.run(  # noqa: S603  the user's own file, at the user's wish
            child, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, encoding="utf-8", timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        raise SimpleDiffusionError(
            f"{args.solution} is not through after {SECONDS} seconds: does a loop never end?"
        ) from None
    if done.returncode or not done.stdout:
        raise (UsageError if done.returncode == UsageError.exit_code else SimpleDiffusionError)(
            done.stdout
            or f"{args.solution} ended the process before it was judged (exit code {done.returncode}): let it return"
        )
    return done.stdout
