"""Pictures: grids of images, and curves."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .schedules import Schedule


def grid(pixels: Tensor, columns: int, gap: int = 2, scale: int | None = None) -> Image.Image:
    """Images uint8 `[N, C, H, W]` in rows of `columns`, left to right, on a mid-grey ground.

    C is 1 or 3. scale enlarges each pixel to a square; by default small images are brought to about 64 pixels.
    """
    n, channels, height, width = pixels.shape
    if pixels.dtype != torch.uint8 or channels not in (1, 3):
        raise ValueError(f"a grid takes uint8 images of 1 or 3 channels, not {pixels.dtype} {tuple(pixels.shape)}")
    scale = scale or max(1, round(64 / max(height, width)))
    rows = -(-n // columns)
    high, wide = height * scale + gap, width * scale + gap
    sheet = np.full((rows * high + gap, columns * wide + gap, 3), 128, np.uint8)
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


def png(image: Image.Image) -> bytes:
    """The file's content."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def schedule_curves(schedules: dict[str, Schedule]) -> bytes:
    """alpha, sigma and the log SNR of schedules over time, on common axes: a PNG file's content."""
    from matplotlib.figure import Figure

    t = torch.linspace(1e-3, 1, 400, dtype=torch.float64)
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    signal, noise, log_snr = figure.subplots(1, 3)
    for name, schedule in schedules.items():
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        scale = (alpha**2 + sigma**2).sqrt()  # as the network sees it: at unit variance
        signal.plot(t, alpha / scale, label=name)
        noise.plot(t, sigma / scale, label=name)
        log_snr.plot(t, 2 * (alpha / sigma).log(), label=name)
    for axes, title in (
        (signal, r"signal  $\alpha\,/\sqrt{\alpha^2+\sigma^2}$"),
        (noise, r"noise  $\sigma\,/\sqrt{\alpha^2+\sigma^2}$"),
        (log_snr, r"log SNR  $\ln\,\alpha^2/\sigma^2$"),
    ):
        axes.set(title=title, xlabel="time t  (0 clean, 1 noise)", xlim=(0, 1))
        axes.grid(alpha=0.3)
    signal.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def level_curves(levels: Tensor, errors: dict[str, Tensor]) -> bytes:
    """Mean squared errors by noise level, `[L]` each, on logarithmic axes: a PNG file's content."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    styles = {"mean and covariance only": ("0.6", "--"), "training set by heart": ("0.3", ":")}
    for name, error in errors.items():
        colour, line = styles.get(name, (None, "-"))
        axes.plot(levels, error.clamp(min=1e-7), line, color=colour, label=name)
    axes.set(xscale="log", yscale="log", xlabel=r"noise level  $\sigma/\alpha$", ylabel="squared error a pixel")
    axes.set(title="Denoising error by noise level", ylim=(1e-5, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def npz(pixels: Tensor, labels: Tensor | None) -> bytes:
    """An .npz file's content: `images` uint8 `[N, H, W, C]` and, with labels, `labels` int64 `[N]`."""
    arrays = {"images": pixels.permute(0, 2, 3, 1).contiguous().numpy()}
    if labels is not None:
        arrays["labels"] = labels.numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
