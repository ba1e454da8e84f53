"""An example of each unusual file that a folder of images may contain, and how it is read.

The table of docs/images-on-disk.md has one row for each key of CORPUS.
"""

import csv
import json
import os
import re
import socket
import struct
import sys
import tomllib
import zlib
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from faults import forked
from PIL import Image

from simple_diffusion.cli.main import main
from simple_diffusion.cli.options import parse_labels, say
from simple_diffusion.data import folder
from simple_diffusion.data.folder import load_folder, read_image
from simple_diffusion.data.sources import load_images
from simple_diffusion.errors import DataError, UsageError
from simple_diffusion.model.model_file import read

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes, and names that Windows can't write")
DOCS = Path(__file__).parents[2] / "docs" / "images-on-disk.md"
RNG = np.random.default_rng(0)


# Making files


def encoded(pixels: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    file = BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, bits: int, color: int, data: bytes = b"", extra: bytes = b"", adam7=False) -> bytes:
    """A PNG file. `color` is the color type: 0 gray, 2 RGB, 3 palette, 6 RGBA; `data` is already compressed."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, adam7)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def packed(*parts: np.ndarray) -> bytes:
    """The compressed lines of an image, or of the passes of an interlaced one: unfiltered, 16 bits as two bytes."""
    parts = [part.astype(">u2") if part.dtype == np.uint16 else part for part in parts]
    return zlib.compress(b"".join(b"\0" + line.tobytes() for part in parts for line in part))


def adam7(gray: np.ndarray) -> list[np.ndarray]:
    """The seven passes of an interlaced image."""
    grid = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    return [gray[top::down, left::right] for top, left, down, right in grid]


def black(lines: int, length: int) -> bytes:
    """Compressed lines of zeros; only a hundredth of them is in memory."""
    press = zlib.compressobj(9, wbits=-15)
    piece = press.compress(bytes(lines // 100 * length)) + press.flush(zlib.Z_FULL_FLUSH)  # independent of earlier data
    return b"\x78\xda" + piece * 100 + b"\x03\x00" + struct.pack(">I", (lines * length % 65521 << 16) + 1)


def orientation(number: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = number
    return tags.tobytes()


def changed(content: bytes, place: int, new: bytes) -> bytes:
    return content[:place] + new + content[place + len(new) :]


def on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Pixels in 0..255 on a white background, by the definition: uint8."""
    alpha = alpha[..., None] if pixels.ndim == 3 else alpha
    return np.rint((1.0 * pixels * alpha + 255 * (255.0 - alpha)) / 255).astype(np.uint8)


