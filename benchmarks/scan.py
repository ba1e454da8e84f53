"""How fast a folder of images is read, and the cost of rejecting a header that claims 3,600 megapixels.

    python benchmarks/scan.py [--images 2000] [--sizes 64 256] [--kinds jpg png webp]

The images are smooth noise with fine noise on top, which compresses like photographs. The speed of a core is the number
of images over the processor time of this process; the best of three rounds counts, as other programs share the machine.
"""

import argparse
import struct
import sys
import time
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from simple_diffusion.data.folder import load_folder
from simple_diffusion.errors import DataError

OPTIONS: dict[str, dict[str, Any]] = {"jpg": {"quality": 90}, "png": {}, "webp": {"quality": 90}, "bmp": {}}


def photograph(side: int, rng: np.random.Generator) -> Image.Image:
    """A few soft blobs of color, and noise."""
    blobs = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 8, (side, side, 3))
    return Image.fromarray((np.asarray(blobs) + grain).clip(0, 255).astype(np.uint8))


def speed(folder: Path, count: int) -> float:
    """Images per second and core: decoded, checked, and resized to one size."""
    best = 0.0
    for _ in range(3):
        began = time.process_time()
        load_folder(folder)
        best = max(best, count / (time.process_time() - began))
    return best


def bomb(side: int) -> bytes:
    """The header of an RGB PNG of side x side."""
    body = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + b"\0\0\0\0IEND"


def resident() -> float:
    """Peak memory of this process in MB; NaN where the system does not report it."""
    if sys.platform == "win32":
        return float("nan")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def refuse(folder: Path) -> tuple[float, float]:
    """Milliseconds and megabytes to reject the only image of a folder."""
    before, began = resident(), time.perf_counter()
    try:
        load_folder(folder)
    except DataError:
        return 1e3 * (time.perf_counter() - began), resident() - before
    raise AssertionError("it was not refused")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, help="images in each folder")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256], help="height and width in pixels")
    parser.add_argument("--kinds", nargs="+", default=["jpg", "png", "webp"], choices=list(OPTIONS))
    args = parser.parse_args()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "bomb"
        folder.mkdir()
        (folder / "bomb.png").write_bytes(bomb(60_000))
        first, megabytes = refuse(folder)  # before anything else, while this process has had little memory
        again, _ = refuse(folder)
        print(
            f"60000 x 60000 pixels promised in {len(bomb(60_000))} bytes: refused in {again:.1f} ms, and the first time"
        )
        print(f"in {first:.0f} ms and {megabytes:.1f} MB, which are Pillow's, to load its decoders\n")
        print("| format | pixels | kB an image | images/s and core |\n|---|---|---|---|")
        for side in args.sizes:
            rng = np.random.default_rng(0)
            photographs = [photograph(side, rng) for _ in range(args.images)]
            for kind in args.kinds:
                folder = Path(scratch) / f"{kind}{side}"
                folder.mkdir()
                for number, image in enumerate(photographs):
                    image.save(folder / f"{number}.{kind}", **OPTIONS[kind])
                size = sum(path.stat().st_size for path in folder.iterdir()) / args.images / 1e3
                print(f"| {kind} | {side} x {side} | {size:.1f} | {speed(folder, args.images):,.0f} |", flush=True)


if __name__ == "__main__":
    main()
