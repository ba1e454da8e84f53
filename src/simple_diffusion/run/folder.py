"""The run folder and its lock: only one process at a time may use it.

This module does not import torch, so that a second run is refused at once.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import BusyError, ResourceError, UsageError, reason

LOCK, HOLDER = "lock", "lock.txt"
"""The file that is locked, and the name of the process that holds it. They are two files, because some versions of
filelock empty the file that they lock, and Windows does not let others read it."""


def refuse_taken(folder: Path) -> None:
    """Raise UsageError if the folder is taken: if it holds any file but a lock and unfinished files."""
    files = any(p.name not in (LOCK, HOLDER) and p.suffix != ".tmp" and not p.is_dir() for p in folder.rglob("*"))
    is_file = folder.exists() and not folder.is_dir()  # in this order: another rank may create the folder meanwhile
    if files or is_file:
        raise UsageError(f"{folder} already exists: resume it with --resume, choose another --out, or remove it")


def free_folder(parent: Path, name: str) -> Path:
    """parent/name-1, or the same with the first number that is free."""
    number = 1
    while (parent / f"{name}-{number}").exists():
        number += 1
    return parent / f"{name}-{number}"


def refuse_held(folder: Path) -> None:
    """Raise BusyError, which names the process, if another process uses the folder."""
    path = folder / LOCK
    try:
        if path.is_file():
            with FileLock(path, timeout=0):
                pass
    except Timeout:
        try:
            holder = (folder / HOLDER).read_text()
        except OSError:
            holder = "another process"
        raise BusyError(f"{folder} is in use by {holder}: wait for it, stop it, or choose another --out") from None
    except OSError as error:
        raise ResourceError(f"{folder} cannot be used ({reason(error)}): choose another --out") from error


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Lock the folder of a run until the block ends or the process dies. The folder is created if it is missing.

    Raises BusyError, which names the process that uses the folder, or ResourceError if it cannot be created.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        now = datetime.now().astimezone()
        (folder / HOLDER).write_text(f"process {os.getpid()} on {socket.gethostname()} since {now:%Y-%m-%d %H:%M}")
    except Timeout:
        refuse_held(folder)
        raise BusyError(f"{folder} was in use a moment ago: try again") from None
    except OSError as error:
        raise ResourceError(f"{folder} cannot be used ({reason(error)}): choose another --out") from error
    try:
        yield
    finally:
        lock.release()