def socket_at(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the address of a socket has at most 100 bytes
    try:
        with socket.socket(socket.AF_UNIX) as unbound:
            unbound.bind(path.name)
    finally:
        os.chdir(here)


def elsewhere(path: Path) -> Path:
    """A good image outside the folder of `path`."""
    target = path.parent.parent / "elsewhere.png"
    target.write_bytes(PNG)
    return target


# The corpus


@dataclass(frozen=True)
class Read:
    """The file is read as these pixels: uint8 `[H, W]` or `[H, W, 3]`."""

    pixels: np.ndarray
    within: int = 0  # gray levels


@dataclass(frozen=True)
class Refused:
    """The file stops the command, or --skip-bad leaves it out; the message has its path and matches this pattern."""

    reason: str


class Ignored:
    """The file is not opened, but counted."""


Odd = dict[str, tuple[bytes | Callable[[Path], object], Read | Refused | Ignored]]
"""File name -> (its content or a function that creates it, how it is read)."""

GRAY, ALPHA = RNG.integers(0, 256, (2, 16, 24), np.uint8)
COLOR = RNG.integers(0, 256, (16, 24, 3), np.uint8)
DEEP = np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64)  # a ramp through all levels
DEEP_COLOR = RNG.integers(0, 65536, (16, 24, 4)).astype(np.uint16)
BLOCKS = np.full((16, 24), 20, np.uint8)  # all rotations differ, and JPEG preserves it
BLOCKS[:8, :8], BLOCKS[8:, 16:] = 240, 130
INKS = np.kron(RNG.integers(0, 256, (2, 3, 4), np.uint8), np.ones((8, 8, 1), np.uint8))  # blocks that JPEG preserves
WITHOUT_INK = np.rint((255.0 - INKS[..., :3]) * (255.0 - INKS[..., 3:]) / 255).astype(np.uint8)
FRAMES = [Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(3)]
ALL = {"save_all": True, "append_images": FRAMES[1:]}
PNG, BMP = encoded(COLOR, "PNG"), encoded(COLOR, "BMP")
JPEG, WEBP = encoded(COLOR, "JPEG"), encoded(COLOR, "WEBP", lossless=True)
JPEG_SIZE = JPEG.index(b"\xff\xc0") + 5  # position of height and width
DECODED = np.asarray(Image.open(BytesIO(JPEG)))  # the pixels of a JPEG of noise depend on the decoder
LARGER = RNG.integers(0, 256, (40, 60, 3), np.uint8)  # 1% of its file is more than the bytes after the pixels
LONG_JPEG = encoded(RNG.integers(0, 256, (300, 300, 3), np.uint8), "JPEG", quality=95)  # Pillow reads it in pieces
PALETTE = np.arange(255, -1, -1, np.uint8).repeat(3)  # entry n is gray 255 - n
KEY = tuple(COLOR[1, 1].tolist())
SCENES = {  # EXIF orientation -> the blocks as such a camera stores them
    1: BLOCKS,
    2: BLOCKS[:, ::-1],
    3: BLOCKS[::-1, ::-1],
    4: BLOCKS[::-1],
    5: BLOCKS.T,
    6: np.rot90(BLOCKS),
    7: BLOCKS[::-1, ::-1].T,
    8: np.rot90(BLOCKS, -1),
}
NO_IMAGE = Refused("not a JPEG, PNG, WebP or BMP image")
CUT = Refused("[Tt]runcated|not a JPEG|could not create decoder|unrecognized data stream|broken")
ANIMATION = Refused("an animation of 3 frames")
TOO_LARGE = Refused("more than 64,000,000 pixels")
TOO_LONG = Refused("longer than 4:1")


