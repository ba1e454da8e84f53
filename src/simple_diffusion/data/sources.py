"""Data sets by name or path, as the user types them."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from ..errors import DataError, UsageError
from ..system.memory import require_memory
from .arrays import load_array
from .digits import digits
from .folder import fit, load_folder, pack, resize_note
from .hub import load_hub
from .idx import load_idx
from .images import Images, drop_empty_classes, split_name

SOURCES: dict[str, Callable[[str, str | Path | None, str | None], Images]] = {  # (split, root, classes) -> Images
    "digits": lambda split, root, classes: digits(split, classes=classes),
    "fashion-mnist": partial(load_idx, "fashion-mnist"),
    "mnist": partial(load_idx, "mnist"),
}
HUB = "hub:"
NARROW = 128  # levels of 0..255 that the pixels of a data set must span, or a note says that they do not


def load_images(
    source: str | os.PathLike[str],
    *,
    split: str = "train",
    root: str | Path | None = None,
    size: int | None = None,
    skip_bad: bool = False,
) -> Images:
    """Read a data set of `SOURCES`, a folder of images, a `.npy` or `.npz` file, or `hub:OWNER/NAME` of huggingface.co.

    `DATA[Bag]` or `DATA[8]` selects one class, as data without classes. `DATA[Bag,Sandal]` selects two classes, which
    become 0 and 1. Images of other classes are not decoded. Classes that no image has are left out, with a note.

    source     one of these
    split      "train" or "test", if the data has both
    root       folder of the named data sets and of their downloads
    size       height and width in pixels to which all images are cropped and resized
    skip_bad   leave out images that cannot be read

    The images are in memory, uint8 `[N, C, H, W]`. Raises DataError, also for an image that cannot be read unless
    `skip_bad` is set; UsageError if the package of `hub:` is missing, or if the size is below 1; ResourceError if there
    is too little memory; TypeError if the source is neither a text nor a path.
    """
    source = _text(source)
    images = _load(source, split, root, size, skip_bad)
    if images is None:
        raise DataError(f"{source!r} has no split {split!r}: name the folder or file of these images instead")
    low, high = images.extent
    if high - low < NARROW:
        note = f"almost all pixels are from {low} to {high} of 0..255: scale the images to 0..255 unless this is meant"
        images = replace(images, notes=(*images.notes, note))
    return drop_empty_classes(images)


def held_out(
    source: str,
    *,
    class_names: Sequence[str] | None = None,
    root: str | Path | None = None,
    size: int | None = None,
    skip_bad: bool = False,
) -> Images | None:
    """The test set of `source`; None for folders and arrays, which have none.

    class_names   of the training set: the labels are their numbers; by default the classes of the test set
    """
    test = _load(source, "test", root, size, skip_bad)
    return test if test is None or class_names is None else test.in_classes(class_names)


def _text(source: str | os.PathLike[str]) -> str:
    """The text of a source. Raises TypeError."""
    text = os.fspath(source) if isinstance(source, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise TypeError(f"the source of images must be a text or a path, got {type(source).__name__}: see sd.Images")
    return text


def _load(source: str, split: str, root: str | Path | None, size: int | None, skip_bad: bool) -> Images | None:
    """The images of a split, or None if the data has no such split."""
    if size is not None and size < 1:
        raise UsageError(f"--size must be a number of pixels from 1, got {size}")
    exists = os.path.exists(source.removeprefix(HUB))  # then brackets are part of the name
    data, classes = (source, None) if exists else split_name(source)
    path = Path(data)
    is_array = path.suffix.lower() in (".npy", ".npz") and os.path.isfile(path)
    notes: tuple[str, ...] = ()
    if data in SOURCES:
        images = SOURCES[data](split, root, classes)
        notes = (f"this is the built-in data set: for the folder write ./{data}",) if os.path.isdir(data) else ()
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
        images = load_array(path, size, classes) if is_array else load_folder(path, size, classes, skip_bad)
    if images is None:
        return None
    images = _resized(images, size)
    return replace(images, name=source, notes=(*notes, *images.notes))


def _resized(images: Images, size: int | None) -> Images:
    """Crop and resize images in memory as `read_images` does for files."""
    channels, height, width = images.shape
    if size is None or (height, width) == (size, size):
        return images
    n = len(images)
    require_memory(n * channels * size * size, f"{n:,} images of {size} x {size} pixels", "use a smaller --size")
    pixels = pack([fit(image, size) for image in images.pixels.permute(0, 2, 3, 1).squeeze(3).numpy()])
    note = resize_note({(height, width): len(images)}, size)
    return replace(images, pixels=pixels, notes=(*images.notes, note))
