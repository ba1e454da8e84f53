"""Data sets by name or path, as the user types them."""

import os
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from ..errors import DataError, UsageError
from .arrays import load_array
from .digits import digits
from .folder import fit, load_folder, pack, resize_note
from .hub import load_hub
from .idx import load_idx
from .images import Images, split_name

SOURCES: dict[str, Callable[[str, str | Path | None, str | None], Images]] = {  # (split, root, classes) -> Images
    "digits": lambda split, root, classes: digits(split, classes=classes),
    "fashion-mnist": partial(load_idx, "fashion-mnist"),
    "mnist": partial(load_idx, "mnist"),
}
HUB = "hub:"


def load_images(
    source: str,
    *,
    split: str = "train",
    root: str | Path | None = None,
    size: int | None = None,
    skip_bad: bool = False,
) -> Images:
    """Read a data set of `SOURCES`, a folder of images, a `.npy` or `.npz` file, or `hub:OWNER/NAME` of huggingface.co.

    `DATA[Bag]` or `DATA[8]` selects one class, as data without classes. `DATA[Bag,Sandal]` selects two classes, which
    become 0 and 1. Images of other classes are not decoded.

    source     one of these
    split      "train" or "test", if the data has both
    root       folder of the named data sets and of their downloads
    size       height and width in pixels to which all images are cropped and resized
    skip_bad   leave out images that cannot be read

    The images are in memory, uint8 `[N, C, H, W]`. Raises DataError, also for an image that cannot be read unless
    `skip_bad` is set; UsageError if the package of `hub:` is missing, or if the size is below 1.
    """
    images = _load(source, split, root, size, skip_bad)
    if images is None:
        raise DataError(f"{source!r} has no split {split!r}: name the folder or file of these images instead")
    return images


def held_out(
    source: str, *, root: str | Path | None = None, size: int | None = None, skip_bad: bool = False
) -> Images | None:
    """The test set of `source`, with the same classes; None for folders and arrays, which have none."""
    return _load(source, "test", root, size, skip_bad)


def _load(source: str, split: str, root: str | Path | None, size: int | None, skip_bad: bool) -> Images | None:
    """The images of a split, or None if the data has no such split."""
    if size is not None and size < 1:
        raise UsageError(f"--size must be a number of pixels from 1, got {size}")
    exists = os.path.exists(source.removeprefix(HUB))  # then brackets are part of the name
    data, classes = (source, None) if exists else split_name(source)
    path = Path(data)
    is_array = path.suffix.lower() in (".npy", ".npz") and os.path.isfile(path)
    if data in SOURCES:
        images = SOURCES[data](split, root, classes)
    elif data.startswith(HUB):
        images = load_hub(data.removeprefix(HUB), split, size, classes, skip_bad)
    elif not is_array and not os.path.isdir(path):  # also false without the permission to look
        near = get_close_matches(data.lower(), SOURCES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        known = ", ".join((*SOURCES, "hub:OWNER/NAME"))
        raise DataError(f"{data!r} is not a data set ({known}), a folder, or a .npy or .npz file{hint}")
    elif split != "train":
        return None
    else:
        images = load_array(path, classes) if is_array else load_folder(path, size, classes, skip_bad)
    return images and replace(_resized(images, size), name=source)


def _resized(images: Images, size: int | None) -> Images:
    """Crop and resize images in memory as `read_images` does for files."""
    _, height, width = images.shape
    if size is None or (height, width) == (size, size):
        return images
    pixels = pack([fit(image, size) for image in images.pixels.permute(0, 2, 3, 1).squeeze(3).numpy()])
    note = resize_note({(height, width): len(images)}, size)
    return replace(images, pixels=pixels, notes=(*images.notes, note))
