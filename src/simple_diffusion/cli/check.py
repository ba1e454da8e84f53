"""`simple-diffusion check`: show the exercise of a lesson, or judge a solution of it.

A solution is the user's own Python file, and the purpose of the command is to run it. It runs in a child process with a
time limit, so that an endless loop or a crash is reported in one sentence, too.
"""

import argparse
import subprocess
import sys
from typing import Any

from ..errors import SimpleDiffusionError, UsageError
from .options import command, path, say, whole

SECONDS = 120
"""Time limit of the child process, if it does not end itself."""


def add(commands: Any) -> None:
    sub = command(commands, "check", run, "show exercise N, or judge a solution of it")
    sub.add_argument(
        "number", nargs="?", type=whole(1, 99), metavar="N", help="number of the lesson (default: list all exercises)"
    )
    sub.add_argument(
        "solution",
        nargs="?",
        type=path,
        metavar="FILE.py",
        help="your own file; it is run, and its output is shown",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.solution is not None:
        say(args, judge(args) + ".")
        return {"exercise": args.number, "solution": str(args.solution), "right": True}

    from ..learn.exercises import EXERCISES, describe, exercise

    if args.number is not None:
        say(args, describe(args.number))
        return {"exercise": args.number, "function": exercise(args.number).name}
    for number, task in enumerate(EXERCISES, 1):
        say(args, f"{number:>3}  {task.name}({', '.join(task.arguments)})")
    return {"exercises": {number: task.name for number, task in enumerate(EXERCISES, 1)}}


def judge(args: argparse.Namespace) -> str:
    """A sentence about a right solution. Raises SimpleDiffusionError for a wrong one, UsageError without one."""
    if not args.solution.is_file():
        raise UsageError(f"there is no file {args.solution}: simple-diffusion check {args.number} shows what to write")
    child = [sys.executable, "-P", "-B", "-m", "simple_diffusion.learn.judge", str(args.number), str(args.solution)]
    try:
        done = subprocess.run(  # noqa: S603, it is the user's own file
            child, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, encoding="utf-8", timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        raise SimpleDiffusionError(
            f"{args.solution} did not finish within {SECONDS} seconds: does one of its loops never end?"
        ) from None
    if done.returncode or not done.stdout:
        raise (UsageError if done.returncode == UsageError.exit_code else SimpleDiffusionError)(
            done.stdout
            or f"{args.solution} ended its process before it was judged (exit code {done.returncode}): return instead"
        )
    return done.stdout
