"""Read a folder of images, whose subfolders are its classes. All files are decoded and checked before any is used.

docs/images-on-disk.md describes the treatment of unusual files; tests/data/test_odd_images.py has an example of each.
"""

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import torch
from PIL import (  # the readers of FORMATS: to find WebP, Pillow would import all forty readers, which takes 0.1 s
    BmpImagePlugin,  # noqa: F401
    Image,
    ImageOps,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)
from torch import Tensor

from ..errors import DataError, printable, reason
from ..system.memory import require_memory
from ..system.terminal import progress_bar
from .images import SHOWN, Images, class_number, first_reasons, in_nfc, select

FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "BMP",
)  # not the other readers of Pillow, about forty: each may have security holes
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MAX_PIXELS = 64_000_000  # a file of 70 bytes can claim gigabytes of pixels
MAX_ASPECT = 4  # the central square of a longer image is less than a quarter of it
JUNK = {
    *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "lost+found"),  # of file servers
    *("__macosx", "$recycle.bin", "system volume information"),  # of macOS and Windows
}
"""Names of folders that programs put beside images, in lower case: previews, copies and deleted files."""
SPLITS = ({"train", "training"}, {"val", "valid", "validation", "test", "testing", "dev", "eval"})
"""Names of folders that are parts of a data set and no classes, in lower case: for training, and for the rest."""
KEEP = 64  # images of one size up to this keep their size
SIZE = 32  # all others are resized to this


def load_folder(
    path: str | Path, size: int | None = None, classes: str | None = None, skip_bad: bool = False
) -> Images:
    """The images in `path` and its subfolders, in the byte order of their paths; first-level subfolders are classes.

    Images become 8-bit RGB, or gray if all are gray; upright; with transparent pixels on white. If `size` is given, if
    the images differ in size, or if they are larger than `KEEP`, they are center-cropped to a square and resized.
    A folder that holds nothing but one folder stands for that one. `classes` selects classes, in the format of
    `select`; other files are not decoded.

    Raises DataError if a file cannot be read; with `skip_bad` such files are left out. Raises ResourceError if there
    is too little memory.
    """
    root, files, folders, ignored = _unwrapped(Path(path), classes)
    labels, names = None, ()
    if folders := _classes(root, files, folders, ignored):
        number = {name: label for label, name in enumerate(folders)}
        labels = torch.tensor([number[_class(file)] for file in files])
        texts = (os.fsencode(_class_name(name)).decode(errors="backslashreplace") for name in folders)
        names = in_nfc([*map(printable, texts)])
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise DataError(f"{str(root)!r} has two folders {twice[0]!r} in different Unicode spellings: merge them")
    if classes is not None:
        rows, labels, names = select(str(path), classes, labels, names)
        files = [files[row] for row in rows]
    paths = [root / file for file in files]
    images = read_images(str(path), ((str(file), file) for file in paths), len(paths), labels, names, size, skip_bad)
    notes = [] if root == Path(path) else [f"read {str(root)!r}, the only folder in {str(path)!r}"]
    notes += [f"ignored {_listed(ignored)}: images end in {' '.join(SUFFIXES)}"] if ignored else []
    return replace(images, notes=(*notes, *images.notes))


def read_images(
    name: str,
    files: Iterable[tuple[str, Path | BytesIO]],
    n: int,
    labels: Tensor | None = None,
    class_names: tuple[str, ...] = (),
    size: int | None = None,
    skip_bad: bool = False,
) -> Images:
    """Read the n images of the data set `name`, by the rules of `load_folder`.

    files   (name for messages, path or content) of each image

    Raises DataError if an image cannot be read; with `skip_bad` only if no image, or no image of a class, is left.
    Raises ResourceError if there is too little memory.
    """
    pixels, rows, names, shapes, bad = [], [], [], Counter(), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about unusual but readable files
        bar = progress_bar(files, total=n, desc="reading", unit=" images", delay=1)
        for row, (called, file) in enumerate(bar):
            try:
                image = read_image(file)
            except MemoryError:
                raise
            except Exception as error:  # Pillow raises almost any error for a damaged file
                bad[called] = reason(error)
                continue
            shapes[image.shape[:2]] += 1
            rows.append(row)
            names.append(called)
            pixels.append(fit(image, size or SIZE) if size or max(image.shape) > KEEP else image)
            if len(pixels) == 1:
                height, width, *_ = pixels[0].shape
                what = f"{n:,} images of {height} x {width} pixels"
                require_memory(n * pixels[0].nbytes, what, "use a smaller --size, or fewer images")
    if bad and not skip_bad:
        raise DataError(
            f"cannot read {len(bad):,} of {n:,} images: {first_reasons(bad)}; "
            "repair or remove them, or add --skip-bad to leave them out"
        )
    if not pixels:
        raise DataError(f"none of the {n:,} images of {name!r} can be read: {first_reasons(bad)}")
    if labels is not None:
        if lost := set(labels.tolist()) - set(labels[rows].tolist()):
            raise DataError(f"no image of class {class_names[min(lost)]!r} of {name!r} can be read: remove the class")
        labels = labels[rows]
    notes = ()
    if size is None and (len(shapes) > 1 or max(next(iter(shapes))) > KEEP):
        pixels = [fit(image, SIZE) for image in pixels]
        notes = (f"{resize_note(shapes, SIZE)}; --size N for another size",)
    elif size and set(shapes) != {(size, size)}:
        notes = (resize_note(shapes, size),)
    return Images(name, pack(pixels), labels, class_names, notes, bad, tuple(names))


