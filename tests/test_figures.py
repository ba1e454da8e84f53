"""Pictures hold the pixels that they were given."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from simple_diffusion import to_uint8, to_unit
from simple_diffusion.figures import grid, npz, png


def test_all_levels_survive_the_way_in_and_out():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_unit(levels)), levels)


def test_nothing_wraps_round():
    x = torch.tensor([-1e9, -5.0, -1.001, 1.001, 5.0, 1e9])
    assert to_uint8(x).tolist() == [0, 0, 0, 255, 255, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_reads_back_pixel_by_pixel(channels):
    pixels = torch.randint(0, 256, (5, channels, 6, 9), dtype=torch.uint8)
    sheet = np.asarray(Image.open(io.BytesIO(png(grid(pixels, columns=3, gap=1, scale=2)))))
    assert sheet.shape == (1 + 2 * 13, 1 + 3 * 19, 3)
    for i, image in enumerate(pixels):
        top, left = 1 + i // 3 * 13, 1 + i % 3 * 19
        for dy in (0, 1):
            for dx in (0, 1):
                cell = sheet[top + dy : top + 12 : 2, left + dx : left + 18 : 2]
                assert np.array_equal(cell, image.expand(3, -1, -1).permute(1, 2, 0).numpy())


def test_a_grid_refuses_what_it_can_not_draw():
    with pytest.raises(ValueError, match="float32"):
        grid(torch.zeros(1, 1, 4, 4), 1)
    with pytest.raises(ValueError, match="channels"):
        grid(torch.zeros(1, 2, 4, 4, dtype=torch.uint8), 1)


def test_npz_needs_no_pickle():
    pixels = torch.randint(0, 256, (3, 3, 4, 5), dtype=torch.uint8)
    with np.load(io.BytesIO(npz(pixels, torch.tensor([2, 0, 1]))), allow_pickle=False) as file:
        arrays = dict(file)
    assert np.array_equal(arrays["images"], pixels.permute(0, 2, 3, 1).numpy())
    assert arrays["labels"].tolist() == [2, 0, 1]
