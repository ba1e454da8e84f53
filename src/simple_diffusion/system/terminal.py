"""What people read in a terminal: lines on stdout and stderr, progress bars, and commands to paste.

The streams may be a file or a pipe of any encoding. Without a console (pythonw) they are None, and a terminal may be
closed while a run goes on.
"""

import errno
import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any


class Stderr:
    """stderr of this moment as a file whose failures do no harm: text that cannot be written is dropped."""

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError, AttributeError):  # ValueError: it is closed; AttributeError: it is None
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()

    def isatty(self) -> bool:
        with suppress(OSError, ValueError, AttributeError):
            return sys.stderr.isatty()
        return False

    def __getattr__(self, name: str) -> Any:  # `encoding` and `fileno`, by which tqdm draws its bar
        return getattr(sys.stderr, name)


STDERR = Stderr()


def note(text: str) -> None:
    """Print a line to stderr."""
    print(text, file=STDERR, flush=True)


def progress_bar(*args: Any, hidden: bool = False, **options: Any) -> Any:
    """A bar of tqdm with these arguments, on stderr; it is shown only in a terminal."""
    from tqdm import tqdm

    return tqdm(*args, file=STDERR, disable=hidden or not STDERR.isatty(), dynamic_ncols=True, **options)


def show(text: str, end: str = "\n") -> None:
    """Print text to stdout at once. Where nobody reads it any more (`| head`), the command goes on in silence.

    Raises OSError if the text cannot be written for another reason, such as a full disk.
    """
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        with suppress(OSError):  # it is no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer goes there
        if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: of a terminal that was closed
            raise


@contextmanager
def any_streams() -> Iterator[None]:
    """Within the block, stdout and stderr exist and take any character, as `\\u732b` where their encoding lacks it."""
    with ExitStack() as stack:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None or getattr(stream, "closed", False):
                stack.callback(setattr, sys, name, stream)
                setattr(sys, name, stack.enter_context(open(os.devnull, "w", encoding="utf-8")))
            elif hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        yield


def command_line(words: Iterable[str]) -> str:
    """A command to paste into a shell, in one line, also for control characters and bytes that are not UTF-8."""
    return " ".join(shlex.quote(word) if word.isprintable() else _in_bytes(word) for word in words)


def _in_bytes(word: str) -> str:
    """`a b\\n` -> `$'a\\x20b\\x0a'`, as bash, zsh and ksh read it."""
    content = word.encode(errors="surrogateescape")
    return "$'{}'".format(
        "".join(chr(byte) if chr(byte).isalnum() and byte < 128 else f"\\x{byte:02x}" for byte in content)
    )
