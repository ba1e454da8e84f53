"""MNIST and Fashion-MNIST: gzipped IDX files, from this machine or downloaded."""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from ..errors import DataError, reason
from ..system.files import cache_folder
from .download import download
from .images import Images, only

STEMS = {"train": "train", "test": "t10k"}  # start of the file names of a split
MAX_BYTES = 2**26  # largest size of an uncompressed file, larger than those of the sets below
SYSTEM = Path("/usr/share/datasets")  # the folder of Debian's dataset-* packages


@dataclass(frozen=True)
class IdxSet:
    """A data set: its classes, its mirrors, and the SHA-256 of each of its four files."""

    class_names: tuple[str, ...]
    mirrors: tuple[str, ...]
    sha256: dict[str, str]


IDX_SETS = {
    "fashion-mnist": IdxSet(
        class_names=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        mirrors=(
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        ),
        sha256={
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
    "mnist": IdxSet(
        class_names=tuple("0123456789"),
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        sha256={
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
}


def read_idx(path: str | Path) -> Tensor:
    """Read an IDX file of bytes, gzipped or not: uint8 of the shape in its header. Raises DataError if damaged."""
    try:
        with open(path, "rb") as packed:
            is_gzip = packed.read(2) == b"\x1f\x8b"
            packed.seek(0)
            data = (gzip.GzipFile(fileobj=packed) if is_gzip else packed).read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        zero, kind, ndim = struct.unpack_from(">HBB", data)
        if (zero, kind) != (0, 8):
            raise ValueError("not an IDX file of bytes")
        shape, start = struct.unpack_from(f">{ndim}I", data, 4), 4 + 4 * ndim
        if len(data) - start != math.prod(shape):
            raise ValueError(
                f"its header must be followed by {' x '.join(map(str, shape))} bytes, got {len(data) - start}"
            )
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise DataError(f"cannot read {str(path)!r} ({reason(error)}); delete it to download it again") from error
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy())


def load_idx(name: str, split: str = "train", root: str | Path | None = None, classes: str | None = None) -> Images:
    """The set `name` of `IDX_SETS`, split "train" or "test", from the first folder that contains it, or downloaded.

    `classes` selects classes, in the format of `select`. Raises DataError.

    The folders are, in this order: ROOT/name, ROOT, $SIMPLE_DIFFUSION_DATA/name, /usr/share/datasets/name, and
    simple-diffusion/name in the user's cache. A download goes to the first of ROOT, the variable and the cache.
    """
    if split not in STEMS:
        raise DataError(f"`split` of {name} must be train or test, got {split!r}")
    images = _find(name, f"{STEMS[split]}-images-idx3-ubyte.gz", root)
    labels = _find(name, f"{STEMS[split]}-labels-idx1-ubyte.gz", root)
    pixels, targets = read_idx(images), read_idx(labels).long()
    names = IDX_SETS[name].class_names
    if pixels.ndim != 3 or not pixels.numel():
        raise DataError(f"{str(images)!r} has no images: its shape must be [N, H, W], got {tuple(pixels.shape)}")
    if targets.shape != pixels.shape[:1]:
        raise DataError(
            f"{str(labels)!r} must have one label for each of {len(pixels)} images, got shape {tuple(targets.shape)}"
        )
    if targets.max() >= len(names):
        raise DataError(f"{str(labels)!r} has the label {targets.max()}, but {name} has {len(names)} classes")
    return only(Images(name, pixels.unsqueeze(1), targets, names), classes)


def _find(name: str, file: str, root: str | Path | None) -> Path:
    """The path of `file` of the set `name`, with or without its .gz; downloads it if it is in none of the folders."""
    for folder in _folders(name, root):
        for path in (folder / file, folder / file.removesuffix(".gz")):
            if os.path.isfile(path):  # false also for a folder that must not be read
                return path
    path = _home(root) / name / file
    known = IDX_SETS[name]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(".lock")):  # one of several processes downloads it
            if not path.is_file():
                download([mirror + file for mirror in known.mirrors], path, known.sha256[file])
    except (OSError, NotImplementedError) as error:  # some versions of filelock: a file system without locks
        raise DataError(
            f"cannot write {file} to {str(path.parent)!r} ({reason(error)}): set --data-root to another folder"
        ) from error
    return path


def _folders(name: str, root: str | Path | None) -> Iterator[Path]:
    if root:
        yield from (Path(root, name), Path(root))
    if given := os.environ.get("SIMPLE_DIFFUSION_DATA"):
        yield Path(given, name)
    yield SYSTEM / name
    yield cache_folder() / name


def _home(root: str | Path | None) -> Path:
    """The folder for downloads."""
    return Path(root or os.environ.get("SIMPLE_DIFFUSION_DATA") or cache_folder())
