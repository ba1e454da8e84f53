"""Atomic writes, files of tensors with a checked record, and the cache folder.

A file of tensors is a safetensors file with JSON in its header. No code in a file is ever executed.
"""

import hashlib
import json
import math
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ..errors import CheckpointError, ResourceError, is_out_of_memory, reason

FORMAT = 4
"""Format number of the records; a higher number means a newer version.

Files of format 1 have no checksum; those of formats 1 and 2 have older names in their records (`model/migrate.py`).
"""

NO_CHECKSUM = "0" * 64
"""Placeholder of the checksum in the bytes that it is computed of."""

MAX_HEADER = 2**21
"""Largest header in bytes, enough for about 20,000 tensors. A header takes up to 30 times its size in memory."""

PART = re.compile(r".+\.[0-9a-f]{16}\.tmp", re.DOTALL)
"""Name of an unfinished file or folder."""

T = TypeVar("T")


def unfinished(path: Path) -> Path:
    """A new name beside `path` for its unfinished content, no longer than the system allows; it matches PART."""
    return path.with_name(f"{path.name[:40]}.{secrets.token_hex(8)}.tmp")


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that readers see either the old file or the new one, even after a power failure.

    Several processes may write the same path: each has its own unfinished file, and the last one to finish wins.
    Raises ResourceError if the write fails; the old file is then unchanged.
    """
    part = unfinished(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if part.read_bytes() != content:
            raise OSError(None, "the content read back differs from the content written")
        os.replace(part, path)
        if os.name == "posix":  # the rename must reach the disk too
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):  # after success it is already gone
            part.unlink()


def remove_parts(folder: Path) -> None:
    """Remove the temporary files of a run in this folder that was killed during `write_atomic`."""
    for part in [*folder.glob("*.tmp"), *folder.glob("*/step-*.tmp")]:
        if PART.fullmatch(part.name):
            with suppress(OSError):
                part.unlink()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write files in, which is moved to `path` at the end of the block, and removed if the block fails.

    path   does not exist or is an empty folder

    Raises ResourceError.
    """
    part = unfinished(path.resolve())
    try:
        part.mkdir(parents=True)
        yield part
        if path.exists():
            for entry in part.iterdir():
                os.replace(entry, path / entry.name)
        else:
            os.replace(part, path)
    except (OSError, ValueError) as error:  # ValueError: a name that the system's encoding lacks
        raise unwritable(path, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Make a folder in which files can be written, if there is none. Raises ResourceError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: Exception) -> ResourceError:
    """The error for a file that can't be written."""
    return ResourceError(f"{path} can't be written ({reason(error)}): free the disk or choose another --out")


def write_tensors(path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write tensors to a safetensors file, with a record of JSON values in its header. Raises ResourceError."""
    header = {"simple-diffusion": to_json({"sha256": NO_CHECKSUM, "format": FORMAT, **record})}
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, header)
    write_atomic(path, content.replace(NO_CHECKSUM.encode(), hashlib.sha256(content).hexdigest().encode(), 1))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read (tensors, record) from a file of `write_tensors`.

    Raises CheckpointError, which names the path, if the file is missing, damaged, newer or of another program.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if length > MAX_HEADER:
                raise ValueError(f"its header has {length:,} bytes, more than {MAX_HEADER:,}")
            header = file.read(length)
            names = json.loads(
                header, object_pairs_hook=_each_once
            )  # safetensors would take the last of two equal keys
            record = json.loads(names["__metadata__"]["simple-diffusion"], object_pairs_hook=_each_once)
            number = record["format"]
            if type(number) is not int or number < 1:
                raise ValueError(f"its format number is {number!r}")
            content = start + header + file.read()
        newer = number > FORMAT
        if not newer and number >= 2:
            _check_sum(content, record.pop("sha256"))
        tensors = {} if newer else load(content)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if newer:
        raise CheckpointError(f"a newer version of simple-diffusion wrote {path}: upgrade simple-diffusion")
    return tensors, record


def damaged(path: Path, error: Exception) -> CheckpointError:
    """The error for a file whose content is not valid. An error for want of memory, which is no damage, is raised."""
    if is_out_of_memory(error):
        raise error
    return CheckpointError(f"{path} is not a file of simple-diffusion, or is damaged: {reason(error)}")


def _check_sum(content: bytes, digest: Any) -> None:
    """Raise ValueError unless the content has the SHA-256 digest that it holds."""
    zeroed = content.replace(str(digest).encode(), NO_CHECKSUM.encode(), 1)
    if hashlib.sha256(zeroed).hexdigest() != digest:
        raise ValueError("its checksum does not match its content")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a repeated key, of which readers may take either value."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("its header repeats a key")
    return dict(pairs)


def to_json(value: Any, indent: int | None = None) -> str:
    """The text of a JSON value. NaN and infinities, which JSON does not have, become null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(value), indent=indent, allow_nan=False)


def from_json(kind: type[T], values: Any) -> T:
    """A dataclass from a JSON object; lists become tuples, and missing keys take the defaults of their fields.

    Raises TypeError for an unknown key, a missing key without default, or a value that does not match its field's type.
    """
    if not isinstance(values, dict):
        raise TypeError(f"a {kind.__name__} must be a JSON object, got {values!r}")
    types = get_type_hints(kind)
    for key, value in values.items():
        if key in types and not fits(value, types[key]):
            raise TypeError(f"{key} can't be {value!r}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def fits(value: Any, kind: Any) -> bool:
    """Whether a value from JSON matches a type. A float may also be an integer, but must be finite."""
    arguments = get_args(kind)
    if isinstance(kind, UnionType):
        return any(fits(value, one) for one in arguments)
    if get_origin(kind) is tuple:  # tuple[item, ...]
        return isinstance(value, list) and all(fits(item, arguments[0]) for item in value)
    if get_origin(kind) is dict:  # dict[str, item]
        return isinstance(value, dict) and all(fits(item, arguments[1]) for item in value.values())
    if kind is float:
        return type(value) in (int, float) and -1e300 <= value <= 1e300  # false for NaN
    return type(value) is kind


def load_weights(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Make tensors from a file the weights of a module on the "meta" device, without a copy.

    Raises ValueError unless names, types and shapes match those of the module and all numbers are finite.
    """
    wanted = module.state_dict()
    if odd := sorted(wanted.keys() ^ tensors.keys()):
        raise ValueError(f"{odd[0]} is {'missing' if odd[0] in wanted else 'not a weight of this network'}")
    for name, tensor in tensors.items():
        (dtype, shape), (given, size) = ((x.dtype, tuple(x.shape)) for x in (wanted[name], tensor))
        if (given, size) != (dtype, shape):
            raise ValueError(f"{name} must be {dtype} {shape}, got {given} {size}")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} contains NaN or infinity")
    module.load_state_dict(tensors, assign=True)


def cache_folder() -> Path:
    """The user's folder for downloads and cached results; without a home, one that is removed when the process ends."""
    try:
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # of Path.home
        base = _homeless().name
    return Path(base, "simple-diffusion")


@cache
def _homeless() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="simple-diffusion-", ignore_cleanup_errors=True)
