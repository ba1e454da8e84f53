"""Where images come from: one name or path, as the user types it, to one `Images`."""

from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from ..errors import DataError, UsageError
from .arrays import load_array
from .digits import digits
from .folder import fit, load_folder, pack, resize_note
from .idx import load_idx
from .images import Images

SOURCES: dict[str, Callable[[str, str | Path | None], Images]] = {  # (split, root) -> Images
    "digits": lambda split, root: digits(split),
    "fashion-mnist": partial(load_idx, "fashion-mnist"),
    "mnist": partial(load_idx, "mnist"),
}


def load_images(
    source: str, *, split: str = "train", root: str | Path | None = None, size: int | None = None
) -> Images:
    """A data set of `SOURCES`, a folder of images, or an `.npy` or `.npz` file.

    `root` is where the named sets lie and are downloaded to. `size` makes every image size x size. Raises DataError.
    """
    if size is not None and size < 1:
        raise UsageError(f"--size {size} is no size of an image: give a number of pixels")
    if source in SOURCES:
        return _resized(SOURCES[source](split, root), size)
    path = Path(source)
    is_array = path.suffix.lower() in (".npy", ".npz") and path.is_file()
    if not is_array and not path.is_dir():
        near = get_close_matches(source.lower(), SOURCES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"{source!r} is no data set ({', '.join(SOURCES)}), no folder and no .npy or .npz file{hint}")
    if split != "train":
        raise DataError(f"{source!r} has no {split!r} split: name the folder or file of those images instead")
    return _resized(load_array(path), size) if is_array else load_folder(path, size)


def held_out(source: str, *, root: str | Path | None = None, size: int | None = None) -> Images | None:
    """The test set of a data set of `SOURCES`; None for folders and arrays, which have none."""
    return load_images(source, split="test", root=root, size=size) if source in SOURCES else None


def _resized(images: Images, size: int | None) -> Images:
    """What `load_folder` does for a given size, for images already in memory."""
    _, height, width = images.shape
    if size is None or (height, width) == (size, size):
        return images
    pixels = pack([fit(image, size) for image in images.pixels.permute(0, 2, 3, 1).squeeze(3).numpy()])
    note = resize_note({(height, width): len(images)}, size)
    return replace(images, pixels=pixels, notes=(*images.notes, note))
