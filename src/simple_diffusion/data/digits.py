"""Synthetic handwritten digits, which need no download: the sizes and the look of MNIST.

Each style of a digit has a few control points. An image moves these points at random, and a pen follows the smooth
curve through them.
"""

import numpy as np
import torch

from ..errors import DataError
from ..randomness import philox
from .images import Images, select

SIZES = {"train": 60_000, "test": 10_000}
SIDE = 28  # pixels, height and width of an image
BOX = 20  # pixels, the largest height or width of a digit, as in MNIST
SEGMENTS = 48  # straight segments of a curve, each about a pixel long
WINDOW = 7  # pixels that a segment can reach: its length, the widest pen and the soft edge
CHUNK = 25  # images rendered at once; so many fit into the processor cache

# The styles of each digit: "x,y" control points in percent of the height, y downwards; "/" starts a new curve.
# Equal points are one point, which moves as one: a corner is the common end of two curves.
STYLES: tuple[tuple[str, ...], ...] = (
    (  # closed, crossed at the top, round
        "42,5 28,1 12,14 3,48 10,84 28,99 48,86 59,50 52,15 36,1 24,4",
        "46,12 30,2 8,18 2,52 12,88 34,99 56,84 62,46 52,14 30,5 18,16",
        "46,3 20,6 3,30 2,66 20,95 46,98 70,76 74,38 60,9 36,2",
    ),
    (  # straight, bent, with an upstroke, with an upstroke and a foot
        "31,0 30,33 29,66 28,100",
        "36,0 29,32 27,66 30,100",
        "14,21 25,12 34,0 / 34,0 33,50 32,100",
        "13,22 25,12 34,0 / 34,0 33,50 32,98 / 8,99 32,98 58,97",
    ),
    (  # with a corner, with a loop, with a wave
        "6,24 20,4 42,1 55,18 48,44 28,70 4,97 / 4,97 34,95 66,93",
        "8,22 24,3 46,3 55,22 46,50 26,78 9,93 4,82 16,75 34,87 50,97 68,89",
        "4,20 22,2 44,4 52,24 42,52 22,78 2,94 / 2,94 20,85 42,94 66,92",
    ),
    (  # round, with a knot, with a flat top
        "6,12 24,1 44,6 49,24 38,40 20,46 / 20,46 44,52 57,72 46,93 24,100 4,88",
        "6,10 26,0 47,10 44,30 28,44 20,50 28,51 50,58 56,80 36,99 6,92",
        "6,3 30,2 54,1 / 54,1 40,20 26,38 / 26,38 48,47 58,70 44,94 20,99 2,89",
    ),
    (  # open, closed, open with a round cup
        "12,4 8,29 4,54 / 4,54 34,56 66,52 / 51,8 47,54 42,100",
        "46,0 24,32 2,64 / 2,64 34,64 68,62 / 46,0 46,50 44,100",
        "10,4 6,30 14,50 34,52 51,38 / 55,4 51,38 47,70 42,100",
    ),
    (  # with a top stroke, in one stroke, like an S
        "16,4 14,22 12,41 / 12,41 34,36 54,52 54,78 34,98 4,94 / 16,4 38,3 60,1",
        "60,2 38,4 16,6 / 16,6 14,25 12,44 / 12,44 34,38 54,54 52,80 30,99 2,90",
        "58,3 34,3 17,16 20,37 42,52 52,74 36,97 4,92",
    ),
    (  # bent, straight with a small bowl, with a curled top
        "46,2 24,20 8,50 6,78 22,98 44,94 54,74 42,57 22,59 8,76",
        "34,0 18,30 6,64 12,91 30,99 47,86 45,67 28,61 9,76",
        "54,12 40,2 20,18 6,50 8,84 28,100 50,88 54,66 38,52 18,62 8,80",
    ),
    (  # plain, with a bar, with a serif, round
        "0,6 32,4 64,2 / 64,2 47,34 33,66 22,100",
        "0,6 32,4 64,2 / 64,2 47,34 33,66 22,100 / 16,53 37,50 58,47",
        "0,20 4,5 / 4,5 34,7 64,2 / 64,2 48,36 35,66 26,100",
        "0,11 18,3 46,2 59,13 48,42 34,72 24,100",
    ),
    (  # started like an S, started in the middle, two rings
        "52,16 36,1 16,7 13,27 30,43 50,60 54,83 36,99 12,92 8,72 26,50 46,32 52,16",
        "30,46 12,32 14,10 32,0 50,10 48,32 30,46 10,62 7,84 28,100 52,88 50,64 30,46",
        "36,2 18,8 14,28 30,44 48,32 48,10 32,1 22,6 / 30,44 10,60 8,86 30,100 52,88 50,60 32,45 22,49",
    ),
    (  # straight, hooked, with a slanted tail
        "53,14 36,2 12,12 5,34 18,50 39,42 53,14 / 53,14 51,56 47,100",
        "50,18 34,2 12,10 6,32 22,48 42,38 50,18 52,50 44,84 24,99 8,90",
        "50,6 28,2 8,18 6,40 22,50 42,34 54,6 / 54,6 46,52 30,100",
    ),
)


