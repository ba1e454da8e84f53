"""`simple-diffusion race`: which sampler in how many steps, and which guidance, suits this model?"""

import argparse
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..lock import hold
from .options import command, data_of, data_options, device_options, path, png_only, say, scale, seed, whole

COSTS = (5, 7, 10, 14, 20, 30)


def add(commands: Any) -> None:
    sub = command(commands, "race", run, "every sampler at several costs on one model, or strengths of guidance")
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
    sub.add_argument(
        "--guidance",
        type=scales,
        metavar="X,X,...",
        help="race strengths of guidance instead of samplers, like 1,1.5,2",
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


def scales(text: str) -> tuple[float, ...]:
    """`1,1.5,2` -> strengths of guidance."""
    words = text.split(",")
    if len(words) > 20:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of up to 20 numbers like 1,1.5,2")
    return tuple(scale(word) for word in words)


def run(args: argparse.Namespace) -> dict[str, Any]:
    png_only(args.out)

    from ..checkpoint import read
    from ..comparing import check_count
    from ..evaluation import featured, labels_for
    from ..extractors import extractor_for

    model = read(args.model, args.device, args.precision)
    if args.guidance and not model.card.classes:
        raise UsageError(f"{args.model} knows no classes, and guidance is towards one: leave --guidance out")
    images, n = data_of(args, model, args.n)
    labels = labels_for(model.card, images, n, args.seed)
    extractor = extractor_for(images, quiet=args.json)
    real = featured(images, extractor, extractor.name)
    check_count(n, real)
    field = (model, n, labels, args.seed, extractor, real)
    return strengths(args, images, *field) if args.guidance else samplers(args, *field)


def samplers(args: argparse.Namespace, model, n: int, labels, seed: int, extractor, real) -> dict[str, Any]:
    """The race of samplers."""
    from dataclasses import replace

    from ..figures import race_curves
    from ..files import write_atomic
    from ..racing import FINE, choice, cost_of, drawn, drawn_by, entrants, front, race

    config = model.config
    began, few = time.perf_counter(), min(n, 128)
    drawn(model, drawn_by("dpmpp", 10), few, None if labels is None else labels[:few], seed)
    laps_to_run = entrants(args.evaluations)
    evaluations = sum(cost_of(*one) for one in [*laps_to_run, FINE])
    estimate = (time.perf_counter() - began) / few / 10 * evaluations * n
    say(args, f"{len(laps_to_run)} laps of {n:,} images: about {estimate:.0f} s for drawing.")
    laps = []
    for lap in race(model, args.evaluations, n, labels, seed, extractor, real):
        laps.append(lap)
        away = "" if lap.distance is None else f", {lap.distance:.2g} from the fine solution"
        score = f"FID {lap.fid:.4g} ± {1.96 * lap.error:.2g}, KID {lap.kid:.2g}{away}"
        say(args, f"  {lap.sampler:<9} {lap.steps:>3} steps, {lap.cost:>3} evaluations: {score}")
    best, on_front = choice(laps, real), front(laps)
    names = ", ".join(f"{lap.sampler} in {lap.steps}" for lap in on_front)
    say(args, f"FID of {extractor.name} at n = {n:,}. Nothing cheaper is better than {names}.")
    say(args, f"The cheapest that can't be told from the best: {best.sampler} in {best.steps} steps.")
    curves = {name: [lap for lap in laps if lap.sampler == name] for name in dict.fromkeys(lap.sampler for lap in laps)}
    quality = {name: [(lap.cost, lap.fid) for lap in of_name] for name, of_name in curves.items()}
    distance = {
        name: [(lap.cost, lap.distance) for lap in of_name if lap.distance is not None]
        for name, of_name in curves.items()
    }
    line = [(lap.cost, lap.fid) for lap in on_front]
    write_atomic(args.out, race_curves(quality, distance, line, f"FID, {extractor.name}, n = {n:,}"))
    say(args, f"Picture: {args.out}")
    if args.write:
        written(args.model, replace(model, config=replace(config, **best.settings())))
        before = f"{config.sampler} in {config.sampler_steps}"
        say(args, f"{args.model} now draws with {best.sampler} in {best.steps} steps; before: {before}.")
    return {
        "n": n,
        "extractor": extractor.name,
        "laps": [
            {key: getattr(lap, key) for key in ("sampler", "steps", "fid", "error", "kid", "distance")}
            | {"evaluations": lap.cost, "on_front": lap in on_front}
            for lap in laps
        ],
        "choice": best.settings(),
        "written": args.write,
        "out": str(args.out),
    }


def written(path: str, model) -> None:
    """Write the model where it was read. Raises BusyError where a run is at work in its folder."""
    from ..checkpoint import model_file, save

    with hold(Path(path)) if Path(path).is_dir() else nullcontext():
        save(model_file(path), model)


def strengths(args: argparse.Namespace, images, model, n: int, labels, seed: int, extractor, real) -> dict[str, Any]:
    """The race of strengths of guidance."""
    from dataclasses import asdict, replace

    from ..figures import guidance_curves
    from ..files import write_atomic
    from ..racing import guidance_race

    known = images.class_names == model.card.class_names and extractor.classes == images.classes
    pushes, names = [], {}
    for push in guidance_race(model, args.guidance, n, labels, seed, extractor, real, known):
        pushes.append(push)
        low, high = push.interval
        names[push.interval] = "at every level" if (low, high) == (0, 1e4) else f"from {low:g} to {high:g}"
        seen = "" if push.accuracy is None else f", accuracy {push.accuracy:.3f}"
        score = f"FID {push.fid:.4g} ± {1.96 * push.error:.2g}, recall {push.recall:.3f}{seen}"
        say(args, f"  guidance {push.scale:<4g} {names[push.interval]:<16}: {score}")
    panels = {}
    for title, key in (("FID", "fid"), ("recall", "recall"), ("accuracy", "accuracy")):
        lines = {name: [(p.scale, getattr(p, key)) for p in pushes if p.interval == i] for i, name in names.items()}
        if getattr(pushes[0], key) is not None:
            panels[f"{title}, n = {n:,}"] = lines
    write_atomic(args.out, guidance_curves(panels))
    best = min(pushes, key=lambda push: push.fid)
    say(args, f"Lowest FID: guidance {best.scale:g} {names[best.interval]}. Recall falls as guidance grows.")
    say(args, f"Picture: {args.out}")
    settings = {"guidance": best.scale, "guidance_low": best.interval[0], "guidance_high": best.interval[1]}
    if args.write:
        written(args.model, replace(model, config=replace(model.config, **settings)))
        say(args, f"{args.model} now draws with guidance {best.scale:g} {names[best.interval]}.")
    return {
        "n": n,
        "extractor": extractor.name,
        "pushes": [asdict(push) for push in pushes],
        "choice": settings,
        "written": args.write,
        "out": str(args.out),
    }
