"""A folder of images, whose sub-folders are its classes: every file is decoded and checked before any is used.

docs/images-on-disk.md says what becomes of odd files; tests/data/test_odd_images.py holds one of each.
"""

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import (  # FORMATS' readers by name: to find WebP by itself Pillow imports all forty, a tenth of a second
    BmpImagePlugin,  # noqa: F401
    Image,
    ImageOps,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)
from torch import Tensor
from tqdm import tqdm

from ..errors import DataError, printable, reason
from .images import Images, first_reasons, select

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # Pillow has some forty more openers, and most of its holes lie in those
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MAX_PIXELS = 64_000_000  # a header of 70 bytes can promise gigabytes
MAX_ASPECT = 4  # of a longer image the square in its centre would show less than a quarter
KEEP = 64  # images of one size up to this stay as they are ...
SIZE = 32  # ... and all others become this


def load_folder(
    path: str | Path, size: int | None = None, classes: str | None = None, skip_bad: bool = False
) -> Images:
    """The images below `path`, in the byte order of their paths; first-level sub-folders are classes.

    8-bit RGB, or grey where all are grey; upright; transparency on white. If `size` is given, or if the images differ
    in size or are larger than `KEEP`, each is centre-cropped to a square and resized. `classes` reads only some of
    them, as `select` reads it. Raises DataError if one of them can't be read; `skip_bad` leaves those out.
    """
    root = Path(path)
    files, folders, ignored = _find(root)
    labels, names = None, ()
    if folders := _classes(root, files, folders, ignored):
        number = {name: label for label, name in enumerate(folders)}
        labels = torch.tensor([number[_class(file)] for file in files])
        names = tuple(printable(os.fsencode(name).decode(errors="backslashreplace")) for name in folders)
    if classes is not None:
        rows, labels, names = select(str(path), classes, labels, names)
        files = [files[row] for row in rows]
    paths = [root / file for file in files]
    images = read_images(str(path), ((str(file), file) for file in paths), len(paths), labels, names, size, skip_bad)
    if not ignored:
        return images
    note = f"ignored {ignored} entries that are hidden, not images, or links to what was already seen"
    return replace(images, notes=(note, *images.notes))


def read_images(
    name: str,
    files: Iterable[tuple[str, Path | BytesIO]],
    n: int,
    labels: Tensor | None = None,
    class_names: tuple[str, ...] = (),
    size: int | None = None,
    skip_bad: bool = False,
) -> Images:
    """The data set `name` from its n images, each with what the user is to call it.

    The rules are those of `load_folder`. Raises DataError if one can't be read, or with `skip_bad` if no image, or
    none of a class, is left.
    """
    pixels, rows, names, shapes, bad = [], [], [], Counter(), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd but readable files
        bar = tqdm(files, total=n, desc="reading", unit=" images", delay=1, disable=None)
        for row, (called, file) in enumerate(bar):
            try:
                image = read_image(file)
            except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
                bad[called] = reason(error)
                continue
            shapes[image.shape[:2]] += 1
            rows.append(row)
            names.append(called)
            pixels.append(fit(image, size or SIZE) if size or max(image.shape) > KEEP else image)
    if bad and not skip_bad:
        raise DataError(
            f"cannot read {len(bad):,} of {n:,} images: {first_reasons(bad)}; "
            "mend or remove them, or add --skip-bad to go on without them"
        )
    if not pixels:
        raise DataError(f"{name!r} has no image that can be read, of {n:,}: {first_reasons(bad)}")
    if labels is not None:
        if lost := set(labels.tolist()) - set(labels[rows].tolist()):
            raise DataError(f"{name!r} has no readable image of its class {class_names[min(lost)]!r}: remove the class")
        labels = labels[rows]
    notes = ()
    if size is None and (len(shapes) > 1 or max(next(iter(shapes))) > KEEP):
        pixels = [fit(image, SIZE) for image in pixels]
        notes = (f"{resize_note(shapes, SIZE)}; --size N for another size",)
    elif size and set(shapes) != {(size, size)}:
        notes = (resize_note(shapes, size),)
    return Images(name, pack(pixels), labels, class_names, notes, bad, tuple(names))


