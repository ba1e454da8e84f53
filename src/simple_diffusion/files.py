"""Writing files whole or not at all, and where what can be made again is kept."""

import os
import sys
from pathlib import Path

from .errors import ResourceError


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path`, so that a reader, or a machine that stops, sees the old file or the new one.

    Raises ResourceError if the disk does not take it; what stood there before is untouched.
    """
    part = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ResourceError(
            f"{path} can't be written ({error.strerror}): free the disk or choose another --out"
        ) from error
    if os.name == "posix":  # the rename itself must reach the disk too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def cache_folder() -> Path:
    """Where downloads and what was computed once are kept for this user."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "simple-diffusion")
