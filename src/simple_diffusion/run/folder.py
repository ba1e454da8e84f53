"""The run folder and its lock: only one process at a time may use it.

This module is imported without torch, so that a second run is refused at once.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import BusyError, ResourceError, UsageError, reason

LOCK, HOLDER = "lock", "lock.txt"
"""The file that is locked, and the name of the process that holds it. They are two files, because some versions of
filelock empty the file that they lock, and Windows does not let others read it."""


def refuse_taken(folder: Path) -> None:
    """Raise UsageError if the folder is taken: if it holds any file but a lock and a run's unfinished files."""
    from ..system.files import PART

    own = (p.name in (LOCK, HOLDER) or PART.fullmatch(p.name) or p.is_dir() for p in folder.rglob("*"))
    files = not all(own)
    is_file = folder.exists() and not folder.is_dir()  # in this order: another rank may create the folder meanwhile
    if files or is_file:
        raise UsageError(f"{folder} already exists: resume it with --resume, choose another --out, or remove it")


def free_folder(parent: Path, name: str) -> Path:
    """parent/name-1, or the same with the first number that is free. It is created, so that no other run takes it.

    Raises ResourceError if it cannot be created.
    """
    number = 1
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            with suppress(FileExistsError):
                (parent / f"{name}-{number}").mkdir()
                return parent / f"{name}-{number}"
            number += 1
    except OSError as error:
        raise unusable(parent, error) from error


def unusable(folder: Path, error: Exception) -> ResourceError:
    """The error for a folder that can't be created or locked."""
    return ResourceError(f"{folder} cannot be used ({reason(error)}): choose another --out")


def refuse_held(folder: Path) -> None:
    """Raise BusyError, which names the process, if another process uses the folder."""
    path = folder / LOCK
    try:
        if path.is_file():
            with FileLock(path, timeout=0):
                pass
    except Timeout:
        try:
            holder = (folder / HOLDER).read_text(encoding="utf-8", errors="replace")
        except OSError:
            holder = "another process"
        raise BusyError(f"{folder} is in use by {holder}: wait for it, stop it, or choose another --out") from None
    except (OSError, NotImplementedError) as error:  # some versions of filelock: a file system without locks
        raise unusable(folder, error) from error


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
        holder = f"process {os.getpid()} on {socket.gethostname()} since {now:%Y-%m-%d %H:%M}"
        (folder / HOLDER).write_bytes(holder.encode(errors="replace"))
    except Timeout:
        refuse_held(folder)
        raise BusyError(f"{folder} was in use a moment ago: try again") from None
    except (OSError, NotImplementedError) as error:  # some versions of filelock: a file system without locks
        raise unusable(folder, error) from error
    try:
        yield
    finally:
        lock.release()
