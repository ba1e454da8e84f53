"""The errors of the package. The command line prints their message in one line and exits with their exit code.

A message says what is wrong, in which file or option, and how to fix it. It must make sense on its own.
"""

import re

NO_MEMORY = re.compile(r"out of memory|not enough memory|can(no|')t allocate memory|alloc_failed|bad_alloc", re.I)
ASKED = re.compile(r"allocate ([0-9.]+) ([KMGTP]iB|bytes)")


def printable(text: str, keep: str = "") -> str:
    """Escape all control and other unprintable characters of a text, except those in `keep`.

    Names and texts from files may hold control sequences that a terminal would follow.
    """
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def reason(error: Exception) -> str:
    """The message of a library's error, to be quoted in an error of ours: one line of at most 160 characters."""
    return " ".join(str(error).split())[:160].rstrip(" .") or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, NumPy or torch says that the machine or its GPU has no memory left."""
    of_torch = isinstance(error, (RuntimeError, OSError)) and NO_MEMORY.search(str(error)) is not None
    return isinstance(error, MemoryError) or of_torch


def memory_asked_for(error: BaseException) -> str:
    """How much memory an error says was asked for, in brackets; "" if it does not say it."""
    found = ASKED.search(str(error))
    if found is None:
        return ""
    size = f"{int(found[1]) / 1e9:,.1f} GB" if found[2] == "bytes" else f"{found[1]} {found[2]}"
    return f" (another {size} asked for)"


class SimpleDiffusionError(Exception):
    """Base class of all errors that the input or the machine causes, and no bug of the program. Exit code 1."""

    exit_code = 1

    def __init__(self, message: str):
        super().__init__(printable(message))


class UsageError(SimpleDiffusionError):
    """An option, name or value is not allowed. Exit code 2."""

    exit_code = 2


class DataError(SimpleDiffusionError):
    """The data are missing, unreadable or of the wrong kind. Exit code 3."""

    exit_code = 3


class DivergedError(SimpleDiffusionError):
    """Training or sampling produced NaN or infinity, or the processes of a run hold different weights. Exit code 4."""

    exit_code = 4


class CheckpointError(SimpleDiffusionError):
    """A checkpoint or model file is missing, damaged or of another program. Exit code 5."""

    exit_code = 5


class ResourceError(SimpleDiffusionError):
    """Disk, memory, network or another process of the run failed. Exit code 6."""

    exit_code = 6


class BusyError(SimpleDiffusionError):
    """Another process uses the run folder. Exit code 7."""

    exit_code = 7