def read_image(file: Path | BytesIO) -> np.ndarray:
    """Decode an image file, upright: uint8 `[H, W]` if it is gray, else `[H, W, 3]`. Raises any error of Pillow."""
    try:
        source = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError("not a JPEG, PNG, WebP or BMP image") from None
    except Image.DecompressionBombError:  # far above MAX_PIXELS, and raised before the size is known
        raise ValueError(f"more than {MAX_PIXELS:,} pixels") from None
    with source:
        width, height = source.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"more than {MAX_PIXELS:,} pixels ({width} x {height})")
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise ValueError(f"{width} x {height} is longer than {MAX_ASPECT}:1: crop it")
        # The other frames of an MPO are previews and depth maps of a camera; in other formats they are an animation.
        frames = getattr(source, "n_frames", 1)
        if frames > 1 and source.format != "MPO":
            raise ValueError(f"an animation of {frames} frames")
        image = ImageOps.exif_transpose(source)
    if image.mode.startswith("I;16"):
        gray = np.asarray(image).astype(np.uint32)
        if (key := image.info.get("transparency")) is not None:
            gray[gray == key] = 65535
        return ((gray + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if not image.has_transparency_data:
        return np.asarray(image.convert(mode))
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return np.asarray(white.convert(mode))


def fit(pixels: np.ndarray, size: int) -> np.ndarray:
    """uint8 `[H, W]` or `[H, W, 3]` -> its central square, resized with antialiasing to `size` x `size`."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(pixels[top : top + side, left : left + side])
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))


def pack(images: list[np.ndarray]) -> Tensor:
    """Images uint8 `[H, W]` or `[H, W, 3]` -> `[N, C, H, W]`, C = 1 if all are gray. Empties the list."""
    channels = max(3 if image.ndim == 3 else 1 for image in images)
    out = np.empty((len(images), channels, *images[0].shape[:2]), np.uint8)
    for row in out[::-1]:
        row[:] = np.atleast_3d(images.pop()).transpose(2, 0, 1)
    return torch.from_numpy(out)


def resize_note(shapes: Mapping[tuple[int, int], int], size: int) -> str:
    """A note about resizing images of these (height, width) -> count to `size` x `size`."""
    (height, width), *others = shapes
    several = f" and {len(others)} other sizes" if others else ""
    crop = "cropped to squares and " if any(h != w for h, w in shapes) else ""
    small = sum(count for shape, count in shapes.items() if min(shape) < size)
    enlarged = f", {small} of {sum(shapes.values())} enlarged" if small else ""
    return f"{crop}resized {height} x {width}{several} to {size} x {size}{enlarged}"


def _unwrapped(root: Path, wanted: str | None) -> tuple[Path, list[str], list[str], Counter[str]]:
    """The folder that holds the classes, and the result of `_find`: the only folder in a folder, or else the folder.

    wanted   a class that is selected: if the only folder has its name, it is a class
    """
    files, folders, ignored = _find(root)
    while len(folders) == 1 and files and all(map(_class, files)) and class_number(wanted or "", folders) is None:
        root /= folders[0]
        files, folders, _ = _find(root)
    return root, files, folders, ignored


def _find(root: Path) -> tuple[list[str], list[str], Counter[str]]:
    """The relative paths of the images in byte order, the first-level folders, and what was ignored."""
    try:
        if not root.is_dir():
            raise DataError(f"there is no folder {str(root)!r}")
        return _walk(root)
    except OSError as error:
        raise DataError(f"cannot read {error.filename!r} ({error.strerror})") from error


def _walk(root: Path) -> tuple[list[str], list[str], Counter[str]]:
    """The result of `_find`. Raises OSError."""

    def stop(error: OSError):
        raise error

    images, folders, ignored, seen = [], [], Counter(), {_identity(root)}
    for here, below, names in os.walk(root, followlinks=True, onerror=stop):
        base = Path(here)
        follow = []
        for folder in sorted((base / name for name in below), key=lambda f: (f.is_symlink(), os.fsencode(f))):
            if folder.name.startswith("."):
                ignored["hidden"] += 1
            elif folder.name.casefold() in JUNK:
                ignored[folder.name] += 1
            elif _identity(folder) in seen:  # a link to a parent folder would never end
                ignored["links to folders that were already read"] += 1
            else:
                seen.add(_identity(folder))
                follow.append(folder.name)
        below[:] = follow
        if base == root:
            folders = sorted(follow, key=os.fsencode)
        for name in names:
            file = base / name
            if name.startswith("."):
                ignored["hidden"] += 1
            elif (suffix := file.suffix.lower()) not in SUFFIXES:
                ignored[suffix or "without an ending"] += 1
            elif not file.is_file():  # opening a pipe would block
                ignored["not a file"] += 1
            else:
                images.append(file.relative_to(root).as_posix())
    return sorted(images, key=os.fsencode), folders, ignored


def _listed(ignored: Counter[str]) -> str:
    """What was ignored, the most frequent first: `4 other entries (3 .tif, 1 @eaDir)`."""
    kinds = [f"{count:,} {kind}" for kind, count in sorted(ignored.items(), key=lambda entry: (-entry[1], entry[0]))]
    entries = "entry" if ignored.total() == 1 else "entries"
    return f"{ignored.total():,} other {entries}" + (f" ({', '.join(kinds[:SHOWN])})" if kinds else "")


def _identity(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def _classes(root: Path, files: list[str], folders: list[str], ignored: Counter[str]) -> list[str]:
    """The class folders; an empty list if all images are in `root` itself."""
    if not files:
        raise DataError(
            f"no image in {str(root)!r}: expected files with {' '.join(SUFFIXES)}, found {len(folders)} folders "
            f"and {_listed(ignored)}"
        )
    counts = Counter(_class(file) for file in files)
    loose = counts.pop("", 0)
    train, rest = ([folder for folder in folders if folder.casefold() in names] for names in SPLITS)
    if train and rest:
        raise DataError(
            f"{str(root)!r} holds the folders {', '.join(train + rest)}, which are parts of a data set and no classes: "
            f"name one of them, such as {root / train[0]}"
        )
    if loose and counts:
        raise DataError(
            f"{str(root)!r} contains {loose} images beside folders of images: move these images into a folder, too"
        )
    if empty := [folder for folder in folders if counts and folder not in counts]:
        _, _, beside = _find(root / empty[0])
        raise DataError(
            f"the class folder {str(root / empty[0])!r} has no image, only {_listed(beside)}: add files with "
            f"{' '.join(SUFFIXES)}, or remove the folder"
        )
    return folders if counts else []


def _class(file: str) -> str:
    """The first folder in the path of `file`; "" if there is none."""
    return file.rpartition("/")[0].partition("/")[0]


def folder_name(class_name: str) -> str:
    """The name of a class as the name of a folder on any system: `T-shirt/top` becomes `T-shirt%2Ftop`."""

    def safe(place: int, character: str) -> bool:
        at_edge = place in (0, len(class_name) - 1)  # a dot hides a folder, or is one; Windows drops dots and spaces
        return character.isprintable() and character not in ('%<>:"/\\|?*. ' if at_edge else '%<>:"/\\|?*')

    parts = [c if safe(i, c) else quote(c, safe="").replace(".", "%2E") for i, c in enumerate(class_name)]
    return "".join(parts) or "%"


def _class_name(folder: str) -> str:
    """The class of a folder that `folder_name` named; other names stay."""
    name = unquote(folder)
    return name if "%" in folder and folder_name(name) == folder else folder


def image_sizes(path: str | Path) -> set[tuple[int, int]]:
    """(height, width) of the images that `load_folder` reads, by their headers; without those of damaged files."""
    root, files, _, _ = _unwrapped(Path(path), None)
    sizes = set()
    for file in files:
        with suppress(Exception), Image.open(root / file, formats=FORMATS) as image:  # of almost any type
            sizes.add((image.height, image.width))
    return sizes
