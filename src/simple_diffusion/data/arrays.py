"""Images in a NumPy file: one array in `.npy`, or `images` and optionally `labels` in `.npz`. Pickles are refused."""

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, reason
from .images import Images, only, to_uint8

MAX_CLASSES = 10_000  # a larger label is a mistake, for example an index
MAX_RATIO, FREE = 200, 2**26
"""The largest compression ratio of an array, and the size in bytes up to which any ratio is allowed.

An archive of one megabyte can expand to a gigabyte of zeros. Photographs have a ratio of about 2, drawings of about 10.
"""


def load_array(path: str | Path, classes: str | None = None) -> Images:
    """Read `.npy` or `.npz`: images `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`, C = 1 or 3, and labels `[N]`.

    uint8 is kept, bool becomes black and white, and floats must be in [0, 1] or in [-1, 1].
    `classes` selects classes, in the format of `select`. Raises DataError.
    """
    images, labels = _read(path)
    try:
        pixels, notes = _pixels(images)
        targets = None if labels is None else _labels(labels, len(pixels))
    except ValueError as error:
        raise DataError(f"cannot use {str(path)!r}: {error}") from error
    names = () if targets is None else tuple(str(label) for label in range(int(targets.max()) + 1))
    # Select last: the range of floats, [0, 1] or [-1, 1], is that of the whole array.
    return only(Images(str(path), pixels, targets, names, notes), classes)


def _read(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The arrays of images and labels, of any type and shape."""
    try:
        with open(path, "rb") as file:  # NumPy would not close a damaged archive
            if file.read(4) not in (b"\x93NUM", b"PK\3\4"):
                raise ValueError("it is not a .npy or .npz file")
            file.seek(0)
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                if file.read(1):
                    raise ValueError("there are bytes after its array")
                return loaded, None
            _check_sizes(loaded.zip)
            names = [name for name in loaded.files if name != "labels"]
            name = "images" if "images" in names else names[0] if len(names) == 1 else None
            if name is None:
                raise ValueError(f"none of its arrays {names} has the name images")
            labels = np.asarray(loaded["labels"]) if "labels" in loaded.files else None
            return np.asarray(loaded[name]), labels
    except Exception as error:  # NumPy raises almost any error for a damaged header or archive
        why = (
            "it contains Python objects" if "pickle" in str(error) else reason(error)
        )  # NumPy advises to unpickle them
        raise DataError(
            f"cannot read {str(path)!r} ({why}); save it again: np.savez(file, images=uint8 array, labels=int array)"
        ) from error


def _check_sizes(archive: zipfile.ZipFile) -> None:
    """Raise ValueError for a compression that NumPy does not use, or for a ratio above the limit."""
    for info in archive.infolist():
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{info.filename} has a compression that NumPy does not write")
        if info.file_size > max(FREE, MAX_RATIO * info.compress_size):
            raise ValueError(f"{info.filename} would expand from {info.compress_size:,} to {info.file_size:,} bytes")


def _pixels(array: np.ndarray) -> tuple[Tensor, tuple[str, ...]]:
    """An array of images -> uint8 `[N, C, H, W]`, and notes about its conversion."""
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim != 4 or array.shape[1] not in (1, 3):
        raise ValueError(
            f"its shape is {array.shape}; save [N, H, W], [N, H, W, C] or [N, C, H, W] with 1 or 3 channels (no alpha)"
        )
    if not array.size:
        raise ValueError(f"it is empty: its shape is {array.shape}")
    array = np.ascontiguousarray(array)
    if array.dtype == np.uint8:
        return torch.from_numpy(array), ()
    if array.dtype == bool:
        return torch.from_numpy(array * np.uint8(255)), ()
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"its type is {array.dtype}; save uint8 in 0..255, or floats in [0, 1] or [-1, 1]")
    low, high = array.min(), array.max()
    if not (low >= -1 and high <= 1):  # NaN fails both
        raise ValueError(f"its values are in [{low}, {high}]; save uint8 in 0..255, or floats in [0, 1] or [-1, 1]")
    x = torch.from_numpy(array.astype(np.float32))
    if low < 0:
        return to_uint8(x), ("converted floats in [-1, 1] to 0..255",)
    return to_uint8(2 * x - 1), ("converted floats in [0, 1] to 0..255",)


def _labels(array: np.ndarray, n: int) -> Tensor:
    """Class numbers `[n]` from 0 -> int64 `[n]`."""
    if array.shape != (n,) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"its labels are {array.dtype} of shape {array.shape}; save one integer for each of the {n} images"
        )
    if array.min() < 0 or array.max() >= MAX_CLASSES:
        raise ValueError(f"its labels are in {array.min()}..{array.max()}; number the classes 0, 1, 2, ...")
    return torch.from_numpy(array.astype(np.int64))


def npz(pixels: Tensor, labels: Tensor | None) -> bytes:
    """The content of an .npz file: `images` uint8 `[N, H, W, C]` and, if there are labels, `labels` int64 `[N]`."""
    arrays = {"images": pixels.permute(0, 2, 3, 1).contiguous().numpy()}
    if labels is not None:
        arrays["labels"] = labels.numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