def cuts(suffix: str, whole: bytes) -> Odd:
    return {f"cut at {share} %.{suffix}": (whole[: len(whole) * share // 100], CUT) for share in (10, 50, 90, 99)}


CORPUS: dict[str, Odd] = {
    "16 bits a channel": {
        "grey of 16 bits.png": (encoded(DEEP, "PNG"), Read(np.rint(DEEP / 257).astype(np.uint8))),
        "grey of 16 bits, one transparent.png": (
            png(64, 64, 16, 0, packed(DEEP), chunk(b"tRNS", struct.pack(">H", DEEP[1, 1]))),
            Read(np.rint(np.where(DEEP[1, 1] == DEEP, 65535, DEEP) / 257).astype(np.uint8)),
        ),
        "rgb of 16 bits.png": (
            png(24, 16, 16, 2, packed(DEEP_COLOR[..., :3])),
            Read(np.rint(DEEP_COLOR[..., :3] / 257).astype(np.uint8), within=1),
        ),
        "rgba of 16 bits.png": (
            png(24, 16, 16, 6, packed(DEEP_COLOR)),
            Read(on_white(DEEP_COLOR[..., :3] / 257, DEEP_COLOR[..., 3] / 257), within=2),
        ),
    },
    "fewer than 8 bits": {
        "1 bit.png": (encoded(GRAY > 127, "PNG"), Read((GRAY > 127) * np.uint8(255))),
        "1 bit.bmp": (encoded(GRAY > 127, "BMP"), Read((GRAY > 127) * np.uint8(255))),
        "2 bits.png": (
            png(4, 2, 2, 0, packed(np.array([[0b00011011], [0b11100100]], np.uint8))),
            Read(np.array([[0, 85, 170, 255], [255, 170, 85, 0]], np.uint8)),
        ),
        "4 bits.png": (
            png(2, 2, 4, 0, packed(np.array([[0x0F], [0x37]], np.uint8))),
            Read(np.array([[0, 255], [51, 119]], np.uint8)),
        ),
    },
    "a palette": {
        "palette.png": (
            png(24, 16, 8, 3, packed(GRAY), chunk(b"PLTE", PALETTE.tobytes())),
            Read(255 - GRAY[..., None].repeat(3, 2)),
        ),
        "palette.bmp": (
            encoded(Image.fromarray(COLOR).quantize(64), "BMP"),
            Read(np.asarray(Image.fromarray(COLOR).quantize(64).convert("RGB"))),
        ),
    },
    "transparency": {
        "rgba.png": (encoded(np.dstack([COLOR, ALPHA]), "PNG"), Read(on_white(COLOR, ALPHA))),
        "grey and alpha.png": (encoded(np.dstack([GRAY, ALPHA]), "PNG"), Read(on_white(GRAY, ALPHA))),
        "rgba.webp": (
            encoded(np.dstack([COLOR, ALPHA]), "WEBP", lossless=True, exact=True),
            Read(on_white(COLOR, ALPHA)),
        ),
        "palette with alpha.png": (
            png(24, 16, 8, 3, packed(GRAY), chunk(b"PLTE", PALETTE.tobytes()) + chunk(b"tRNS", bytes(range(256)))),
            Read(on_white(255 - GRAY, GRAY)[..., None].repeat(3, 2)),
        ),
        "one transparent grey.png": (
            png(24, 16, 8, 0, packed(GRAY), chunk(b"tRNS", struct.pack(">H", GRAY[1, 1]))),
            Read(np.where(GRAY[1, 1] == GRAY, np.uint8(255), GRAY)),
        ),
        "one transparent colour.png": (
            png(24, 16, 8, 2, packed(COLOR), chunk(b"tRNS", struct.pack(">HHH", *KEY))),
            Read(np.where((COLOR == KEY).all(2, keepdims=True), np.uint8(255), COLOR)),
        ),
    },
    "CMYK": {
        "cmyk.jpg": (encoded(Image.fromarray(INKS, "CMYK"), "JPEG", quality=100), Read(WITHOUT_INK, within=3)),
    },
    "an orientation in EXIF": {
        f"orientation {number}.jpg": (
            encoded(scene.copy(), "JPEG", quality=100, exif=orientation(number)),
            Read(BLOCKS, within=2),
        )
        for number, scene in SCENES.items()
    }
    | {
        "orientation 6.png": (encoded(SCENES[6].copy(), "PNG", exif=orientation(6)), Read(BLOCKS)),
        "orientation 6 of 16 bits.png": (
            encoded(SCENES[6].astype(np.uint16) * 257, "PNG", exif=orientation(6)),
            Read(BLOCKS),
        ),
        "orientation 6.webp": (
            encoded(SCENES[6][..., None].repeat(3, 2), "WEBP", lossless=True, exif=orientation(6)),
            Read(BLOCKS[..., None].repeat(3, 2)),
        ),
        "orientation 9.jpg": (encoded(COLOR, "JPEG", exif=orientation(9)), Read(DECODED)),
        "exif of nonsense.jpg": (encoded(COLOR, "JPEG", exif=b"Exif\0\0nonsense"), Read(DECODED)),
    },
    "a color profile, a gamma": {
        "profile.jpg": (encoded(COLOR, "JPEG", icc_profile=b"of a camera" * 50), Read(DECODED)),
        "gamma.png": (png(24, 16, 8, 0, packed(GRAY), chunk(b"gAMA", struct.pack(">I", 100_000))), Read(GRAY)),
    },
    "progressive, interlaced": {
        "progressive.jpg": (encoded(COLOR, "JPEG", progressive=True), Read(DECODED)),
        "interlaced.png": (png(24, 16, 8, 0, packed(*adam7(GRAY)), adam7=True), Read(GRAY)),
        "from the top.bmp": (changed(BMP, 22, struct.pack("<i", -16)), Read(COLOR[::-1])),
    },
    "several pictures of a camera": {
        "previews.jpg": (
            encoded(FRAMES[0], "MPO", **ALL),
            Read(np.asarray(Image.open(BytesIO(encoded(FRAMES[0], "JPEG"))))),
        ),
    },
    "an animation": {
        "moving.png": (encoded(FRAMES[0], "PNG", **ALL), ANIMATION),
        "moving.webp": (encoded(FRAMES[0], "WEBP", lossless=True, **ALL), ANIMATION),
        "moving gif.png": (encoded(FRAMES[0], "GIF", **ALL), NO_IMAGE),
        "of one frame.webp": (encoded(COLOR, "WEBP", lossless=True, save_all=True), Read(COLOR)),
    },
    "the wrong ending": {
        "png.jpg": (PNG, Read(COLOR)),
        "webp.bmp": (WEBP, Read(COLOR)),
        "LOUD.JPEG": (JPEG, Read(DECODED)),
    },
    "cut short": {
        **cuts("jpg", encoded(LARGER, "JPEG")),
        **cuts("png", encoded(LARGER, "PNG")),
        **cuts("webp", encoded(LARGER, "WEBP")),
        **cuts("bmp", encoded(LARGER, "BMP")),
        "long, cut at 99 %.jpg": (LONG_JPEG[: len(LONG_JPEG) * 99 // 100], CUT),
    },
    "no image": {
        "empty.png": (b"", NO_IMAGE),
        "page.jpg": (b"<!DOCTYPE html><html>404</html>", NO_IMAGE),
        "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", NO_IMAGE),
        "zeros.bmp": (bytes(1000), NO_IMAGE),
        "tiff.jpg": (encoded(COLOR, "TIFF"), NO_IMAGE),
        "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', NO_IMAGE),
        "iphone.jpg": (b"\0\0\0\x18ftypheic" + bytes(100), NO_IMAGE),
        "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", NO_IMAGE),
    },
    "damaged": {
        "a bit of the pixels.png": (changed(PNG, 600, bytes([PNG[600] ^ 1])), Refused("broken data stream")),
        "checksum of the header.png": (changed(PNG, 29, b"nono"), NO_IMAGE),
        "no width.png": (png(0, 16, 8, 0), NO_IMAGE),
        "12 bits.jpg": (changed(JPEG, JPEG_SIZE - 1, b"\x0c"), NO_IMAGE),
        "a text of 100 MB.png": (
            png(24, 16, 8, 0, packed(GRAY), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8), 1))),
            Refused("too large"),
        ),
    },
    "damage that no decoder notices": {
        "a bit of the pixels.jpg": (changed(JPEG, len(JPEG) - 99, bytes([JPEG[-99] ^ 1])), Read(DECODED, within=255)),
        "checksum of the pixels.png": (changed(PNG, PNG.index(b"IEND") - 8, b"nono"), Read(COLOR)),
        "no end.png": (PNG[:-12], Read(COLOR)),
        "too few lines.png": (png(24, 16, 8, 0, packed(GRAY[:9])), Read(np.vstack([GRAY[:9], GRAY[9:] * 0]))),
        "more behind.jpg": (JPEG + b"more" * 100, Read(DECODED)),
    },
    "more than 64,000,000 pixels": {
        "8001 x 8001.png": (png(8001, 8001, 8, 2), TOO_LARGE),  # below both of Pillow's own limits,
        "10000 x 10000.png": (png(10_000, 10_000, 8, 2), TOO_LARGE),  # between them,
        "60000 x 60000.png": (png(60_000, 60_000, 8, 2), TOO_LARGE),  # and above
        "60000 x 60000, all there.png": (png(60_000, 60_000, 1, 0, black(60_000, 7501)), TOO_LARGE),
        "60000 x 60000.jpg": (changed(JPEG, JPEG_SIZE, struct.pack(">HH", 60_000, 60_000)), TOO_LARGE),
        "60000 x 60000.bmp": (changed(BMP, 18, struct.pack("<ii", 60_000, 60_000)), TOO_LARGE),
    },
    "longer than 4:1": {
        "wide.png": (encoded(np.zeros((1, 4000), np.uint8), "PNG"), TOO_LONG),
        "tall.png": (encoded(np.zeros((4000, 1), np.uint8), "PNG"), TOO_LONG),
        "just too long.png": (encoded(np.zeros((61, 15), np.uint8), "PNG"), TOO_LONG),
        "just not.png": (encoded(GRAY[:6], "PNG"), Read(GRAY[:6])),
    },
    "one pixel": {
        "one.png": (encoded(GRAY[:1, :1], "PNG"), Read(GRAY[:1, :1])),
    },
    "any name": {
        name: (PNG, Read(COLOR))
        for name in (
            "日本.png",
            "🐟.png",
            "e\u0301.png",  # two characters, which macOS combines
            "a\nb.png",
            "\x1b[31mred\x1b[0m.png",
            "\u202egnp.png",  # reads from right to left
            " .png",
            "-rf *.png",
            f"{'x' * 251}.png",
            *([os.fsdecode(b"caf\xe9.png")] if sys.platform == "linux" else []),  # not UTF-8
        )
    }
    | {"page\n\x1b[31m.jpg": (b"<html>", NO_IMAGE)},
    "a link to an image": {
        "link.png": (lambda path: path.symlink_to(elsewhere(path)), Read(COLOR)),
        "second name.png": (lambda path: path.hardlink_to(elsewhere(path)), Read(COLOR)),
    },
    "hidden, another ending, no file": {
        ".hidden.png": (PNG, Ignored()),
        "._x.jpg": (b"what macOS leaves", Ignored()),
        "Thumbs.db": (b"what Windows leaves", Ignored()),
        "moving.gif": (encoded(FRAMES[0], "GIF"), Ignored()),
        "scan.tiff": (encoded(COLOR, "TIFF"), Ignored()),
        "pipe.png": (os.mkfifo, Ignored()),
        "socket.png": (socket_at, Ignored()),
        "endless.png": (lambda path: path.symlink_to("/dev/zero"), Ignored()),
        "dangling.png": (lambda path: path.symlink_to("nothing"), Ignored()),
        "itself.png": (lambda path: path.symlink_to(path.name), Ignored()),
        "loop": (lambda path: path.symlink_to("."), Ignored()),
        "loop.png": (lambda path: path.symlink_to(path.parent), Ignored()),
    },
}
FILES: Odd = {name: odd for row in CORPUS.values() for name, odd in row.items()}
BAD = sorted((name for name, (_, outcome) in FILES.items() if isinstance(outcome, Refused)), key=os.fsencode)
GOOD = sorted((name for name, (_, outcome) in FILES.items() if isinstance(outcome, Read)), key=os.fsencode)


