"""A data set: every image in memory as one uint8 tensor, with its labels and what can be read off it."""

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

SHOWN = 12  # classes that an error lists
REASONS = 3  # unreadable images that a sentence names


def to_unit(pixels: Tensor) -> Tensor:
    """Pixels uint8 0..255 -> float32 in [-1, 1], any shape."""
    return pixels.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """x, float in [-1, 1] of any shape -> uint8; rounded, and clamped first, so that nothing wraps round.

    Infinities are black or white. Raises DivergedError for NaN, which is no grey at all.
    """
    if x.isnan().any():
        raise DivergedError("there is NaN in the image that the model draws: train it again with a lower learning rate")
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class Images:
    """Images and, where the data has classes, their labels.

    name        what the user called it: `load_images` of it gives these images again
    pixels      uint8 `[N, C, H, W]`
    labels      int64 `[N]` in 0..classes-1, or None for data without classes
    class_names one name a class, in the order of the labels; empty for data without classes
    notes       one sentence for each thing a loader did that the user should know (resized, ignored, ...)
    left_out    the images that can't be read and were left out with `skip_bad`: path -> why
    files       the file of each image, or what stands for one, where the data has them
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
        """Some of the images, with their labels and the names of all classes."""
        labels = None if self.labels is None else self.labels[chosen]
        files = tuple(self.name_of(int(i)) for i in torch.arange(len(self))[chosen])  # each keeps its number
        return replace(self, pixels=self.pixels[chosen], labels=labels, files=files)

    def name_of(self, index: int) -> str:
        """What the user may know the image of this index by: its file, or its number in the data set."""
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
        """The name as a part of names of files: `fashion-mnist`, or `photos-cats` for `./photos[cats]`."""
        data, classes = split_name(self.name)
        parts = [Path(data).resolve().stem, classes or ""]
        return "-".join(re.sub(r"[^\w.-]+", "-", part).strip("-") for part in parts if part)

    @cached_property
    def mean(self) -> float:
        """Mean of the pixels in [-1, 1]."""
        return self._moments[0]

    @cached_property
    def std(self) -> float:
        """Standard deviation of the pixels in [-1, 1], about their mean: the `data_std` of a denoiser."""
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[float, float]:
        count = torch.bincount(self.pixels.flatten(), minlength=256).double()  # exact, and no float copy of the data
        level = torch.arange(256, dtype=torch.float64) / 127.5 - 1
        mean = (count * level).sum() / count.sum()
        variance = (count * (level - mean) ** 2).sum() / count.sum()
        return mean.item(), variance.sqrt().item()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shape, pixels and labels: the identity of the data, whatever its name or place."""
        digest = hashlib.sha256(repr(tuple(self.pixels.shape)).encode())
        digest.update(self.pixels.numpy().tobytes())
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()


def first_reasons(left_out: Mapping[str, str]) -> str:
    """The first few images that can't be read, each with why, and how many more `left_out` has: one line."""
    named = [f"{path}: {reason}" for path, reason in left_out.items()][:REASONS]
    more = [f"and {len(left_out) - REASONS:,} more"] if len(left_out) > REASONS else []
    return printable("; ".join(named + more))


def left_out_csv(left_out: Mapping[str, str]) -> bytes:
    """All that is `left_out` as a table, a line each: image, reason."""
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
    """Where in `labels` `[N]` the classes `wanted` stand, and the labels and names of what stands there.

    `wanted` holds names or numbers of the classes in `class_names` between commas, and numbers them anew in this order.
    A single class has nothing to tell apart, so that its labels are None and its names empty. Raises DataError, which
    says `data`.
    """
    if labels is None:
        raise DataError(f"{data!r} has no classes to choose from: leave out [{wanted}]")
    numbers = _numbers(data, wanted, class_names)
    renumbered = torch.full_like(labels, -1)
    for new, old in enumerate(numbers):
        here = labels == old
        if not here.any():
            raise DataError(f"{data!r} has no image of its class {class_names[old]!r}: choose another")
        renumbered[here] = new
    rows = (renumbered >= 0).nonzero().squeeze(1)
    if len(numbers) == 1:
        return rows, None, ()
    return rows, renumbered[rows], tuple(class_names[old] for old in numbers)


def only(images: Images, classes: str | None) -> Images:
    """The images of some classes, as `select` reads them; all if it is None. Raises DataError for unknown ones."""
    if classes is None:
        return images
    rows, labels, names = select(images.name, classes, images.labels, images.class_names)
    return replace(images[rows], labels=labels, class_names=names)


def class_number(word: str, class_names: Sequence[str]) -> int | None:
    """The class among `class_names` that a word names: exactly, else in any case, else by its number; None if none."""
    folded = {name.casefold(): number for number, name in reversed(list(enumerate(class_names)))}
    exact = {name: number for number, name in enumerate(class_names)}
    found = exact.get(word, folded.get(word.casefold()))
    if found is None and re.fullmatch(r"[0-9]{1,9}", word) and int(word) < len(class_names):
        return int(word)
    return found


def _numbers(data: str, wanted: str, class_names: Sequence[str]) -> list[int]:
    """`Bag,Sandal` or `8,5` -> [8, 5], each once."""
    numbers = []
    # A name may hold commas itself, as those of ImageNet do.
    for word in [wanted] if class_number(wanted, class_names) is not None else map(str.strip, wanted.split(",")):
        found = class_number(word, class_names)
        if found is None:
            some = [f"{i} {name}" if name != str(i) else name for i, name in enumerate(class_names[:SHOWN])]
            more = f" and {len(class_names) - SHOWN} more" if len(class_names) > SHOWN else ""
            names = {name.casefold(): name for name in reversed(class_names)}
            near = get_close_matches(word.casefold(), names, n=1)
            hint = f"; did you mean {names[near[0]]!r}?" if near else ""
            raise DataError(f"{data!r} has no class {word!r}: it has {', '.join(some)}{more}{hint}")
        numbers.append(found)
    return list(dict.fromkeys(numbers))
