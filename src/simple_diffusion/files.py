"""Files: written whole or not at all; numbers with a record of what they are; where downloads are kept.

A file of numbers is safetensors with JSON in its header. Reading one executes nothing, whatever it holds.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import CheckpointError, ResourceError

FORMAT = 1
"""Of our records; a file of a higher number is of a newer version."""


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


def write_tensors(path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write tensors, with a record of plain values in the header. Raises ResourceError."""
    header = {"simple-diffusion": json.dumps({"format": FORMAT, **record})}
    write_atomic(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}, header))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote. Raises CheckpointError, naming the path, if it is damaged or not ours."""
    try:
        with safe_open(path, framework="pt") as content:
            record = json.loads((content.metadata() or {})["simple-diffusion"])
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  not a dict
        newer = record["format"] > FORMAT
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if newer:
        raise CheckpointError(f"{path} was made by a newer version: upgrade simple-diffusion")
    return tensors, record


def damaged(path: Path, error: Exception) -> CheckpointError:
    """The sentence for a file that does not hold what it should."""
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return CheckpointError(f"{path} is not a file of simple-diffusion, or is damaged: {reason}")


def cache_folder() -> Path:
    """Where downloads and what was computed once are kept for this user."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "simple-diffusion")
