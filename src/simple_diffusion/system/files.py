"""Files: written whole or not at all; numbers with a record of what they are; where downloads are kept.

A file of numbers is safetensors with JSON in its header. Reading one executes nothing, whatever it holds.
"""

import hashlib
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ..errors import CheckpointError, ResourceError, reason

FORMAT = 3
"""Format number of the records; a higher number means a newer version.

Files of format 1 have no checksum; those of formats 1 and 2 have older names in their records (`model/migrate.py`).
"""

NO_CHECKSUM = "0" * 64
"""What stands in the place of the checksum while it is computed: the rest of the file is all that it covers."""

MAX_HEADER = 2**21
"""Bytes of a header, enough for some 20,000 tensors: reading one takes up to thirty times its length in memory."""

T = TypeVar("T")


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
        if part.read_bytes() != content:
            raise OSError(None, "what was written does not read back")
        os.replace(part, path)
        if os.name == "posix":  # the rename itself must reach the disk too
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):  # it is gone where all went well; a signal comes by here too
            part.unlink()


def remove_parts(folder: Path) -> None:
    """Remove what `write_atomic` had half written when a run in this folder was killed."""
    for part in [*folder.glob("*.tmp"), *folder.glob("*/step-*.tmp")]:
        with suppress(OSError):
            part.unlink()


def unwritable(path: Path, error: OSError) -> ResourceError:
    """The sentence for a disk that does not take a file."""
    return ResourceError(f"{path} can't be written ({reason(error)}): free the disk or choose another --out")


def write_tensors(path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write tensors, with a record of plain values in the header. Raises ResourceError."""
    header = {"simple-diffusion": json.dumps({"sha256": NO_CHECKSUM, "format": FORMAT, **record})}
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, header)
    write_atomic(path, content.replace(NO_CHECKSUM.encode(), hashlib.sha256(content).hexdigest().encode(), 1))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote. Raises CheckpointError, naming the path, if it is damaged or not ours."""
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if length > MAX_HEADER:
                raise ValueError(f"it claims a header of {length:,} bytes")
            header = file.read(length)
            names = json.loads(header, object_pairs_hook=_each_once)  # safetensors takes the last of two
            record = json.loads(names["__metadata__"]["simple-diffusion"], object_pairs_hook=_each_once)
            number = record["format"]
            if type(number) is not int or number < 1:
                raise ValueError(f"its format is {number!r}")
            content = start + header + file.read()
        newer = number > FORMAT
        if not newer and number >= 2:
            _check_sum(content, record.pop("sha256"))
        tensors = {} if newer else load(content)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if newer:
        raise CheckpointError(f"{path} was made by a newer version: upgrade simple-diffusion")
    return tensors, record


def damaged(path: Path, error: Exception) -> CheckpointError:
    """The sentence for a file that does not hold what it should."""
    return CheckpointError(f"{path} is not a file of simple-diffusion, or is damaged: {reason(error)}")


def _check_sum(content: bytes, digest: Any) -> None:
    """Raise ValueError unless the content is what the digest in it was computed of."""
    zeroed = content.replace(str(digest).encode(), NO_CHECKSUM.encode(), 1)
    if hashlib.sha256(zeroed).hexdigest() != digest:
        raise ValueError("its checksum does not match, so some of its bytes have changed")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError if a key stands twice, of which another reader would take the other one."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key of its header stands twice")
    return dict(pairs)


def from_json(kind: type[T], values: Any) -> T:
    """The dataclass from JSON, whose lists are its tuples; a field that came later than the file has its default.

    Raises TypeError for an unknown key, a missing one without default, and a value of another type than its field's.
    """
    if not isinstance(values, dict):
        raise TypeError(f"a {kind.__name__} is not {values!r}")
    types = get_type_hints(kind)
    for key, value in values.items():
        if key in types and not fits(value, types[key]):
            raise TypeError(f"{key} can't be {value!r}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def fits(value: Any, kind: Any) -> bool:
    """Is a value from JSON of this type? A float may also be a whole number, but neither NaN nor infinite."""
    arguments = get_args(kind)
    if isinstance(kind, UnionType):
        return any(fits(value, one) for one in arguments)
    if get_origin(kind) is tuple:  # tuple[item, ...]
        return isinstance(value, list) and all(fits(item, arguments[0]) for item in value)
    if get_origin(kind) is dict:  # dict[str, item]
        return isinstance(value, dict) and all(fits(item, arguments[1]) for item in value.values())
    if kind is float:
        return type(value) in (int, float) and -1e300 <= value <= 1e300  # NaN is not
    return type(value) is kind


def adopt(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Make tensors from a file the weights of a module on "meta", of which no byte was spent yet.

    Raises ValueError unless their names, types and shapes are the module's and every number is finite.
    """
    wanted = module.state_dict()
    if odd := sorted(wanted.keys() ^ tensors.keys()):
        raise ValueError(f"{odd[0]} is {'missing' if odd[0] in wanted else 'no weight of this network'}")
    for name, tensor in tensors.items():
        (dtype, shape), (given, size) = ((x.dtype, tuple(x.shape)) for x in (wanted[name], tensor))
        if (given, size) != (dtype, shape):
            raise ValueError(f"{name} is {given} {size}, not {dtype} {shape}")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds a number that is not finite")
    module.load_state_dict(tensors, assign=True)


def cache_folder() -> Path:
    """Where downloads and what was computed once are kept for this user."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "simple-diffusion")
