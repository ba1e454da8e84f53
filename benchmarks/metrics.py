"""Sensitivity of each metric: the Fashion-MNIST test set with five kinds of damage, and samples of models.

    python benchmarks/metrics.py [samples.npz ...]

Prints the table of docs/evaluation.md. Every set is compared with the training set, with the shipped extractor.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from simple_diffusion.data.images import Images, to_uint8, to_unit
from simple_diffusion.data.sources import load_images
from simple_diffusion.evaluation.extractors import extractor_for
from simple_diffusion.evaluation.features import NEIGHBORS, ImageFeatures, cached_features
from simple_diffusion.evaluation.metrics import frechet_distance, inception_score, kernel_distance, precision_recall
from simple_diffusion.randomness import permutation


def blurred(pixels: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of `[N, 1, H, W]`."""
    x = torch.arange(-8, 9.0)
    kernel = (-(x**2) / (2 * sigma**2)).exp()
    kernel = kernel / kernel.sum()
    out = F.conv2d(
        F.conv2d(to_unit(pixels) + 1, kernel.view(1, 1, -1, 1), padding=(8, 0)),
        kernel.view(1, 1, 1, -1),
        padding=(0, 8),
    )
    return to_uint8(out - 1)


def damaged(test: Images) -> Iterator[tuple[str, Images]]:
    """The test set, unchanged and with each kind of damage."""
    assert test.labels is not None
    yield "test set", test
    for sigma in (0.4, 0.7, 1.5):
        yield f"blur, sigma {sigma}", replace(test, pixels=blurred(test.pixels, sigma))
    for deviation in (5, 15, 40):
        noise = deviation * torch.randn(test.pixels.shape, generator=torch.Generator().manual_seed(0))
        yield (
            f"noise, standard deviation {deviation}",
            replace(test, pixels=(test.pixels + noise).round().clamp(0, 255).to(torch.uint8)),
        )
    for missing in (1, 3, 6):
        kept = (test.labels >= missing).nonzero().flatten()
        yield f"{missing} of 10 classes missing", replace(test, pixels=test.pixels[kept], labels=test.labels[kept])
    for unique in (2000, 500, 100):
        again = torch.arange(len(test)) % unique
        yield f"{unique:,} images, repeated", replace(test, pixels=test.pixels[again], labels=test.labels[again])
    for shift in (5, 15, 40):
        yield f"brighter by {shift}", replace(test, pixels=(test.pixels.int() + shift).clamp(max=255).to(torch.uint8))


def row(name: str, real: ImageFeatures, fake: ImageFeatures) -> str:
    """One row of the table."""
    n = min(len(fake), NEIGHBORS)
    some_real = real.features[permutation(len(real), 0, "neighbours")[:n]]
    some_fake = fake.features[permutation(len(fake), 0, "neighbours")[:n]]
    kid, error = kernel_distance(some_real, some_fake)
    shares = precision_recall(some_real, some_fake)
    score, _ = inception_score(fake.logits, splits=1)
    fid = frechet_distance(real.moments, fake.moments)
    return (
        f"| {name} | {len(fake):,} | {fid:.3f} | {1000 * kid:.2f} ± {1960 * error:.2f} | {score:.2f} | "
        + " | ".join(f"{share:.3f}" for share in shares)
        + " |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", nargs="*", help=".npz files of `simple-diffusion sample`")
    args = parser.parse_args()
    train, test = load_images("fashion-mnist"), load_images("fashion-mnist", split="test")
    extractor = extractor_for(train)
    real = cached_features(train, extractor, extractor.name)
    print(
        f"extractor {extractor.name}, against {len(train):,} training images; nearest neighbors among {NEIGHBORS:,}\n"
    )
    print("| samples | n | FID | KID × 1000 | IS | precision | recall | density | coverage |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, images in damaged(test):
        print(row(name, real, ImageFeatures(*extractor(images.pixels))), flush=True)
    for path in args.samples:
        print(row(Path(path).stem, real, ImageFeatures(*extractor(load_images(path).pixels))), flush=True)


if __name__ == "__main__":
    main()
