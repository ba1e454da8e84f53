"""Grids of images as PNG, WebP and GIF files."""

import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..checks import check_integer, shown


def default_scale(height: int, width: int) -> int:
    """The integer factor that brings the longer side of a small image to about 64 pixels."""
    return max(1, round(64 / max(height, width)))


def grid_size(n: int, columns: int, height: int, width: int, gap: int = 2, scale: int | None = None) -> tuple[int, int]:
    """(height, width) in pixels of the grid that `make_grid` makes of n images."""
    scale = scale or default_scale(height, width)
    return -(-n // columns) * (height * scale + gap) + gap, columns * (width * scale + gap) + gap


def make_grid(pixels: Tensor, columns: int, gap: int = 2, scale: int | None = None) -> Image.Image:
    """Images in rows of `columns`, left to right, on a gray background.

    pixels   uint8 `[N, C, H, W]`, C being 1 or 3
    gap      pixels between images and around the grid
    scale    pixels of the grid per pixel of an image, in both directions; by default `default_scale`

    Raises ValueError for no images, another type or number of channels, and for sizes that are not allowed.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or not len(pixels):
        raise ValueError(f"a grid needs uint8 images [N, C, H, W] of 1 or 3 channels, got {shown(pixels)}")
    check_integer("columns", columns, 1)
    check_integer("gap", gap, 0)
    check_integer("scale", 1 if scale is None else scale, 1)
    n, (height, width) = len(pixels), pixels.shape[2:]
    scale = scale or default_scale(height, width)
    high, wide = height * scale + gap, width * scale + gap
    sheet = np.full((*grid_size(n, columns, height, width, gap, scale), 3), 128, np.uint8)
    for i, image in enumerate(pixels.permute(0, 2, 3, 1).cpu().numpy()):  # [C, H, W] -> [H, W, C]
        top, left = gap + i // columns * high, gap + i % columns * wide
        big = image.repeat(scale, 0).repeat(scale, 1)
        sheet[top : top + height * scale, left : left + width * scale] = big  # broadcasts one channel to three
    return Image.fromarray(sheet)


def single(pixels: Tensor) -> Image.Image:
    """One image, uint8 `[C, H, W]`, as it is: gray for C = 1, color for C = 3."""
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).cpu().numpy())


def deal_into_rows(pixels: Tensor, rows: int) -> Tensor:
    """Images `[N, C, H, W]` reordered so that image i falls into row i % rows of a grid; gaps are filled with gray."""
    missing = -len(pixels) % rows
    filled = torch.cat([pixels, torch.full_like(pixels[:1], 128).expand(missing, -1, -1, -1)])
    return filled.unflatten(0, (-1, rows)).transpose(0, 1).flatten(0, 1)


def pairs_in_rows(above: Tensor, below: Tensor, columns: int = 10) -> Tensor:
    """Pairs of images, for a grid of `columns`: a row of the first `[N, C, H, W]`, then the row of their partners."""
    rows = zip(above.split(columns), below.split(columns), strict=True)
    return torch.cat([half for row in rows for half in row])


def strips(*trajectories: Tensor) -> Image.Image:
    """Trajectories uint8 `[P, N, C, H, W]` as rows of P panels: for each image one row per trajectory."""
    images = torch.stack(trajectories).permute(2, 0, 1, 3, 4, 5)  # [N, trajectories, P, C, H, W]
    sheets = [np.asarray(make_grid(rows.flatten(0, 1), rows.shape[1])) for rows in images]
    return Image.fromarray(np.concatenate(sheets))  # twice the gap between two images


def frames(*trajectories: Tensor) -> list[Image.Image]:
    """Trajectories uint8 `[P, N, C, H, W]` as P pictures: one grid of N images per trajectory, side by side."""
    columns = math.ceil(math.sqrt(trajectories[0].shape[1]))
    sheets = [[np.asarray(make_grid(panel, columns)) for panel in panels] for panels in zip(*trajectories, strict=True)]
    return [Image.fromarray(np.concatenate(row, 1)) for row in sheets]


def png(image: Image.Image) -> bytes:
    """The content of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


WEBP_SIDE = 16383
"""The largest height and width of a WebP image, in pixels."""


def webp(image: Image.Image) -> bytes:
    """The content of a lossless WebP file. Raises ValueError for a side above `WEBP_SIDE`."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def animation(pictures: Sequence[Image.Image], format: str) -> bytes:
    """The content of an animation file: at most four seconds for up to 100 pictures, then two on the last, in a loop.

    format   "WEBP", lossless, or "GIF", which has 256 colors per picture and is exact for gray ones
    """
    pace = min(400, max(40, 4000 // len(pictures)))  # ms
    buffer = io.BytesIO()
    durations = [pace] * (len(pictures) - 1) + [2000]
    first, *rest = pictures
    first.save(buffer, format, save_all=True, append_images=rest, duration=durations, loop=0, lossless=True)
    return buffer.getvalue()
