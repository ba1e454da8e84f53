"""A data set in memory: all images in one uint8 tensor, with labels and statistics."""

import csv
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DataError, DivergedError, printable

SHOWN = 12  # classes listed in an error
REASONS = 3  # unreadable images listed in a message


def to_unit(pixels: Tensor) -> Tensor:
    """Pixels uint8 0..255 -> float32 in [-1, 1], any shape."""
    return pixels.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """x, float in [-1, 1] of any shape -> uint8, rounded and clamped, so that nothing wraps around.

    Infinities become black or white. Raises DivergedError for NaN.
    """
    if x.isnan().any():
        raise DivergedError("the samples of the model contain NaN: train it again with a lower learning rate")
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class Images:
    """Images and, if the data has classes, their labels.

    name        the source as the user typed it; `load_images(name)` reads the same images
    pixels      uint8 `[N, C, H, W]`
    labels      int64 `[N]` in 0..classes-1, or None for data without classes
    class_names the name of each class, in the order of the labels; empty for data without classes
    notes       what the user should know about loading (images resized, entries ignored, ...), a clause each
    left_out    images that cannot be read and were left out with `skip_bad`: path -> reason
    files       the name of each image for messages, its file for example; empty if there are none
    """

    name: str
    pixels: Tensor
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
    left_out: dict[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, chosen: Tensor | slice) -> "Images":
        """A selection of the images with their labels; the class names stay."""
        labels = None if self.labels is None else self.labels[chosen]
        files = tuple(self.name_of(int(i)) for i in torch.arange(len(self))[chosen])  # each image keeps its number
        return replace(self, pixels=self.pixels[chosen], labels=labels, files=files)

    def without_labels(self) -> "Images":
        """The same images as data without classes."""
        return replace(self, labels=None, class_names=())

    def name_of(self, index: int) -> str:
        """A name for image `index` in messages: its file, or its number in the data set."""
        return self.files[index] if self.files else f"image {index} of {self.name}"

    @property
    def classes(self) -> int:
        """Number of classes, 0 for data without classes."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    @property
    def stem(self) -> str:
        """The name in a form for file names: `fashion-mnist`, or `photos-cats` for `./photos[cats]`."""
        data, classes = split_name(self.name)
        parts = [Path(data).resolve().stem, classes or ""]
        return "-".join(re.sub(r"[^\w.-]+", "-", part).strip("-") for part in parts if part)

    @cached_property
    def mean(self) -> float:
        """Mean of the pixels in [-1, 1]."""
        return self._moments[0]

    @cached_property
    def std(self) -> float:
        """Standard deviation of the pixels in [-1, 1]: the `data_std` of a denoiser."""
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[float, float]:
        count = torch.bincount(self.pixels.flatten(), minlength=256).double()  # exact, without a float copy of the data
        level = torch.arange(256, dtype=torch.float64) / 127.5 - 1
        mean = (count * level).sum() / count.sum()
        variance = (count * (level - mean) ** 2).sum() / count.sum()
        return mean.item(), variance.sqrt().item()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of shape, pixels and labels, which identifies the data independently of its name and place."""
        digest = hashlib.sha256(repr(tuple(self.pixels.shape)).encode())
        digest.update(self.pixels.numpy().tobytes())
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()


def first_reasons(left_out: Mapping[str, str]) -> str:
    """The first few images in `left_out` with their reasons, and the number of the others, in one line."""
    named = [f"{path}: {reason}" for path, reason in left_out.items()][:REASONS]
    more = [f"and {len(left_out) - REASONS:,} more"] if len(left_out) > REASONS else []
    return printable("; ".join(named + more))


def left_out_csv(left_out: Mapping[str, str]) -> bytes:
    """A CSV table of all images in `left_out`: image, reason."""
    table = StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("image", "reason"))
    rows.writerows((printable(path), printable(reason)) for path, reason in left_out.items())
    return table.getvalue().encode()


def split_name(source: str) -> tuple[str, str | None]:
    """A source `DATA[a,b]` -> ("DATA", "a,b"); `DATA` -> ("DATA", None)."""
    match = re.fullmatch(r"(.+)\[([^\[\]]*)\]", source, re.DOTALL)
    return (match[1], match[2]) if match else (source, None)


def select(
    data: str, wanted: str, labels: Tensor | None, class_names: Sequence[str]
) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    """Select classes: the indices of their images in `labels` `[N]`, and the new labels and class names.

    data         name of the data, for errors
    wanted       names or numbers of classes, separated by commas; they are renumbered in this order
    class_names  of all classes

    A single class becomes data without classes: labels None and no class names. Raises DataError.
    """
    if labels is None:
        raise DataError(f"{data!r} has no classes: leave out [{wanted}]")
    numbers = _numbers(data, wanted, class_names)
    renumbered = torch.full_like(labels, -1)
    for new, old in enumerate(numbers):
        here = labels == old
        if not here.any():
            raise DataError(f"{data!r} has no image of class {class_names[old]!r}: choose another class")
        renumbered[here] = new
    rows = (renumbered >= 0).nonzero().squeeze(1)
    if len(numbers) == 1:
        return rows, None, ()
    return rows, renumbered[rows], tuple(class_names[old] for old in numbers)


def only(images: Images, classes: str | None) -> Images:
    """The images of some classes, in the format of `select`; all images if it is None. Raises DataError."""
    if classes is None:
        return images
    rows, labels, names = select(images.name, classes, images.labels, images.class_names)
    return replace(images[rows], labels=labels, class_names=names)


def class_number(word: str, class_names: Sequence[str]) -> int | None:
    """The class in `class_names` that a word names: exactly, in any case, or by its number; None if there is none."""
    folded = {name.casefold(): number for number, name in reversed(list(enumerate(class_names)))}
    exact = {name: number for number, name in enumerate(class_names)}
    found = exact.get(word, folded.get(word.casefold()))
    if found is None and re.fullmatch(r"[0-9]{1,9}", word) and int(word) < len(class_names):
        return int(word)
    return found


def _numbers(data: str, wanted: str, class_names: Sequence[str]) -> list[int]:
    """`Bag,Sandal` or `8,5` -> [8, 5], without repetitions."""
    numbers = []
    # A name may contain commas, as in ImageNet.
    for word in [wanted] if class_number(wanted, class_names) is not None else map(str.strip, wanted.split(",")):
        found = class_number(word, class_names)
        if found is None:
            some = [f"{i} {name}" if name != str(i) else name for i, name in enumerate(class_names[:SHOWN])]
            more = f" and {len(class_names) - SHOWN} more" if len(class_names) > SHOWN else ""
            names = {name.casefold(): name for name in reversed(class_names)}
            near = get_close_matches(word.casefold(), names, n=1)
            hint = f"; did you mean {names[near[0]]!r}?" if near else ""
            raise DataError(f"{data!r} has no class {word!r}: its classes are {', '.join(some)}{more}{hint}")
        numbers.append(found)
    return list(dict.fromkeys(numbers))
