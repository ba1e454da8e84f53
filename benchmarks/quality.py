"""Quality for a training time on this machine: train, sample and score over several seeds. Prints one table row.

    python benchmarks/quality.py --for 10min --seeds 3 --out quality
    python benchmarks/quality.py --for 10min --seeds 3 --out wider -- --set widths=64,128

Options after `--` are passed to `simple-diffusion train`. The commands run one after the other, as a user would type
them. Run nothing else on the machine. OUT contains the runs and scores.json; finished seeds are not repeated. Intervals
are 95 % confidence intervals over the seeds (Student's t).
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from intervals import T95, interval
from throughput import flops_of

from simple_diffusion.data.images import Images
from simple_diffusion.model.build import ModelSpec
from simple_diffusion.model.model_file import read
from simple_diffusion.run.estimate import matmul_speed
from simple_diffusion.run.steps import start_training
from simple_diffusion.run.trainer import MODEL_FILE
from simple_diffusion.system.device import PRECISIONS, pick_precision


def command(*words: str) -> dict[str, Any]:
    """The --json result of one command."""
    result = subprocess.run(
        [sys.executable, "-m", "simple_diffusion", *words, "--json"], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(result.stdout)


def flops_an_image(model_file: Path) -> float:
    """FLOPs of training on one image, forward and backward."""
    model = read(model_file)
    info, config = model.info, model.config
    pixels = torch.randint(0, 256, (2 * config.batch, *info.shape), dtype=torch.uint8)
    labels = torch.arange(len(pixels)) % info.classes if info.classes else None
    images = Images("noise", pixels, labels, info.class_names)
    _, steps = start_training(ModelSpec(config, info), images, torch.device("cpu"), lambda n: 1e-6)
    return flops_of(steps) / config.batch


def measured(data: str, length: str, seed: int, n: int, out: Path, options: list[str]) -> dict[str, float]:
    """Train and score one model."""
    run = out / f"seed-{seed}"
    shutil.rmtree(run, ignore_errors=True)  # left by a benchmark that was stopped
    cpu = torch.device("cpu")
    dtype = PRECISIONS[pick_precision("auto", cpu)]  # precision of training
    peaks = [matmul_speed(dtype, cpu)]
    trained = command("train", data, "--for", length, "--seed", str(seed), "--out", str(run), *options)
    peaks.append(matmul_speed(dtype, cpu))
    scored = command("evaluate", str(run), "--n", str(n), "--out", str(run / "scores"))
    scores = scored["extractors"][0]["scores"]
    speed, flops = trained["images_per_second"], flops_an_image(run / MODEL_FILE)
    result = {score["name"]: score["value"] for score in scores if score["value"] is not None}
    result |= {f"{score['name']}, real": score["baseline"] for score in scores if score["baseline"] is not None}
    return result | {
        "images seen": trained["images"],
        "images/s": speed,
        "GFLOP/image": flops / 1e9,
        "share of peak": speed * flops / median(peaks),
        "GFLOP/s, matrix product": median(peaks) / 1e9,
        "sampled images/s": n / scored["sampling_seconds"],
    }


def row(results: list[dict[str, float]]) -> dict[str, str]:
    """The mean of each result over the seeds, with half the width of its interval if there are several seeds."""
    cells = {}
    for name in results[0]:
        values = [result[name] for result in results]
        cells[name] = f"{mean(values):.4g}"
        if len(values) > 1 and not name.endswith("real"):
            cells[name] += f" ± {interval(values)[1]:.2g}"
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--for", dest="length", default="10min", metavar="TIME")
    parser.add_argument("--seeds", type=int, default=3, choices=[1, *T95])
    parser.add_argument("--n", type=int, default=10000, help="number of images to sample and score")
    parser.add_argument("--out", type=Path, default=Path("quality"))
    parser.add_argument("options", nargs="*", help="options of `train`, after --")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    record = args.out / "scores.json"
    setup = {
        "commit": commit,
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores",
        "train": [args.data, "--for", args.length, *args.options],
        "n": args.n,
    }
    done: dict[str, Any] = json.loads(record.read_text()) if record.is_file() else {"setup": setup, "seeds": {}}
    if done["setup"] != setup:
        raise SystemExit(f"{record} has the setup {done['setup']}, not {setup}: give another --out, or remove it")
    for seed in map(str, range(args.seeds)):
        if seed not in done["seeds"]:
            done["seeds"][seed] = measured(args.data, args.length, int(seed), args.n, args.out, args.options)
            record.write_text(json.dumps(done, indent=1) + "\n")
            print(f"seed {seed}: " + json.dumps(done["seeds"][seed]), flush=True)
    cells = row([done["seeds"][str(seed)] for seed in range(args.seeds)])
    print(f"{' '.join(setup['train'])}; {commit}; {setup['machine']}; {args.seeds} seeds; n = {args.n}\n")
    print(f"| {' | '.join(cells)} |\n{'|---' * len(cells)}|\n| {' | '.join(cells.values())} |")


if __name__ == "__main__":
    main()
