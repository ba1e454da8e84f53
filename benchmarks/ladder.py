"""Measure each step from DDPM to the current defaults at equal compute, over several seeds.

    python benchmarks/ladder.py                  # 45 minutes on two cores; a second call resumes
    python benchmarks/ladder.py --steps 50 --n 500 --seeds 2 --out trial

All models have the same network, updates, batch size and learning rate. Models of one seed also have the same order of
images and the same noise. Entries that compare models use one sampler with enough steps; entries that compare samplers
use one model at equal NFE. A difference counts as significant if its 95 % interval over the seeds (Student's t, paired
by seed) excludes 0.
"""

import argparse
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from intervals import interval

os.environ["OMP_NUM_THREADS"] = "1"  # one process per core, one thread per process

FINE: dict[str, Any] = {"sampler": "dpmpp", "grid": "karras", "sampler_steps": 18}
DDPM: dict[str, Any] = {
    "optimizer": "adamw",
    "schedule": "linear",
    "timesteps": 1000,
    "density": "steps",
    "target": "noise",
    "guidance": 1.0,
}
EDM: dict[str, Any] = {
    "optimizer": "adamw",
    "schedule": "karras",
    "timesteps": 0,
    "density": "lognormal",
    "target": "v",
    "guidance": 1.0,
}
COSINE = DDPM | {"schedule": "cosine"}


@dataclass(frozen=True)
class Entry:
    """One entry of the table.

    training   key of TRAININGS
    before     name of the entry to compare with, None for the first
    sampling   settings of the sampler
    averaged   sample with the EMA weights instead of the last weights
    """

    name: str
    training: str
    before: str | None
    sampling: dict[str, Any] = field(default_factory=lambda: FINE)
    averaged: bool = True


TRAININGS: dict[str, tuple[dict[str, Any], bool]] = {  # name -> (settings, conditioned on labels)
    "linear": (DDPM, False),
    "cosine": (COSINE, False),
    "labels": (COSINE, True),
    "v": (COSINE | {"target": "v"}, True),
    "edm": (EDM, True),
    "flow": (EDM | {"schedule": "flow", "target": "flow"}, True),
    "muon": (EDM | {"optimizer": "muon"}, True),
}
NFES = (10, 20)
ENTRIES = [
    Entry("linear, noise", "linear", None, averaged=False),
    Entry("cosine", "cosine", "linear, noise", averaged=False),
    Entry("+ labels", "labels", "cosine", averaged=False),
    Entry("+ EMA", "labels", "+ labels"),
    Entry("v-prediction", "v", "+ EMA"),
    Entry("EDM", "edm", "v-prediction"),
    Entry("flow", "flow", "EDM"),
    Entry("EDM + guidance 1.5", "edm", "EDM", FINE | {"guidance": 1.5}),
    Entry("EDM + Muon", "muon", "EDM"),
] + [
    Entry(
        f"{sampler}, {n}",
        "edm",
        f"{before}, {n}" if before else None,
        FINE | {"sampler": sampler, "sampler_steps": (n + 1) // 2 if sampler == "heun" else n},
    )
    for n in NFES
    for before, sampler in ((None, "ddpm"), ("ddpm", "ddim"), ("ddim", "heun"), ("ddim", "dpmpp"))
]
SCORES = ("FID", "KID", "precision", "recall")


def task(training: str, seed: int, steps: int, n: int, data: str) -> dict[str, dict[str, float]]:
    """Train one model and score all entries that use it: name of the entry -> score -> value."""
    import torch

    from simple_diffusion.data.info import DataInfo
    from simple_diffusion.data.labels import labels_like
    from simple_diffusion.data.sources import load_images
    from simple_diffusion.ema import EMA
    from simple_diffusion.evaluation.extractors import extractor_for
    from simple_diffusion.evaluation.features import ImageFeatures, cached_features
    from simple_diffusion.evaluation.metrics import frechet_distance, kernel_distance, precision_recall
    from simple_diffusion.model.build import ModelSpec
    from simple_diffusion.model.config import Config, fitted
    from simple_diffusion.model.generate import generate
    from simple_diffusion.model.model_file import Model
    from simple_diffusion.model.presets import PRESETS
    from simple_diffusion.randomness import permutation
    from simple_diffusion.run.budget import Budget
    from simple_diffusion.run.steps import decay_of, start_training

    torch.set_num_threads(1)
    settings, labelled = TRAININGS[training]
    train = load_images(data)
    images = train if labelled else train.without_labels()
    tiny = PRESETS["tiny"][1]
    config = fitted(Config(data=data, steps=steps, seconds=0.0, seed=seed, **tiny | settings), torch.device("cpu"))
    info = DataInfo.of(images)
    budget = Budget(config, time.perf_counter())
    denoiser, updates = start_training(ModelSpec(config, info), images, torch.device("cpu"), budget.advance)
    ema = EMA(denoiser, decay_of(config))
    for step in updates:
        ema.update(denoiser, step.n)
        if step.n == steps:
            break
    trained = time.perf_counter() - budget.started
    extractor = extractor_for(train)
    real = cached_features(train, extractor, extractor.name)
    some = real[permutation(len(real), 0, "ladder")[:n]].features
    scores = {}
    for entry in ENTRIES:
        if entry.training == training:
            chosen = replace(config, **entry.sampling)
            model = Model((ema.model if entry.averaged else denoiser).eval(), ModelSpec(chosen, info), steps, trained)
            labels = labels_like(images, n, seed) if labelled else None
            fake = ImageFeatures(*extractor(generate(model, n, labels, seed)))
            near = precision_recall(some, fake.features)
            scores[entry.name] = {
                "FID": frechet_distance(real.moments, fake.moments),
                "KID": kernel_distance(some, fake.features)[0],
                "precision": near.precision,
                "recall": near.recall,
                "trained": trained,
            }
    return scores


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", default="fashion-mnist")
    options.add_argument("--steps", type=int, default=1200, help="updates of each model, with 64 images each")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--n", type=int, default=3000, help="samples for each entry")
    options.add_argument("--workers", type=int, default=os.cpu_count())
    options.add_argument("--out", type=Path, default=Path("docs"))
    args = options.parse_args()

    from simple_diffusion.system.files import write_atomic

    images = args.out / "images"
    images.mkdir(parents=True, exist_ok=True)
    setup = {"data": args.data, "steps": args.steps, "n": args.n}
    record = args.out / "ladder.json"
    done: dict[str, Any] = json.loads(record.read_text()) if record.is_file() else {"setup": setup, "seconds": 0.0}
    if done["setup"] != setup:
        raise SystemExit(f"{record} has results of {done['setup']}, not of {setup}: choose another --out or remove it")
    began, before = time.perf_counter(), done["seconds"]
    todo = [(t, seed) for seed in range(args.seeds) for t in TRAININGS if f"{t}, seed {seed}" not in done]
    work = partial(task, steps=args.steps, n=args.n, data=args.data)
    with ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(work, training, seed): f"{training}, seed {seed}" for training, seed in todo}
        for result in as_completed(running):  # write each result at once, so that an interrupted run can resume
            done[running[result]] = result.result()
            done["seconds"] = before + time.perf_counter() - began
            write_atomic(record, (json.dumps(done, indent=1) + "\n").encode())
            print(f"{done['seconds']:6.0f} s  {running[result]}", flush=True)
    values = {
        entry.name: [done[f"{entry.training}, seed {seed}"][entry.name] for seed in range(args.seeds)]
        for entry in ENTRIES
    }
    print(table(values))
    (images / "ladder.png").write_bytes(plot(values))
    print(f"{done['seconds'] / 60:.0f} minutes; {record}, {images / 'ladder.png'}")


