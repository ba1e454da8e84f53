"""A data set in memory: all images in one uint8 tensor, with labels and statistics."""

import csv
import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DataError, DivergedError, printable

SHOWN = 12  # classes listed in a message
REASONS = 3  # unreadable images listed in a message
STEM = 100  # bytes, longest part of a file name that comes from the name of the data; names have at most 255

EXTREME = 1e-4  # share of the pixels at each end that `Images.extent` leaves out, such as a few defective ones
NUMBER = re.compile("[0-9]{1,9}")


def to_unit(pixels: Tensor) -> Tensor:
    """Pixels uint8 0..255 -> float32 in [-1, 1], any shape. Raises TypeError for another type."""
    if not isinstance(pixels, Tensor) or pixels.dtype != torch.uint8:
        raise TypeError(f"pixels must be a tensor of torch.uint8 from 0 to 255, got {kind_of(pixels)}")
    return pixels.float() / 127.5 - 1


def kind_of(value: object) -> str:
    """The type of the numbers of a tensor, or the type of another value."""
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def to_uint8(x: Tensor) -> Tensor:
    """x, float in [-1, 1] of any shape -> uint8, rounded and clamped, so that nothing wraps around.

    Infinities become black or white. Raises TypeError if x is not floating-point, and DivergedError for NaN.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x must be a floating-point tensor in [-1, 1], got {kind_of(x)}")
    if x.isnan().any():
        raise DivergedError("the samples of the model contain NaN: train it again with a lower learning rate")
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def originals(views: Sequence[Tensor]) -> Tensor:
    """For each row the number of the first row that equals it, in any view: int64 `[N]`.

    views  a data set under each augmentation, each `[N, ...]` of one type, the identity first
    """
    first: dict[bytes, int] = {}
    numbers = []
    for number, rows in enumerate(zip(*(view.numpy() for view in views), strict=True)):
        digest = min(hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows)
        numbers.append(first.setdefault(digest, number))
    return torch.tensor(numbers, dtype=torch.int64)


def distinct(views: Sequence[Tensor]) -> Tensor:
    """The numbers of the rows that equal no earlier row in any view: int64 `[M]`, ascending.

    views  as in `originals`
    """
    return originals(views).unique()


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

    Class names are kept in Unicode's NFC, so that equal names are equal. Raises TypeError for another type of pixels or
    labels, and ValueError for another shape, labels without class names, a label that is not the number of a class, and
    two classes of one name.
    """

    name: str
    pixels: Tensor
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
    left_out: dict[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what, tensor, dtype in (("pixels", self.pixels, torch.uint8), ("labels", self.labels, torch.int64)):
            optional = what == "labels" and tensor is None
            if not optional and kind_of(tensor) != str(dtype):
                raise TypeError(f"{what} of Images must be a tensor of {dtype}, got {kind_of(tensor)}")
        if isinstance(self.class_names, str) or not all(isinstance(name, str) for name in self.class_names):
            raise TypeError(f"class_names of Images must be a tuple of texts, got {self.class_names!r}")
        object.__setattr__(self, "class_names", in_nfc(self.class_names))
        if self.pixels.ndim != 4:
            raise ValueError(f"pixels of Images must be [N, C, H, W], got shape {tuple(self.pixels.shape)}")
        names, labels, n = self.class_names, self.labels, len(self.pixels)
        if len(set(names)) < len(names):
            raise ValueError(f"class_names of Images must differ, got {', '.join(names)}")
        if (labels is None) != (not names):
            raise ValueError("Images need labels and class_names together: give both or neither")
        if labels is not None and labels.shape != (n,):
            raise ValueError(f"labels of Images must be [N], one for each of {n} images, got {tuple(labels.shape)}")
        if labels is not None and n and not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
            raise ValueError(
                f"labels of Images must be from 0 to {len(names) - 1}, one number for each of class_names, got "
                f"{int(labels.min())} to {int(labels.max())}"
            )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, chosen: Tensor | slice) -> "Images":
        """A selection of the images with their labels; the class names stay. Raises TypeError for a single number."""
        if isinstance(chosen, int):
            raise TypeError(f"Images are selected by a slice or a tensor: images[{chosen}:{chosen + 1}] is one of them")
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
        stem = "-".join(re.sub(r"[^\w.-]+", "-", part).strip("-") for part in parts if part)
        return stem.encode()[:STEM].decode(errors="ignore")

    @cached_property
    def mean(self) -> float:
        """Mean of the pixels in [-1, 1]: the `data_mean` of a denoiser."""
        return self._moments[0]

    @cached_property
    def std(self) -> float:
        """Standard deviation of the pixels in [-1, 1]: the `data_std` of a denoiser."""
        return self._moments[1]

    @cached_property
    def counts(self) -> Tensor:
        """How many pixels have each value 0..255: float64 `[256]`."""
        return torch.bincount(self.pixels.flatten(), minlength=256).double()

    @property
    def extent(self) -> tuple[int, int]:
        """The lowest and the highest value of the pixels, in 0..255, without a ten-thousandth at each end."""
        share = self.counts.cumsum(0) / self.counts.sum()
        low, high = ((share >= edge).nonzero()[0].item() for edge in (EXTREME, 1 - EXTREME))
        return int(low), int(high)

    @cached_property
    def _moments(self) -> tuple[float, float]:
        count = self.counts  # exact, without a float copy of the data
        level = torch.arange(256, dtype=torch.float64) / 127.5 - 1
        mean = (count * level).sum() / count.sum()
        variance = (count * (level - mean) ** 2).sum() / count.sum()
        return mean.item(), variance.sqrt().item()

    @cached_property
    def originals(self) -> Tensor:
        """For each image the number of the first image with the same pixels: int64 `[N]`."""
        return originals([self.pixels])

    @property
    def distinct(self) -> Tensor:
        """The numbers of the images whose pixels equal those of no earlier image: int64 `[M]`, ascending."""
        return self.originals.unique()

    @property
    def duplicates(self) -> int:
        """Number of images whose pixels equal those of an earlier image."""
        return len(self) - len(self.distinct)

    def new_to(self, known: "Images") -> "Images | None":
        """The images whose pixels equal those of no known image; None if there are none."""
        if self.shape != known.shape:
            return self
        new = originals([torch.cat([known.pixels, self.pixels])])[len(known) :] >= len(known)
        return self if new.all() else self[new.nonzero().squeeze(1)] if new.any() else None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of shape, pixels and labels, which identifies the data independently of its name and place."""
        digest = hashlib.sha256(repr(tuple(self.pixels.shape)).encode())
        for tensor in (self.pixels,) if self.labels is None else (self.pixels, self.labels):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def in_classes(self, class_names: Sequence[str]) -> "Images":
        """The images with the numbers of these classes as labels, by their names; those of other classes are left out.

        Without labels, or without classes, the result has no labels.
        """
        if self.labels is None or not class_names:
            return self.without_labels()
        numbers = [class_number(name, class_names) for name in self.class_names]
        labels = torch.tensor([-1 if number is None else number for number in numbers])[self.labels]
        rows = (labels >= 0).nonzero().squeeze(1)
        return replace(self[rows], labels=labels[rows], class_names=tuple(class_names))


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


def in_nfc(names: Sequence[str]) -> tuple[str, ...]:
    """Names in Unicode's normalization form C: macOS and Linux spell the same name with different code points."""
    return tuple(unicodedata.normalize("NFC", name) for name in names)


