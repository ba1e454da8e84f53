"""Images in a NumPy file: one array in `.npy`, or `images` and optionally `labels` and `class_names` in `.npz`.

Pickles are refused.
"""

import io
import math
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, ResourceError, is_out_of_memory, printable, reason
from ..system.memory import require_memory
from .folder import KEEP, MAX_ASPECT, SIZE, fit, resize_note
from .images import Images, only, to_uint8

MAX_CLASSES = 10_000  # a larger label is a mistake, for example an index
MAX_RATIO, FREE = 200, 2**26
"""The largest compression ratio of an array, and the size in bytes up to which any ratio is allowed.

An archive of one megabyte can expand to a gigabyte of zeros. Photographs have a ratio of about 2, drawings of about 10.
"""


IMAGES = ("images", "image", "x", "data", "pixels", "arr_0")
LABELS = ("labels", "label", "y", "targets", "target", "arr_1")
"""Names of arrays in an .npz file, the usual one first; case does not matter."""
NAMES = "class_names"
"""The name of the array with the names of the classes, in the order of the labels."""

EDGE = 1 / 255  # how far floats may lie outside of a range of length 1: resizing and rounding go a little beyond
CHUNK = 2**22  # pixels that are converted at once, about


def load_array(path: str | Path, size: int | None = None, classes: str | None = None) -> Images:
    """Read `.npy` or `.npz`: images `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`, C = 1 or 3, and labels.

    uint8 is kept, bool becomes black and white, and floats must be in [0, 1] or in [-1, 1], where a level of 255 more
    counts as the limit itself. `size` crops and resizes as `load_folder` does. Labels are integers `[N]` from 0, or
    texts, whose sorted values are the classes. `classes` selects classes, in the format of `select`.

    Raises DataError, and ResourceError if there is too little memory.
    """
    try:
        array, labels, names, notes = _read(path)
        pixels, more = _pixels(array, size, labels is not None)
        notes += more
        if labels is not None:
            labels, names = classes_of(labels, len(pixels), names)
        images = Images(str(path), pixels, labels, names, notes)
    except (TypeError, ValueError) as error:
        raise DataError(f"cannot use {str(path)!r}: {error}") from error
    # Select last: the range of floats, [0, 1] or [-1, 1], is that of the whole array.
    return only(images, classes)


def _read(path: str | Path) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...], tuple[str, ...]]:
    """The arrays of images and labels, of any type and shape; the names of the classes; and notes."""
    try:
        with open(path, "rb") as file:  # NumPy would not close a damaged archive
            start = file.read(4)
            if start == b"\x93NUM":  # an array that is not read before it is used can be larger than the memory
                array = np.lib.format.open_memmap(os.fspath(path), mode="r")
                if os.path.getsize(path) > array.offset + array.nbytes:
                    raise ValueError("there are bytes after its array")
                return array, None, (), ()
            if start != b"PK\3\4":
                raise ValueError("it is not a .npy or .npz file")
            file.seek(0)
            loaded = np.load(file, allow_pickle=False)
            _check_sizes(loaded.zip)
            return _chosen(loaded)
    except ResourceError:
        raise
    except Exception as error:  # NumPy raises almost any error for a damaged header or archive, also MemoryError
        if isinstance(error, OSError) and is_out_of_memory(error):
            raise
        has_objects = "pickle" in str(error) or "Python objects" in str(error)  # NumPy advises to unpickle them
        why = "it contains Python objects" if has_objects else reason(error)
        raise DataError(
            f"cannot read {str(path)!r} ({why}); save it again: np.savez(file, images=uint8 array, labels=int array)"
        ) from error


def _chosen(archive: Any) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...], tuple[str, ...]]:
    """The result of `_read` from the arrays of an .npz file. Raises ValueError if none of them is that of images."""
    keys = {name.casefold(): name for name in reversed(archive.files)}
    rest = [name for name in archive.files if name.casefold() not in (*LABELS, NAMES)]
    images = next((keys[name] for name in IMAGES if name in keys), rest[0] if len(rest) == 1 else None)
    if images is None:
        raise ValueError(f"none of its arrays {archive.files} has the name images")
    labels = next((keys[name] for name in LABELS if name in keys), None)
    names = keys.get(NAMES) if labels else None
    unused = [repr(name) for name in archive.files if name not in (images, labels, names)]
    hint = "" if labels else ", and found no labels, which would be named `labels`"
    size = sum(info.file_size for info in archive.zip.infolist())
    require_memory(size, f"the arrays of {archive.zip.filename or 'the file'}", "save it as .npy, or fewer images")
    return (
        np.asarray(archive[images]),
        None if labels is None else np.asarray(archive[labels]),
        () if names is None else tuple(printable(str(name)) for name in np.asarray(archive[names]).ravel()),
        (f"did not use the arrays {', '.join(unused)}{hint}",) if unused else (),
    )


def _check_sizes(archive: zipfile.ZipFile) -> None:
    """Raise ValueError for a compression that NumPy does not use, or for a ratio above the limit."""
    for info in archive.infolist():
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{info.filename} has a compression that NumPy does not write")
        if info.file_size > max(FREE, MAX_RATIO * info.compress_size):
            raise ValueError(f"{info.filename} would expand from {info.compress_size:,} to {info.file_size:,} bytes")