def verdict(now: list[float], before: list[float]) -> str:
    """The change of FID, paired by seed, and whether it is significant."""
    change, half = interval([a - b for a, b in zip(now, before, strict=True)])
    if abs(change) <= half:
        return f"not significant: {change:+.3f} ± {half:.3f}"
    return f"{'better' if change < 0 else 'worse'}: {change:+.3f} ± {half:.3f}"


def table(values: dict[str, list[dict[str, float]]]) -> str:
    """A Markdown table: mean and confidence interval of each score, and the change of FID."""
    lines = [
        "| step | FID | KID × 1000 | precision | recall | compared with | change of FID |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in ENTRIES:
        columns = {score: [row[score] for row in values[entry.name]] for score in SCORES}
        cells = []
        for score, scale, digits in (("FID", 1, 3), ("KID", 1000, 2), ("precision", 1, 3), ("recall", 1, 3)):
            middle, half = interval([scale * value for value in columns[score]])
            cells.append(f"{middle:.{digits}f} ± {half:.{digits}f}")
        against = verdict(columns["FID"], [row["FID"] for row in values[entry.before]]) if entry.before else ""
        lines.append(f"| {entry.name} | {' | '.join(cells)} | {entry.before or ''} | {against} |")
    return "\n".join(lines)


def plot(values: dict[str, list[dict[str, float]]]) -> bytes:
    """FID and recall of every entry, one point per seed, as the bytes of a PNG file."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.4), layout="constrained")
    names = [entry.name for entry in ENTRIES]
    models = sum("," not in name or name == names[0] for name in names)
    for axes, score in zip(figure.subplots(2, 1, sharex=True), ("FID", "recall"), strict=True):
        for i, name in enumerate(names):
            points = [row[score] for row in values[name]]
            color = "C0" if i < models else "C1"
            axes.hlines(mean(points), i - 0.4, i + 0.4, color=color, lw=3)
            axes.plot([i] * len(points), points, "o", color="0.3", ms=4, mfc="none")
        axes.set(ylabel=score, yscale="log" if score == "FID" else "linear")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.grid(axis="y", which="both", alpha=0.3)
        axes.axvline(models - 0.5, color="0.7", lw=1)
        if score == "FID":
            titles = {
                models / 2: "models, sampled with dpmpp in 18 steps",
                (models + len(names)) / 2: "samplers of the model EDM, by NFE",
            }
            for x, title in titles.items():
                axes.text(x - 0.5, 1.03, title, ha="center", transform=axes.get_xaxis_transform())
        axes.set_xticks(range(len(names)), names, rotation=35, ha="right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
