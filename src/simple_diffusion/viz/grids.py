"""Grids of images as PNG, WebP and GIF files."""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    pass


def enlargement(height: int, width: int) -> int:
    """How many pixels of a picture a pixel of an image takes a side: small images are brought to about 64."""
    return max(1, round(64 / max(height, width)))


def extent(n: int, columns: int, height: int, width: int, gap: int = 2, scale: int | None = None) -> tuple[int, int]:
    """(height, width) of a grid of n images."""
    scale = scale or enlargement(height, width)
    return -(-n // columns) * (height * scale + gap) + gap, columns * (width * scale + gap) + gap


def make_grid(pixels: Tensor, columns: int, gap: int = 2, scale: int | None = None) -> Image.Image:
    """Images in rows of `columns`, left to right, on a mid-grey ground.

    pixels   uint8 `[N, C, H, W]`, C being 1 or 3
    gap      pixels between two images, and around all
    scale    makes each pixel a square of so many a side; `enlargement` by default

    Raises ValueError for images of another kind.
    """
    n, channels, height, width = pixels.shape
    if pixels.dtype != torch.uint8 or channels not in (1, 3):
        raise ValueError(f"a grid takes uint8 images of 1 or 3 channels, not {pixels.dtype} {tuple(pixels.shape)}")
    scale = scale or enlargement(height, width)
    high, wide = height * scale + gap, width * scale + gap
    sheet = np.full((*extent(n, columns, height, width, gap, scale), 3), 128, np.uint8)
    for i, image in enumerate(pixels.permute(0, 2, 3, 1).cpu().numpy()):  # [C, H, W] -> [H, W, C]
        top, left = gap + i // columns * high, gap + i % columns * wide
        big = image.repeat(scale, 0).repeat(scale, 1)
        sheet[top : top + height * scale, left : left + width * scale] = big  # one channel spreads over three
    return Image.fromarray(sheet)


def rows_of(pixels: Tensor, rows: int) -> Tensor:
    """Images `[N, C, H, W]` dealt out to rows in turn, as they go into a grid of `rows`: grey where one is missing."""
    missing = -len(pixels) % rows
    filled = torch.cat([pixels, torch.full_like(pixels[:1], 128).expand(missing, -1, -1, -1)])
    return filled.unflatten(0, (-1, rows)).transpose(0, 1).flatten(0, 1)  # image i to row i % rows


def strips(*films: Tensor) -> Image.Image:
    """Films uint8 `[P, N, C, H, W]` as strips of P panels: for each image a row from each film, one above the other."""
    images = torch.stack(films).permute(2, 0, 1, 3, 4, 5)  # [N, films, P, C, H, W]
    sheets = [np.asarray(make_grid(rows.flatten(0, 1), rows.shape[1])) for rows in images]
    return Image.fromarray(np.concatenate(sheets))  # twice the gap between two images


def frames(*films: Tensor) -> list[Image.Image]:
    """Films uint8 `[P, N, C, H, W]` as P pictures, each a grid of N images from every film, side by side."""
    columns = math.ceil(math.sqrt(films[0].shape[1]))
    sheets = [[np.asarray(make_grid(panel, columns)) for panel in panels] for panels in zip(*films, strict=True)]
    return [Image.fromarray(np.concatenate(row, 1)) for row in sheets]


def png(image: Image.Image) -> bytes:
    """The file's content."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


WEBP_SIDE = 16383
"""The largest height and width, in pixels, that WebP can hold."""


def webp(image: Image.Image) -> bytes:
    """The file's content, without loss. Raises ValueError above `WEBP_SIDE`."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def animation(pictures: Sequence[Image.Image], format: str) -> bytes:
    """An endless animation of about four seconds that rests on its last picture: a file's content.

    format   "WEBP", without loss, or "GIF", which has 256 colours a picture: exact for grey ones
    """
    pace = min(400, max(40, 4000 // len(pictures)))  # ms
    buffer = io.BytesIO()
    durations = [pace] * (len(pictures) - 1) + [2000]
    first, *rest = pictures
    first.save(buffer, format, save_all=True, append_images=rest, duration=durations, loop=0, lossless=True)
    return buffer.getvalue()
