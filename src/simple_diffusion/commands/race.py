"""`simple-diffusion race`: which sampler in how many steps suits this model?"""

import argparse
import time
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .options import command, data_of, data_options, device_options, path, say, seed, whole

COSTS = (5, 7, 10, 14, 20, 30)


def add(commands: Any) -> None:
    sub = command(commands, "race", run, "every sampler at several costs on one model: quality against evaluations")
    sub.add_argument("model", metavar="MODEL", help="a run folder or a .safetensors file")
    sub.add_argument("--n", type=whole(2, 10**6), default=2000, help="images of each (default 2000)")
    sub.add_argument("--seed", type=seed, default=0, metavar="N", help="of the noise (default 0)")
    sub.add_argument(
        "--evaluations",
        type=costs,
        default=COSTS,
        metavar="N,N,...",
        help=f"of the network an image, at which they race (default {','.join(map(str, COSTS))})",
    )
    sub.add_argument("--write", action="store_true", help="make the winner the model's default")
    sub.add_argument("--data", metavar="DATA", help="what to compare with (default the model's data)")
    sub.add_argument("--out", type=path, default=Path("race.png"), metavar="FILE.png", help="the picture of the race")
    data_options(sub)
    device_options(sub)


def costs(text: str) -> tuple[int, ...]:
    """`5,10,20` -> numbers of evaluations."""
    words = text.split(",")
    numbers = tuple(int(word) if word.isascii() and word.isdecimal() else 0 for word in words)
    if len(numbers) > 20 or not all(2 <= number <= 10000 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of up to 20 whole numbers from 2 to 10000 like 5,10,20")
    return numbers


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.out.suffix != ".png":
        raise UsageError(f"--out {args.out} has another ending than .png: use .png")

    from dataclasses import replace

    from ..checkpoint import MODEL_FILE, read, save
    from ..comparing import check_count
    from ..drawing import draw
    from ..evaluation import featured, labels_for
    from ..extractors import extractor_for
    from ..figures import race_curves
    from ..files import write_atomic
    from ..racing import FINE, RACERS, choice, entrants, front, race

    model = read(args.model, args.device, args.precision)
    config = model.config
    images, n = data_of(args, model, args.n)
    labels = labels_for(model.card, images, n, args.seed)
    extractor = extractor_for(images, quiet=args.json)
    real = featured(images, extractor, extractor.name)
    check_count(n, real)

    began, few = time.perf_counter(), min(n, 128)
    some = None if labels is None else labels[:few]
    draw(replace(model, config=replace(config, sampler="dpmpp", sampler_steps=10)), few, some, args.seed)
    laps_to_run = entrants(args.evaluations)
    evaluations = sum(steps * RACERS[name] for name, steps in [*laps_to_run, FINE])
    estimate = (time.perf_counter() - began) / few / 10 * evaluations * n
    say(args, f"{len(laps_to_run)} laps of {n:,} images: about {estimate:.0f} s for drawing.")
    laps = []
    for lap in race(model, args.evaluations, n, labels, args.seed, extractor, real):
        laps.append(lap)
        away = "" if lap.distance is None else f", {lap.distance:.4f} from the fine solution"
        score = f"FID {lap.fid:.4g} ± {1.96 * lap.error:.2g}{away}"
        say(args, f"  {lap.sampler:<9} {lap.steps:>3} steps, {lap.cost:>3} evaluations: {score}")
    best = choice(laps, real)
    on_front = front(laps)
    say(
        args,
        f"FID of {extractor.name} at n = {n:,}. Nothing cheaper is better than "
        + ", ".join(f"{lap.sampler} in {lap.steps}" for lap in on_front)
        + ".",
    )
    say(args, f"The cheapest that can't be told from the best: {best.sampler} in {best.steps} steps.")
    curves = {name: [lap for lap in laps if lap.sampler == name] for name in dict.fromkeys(lap.sampler for lap in laps)}
    write_atomic(
        args.out,
        race_curves(
            {name: [(lap.cost, lap.fid) for lap in of_name] for name, of_name in curves.items()},
            {
                name: [(lap.cost, lap.distance) for lap in of_name if lap.distance is not None]
                for name, of_name in curves.items()
            },
            [(lap.cost, lap.fid) for lap in on_front],
            f"FID, {extractor.name}, n = {n:,}",
        ),
    )
    say(args, f"Picture: {args.out}")
    if args.write:
        file = Path(args.model) / MODEL_FILE if Path(args.model).is_dir() else Path(args.model)
        save(file, replace(model, config=replace(config, **best.settings())))
        before = f"{config.sampler} in {config.sampler_steps}"
        say(args, f"{file} now draws with {best.sampler} in {best.steps} steps; before: {before}.")
    return {
        "n": n,
        "extractor": extractor.name,
        "laps": [
            {
                "sampler": lap.sampler,
                "steps": lap.steps,
                "evaluations": lap.cost,
                "fid": lap.fid,
                "error": lap.error,
                "distance": lap.distance,
                "on_front": lap in on_front,
            }
            for lap in laps
        ],
        "choice": best.settings(),
        "written": args.write,
        "out": str(args.out),
    }