def class_number(word: str, class_names: Sequence[str]) -> int | None:
    """The class in `class_names` that a word names: exactly, in any case, or by its number; None if there is none.

    If all names are numbers, as in folders 0, 2 and 5, a number is a name: 1 is no class.
    """
    (word,) = in_nfc([word])
    folded = {name.casefold(): number for number, name in reversed(list(enumerate(class_names)))}
    exact = {name: number for number, name in enumerate(class_names)}
    found = exact.get(word, folded.get(word.casefold()))
    if found is None and NUMBER.fullmatch(word) and int(word) < len(class_names) and not are_numbers(class_names):
        return int(word)
    return found


def are_numbers(class_names: Sequence[str]) -> bool:
    """Whether all of `class_names` are numbers."""
    return all(map(NUMBER.fullmatch, class_names))


def class_list(class_names: Sequence[str]) -> str:
    """The first of `class_names` with their numbers, and how many more there are, for messages."""
    plain = are_numbers(class_names)
    some = [name if plain else f"{number} {name}" for number, name in enumerate(class_names[:SHOWN])]
    more = f" and {len(class_names) - SHOWN} more" if len(class_names) > SHOWN else ""
    return f"{', '.join(some)}{more}" or "none"


def drop_empty_classes(images: Images) -> Images:
    """The images without the classes that no image has, with a note. A model could not learn them."""
    if images.labels is None:
        return images
    present = images.labels.bincount(minlength=images.classes) > 0
    if present.all():
        return images
    kept, empty = ([n for n, here in zip(images.class_names, present, strict=True) if here == w] for w in (True, False))
    note = f"left out the classes that no image has: {', '.join(empty[:SHOWN])}"
    note += f" and {len(empty) - SHOWN:,} more" if len(empty) > SHOWN else ""
    labels = (present.cumsum(0) - 1)[images.labels]
    return replace(images, labels=labels, class_names=tuple(kept), notes=(*images.notes, note))


def _numbers(data: str, wanted: str, class_names: Sequence[str]) -> list[int]:
    """`Bag,Sandal` or `8,5` -> [8, 5], without repetitions."""
    numbers = []
    # A name may contain commas, as in ImageNet.
    for word in [wanted] if class_number(wanted, class_names) is not None else map(str.strip, wanted.split(",")):
        found = class_number(word, class_names)
        if found is None:
            names = {name.casefold(): name for name in reversed(class_names)}
            near = get_close_matches(word.casefold(), names, n=1)
            hint = f"; did you mean {names[near[0]]!r}?" if near else ""
            raise DataError(f"{data!r} has no class {word!r}: its classes are {class_list(class_names)}{hint}")
        numbers.append(found)
    return list(dict.fromkeys(numbers))