def _pixels(array: np.ndarray, size: int | None, labeled: bool) -> tuple[Tensor, tuple[str, ...]]:
    """An array of images -> uint8 `[N, C, H, W]`, and notes about its conversion."""
    array = _channels_last(array, labeled)
    to_levels, notes = _conversion(array)
    n, *shape, channels = array.shape
    height, width = shape if size is None else (size, size)
    require_memory(
        n * channels * height * width, f"{n:,} images of {height} x {width} pixels", "add --size 32, or save fewer"
    )
    pixels = np.empty((n, channels, height, width), np.uint8)
    step = math.ceil(CHUNK / math.prod(shape))
    for start in range(0, n, step):
        levels = to_levels(array[start : start + step])  # uint8 [B, H, W, C]
        if shape != [height, width]:
            gray_or_color = levels.squeeze(3) if channels == 1 else levels
            levels = np.stack([np.atleast_3d(fit(image, height)) for image in gray_or_color])
        pixels[start : start + step] = levels.transpose(0, 3, 1, 2)
    if shape != [height, width]:
        notes += (resize_note({(shape[0], shape[1]): n}, height),)
    elif max(shape) > KEEP:
        notes += (f"kept {height} x {width} pixels, as always for arrays: --size {SIZE} for the size of folders",)
    return torch.from_numpy(pixels), notes


def _channels_last(array: np.ndarray, labeled: bool) -> np.ndarray:
    """An array of images in any layout -> `[N, H, W, C]`. Raises ValueError for another shape.

    labeled   whether there are labels: the first axis is then that of the images
    """
    shape = array.shape
    if array.ndim == 3:
        if not labeled and (shape[0] == 3 or (shape[2] in (3, 4) and shape[1] > shape[2])):
            raise ValueError(
                f"its shape {shape} can be one color image or several gray ones: save [1, H, W, 3] or [N, H, W, 1]"
            )
        array = array[..., None]
    elif array.ndim == 4 and shape[3] not in (1, 3) and shape[1] in (1, 3):
        array = array.transpose(0, 2, 3, 1)
    elif array.ndim != 4 or shape[3] not in (1, 3):
        raise ValueError(
            f"its shape is {shape}; save [N, H, W], [N, H, W, C] or [N, C, H, W] with 1 or 3 channels (no alpha)"
        )
    if not array.size:
        raise ValueError(f"it is empty: its shape is {shape}")
    height, width = array.shape[1:3]
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(
            f"its shape is {shape}, and {height} x {width} is longer than {MAX_ASPECT}:1: the first axis must be the "
            "number of images"
        )
    return array


def _conversion(array: np.ndarray) -> tuple[Callable[[np.ndarray], np.ndarray], tuple[str, ...]]:
    """The function from a part of the array to uint8 of the same shape, and a note about it. Raises ValueError."""
    if array.dtype == np.uint8:
        return lambda part: part, ()
    if array.dtype == bool:
        return lambda part: part * np.uint8(255), ()
    fix = "save uint8 in 0..255, or floats in [0, 1] or [-1, 1]"
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"its type is {array.dtype}; {fix}")
    low, high = (float(edge(array)) for edge in (np.min, np.max))
    if not (low >= -1 - 2 * EDGE and high <= 1 + 2 * EDGE):  # NaN fails both
        raise ValueError(f"its values are in [{low:g}, {high:g}]; {fix}")
    if low >= -EDGE:
        return lambda part: _levels(2 * torch.from_numpy(part.astype(np.float32)) - 1), (
            "converted floats in [0, 1] to 0..255",
        )
    if low > -0.5:
        raise ValueError(
            f"its values are in [{low:g}, {high:g}], which is neither [0, 1] nor [-1, 1]; clip them to [0, 1], or {fix}"
        )
    return lambda part: _levels(torch.from_numpy(part.astype(np.float32))), ("converted floats in [-1, 1] to 0..255",)


def _levels(x: Tensor) -> np.ndarray:
    """x in [-1, 1] -> uint8."""
    return to_uint8(x).numpy()


def classes_of(values: np.ndarray, n: int, names: tuple[str, ...] = ()) -> tuple[Tensor, tuple[str, ...]]:
    """Labels int64 `[n]` and the names of the classes, from integers from 0, or from texts, `[n]` or `[n, 1]`.

    names   of the classes, for integers; by default their numbers. The classes of texts are their sorted values.

    Raises ValueError.
    """
    is_text = values.dtype.kind in "US"
    if values.shape not in ((n,), (n, 1)) or not (is_text or values.dtype.kind in "iub"):
        raise ValueError(
            f"its labels are {values.dtype} of shape {values.shape}; save an integer or text for each of {n} images"
        )
    values = values.reshape(n)
    if is_text:
        texts, labels = np.unique(
            np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values, return_inverse=True
        )
        names, values = tuple(printable(str(text)) for text in texts), labels
        if not all(names):
            raise ValueError("one of its labels is an empty text: name the class of each image")
    if values.min() < 0 or values.max() >= MAX_CLASSES:
        raise ValueError(f"its labels are in {values.min()}..{values.max()}; number the classes 0, 1, 2, ...")
    return torch.from_numpy(values.astype(np.int64)), names or tuple(map(str, range(int(values.max()) + 1)))


def npz(pixels: Tensor, labels: Tensor | None, class_names: Sequence[str] = ()) -> bytes:
    """The content of an .npz file: `images` uint8 `[N, H, W, C]` and, if there are labels, `labels` int64 `[N]` and
    `class_names`, texts in the order of the labels."""
    arrays: dict[str, Any] = {"images": pixels.permute(0, 2, 3, 1).contiguous().numpy()}
    if labels is not None:
        arrays |= {"labels": labels.numpy(), NAMES: np.array(class_names)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