def digits(split: str = "train", seed: int = 0, classes: str | None = None) -> Images:
    """60,000 ("train") or 10,000 ("test") white-on-black digits: pixels `[N, 1, 28, 28]`, classes exactly balanced.

    `classes` selects classes, in the format of `select`. The images of other classes are not rendered.

    Raises DataError for an unknown split or class.
    """
    if split not in SIZES:
        raise DataError(f"`split` of digits must be train or test, got {split!r}")
    n = SIZES[split]
    rng = np.random.Generator(philox(seed, f"digits {split}"))
    labels = rng.permutation(n) % 10
    style = rng.random(n)
    # With the same random numbers of NumPy the result should be bit-exact on every processor. float64 geometry, rounded
    # to float32, hides the order of summation in matrix products; everything after that is elementwise or a maximum.
    ends = np.empty((n, 2, SEGMENTS, 2))
    for digit, styles in enumerate(STYLES):
        for i, text in enumerate(styles):
            rows = np.flatnonzero((labels == digit) & (np.floor(style * len(styles)) == i))
            points, matrix = _style(text)
            ends[rows] = matrix @ _vary(points, len(rows), rng)[:, None]
    radius = _pen(n, rng)
    ends, radius = _place(ends, radius, rng).astype(np.float32), radius.astype(np.float32)
    targets, names = torch.from_numpy(labels), tuple("0123456789")
    if classes is not None:
        rows, targets, names = select("digits", classes, targets, names)
        ends, radius = ends[rows.numpy()], radius[rows.numpy()]
    pixels = [_render(ends[i : i + CHUNK], radius[i : i + CHUNK]) for i in range(0, len(ends), CHUNK)]
    return Images("digits", torch.from_numpy(np.concatenate(pixels)), targets, names)


