"""What can go wrong, as the user sees it: one sentence that names the thing and the mend, and an exit code.

Raise these with a message that stands alone; the command line prints it and exits with `exit_code`.
"""


def printable(text: str, keep: str = "") -> str:
    """The text with an escape in the place of every character that a terminal would obey, except those of `keep`."""
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def reason(error: Exception) -> str:
    """What the error of a library says, as a part of our sentence: one line of at most 160 characters."""
    return " ".join(str(error).split())[:160].rstrip(" .") or type(error).__name__


class SimpleDiffusionError(Exception):
    """Base of every error that is the input's fault and not the program's: one line, whatever a file put into it."""

    exit_code = 1

    def __init__(self, message: str):
        super().__init__(printable(message))


class UsageError(SimpleDiffusionError):
    """A wrong option, name or value."""

    exit_code = 2


class DataError(SimpleDiffusionError):
    """Data that is missing, unreadable or of the wrong kind."""

    exit_code = 3


class DivergedError(SimpleDiffusionError):
    """Training or sampling produced a number that is not finite."""

    exit_code = 4


class CheckpointError(SimpleDiffusionError):
    """A model file that is missing, damaged, or not one of ours."""

    exit_code = 5


class ResourceError(SimpleDiffusionError):
    """Not enough disk or memory."""

    exit_code = 6


class BusyError(SimpleDiffusionError):
    """The run folder is taken."""

    exit_code = 7
