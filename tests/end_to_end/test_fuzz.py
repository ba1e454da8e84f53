"""A hundred thousand damaged files: each is read, or refused in one sentence."""

import gzip
import io
import random
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from model_files import good_files, sealed
from PIL import Image

from simple_diffusion.data.arrays import load_array
from simple_diffusion.data.folder import read_images
from simple_diffusion.data.idx import read_idx
from simple_diffusion.errors import SimpleDiffusionError

NUMBERS = [0, 1, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
WORDS = [struct.pack(order + "Q", n)[:width] for n in NUMBERS for order in "<>" for width in (1, 2, 4, 8)]
WORDS += [b"-1", b"1e400", b"NaN", b"null", b"[]", b"{}", b'"', b"\\", b"\n", b"\0", b"O", b"|O", b"9" * 30]


class Kind(NamedTuple):
    """Files of one kind: how they are read, good ones, and how many of a hundred damaged files are of it.

    reach   bytes at the beginning that half of the damage goes to
    """

    read: Callable[[bytes], object]
    good: list[bytes]
    share: int
    reach: int = 200


def arrays() -> list[bytes]:
    """.npy and .npz files of small images."""
    rng = np.random.default_rng(0)
    grey, colour = rng.integers(0, 256, (3, 5, 6), np.uint8), rng.random((2, 3, 4, 4), np.float32)
    files = []
    for save in (
        lambda file: np.save(file, grey),
        lambda file: np.save(file, colour),
        lambda file: np.savez(file, images=grey, labels=np.arange(3)),
        lambda file: np.savez_compressed(file, images=colour, labels=np.arange(2, dtype=np.int8)),
    ):
        buffer = io.BytesIO()
        save(buffer)
        files.append(buffer.getvalue())
    return files


def idx_files() -> list[bytes]:
    raw = struct.pack(">HBB3I", 0, 8, 3, 2, 3, 4) + bytes(range(24))
    return [raw, gzip.compress(raw, mtime=0), struct.pack(">HBBI", 0, 8, 1, 5) + bytes(5)]


def pictures() -> list[bytes]:
    """Small images in every format that is read."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)
    colour, files = Image.fromarray(pixels), []
    for image, form, options in (
        (colour, "JPEG", {"quality": 80}),
        (colour.convert("L"), "JPEG", {"progressive": True}),
        (colour, "PNG", {}),
        (colour.convert("P"), "PNG", {}),
        (colour.convert("RGBA"), "PNG", {}),
        (colour.convert("L"), "BMP", {}),
        (colour, "WEBP", {"lossless": True}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        files.append(buffer.getvalue())
    return files


def kinds(folder: Path) -> dict[str, Kind]:
    """Every kind of file that the program reads; the readers of paths get them in this folder."""
    path = folder / "file"

    def at_path(read: Callable[[Path], object]) -> Callable[[bytes], object]:
        def write_and_read(content: bytes) -> object:
            path.unlink(missing_ok=True)  # a new file: to cut an old one short waits for the disk
            path.write_bytes(content)
            return read(path)

        return write_and_read

    weights = good_files(folder)
    found = {read.__name__: Kind(at_path(read), [file.read_bytes()], 10, 5000) for read, file in weights.items()}
    return found | {
        "array": Kind(at_path(load_array), arrays(), 25),
        "idx": Kind(at_path(read_idx), idx_files(), 25),
        "picture": Kind(lambda content: read_images("photos", [("file", io.BytesIO(content))], 1), pictures(), 20),
    }


def damaged(rng: random.Random, kind: Kind) -> bytes:
    """A good file after one to six changes, half of them near its beginning."""
    content = bytearray(rng.choice(kind.good))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        reach = min(len(content), kind.reach) if rng.random() < 0.5 else len(content)
        place, other = rng.randrange(reach + 1), rng.choice(kind.good)
        size = rng.choice((1, 1, 2, 4, 8, 30, 300))
        start = rng.randrange(len(other))
        match rng.randrange(8):
            case 0 if place < len(content):
                content[place] ^= 1 << rng.randrange(8)
            case 1 if place < len(content):
                content[place] = rng.randrange(256)
            case 2:
                del content[place:]
            case 3:
                del content[place : place + size]
            case 4:
                content[place:place] = content[place : place + size]
            case 5:
                content[place : place + size] = other[start : start + size]
            case 6:
                word = rng.choice(WORDS)
                content[place : place + len(word)] = word
            case _:
                content[place:place] = rng.randbytes(size)
    return bytes(content)


def fuzz(folder: Path, n: int, seed: int) -> dict[str, list[int]]:
    """Read n damaged files. Returns how many of each kind were read and refused; fails at any other outcome."""
    rng, every = random.Random(seed), kinds(folder)
    counts = {name: [0, 0] for name in every}
    names, shares = list(every), [kind.share for kind in every.values()]
    for number in range(n):
        (name,) = rng.choices(names, shares)
        content = damaged(rng, every[name])
        if rng.random() < 0.9:  # or else few would pass the checksum
            content = sealed(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # as in the program
                every[name].read(content)
            counts[name][0] += 1
        except SimpleDiffusionError as error:
            text = str(error)
            assert text.isprintable(), (name, number, text)
            assert len(text) < 500, (name, number, text)
            counts[name][1] += 1
        except BaseException as error:
            raise AssertionError(f"number {number} of seed {seed}, a {name}: {content[:300]!r}") from error
    return counts


@pytest.mark.parametrize("n", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_damaged_file_is_read_or_refused_with_one_message(tmp_path, n):
    counts = fuzz(tmp_path, n, seed=n)
    for read, refused in counts.values():
        assert read > n / 1000  # the damage is not so great that nothing gets past the first check
        assert refused > n / 100