def _style(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Control points `[C, 2]`, and the matrix `[2, S, C]` that maps them to both ends of each segment."""
    curves = [[tuple(map(float, point.split(","))) for point in curve.split()] for curve in text.split("/")]
    names = list(dict.fromkeys(point for curve in curves for point in curve))
    points = np.array(names) / 100 - (0.3, 0.5)
    rows = [[names.index(point) for point in curve] for curve in curves]
    times = [np.linspace(0, len(row) - 1, 1000) for row in rows]
    paths = [_catmull_rom(points[row], t) for row, t in zip(rows, times, strict=True)]
    travels = [np.linalg.norm(np.diff(p, axis=0, prepend=p[:1]), axis=1).cumsum() for p in paths]
    # The S segments are divided among the curves by length; rounding the cumulative lengths keeps the sum S.
    total = np.cumsum([0, *(travel[-1] for travel in travels)])
    shares = np.diff(np.rint(SEGMENTS * total / total[-1])).astype(int)
    knots = [
        _catmull_rom(np.eye(len(names))[row], np.interp(np.linspace(0, travel[-1], share + 1), travel, t))
        for row, t, travel, share in zip(rows, times, travels, shares, strict=True)
    ]
    return points, np.stack([np.concatenate([k[:-1] for k in knots]), np.concatenate([k[1:] for k in knots])])


def _catmull_rom(points: np.ndarray, u: np.ndarray) -> np.ndarray:
    """The Catmull-Rom spline through points `[n, D]`, which is at point i at time i, at times u `[M]`: `[M, D]`."""
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    i = np.minimum(u.astype(int), len(points) - 2)
    t = (u - i)[:, None]
    a, b, c, d = (padded[i + k] for k in range(4))
    return b + t / 2 * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))


def _vary(points: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """n variations of points `[C, 2]`: `[n, C, 2]`. Slant, rotation, proportions and bends differ, and points shift."""
    slip = rng.standard_normal((n, len(points) + 1, 2))
    p = points + 0.019 * (slip[:, 1:] + slip[:, :-1])  # neighbors move together, so that a curve stays smooth
    x, y = p[..., :1], p[..., 1:]
    terms = np.concatenate([x, y, x * x, x * y, y * y, y * y * y], axis=-1)
    # One random polynomial for all points of an image, so that they move consistently.
    usual = np.array([(1, 0), (-0.18, 1), (0, 0), (0, 0), (0, 0), (0, 0)])
    spread = np.array([(0.15, 0.07), (0.17, 0.08), (0.2, 0.15), (0.25, 0.2), (0.15, 0.15), (0.3, 0.1)])
    return terms @ (usual + spread * rng.standard_normal((n, *usual.shape)).clip(-2.2, 2.2))


def _pen(n: int, rng: np.random.Generator) -> np.ndarray:
    """Half the width of the pen in pixels along the segments, `[n, S]`; it varies a little, as with pressure."""
    t = np.linspace(-1, 1, SEGMENTS)
    pressure = 1 + rng.uniform(-0.12, 0.12, (n, 1)) * t + rng.uniform(-0.15, 0.1, (n, 1)) * t * t
    return rng.uniform(0.85, 1.5, (n, 1)) * pressure


def _place(ends: np.ndarray, radius: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Curves `[n, 2, S, 2]` in any units -> pixels: with the pen they nearly fill the box, roughly centered."""
    low, high = ends.min((1, 2), keepdims=True), ends.max((1, 2), keepdims=True)
    span = BOX * rng.uniform(0.88, 1, (len(ends), 1, 1, 1)) - 2 * radius.max(1)[:, None, None, None]
    middle = (SIDE - 1) / 2 + rng.uniform(-1, 1, (len(ends), 1, 1, 2))
    return (ends - (low + high) / 2) * (span / (high - low).max(3, keepdims=True)) + middle


def _render(ends: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Segments `[B, 2, S, 2]` (x, y) of a pen of half width `[B, S]` -> uint8 `[B, 1, 28, 28]`.

    Each segment changes only the pixels of its window. The windows are the leading axes, so that NumPy's inner loops
    are long.
    """
    x0, y0, x1, y1 = ends.transpose(1, 3, 0, 2).reshape(4, -1)  # each [B S]
    steps = np.arange(WINDOW, dtype=np.float32)[:, None]
    left, top = (np.rint((a + b - WINDOW + 1) / 2).clip(0, SIDE - WINDOW) for a, b in ((x0, x1), (y0, y1)))
    x, y = left + steps, (top + steps)[:, None]  # the pixels of the windows: [7, B S] and [7, 1, B S]
    way_x, way_y = x1 - x0, y1 - y0
    square = np.maximum(way_x * way_x + way_y * way_y, 1e-9)
    foot = ((x - x0) * (way_x / square) + (y - y0) * (way_y / square)).clip(
        0, 1
    )  # nearest place on the segment, in [0, 1]
    dx, dy = x - x0 - foot * way_x, y - y0 - foot * way_y
    ink = ((radius.ravel() - np.sqrt(dx * dx + dy * dy)) * 0.85 + 0.5).clip(
        0, 1
    )  # a soft edge, a little wider than a pixel
    frames = np.zeros((len(ends), 1, SIDE, SIDE), np.float32)
    pixel = (y * SIDE + x).astype(np.intp) + np.repeat(np.arange(len(ends)) * SIDE * SIDE, SEGMENTS)
    np.maximum.at(frames.reshape(-1), pixel.ravel(), ink.ravel())
    return np.rint(frames * 255).astype(np.uint8)
