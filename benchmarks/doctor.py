"""Real training mistakes, each in a run of a few seconds, and the findings of `doctor`.

    python benchmarks/doctor.py            # the table of docs/doctor.md, 4 minutes on one core

Each case is a function that trains in an empty folder and returns the run folder. The mistake is in the data, in the
settings, or in the code, which is then patched.
"""

import argparse
import shutil
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from functools import cache
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from simple_diffusion.cli import train as train_command
from simple_diffusion.cli.main import main
from simple_diffusion.data.digits import digits
from simple_diffusion.data.sources import load_images
from simple_diffusion.doctor.examine import Examination, examine
from simple_diffusion.doctor.patient import attach, load_patient
from simple_diffusion.errors import DivergedError
from simple_diffusion.run import trainer as runs
from simple_diffusion.system.files import read_tensors, write_tensors

STEPS = 300
SMALL = {"widths": "16,32", "blocks": "1,1", "batch": "32", "lr": "4e-3", "held_out": "0.1", "sampler": "dpmpp"}


@cache
def small_digits() -> tuple[np.ndarray, np.ndarray]:
    """3,000 digits of 14 x 14 pixels, uint8 `[N, 14, 14]`, and their labels."""
    images = digits("train")[:3000]
    assert images.labels is not None
    half = F.avg_pool2d(images.pixels.float(), 2).round().byte()[:, 0]
    return half.numpy(), images.labels.numpy()


