"""Data sets of huggingface.co, and folders in its formats, with the optional package `datasets`.

No code of a data set is run: `datasets` 4.0 and later refuse all scripts. The package keeps downloads in its own cache.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, UsageError, printable
from .arrays import LABELS, classes_of
from .folder import read_images
from .images import Images, select

TIMEOUT = 10.0  # seconds for the first response; `datasets` itself would wait half a minute or longer
SPLITS = {"train": ("train",), "test": ("test", "validation", "valid", "val")}  # names of the splits there
KINDS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool", "string", "large_string")
"""Types of a column that can hold labels."""
QUIET = {  # read when the libraries are imported; the user's own values have priority
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_VERBOSITY": "error",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
}


def load_hub(
    where: str, split: str = "train", size: int | None = None, classes: str | None = None, skip_bad: bool = False
) -> Images | None:
    """The data set OWNER/NAME of huggingface.co, or a folder of parquet files or images in the same layout.

    The images are the first image column. The labels are the first class column, or else the column of integers or
    texts that is named label, y or target; a note names the others. The split "test" may be named validation
    there; the result is None if there is neither, or if its labels are withheld. `classes` selects classes, in the
    format of `select`. Images are decoded by the rules of `load_folder`, and `skip_bad` leaves out those that cannot be
    read. Raises DataError, ResourceError if there is too little memory, and UsageError if `datasets` is not installed.
    """
    name = f"hub:{where}"
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    try:
        from datasets import ClassLabel, Image
    except ImportError as error:
        raise UsageError(f"reading {name} needs the package datasets: pip install 'simple-diffusion[hub]'") from error
    splits = _splits(name, where)
    if split == "train" and split not in splits:
        raise DataError(f"{name!r} has no split 'train': it has {', '.join(splits) or 'none'}")
    for known in SPLITS.get(split, (split,)):
        if known not in splits:
            continue
        data = splits[known]
        column, target = _first(data, Image), _first(data, ClassLabel) or _named(data)
        if column is None:
            have = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in data.features.items())
            raise DataError(f"{name!r} has no column of images: it has {have}")
        labels, class_names = (None, ()) if target is None else _labels(name, data, target)
        missing = [] if labels is None else (labels < 0).nonzero().flatten().tolist()
        if missing and split != "train":  # the labels of a competition's test set are withheld
            continue
        if missing and classes is None:
            raise DataError(
                f"row {missing[0]} of {name!r} has no label: name the classes to read, for example {name}[0,1]"
            )
        rows: Any = range(len(data))
        if classes is not None:
            rows, labels, class_names = select(name, classes, labels, class_names)
        unused = [key for key in data.features if key not in (column, target)]
        notes = (f"did not use the columns {', '.join(map(printable, unused))}",) if unused else ()
        data = data.select_columns([column]).cast_column(column, Image(decode=False))
        files = ((f"row {int(row)} of {name!r}", _file(data[int(row)][column])) for row in rows)
        images = read_images(name, files, len(rows), labels, class_names, size, skip_bad)
        return replace(images, notes=(*notes, *images.notes))
    return None


def _splits(name: str, where: str) -> dict[str, Any]:
    """The splits by name, each a `datasets.Dataset`."""
    import datasets

    local = os.path.isdir(where)
    if not local and not re.fullmatch(r"[\w.-]+/[\w.-]+", where):
        raise DataError(f"{name!r} is neither a folder nor an OWNER/NAME of huggingface.co, such as hub:ylecun/mnist")
    source = str(Path(where).resolve()) if local else where  # `datasets` would take a single word for a format
    if re.search(r"[*?[]", source):
        raise DataError(
            f"the path of {name!r} contains * ? or [, which the package datasets reads as a pattern: rename the folder"
        )
    cause = None if local else _unreachable(where)
    try:
        with _offline(cause is not None):
            loaded: Any = datasets.load_dataset(source)
            return dict(loaded)
    except MemoryError:
        raise
    except Exception as error:  # of its file systems, parsers and servers
        if cause is not None:
            raise DataError(
                f"cannot reach huggingface.co for {name!r}, which is not in the cache ({cause}): "
                "check the network connection, or name a folder with the data"
            ) from error
        raise DataError(f"cannot read {name!r}: {_sentence(error)}") from error


def _unreachable(where: str) -> str | None:
    """Why the hub cannot be reached, or None. Raises DataError if the hub has no such data set."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        HfApi().dataset_info(where, timeout=TIMEOUT)
    except RepositoryNotFoundError as error:
        raise DataError(
            f"huggingface.co has no data set {where!r} that you may read: "
            "check the name, or log in with `hf auth login` if it is private"
        ) from error
    except Exception as error:  # the HTTP library has changed its errors before
        return _sentence(error)
    return None


@contextmanager
def _offline(yes: bool) -> Iterator[None]:
    """If `yes`, `datasets` reads its cache only."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = yes or before
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _first(data: Any, kind: type) -> str | None:
    """The name of the first column of this type, or None."""
    return next((name for name, feature in data.features.items() if isinstance(feature, kind)), None)


def _named(data: Any) -> str | None:
    """The name of the column of integers or texts that is named as labels are, or None."""
    usual = {key.casefold(): key for key in data.features}
    found = next((usual[name] for name in (*LABELS, "class") if name in usual), None)
    return found if getattr(data.features.get(found), "dtype", "") in KINDS else None


def _labels(name: str, data: Any, column: str) -> tuple[Tensor, tuple[str, ...]]:
    """int64 `[N]`, -1 for rows without a label, and the names of the classes."""
    values, feature = data.select_columns([column])[:][column], data.features[column]
    given = [value for value in values if value is not None and value != -1]
    if not hasattr(feature, "names"):
        try:
            numbers, names = classes_of(np.array(given), len(given))
        except ValueError as error:
            raise DataError(f"cannot use the column {column!r} of {name!r}: {error}") from error
    else:
        numbers, names = torch.tensor(given, dtype=torch.int64), tuple(map(printable, feature.names))
    labels = torch.full((len(values),), -1)
    labels[[value is not None and value != -1 for value in values]] = numbers
    return labels, names


def _file(cell: dict[str, Any] | None) -> Path | BytesIO:
    """The content of an undecoded cell of an image column: its bytes, or the path of its file."""
    content, path = (cell["bytes"], cell["path"]) if cell else (None, None)
    return Path(path) if content is None and path else BytesIO(content or b"")


def _sentence(error: Exception) -> str:
    """The first line of an error message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300].rstrip(".")