def put(path: Path) -> Path:
    """Create the file of the corpus with this name."""
    content, _ = FILES[path.name]
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """All files in one folder."""
    path = tmp_path_factory.mktemp("odd") / "photos"
    for name in FILES:
        put(path / name)
    return path


def fails(capsys, argv: list, code: int) -> str:
    """The line on stderr with which a command fails."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in argv])
    err = capsys.readouterr().err
    assert stop.value.code == code, err
    assert err.startswith("simple-diffusion: ")
    assert err[:-1].isprintable(), err
    return err


# Each file alone


def test_the_corpus_has_the_rows_of_the_documentation():
    assert sum(map(len, CORPUS.values())) == len(FILES) >= 80  # without duplicate names
    text = DOCS.read_text()
    table = text[text.index("| a file with, or that is |") :].split("\n\n")[0].splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in table] == list(CORPUS)
    for number in (f"{folder.MAX_PIXELS:,}", f"{folder.MAX_ASPECT}:1", f"{folder.KEEP} × ", f"{folder.SIZE} × "):
        assert number in text
    assert all(f"`{suffix}`" in text for suffix in folder.SUFFIXES)


@pytest.mark.parametrize("row", CORPUS)
def test_an_unusual_file_is_read_as_documented(tmp_path, row):
    for number, name in enumerate(CORPUS[row]):
        check_file(tmp_path / str(number), name)


def check_file(folder: Path, name: str) -> None:
    """Read a folder with this file alone."""
    alone, outcome = put(folder / "alone" / name).parent, FILES[name][1]
    if isinstance(outcome, Read):
        images = load_folder(alone)
        expected = torch.from_numpy(np.atleast_3d(outcome.pixels).transpose(2, 0, 1).copy())
        assert images.pixels[0].shape == expected.shape
        assert (images.pixels[0].int() - expected.int()).abs().max() <= outcome.within
        assert (len(images), images.notes, images.left_out) == (1, (), {})
        return
    with pytest.raises(DataError) as error:
        load_folder(alone)
    message = str(error.value)
    assert message.isprintable()
    if isinstance(outcome, Ignored):
        assert re.search(r"no image in '.*alone': .* found 0 folders and 1 other", message)
        return
    path = f"{alone}/{name}".encode("unicode_escape").decode()
    assert message.startswith(f"cannot read 1 of 1 images: {path}: "), message
    assert re.search(outcome.reason, message), message
    assert message.endswith("; repair or remove them, or add --skip-bad to leave them out")


def test_sixteen_bits_are_scaled_and_not_clipped():
    for name, levels in (("grey of 16 bits.png", DEEP), ("rgb of 16 bits.png", DEEP_COLOR[..., :3])):
        error = np.abs(read_image(BytesIO(FILES[name][0])) - levels / 257)
        assert error.mean() <= 0.5
        assert error.max() < 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_every_value_and_alpha_is_blended_with_white(mode):
    value, alpha = np.meshgrid(*2 * [np.arange(256, dtype=np.uint8)])
    bands = [Image.fromarray(band) for band in [value] * (len(mode) - 1) + [alpha]]
    pixels = read_image(BytesIO(encoded(Image.merge(mode, bands), "PNG")))
    assert (np.atleast_3d(pixels) == on_white(value, alpha)[..., None]).all()
    assert pixels.ndim == len(mode) // 2 + 1  # gray stays gray


@pytest.mark.parametrize("kind", ["JPEG", "progressive", "PNG", "WEBP", "lossless", "BMP"])
def test_a_truncated_file_is_refused_or_complete(kind):
    """No file that lost its end is read as an image with a part of its pixels."""
    options = {"progressive": {"progressive": True}, "lossless": {"lossless": True}}.get(kind, {})
    name = {"progressive": "JPEG", "lossless": "WEBP"}.get(kind, kind)
    whole = encoded(COLOR, name, **options)
    pixels, passed = read_image(BytesIO(whole)), []
    for end in (*range(0, len(whole) - 40, 7), *range(len(whole) - 40, len(whole))):
        try:
            cut = read_image(BytesIO(whole[:end]))
        except (OSError, ValueError, SyntaxError):
            continue
        assert (cut == pixels).all()
        passed.append(len(whole) - end)
    behind = {"PNG": 20, "JPEG": 2}.get(name, 0)  # bytes after the pixels: checksums and the end marker
    assert max(passed, default=0) <= behind


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_huge_images_are_refused_in_fifty_megabytes(tmp_path):
    huge = CORPUS["more than 64,000,000 pixels"]
    for name in huge:
        put(tmp_path / name)
    resource = pytest.importorskip("resource")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 50_000_000, before[1]))
    try:
        with pytest.raises(DataError, match=f"{len(huge)} of {len(huge)} .*more than 64,000,000 pixels"):
            load_folder(tmp_path)  # without a MemoryError
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_reading_folders_imports_no_further_reader_of_images(tmp_path):
    """The other readers of Pillow would parse untrusted headers, and importing them takes 0.1 s."""

    def look() -> None:
        for name in [name for name in sys.modules if name.startswith("PIL.") or name == folder.__name__]:
            del sys.modules[name]
        fresh = import_module(folder.__name__)
        try:
            fresh.read_image(BytesIO(b"no image"))
        except ValueError as error:
            print(error)
        print(*(name for name in sys.modules if name.endswith("ImagePlugin")))

    assert forked(look, tmp_path / "out") == 0
    said, modules = (tmp_path / "out").read_text().splitlines()
    assert said == NO_IMAGE.reason
    assert {name.removeprefix("PIL.").removesuffix("ImagePlugin") for name in modules.split()} <= {
        "Bmp",
        "Gif",
        "Jpeg",
        "Png",
        "Ppm",
        "WebP",  # those of FORMATS, and those that some versions of Pillow import first
    }


def test_an_image_may_have_exactly_the_largest_number_of_pixels(monkeypatch):
    monkeypatch.setattr(folder, "MAX_PIXELS", COLOR.shape[0] * COLOR.shape[1])
    assert (read_image(BytesIO(PNG)) == COLOR).all()
    monkeypatch.setattr(folder, "MAX_PIXELS", COLOR.shape[0] * COLOR.shape[1] - 1)
    with pytest.raises(ValueError, match="24 x 16"):
        read_image(BytesIO(PNG))


# All files together


def test_a_scan_finds_every_bad_file(corpus):
    with pytest.raises(DataError, match=f"^cannot read {len(BAD)} of {len(BAD) + len(GOOD)} images: ") as error:
        load_folder(corpus)
    assert f"images: {corpus}/{BAD[0]}: " in str(error.value)
    assert f"; and {len(BAD) - 3} more; " in str(error.value)
    assert str(error.value).count(f"{corpus}/") == 3


def test_skip_bad_leaves_out_the_bad_ones_and_keeps_the_rest_in_order(corpus, tmp_path):
    images = load_images(str(corpus), skip_bad=True, size=16)
    assert list(images.left_out) == [f"{corpus}/{name}" for name in BAD]
    for name in BAD:
        assert re.search(FILES[name][1].reason, images.left_out[f"{corpus}/{name}"])
    for name in GOOD:
        put(tmp_path / "good" / name)
    good = load_images(str(tmp_path / "good"), size=16)
    assert (len(images), images.left_out != {}, good.left_out) == (len(GOOD), True, {})
    assert images.fingerprint == good.fingerprint
    ignored = sum(isinstance(outcome, Ignored) for _, outcome in FILES.values())
    assert images.notes[0].startswith(f"ignored {ignored} other entries ")


def put_classes(root: Path, **classes: tuple[str, ...]) -> Path:
    for label, names in classes.items():
        for name in names:
            put(root / label / name)
    return root


def test_skip_bad_keeps_every_image_with_its_label(tmp_path):
    put_classes(tmp_path, a=("empty.png", "rgba.png"), b=("one.png", "page.jpg"), c=("png.jpg",))
    images = load_folder(tmp_path, size=1, skip_bad=True)
    assert (images.labels.tolist(), images.class_names) == ([0, 1, 2], ("a", "b", "c"))
    assert len(images.left_out) == 2
    assert load_folder(tmp_path, size=1, classes="c,a", skip_bad=True).labels.tolist() == [1, 0]


def test_skip_bad_is_an_error_if_a_class_has_no_images_left(tmp_path):
    put_classes(tmp_path, a=("empty.png", "page.jpg"), b=("one.png",))
    with pytest.raises(DataError, match=r"no image of class 'a' of .* can be read"):
        load_folder(tmp_path, skip_bad=True)
    with pytest.raises(DataError, match=r"none of the 2 images of .* can be read: .*a/empty\.png: not a JPEG"):
        load_folder(tmp_path / "a", skip_bad=True)
    with pytest.raises(DataError, match=r"none of the 2 images of .* can be read"):
        load_folder(tmp_path, classes="a", skip_bad=True)


# The commands


def commands_that_read(data: Path, tmp_path: Path) -> list[list]:
    np.savez(tmp_path / "samples.npz", images=np.zeros((4, 8, 8, 3), np.uint8))
    return [
        ["train", data, "--steps", "1", "--out", tmp_path / "run"],
        ["train", data, "--dry-run"],
        ["data", data, "--out", tmp_path / "grid.png"],
        ["classifier", data, "--out", tmp_path / "c.safetensors"],
        ["evaluate", tmp_path / "samples.npz", "--data", data, "--out", tmp_path / "scores"],
    ]


def test_a_bad_file_stops_every_command_before_it_begins(tmp_path, capsys):
    data = put_classes(tmp_path / "data", a=("empty.png", "rgba.png"), b=("one.png",))
    for argv in commands_that_read(data, tmp_path):
        err = fails(capsys, argv, 3)
        assert f"cannot read 1 of 3 images: {data}/a/empty.png: " in err
        assert "add --skip-bad" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "samples.npz"]


def test_train_with_skip_bad_reports_and_records_what_it_left_out(corpus, tmp_path, capsys):
    command = ["train", str(corpus), "--skip-bad", "--size", "8", "--steps", "1"]
    main([*command, "--out", str(tmp_path / "run"), *TINY])
    out, err = capsys.readouterr()
    first, *_ = err.splitlines()
    assert first.startswith(f"left out {len(BAD)} of {len(BAD) + len(GOOD)} images: {corpus}/{BAD[0]}: ")
    assert first.endswith(f"; and {len(BAD) - 3} more")
    assert first.isprintable()
    assert str(tmp_path / "run" / "left-out.csv") in out
    content = (tmp_path / "run" / "left-out.csv").read_text(encoding="utf-8")
    assert content.replace("\n", "").isprintable()
    table = list(csv.DictReader(content.splitlines()))
    assert [row["image"] for row in table] == [f"{corpus}/{name}".encode("unicode_escape").decode() for name in BAD]
    assert f"{corpus}/page\\n\\x1b[31m.jpg" in content
    assert all(re.search(FILES[name][1].reason, row["reason"]) for name, row in zip(BAD, table, strict=True))

    # The command in config.toml, which repeats the run, leaves them out again.
    config = (tmp_path / "run" / "config.toml").read_text()
    assert tomllib.loads(config)["skip_bad"] == "yes"
    command = config.splitlines()[1].removeprefix("# simple-diffusion ")
    main([*command.split(), "--out", str(tmp_path / "again")])
    once, again = (read(tmp_path / name).denoiser.state_dict() for name in ("run", "again"))
    assert all(torch.equal(tensor, again[key]) for key, tensor in once.items())


def test_evaluate_leaves_out_what_the_training_left_out(tmp_path, capsys):
    data = put_classes(tmp_path / "data", a=("rgba.png", "empty.png"), b=("one.png",))
    main(["train", str(data), "--skip-bad", "--steps", "1", "--out", str(tmp_path / "run"), *TINY])
    (data / "b" / "one.png").write_bytes(PNG)  # changed, so that the command stops after reading all images
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(tmp_path / "run")])
    err = capsys.readouterr().err.splitlines()
    assert stop.value.code == 3
    assert err[0].startswith("left out 1 of 3 images: ")
    assert "has changed since the model was trained" in err[1]


def test_data_and_classifier_with_skip_bad(corpus, tmp_path, capsys, monkeypatch):
    main(["data", str(corpus), "--skip-bad", "--json"])
    out, err = capsys.readouterr()
    assert err.startswith(f"left out {len(BAD)} of ")
    result = json.loads(out)
    assert result["count"] == len(GOOD)
    assert list(result["left_out"]) == [f"{corpus}/{name}" for name in BAD]  # not escaped in JSON

    def count(images, *args, **options):
        raise UsageError(f"it would train on {len(images)}")

    monkeypatch.setattr("simple_diffusion.evaluation.extractors.make_extractor", count)
    with pytest.raises(SystemExit):
        main(["classifier", str(corpus), "--skip-bad", "--out", str(tmp_path / "c.safetensors")])
    assert f"it would train on {len(GOOD)}" in capsys.readouterr().err


def test_a_run_without_bad_files_prints_no_note(tmp_path, capsys):
    data = put_classes(tmp_path / "data", a=("rgba.png",), b=("one.png",))
    main(["train", str(data), "--skip-bad", "--steps", "1", "--out", str(tmp_path / "run"), *TINY])
    out, err = capsys.readouterr()
    assert "left out" not in out + err
    assert not (tmp_path / "run" / "left-out.csv").exists()


HOSTILE = "\x1b[2Jcats\n\u202e"
ESCAPED = r"\x1b[2Jcats\n\u202e"


def test_names_of_files_are_escaped_where_they_are_left_out(tmp_path, capsys):
    for name in ("one.png", "page\n\x1b[31m.jpg"):
        put(tmp_path / name)
    main(["data", str(tmp_path), "--skip-bad"])
    err = capsys.readouterr().err
    assert err == f"left out 1 of 2 images: {tmp_path}/page\\n\\x1b[31m.jpg: not a JPEG, PNG, WebP or BMP image\n"


def test_names_of_classes_are_escaped_where_they_are_printed(tmp_path, capsys):
    put_classes(tmp_path / "data", **{HOSTILE: ("one.png",), "dogs": ("one.png",)})
    (tmp_path / "data").rename(tmp_path / f"data{HOSTILE}")
    data = str(tmp_path / f"data{HOSTILE}")
    assert load_folder(data).class_names == (ESCAPED, "dogs")
    main(["data", data])
    out = capsys.readouterr().out
    assert f"data{ESCAPED}: 2 gray images" in out  # the folder
    assert f"({ESCAPED}, dogs)" in out
    assert f"1  {ESCAPED}\n" in out
    assert out.replace("\n", "").isprintable()
    assert ESCAPED in fails(capsys, ["data", f"{data}[fish]"], 3)
    with pytest.raises(UsageError) as error:  # a model file may have names that no loader accepts
        parse_labels("fish", (HOSTILE, "dogs"))
    assert str(error.value).isprintable()
    say(Namespace(json=False), f"two\nlines of {HOSTILE}")
    assert capsys.readouterr().out == "two\nlines of \\x1b[2Jcats\n\\u202e\n"