def shapes(n: int = 1500, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Color images of 16 x 16, uint8 `[n, 16, 16, 3]`: a bright disc on a dark background; the label is its quarter."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 4
    y, x = np.mgrid[:16, :16]
    images = np.zeros((n, 16, 16, 3), np.uint8)
    for image, label in zip(images, labels, strict=True):
        center = np.array([4 + 8 * (label // 2), 4 + 8 * (label % 2)]) + rng.uniform(-1.5, 1.5, 2)
        edge = np.clip(rng.uniform(2, 4) - np.hypot(y - center[0], x - center[1]), 0, 1)[..., None]
        image[:] = rng.uniform(0, 90, 3) * (1 - edge) + rng.uniform(140, 255, 3) * edge
    return images, labels


def saved(folder: Path, images: np.ndarray, labels: np.ndarray | None = None) -> Path:
    """Save the images in an .npz file."""
    path = folder / "data.npz"
    np.savez(path, images=images) if labels is None else np.savez(path, images=images, labels=labels)
    return path


def train(folder: Path, data: Path | str, steps: int = 0, **settings) -> Path:
    """Train the small network; returns the run folder, also if the run diverged."""
    out = folder / "run"
    words = [f"--set={key}={value}" for key, value in (SMALL | settings).items()]
    train_command.STARTED = time.perf_counter()
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        try:
            main(["train", str(data), "--steps", str(steps or STEPS), "--out", str(out), *words])
        except SystemExit as stop:
            if stop.code != DivergedError.exit_code:
                raise
    return out


def examined(run: Path, **settings) -> Examination:
    """Examine a run, with these settings of the sampler."""
    patient = load_patient(run)
    patient = replace(patient, spec=patient.spec.changed(**settings))
    return examine(attach(patient, load_images(patient.info.name), None))


# --- healthy runs


def digits_with_labels(folder: Path, **settings) -> Path:
    return train(folder, saved(folder, *small_digits()), **settings)


@cache
def healthy_run(steps: int) -> tuple[TemporaryDirectory, Path]:
    """A healthy run, trained once, for the mistakes that are made after training."""
    folder = TemporaryDirectory()
    return folder, digits_with_labels(Path(folder.name), steps=steps)


def healthy(folder: Path) -> Path:
    """A copy of the healthy run and of its data."""
    _, run = healthy_run(STEPS)
    copy = Path(shutil.copytree(run, folder / "run"))
    data = saved(folder, *small_digits())
    return edited(copy, lambda tensors: None, data)


def digits_without_labels(folder: Path) -> Path:
    return train(folder, saved(folder, small_digits()[0]), seed=1)


def colour_shapes(folder: Path, **settings) -> Path:
    return train(folder, saved(folder, *shapes()), **{"steps": 3 * STEPS} | settings)


HEALTHY: dict[str, Callable[[Path], Path]] = {
    "digits, by class": digits_with_labels,
    "digits, no classes, seed 1": digits_without_labels,
    "color discs, by class": colour_shapes,
    "color discs, AdamW, cosine": lambda folder: colour_shapes(
        folder, optimizer="adamw", lr="2e-3", schedule="cosine", target="v", steps=3 * STEPS
    ),
    "digits, flow matching, ddim in 50 steps": lambda folder: digits_with_labels(
        folder, schedule="flow", target="flow", sampler="ddim", sampler_steps="50", grid="uniform", seed=2
    ),
    "digits, ddpm on 250 betas, no guidance, constant EMA": lambda folder: digits_with_labels(
        folder,
        schedule="linear",
        timesteps="250",
        density="steps",
        sampler="ddpm",
        sampler_steps="250",
        grid="uniform",
        guidance="1",
        ema_decay="0.99",
        lr_schedule="constant",
        lr="2e-3",
        steps=450,
    ),
}
"""Name -> a run without a mistake."""


# --- mistakes


def narrow(folder: Path) -> Path:
    """Images that were scaled to [0, 1] twice."""
    images, labels = small_digits()
    return train(folder, saved(folder, 128 + images // 4, labels))


def divided(folder: Path) -> Path:
    """uint8 images divided by 255 and saved as uint8: nearly all pixels are 0."""
    images, labels = small_digits()
    return train(folder, saved(folder, images // 255, labels))


def swapped(folder: Path) -> Path:
    """Data that was inverted after training."""
    images, labels = small_digits()
    run = healthy(folder)
    saved(folder, 255 - images, labels)
    return run


def short_table(folder: Path) -> Path:
    """The betas of DDPM over 100 steps instead of 1000."""
    return digits_with_labels(
        folder,
        schedule="linear-unscaled",
        timesteps="100",
        density="steps",
        grid="uniform",
        sampler="ddpm",
        sampler_steps="100",
    )


def little_noise(folder: Path) -> Path:
    """A density of noise levels that hardly covers high noise."""
    return digits_with_labels(folder, level_mean="-3", level_std="0.8")


def average_of_the_start(folder: Path) -> Path:
    """An EMA decay of 0.9999 from the first step, in a run of 300 steps."""
    with patch.object(runs, "decay_of", lambda config: lambda n: 0.9999):
        return digits_with_labels(folder)


def average_from_zero(folder: Path) -> Path:
    """An EMA that starts at zero, without bias correction."""

    class FromZero(runs.EMA):
        def __init__(self, model, decay):
            super().__init__(model, lambda n: 0.998)
            with torch.no_grad():
                for weight in self.model.parameters():
                    weight.zero_()

    with patch.object(runs, "EMA", FromZero):
        return digits_with_labels(folder)


def high_rate(folder: Path) -> Path:
    """A learning rate a hundred times too high."""
    return digits_with_labels(folder, optimizer="adamw", lr="0.4", lr_schedule="constant")


def highest_rate(folder: Path) -> Path:
    """Muon with a learning rate of 10."""
    return digits_with_labels(folder, lr="10", lr_schedule="constant")


def too_short(folder: Path) -> Path:
    """Fifteen steps."""
    return digits_with_labels(folder, steps=15)


def few_images(folder: Path) -> Path:
    """Twenty images, 1,440 times each."""
    return train(folder, saved(folder, small_digits()[0][:20]), steps=3 * STEPS, held_out="0")


def few_with_unseen(folder: Path) -> Path:
    """Forty training images and forty held-out images."""
    return train(folder, saved(folder, small_digits()[0][:80]), steps=3 * STEPS, held_out="0.5")


def shuffled(folder: Path) -> Path:
    """Labels in another order than the images."""
    images, labels = small_digits()
    return train(folder, saved(folder, images, np.random.default_rng(0).permutation(labels)))


def dropped(folder: Path) -> Path:
    """All labels dropped in training."""
    return digits_with_labels(folder, drop_labels="1")


def none_dropped(folder: Path) -> Path:
    """No label is dropped in training, and the samples are guided."""
    return digits_with_labels(folder, drop_labels="0")


def edited(run: Path, change: Callable[[dict[str, Tensor]], None], data: Path | None = None) -> Path:
    """The run after a change to the weights of its model, or to the path of its data."""
    tensors, record = read_tensors(run / "model.safetensors")
    change(tensors)
    record.pop("format")
    if data is not None:
        record["info"]["name"] = record["config"]["data"] = str(data)
    write_tensors(run / "model.safetensors", tensors, record)
    return run


def nan_in_a_layer(folder: Path) -> Path:
    """A NaN in one layer of the model file."""

    def change(tensors: dict[str, Tensor]) -> None:
        name = next(name for name in tensors if "down" in name)
        tensors[name].view(-1)[0] = torch.nan

    return edited(healthy(folder), change)


def overflow(folder: Path) -> Path:
    """Weights of one layer so large that its outputs overflow."""

    def change(tensors: dict[str, Tensor]) -> None:
        name = next(name for name in tensors if "down" in name and name.endswith("conv1.weight"))
        tensors[name].fill_(1e38)

    return edited(healthy(folder), change)


@dataclass(frozen=True)
class Mistake:
    """A mistake: how it is made, its expected first finding, and the settings of the sampler."""

    make: Callable[[Path], Path]
    expected: str
    sampler: dict = field(default_factory=dict)


MISTAKES: dict[str, Mistake] = {
    "images scaled to [0, 1] twice": Mistake(narrow, "pixel range"),
    "uint8 divided by 255": Mistake(divided, "pixel range"),
    "data inverted after training": Mistake(swapped, "changed data"),
    "DDPM betas over 100 steps": Mistake(short_table, "terminal SNR"),
    "training at low noise only": Mistake(little_noise, "untrained noise levels"),
    "EMA decay 0.9999 from the first step, 300 steps": Mistake(average_of_the_start, "slow EMA"),
    "EMA started at zero, no bias correction": Mistake(average_from_zero, "bad EMA"),
    "AdamW with lr 0.4": Mistake(high_rate, "learning rate too high"),
    "Muon with lr 10": Mistake(highest_rate, "learning rate too high"),
    "15 steps": Mistake(too_short, "too little training"),
    "20 images, 1,440 times each": Mistake(few_images, "memorization"),
    "40 images, 40 held out": Mistake(few_with_unseen, "overfitting"),
    "labels shuffled": Mistake(shuffled, "labels ignored"),
    "all labels dropped": Mistake(dropped, "labels ignored"),
    "guidance 0": Mistake(healthy, "labels ignored", {"guidance": 0.0}),
    "no label dropped, guidance 1.5": Mistake(none_dropped, "untrained guidance"),
    "guidance 20": Mistake(healthy, "guidance too strong", {"guidance": 20.0}),
    "ddim in 2 steps": Mistake(healthy, "too few steps", {"sampler": "ddim", "sampler_steps": 2}),
    "ddpm in 10 steps": Mistake(healthy, "too few steps", {"sampler": "ddpm", "sampler_steps": 10}),
    "NaN in one layer": Mistake(nan_in_a_layer, "non-finite values"),
    "weights of 1e38 in one layer": Mistake(overflow, "non-finite values"),
}


def table(names: list[str]) -> None:
    """Print the table of the cases whose names contain one of the words, row by row."""
    print("| run | first finding | times its bound | other findings |\n|---|---|---|---|")
    cases = MISTAKES | {name: Mistake(make, "") for name, make in HEALTHY.items()}
    for name, mistake in cases.items():
        if names and not any(word in name for word in names):
            continue
        with TemporaryDirectory() as folder:
            result = examined(mistake.make(Path(folder)), **mistake.sampler)
        found = list(result.findings)
        everything = result.findings | result.passed
        first = found[0] if found else "none"
        right = found[:1] == [mistake.expected] if mistake.expected else not found
        most = everything[found[0]].excess if found else max(finding.excess for finding in everything.values())
        print(f"| {name} | {first}{'' if right else ' (wrong)'} | {most:.3g} | {', '.join(found[1:])} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of the names of cases (default: all cases)")
    table(parser.parse_args().names)
