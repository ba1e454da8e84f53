"""Pictures hold the pixels that they were given."""

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


def test_all_levels_survive_the_way_in_and_out():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_unit(levels)), levels)


def test_nothing_wraps_round():
    x = torch.tensor([-1e9, -5.0, -1.001, 1.001, 5.0, 1e9])
    assert to_uint8(x).tolist() == [0, 0, 0, 255, 255, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_reads_back_pixel_by_pixel(channels):
    pixels = torch.randint(0, 256, (5, channels, 6, 9), dtype=torch.uint8)
    sheet = np.asarray(Image.open(io.BytesIO(png(make_grid(pixels, columns=3, gap=1, scale=2)))))
    assert sheet.shape == (1 + 2 * 13, 1 + 3 * 19, 3)
    for i, image in enumerate(pixels):
        top, left = 1 + i // 3 * 13, 1 + i % 3 * 19
        for dy in (0, 1):
            for dx in (0, 1):
                cell = sheet[top + dy : top + 12 : 2, left + dx : left + 18 : 2]
                assert np.array_equal(cell, image.expand(3, -1, -1).permute(1, 2, 0).numpy())


def test_a_grid_refuses_what_it_can_not_draw():
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
def test_the_extent_of_a_grid_is_known_before_it_is_drawn(n, columns, size):
    sheet = make_grid(torch.zeros(n, 1, *size, dtype=torch.uint8), columns)
    assert grid_size(n, columns, *size) == (sheet.height, sheet.width)


@pytest.mark.parametrize("channels", [1, 3])
def test_strips_and_frames_put_every_panel_in_its_place(channels):
    films = torch.randint(0, 256, (2, 4, 3, channels, 64, 70), dtype=torch.uint8)  # [films, P, N, C, H, W]
    sheet = np.asarray(strips(*films))
    assert sheet.shape == (3 * (2 + 2 * 66), 2 + 4 * 72, 3)
    pictures = [np.asarray(picture) for picture in frames(*films)]
    assert [picture.shape for picture in pictures] == [(2 + 2 * 66, 2 * (2 + 2 * 72), 3)] * 4
    for film in range(2):
        for panel in range(4):
            for i in range(3):
                want = films[film, panel, i].expand(3, -1, -1).permute(1, 2, 0).numpy()
                top, left = (
                    i * (2 + 2 * 66) + 2 + film * 66,
                    2 + panel * 72,
                )  # two rows an image
                assert np.array_equal(sheet[top : top + 64, left : left + 70], want)
                top, left = 2 + i // 2 * 66, film * (2 + 2 * 72) + 2 + i % 2 * 72  # films side by side, two by two
                assert np.array_equal(pictures[panel][top : top + 64, left : left + 70], want)


def test_webp_loses_nothing_and_says_what_it_can_not_hold():
    noise = torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8)
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(webp(make_grid(noise, 2))))), np.asarray(make_grid(noise, 2))
    )
    assert Image.open(io.BytesIO(webp(Image.new("RGB", (WEBP_SIDE, 1))))).width == WEBP_SIDE
    with pytest.raises(ValueError, match=r"WebP limit|encoding error"):
        webp(Image.new("RGB", (WEBP_SIDE + 1, 1)))


@pytest.mark.parametrize(("kind", "channels"), [("WEBP", 1), ("WEBP", 3), ("GIF", 1)])
@pytest.mark.parametrize("many", [1, 2, 50])
def test_an_animation_keeps_every_level_loops_and_rests_at_its_end(kind, channels, many):
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 1, 16, 16).expand(many, 1, channels, -1, -1)
    films = levels.roll(1, -1), torch.stack([panel.roll(i, -1) for i, panel in enumerate(levels)])
    want = [np.asarray(picture) for picture in frames(*films)]
    durations = []
    with Image.open(io.BytesIO(animation(frames(*films), kind))) as file:
        assert (file.format, file.n_frames) == (kind, many)
        for picture, frame in zip(want, ImageSequence.Iterator(file), strict=True):
            assert np.array_equal(np.asarray(frame.convert("RGB")), picture)
            durations.append(frame.info["duration"])
        if many > 1:
            assert file.info["loop"] == 0  # for ever
            assert len(set(durations[:-1])) == 1
            assert durations[-1] == 2000  # ms
            assert sum(durations) <= 6000


@pytest.mark.parametrize("name", SCHEDULES)
def test_uniform_times_fall_where_their_density_says(name):
    """The share of a fine grid of times on each tenth of the log SNR's range against the integral of the density."""
    schedule, t = SCHEDULES[name](), torch.linspace(1e-3, 1 - 1e-3, 4000, dtype=torch.float64)
    level, density = uniform_density(schedule, t)
    edges = torch.linspace(level.min().item(), level.max().item(), 11, dtype=torch.float64)
    for low, high in pairwise(edges):
        inside = (low <= level) & (level <= high)
        share = inside.double().mean() * (1 - 2e-3)
        area = torch.trapezoid(density[inside].flip(0), level[inside].flip(0)) if inside.sum() > 1 else 0.0
        assert float(area) == pytest.approx(share.item(), abs=2e-3)
