"""Grids, strips, frames and animations hold the pixels that they are given."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from simple_diffusion import to_uint8, to_unit
from simple_diffusion.data.arrays import npz
from simple_diffusion.schedules import SCHEDULES
from simple_diffusion.viz.grids import WEBP_SIDE, animation, frames, grid_size, make_grid, png, strips, webp
from simple_diffusion.viz.plots import uniform_density


def test_all_256_values_survive_the_conversion_to_float_and_back():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_unit(levels)), levels)


def test_values_outside_the_range_are_clamped():
    x = torch.tensor([-1e9, -5.0, -1.001, 1.001, 5.0, 1e9])
    assert to_uint8(x).tolist() == [0, 0, 0, 255, 255, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_holds_every_pixel_in_its_place(channels):
    pixels = torch.randint(0, 256, (5, channels, 6, 9), dtype=torch.uint8)
    sheet = np.asarray(Image.open(io.BytesIO(png(make_grid(pixels, columns=3, gap=1, scale=2)))))
    assert sheet.shape == (1 + 2 * 13, 1 + 3 * 19, 3)
    for i, image in enumerate(pixels):
        top, left = 1 + i // 3 * 13, 1 + i % 3 * 19
        for dy in (0, 1):
            for dx in (0, 1):
                cell = sheet[top + dy : top + 12 : 2, left + dx : left + 18 : 2]
                assert np.array_equal(cell, image.expand(3, -1, -1).permute(1, 2, 0).numpy())


def test_a_grid_refuses_other_types_and_channels():
    with pytest.raises(ValueError, match="float32"):
        make_grid(torch.zeros(1, 1, 4, 4), 1)
    with pytest.raises(ValueError, match="channels"):
        make_grid(torch.zeros(1, 2, 4, 4, dtype=torch.uint8), 1)


def test_npz_needs_no_pickle():
    pixels = torch.randint(0, 256, (3, 3, 4, 5), dtype=torch.uint8)
    with np.load(io.BytesIO(npz(pixels, torch.tensor([2, 0, 1]))), allow_pickle=False) as file:
        arrays = dict(file)
    assert np.array_equal(arrays["images"], pixels.permute(0, 2, 3, 1).numpy())
    assert arrays["labels"].tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("n", "columns", "size"), [(1, 1, (28, 28)), (5, 3, (6, 9)), (12, 4, (64, 33)), (2, 2, (130, 70))]
)
def test_grid_size_is_the_size_of_the_grid(n, columns, size):
    sheet = make_grid(torch.zeros(n, 1, *size, dtype=torch.uint8), columns)
    assert grid_size(n, columns, *size) == (sheet.height, sheet.width)


@pytest.mark.parametrize("channels", [1, 3])
def test_strips_and_frames_put_every_panel_in_its_place(channels):
    trajectories = torch.randint(0, 256, (2, 4, 3, channels, 64, 70), dtype=torch.uint8)  # [2, P, N, C, H, W]
    sheet = np.asarray(strips(*trajectories))
    assert sheet.shape == (3 * (2 + 2 * 66), 2 + 4 * 72, 3)
    pictures = [np.asarray(picture) for picture in frames(*trajectories)]
    assert [picture.shape for picture in pictures] == [(2 + 2 * 66, 2 * (2 + 2 * 72), 3)] * 4
    for row in range(2):
        for panel in range(4):
            for i in range(3):
                want = trajectories[row, panel, i].expand(3, -1, -1).permute(1, 2, 0).numpy()
                top, left = (
                    i * (2 + 2 * 66) + 2 + row * 66,
                    2 + panel * 72,
                )  # two rows per image
                assert np.array_equal(sheet[top : top + 64, left : left + 70], want)
                top, left = (
                    2 + i // 2 * 66,
                    row * (2 + 2 * 72) + 2 + i % 2 * 72,
                )  # side by side, two by two
                assert np.array_equal(pictures[panel][top : top + 64, left : left + 70], want)


def test_webp_is_lossless_and_refuses_what_is_too_large():
    noise = torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8)
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(webp(make_grid(noise, 2))))), np.asarray(make_grid(noise, 2))
    )
    assert Image.open(io.BytesIO(webp(Image.new("RGB", (WEBP_SIDE, 1))))).width == WEBP_SIDE
    with pytest.raises(ValueError, match=r"WebP limit|encoding error"):
        webp(Image.new("RGB", (WEBP_SIDE + 1, 1)))


@pytest.mark.parametrize(("kind", "channels"), [("WEBP", 1), ("WEBP", 3), ("GIF", 1)])
@pytest.mark.parametrize("many", [1, 12])
def test_an_animation_keeps_all_values_loops_and_stays_on_its_last_picture(kind, channels, many):
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 1, 16, 16).expand(many, 1, channels, -1, -1)
    trajectories = levels.roll(1, -1), torch.stack([panel.roll(i, -1) for i, panel in enumerate(levels)])
    want = [np.asarray(picture) for picture in frames(*trajectories)]
    durations = []
    with Image.open(io.BytesIO(animation(frames(*trajectories), kind))) as file:
        assert (file.format, file.n_frames) == (kind, many)
        for picture, frame in zip(want, ImageSequence.Iterator(file), strict=True):
            assert np.array_equal(np.asarray(frame.convert("RGB")), picture)
            durations.append(frame.info["duration"])
        if many > 1:
            assert file.info["loop"] == 0  # endless
            assert len(set(durations[:-1])) == 1
            assert durations[-1] == 2000  # ms
            assert sum(durations) <= 6000


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_density_of_the_log_snr_agrees_with_uniform_times(name):
    """The fraction of a fine grid of times in each tenth of the range of the log SNR is the integral of the density."""
    schedule, t = SCHEDULES[name](), torch.linspace(1e-3, 1 - 1e-3, 4000, dtype=torch.float64)
    level, density = uniform_density(schedule, t)
    edges = torch.linspace(level.min().item(), level.max().item(), 11, dtype=torch.float64)
    for low, high in pairwise(edges):
        inside = (low <= level) & (level <= high)
        share = inside.double().mean() * (1 - 2e-3)
        area = torch.trapezoid(density[inside].flip(0), level[inside].flip(0)) if inside.sum() > 1 else 0.0
        assert float(area) == pytest.approx(share.item(), abs=2e-3)