def read_image(file: Path | BytesIO) -> np.ndarray:
    """An image file, upright -> uint8 `[H, W]` if it is grey, else `[H, W, 3]`. Raises whatever Pillow does."""
    try:
        source = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError("not a JPEG, PNG, WebP or BMP image") from None
    except Image.DecompressionBombError:  # far above our own limit, and raised before we see the size
        raise ValueError(f"more than {MAX_PIXELS:,} pixels") from None
    with source:
        width, height = source.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"more than {MAX_PIXELS:,} pixels ({width} x {height})")
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise ValueError(f"{width} x {height} is longer than {MAX_ASPECT}:1: the square in its centre shows little")
        # The further frames of an MPO are a camera's previews and depth maps, those of others an animation.
        frames = getattr(source, "n_frames", 1)
        if frames > 1 and source.format != "MPO":
            raise ValueError(f"an animation of {frames} frames")
        image = ImageOps.exif_transpose(source)
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint32)
        if (key := image.info.get("transparency")) is not None:
            grey[grey == key] = 65535
        return ((grey + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if not image.has_transparency_data:
        return np.asarray(image.convert(mode))
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return np.asarray(white.convert(mode))


def fit(pixels: np.ndarray, size: int) -> np.ndarray:
    """uint8 `[H, W]` or `[H, W, 3]` -> the square in its centre, resized with antialiasing to `size` x `size`."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(pixels[top : top + side, left : left + side])
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))


def pack(images: list[np.ndarray]) -> Tensor:
    """uint8 `[H, W]` or `[H, W, 3]` each -> `[N, C, H, W]`, grey among colours as RGB. Empties the list as it goes."""
    channels = max(3 if image.ndim == 3 else 1 for image in images)
    out = np.empty((len(images), channels, *images[0].shape[:2]), np.uint8)
    for row in out[::-1]:
        row[:] = np.atleast_3d(images.pop()).transpose(2, 0, 1)
    return torch.from_numpy(out)


def resize_note(shapes: Mapping[tuple[int, int], int], size: int) -> str:
    """What to tell the user of images of these (height, width) and their counts that were made `size` x `size`."""
    (height, width), *others = shapes
    several = f" and {len(others)} other sizes" if others else ""
    crop = "cropped to squares and " if any(h != w for h, w in shapes) else ""
    small = sum(count for shape, count in shapes.items() if min(shape) < size)
    enlarged = f", {small} of {sum(shapes.values())} enlarged" if small else ""
    return f"{crop}resized {height} x {width}{several} to {size} x {size}{enlarged}"


def _find(root: Path) -> tuple[list[str], list[str], int]:
    """What lies below `root`: the images as relative paths in byte order, the first-level folders, what was ignored."""
    try:
        if not root.is_dir():
            raise DataError(f"there is no folder {str(root)!r}")
        return _walked(root)
    except OSError as error:
        raise DataError(f"cannot read {error.filename!r} ({error.strerror})") from error


def _walked(root: Path) -> tuple[list[str], list[str], int]:
    """The same. Raises OSError."""

    def stop(error: OSError):
        raise error

    images, folders, ignored, seen = [], [], 0, {_identity(root)}
    for here, below, names in os.walk(root, followlinks=True, onerror=stop):
        base = Path(here)
        follow = []
        for folder in sorted((base / name for name in below), key=lambda f: (f.is_symlink(), os.fsencode(f))):
            if folder.name.startswith(".") or _identity(folder) in seen:  # a link back up would go round for ever
                ignored += 1
            else:
                seen.add(_identity(folder))
                follow.append(folder.name)
        below[:] = follow
        if base == root:
            folders = sorted(follow, key=os.fsencode)
        for name in names:
            file = base / name
            # Regular files only: to open a pipe would wait for ever.
            if name.startswith(".") or file.suffix.lower() not in SUFFIXES or not file.is_file():
                ignored += 1
            else:
                images.append(file.relative_to(root).as_posix())
    return sorted(images, key=os.fsencode), folders, ignored


def _identity(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def _classes(root: Path, files: list[str], folders: list[str], ignored: int) -> list[str]:
    """The class folders, none if all images lie in `root` itself."""
    if not files:
        raise DataError(
            f"no image in {str(root)!r}: looked for {' '.join(SUFFIXES)} and found {len(folders)} folders "
            f"and {ignored} other entries"
        )
    counts = Counter(_class(file) for file in files)
    loose = counts.pop("", 0)
    if loose and counts:
        raise DataError(
            f"{str(root)!r} holds {loose} images beside folders of images: put them into a folder too, or take one out"
        )
    if empty := [folder for folder in folders if counts and folder not in counts]:
        raise DataError(f"the class folder {str(root / empty[0])!r} holds no image; fill it or remove it")
    return folders if counts else []


def _class(file: str) -> str:
    """The first folder on the way to `file`, "" if there is none."""
    return file.rpartition("/")[0].partition("/")[0]
