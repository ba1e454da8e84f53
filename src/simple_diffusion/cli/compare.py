"""`simple-diffusion compare`: did a change help? Two models, or one drawn in two ways, from the same noise."""

import argparse
import time
from pathlib import Path
from typing import Any

from ..errors import DataError, UsageError
from .options import command, data_of, data_options, device_options, path, png_only, sampling_text, say, seed, whole

PAIRS = 30
"""Pairs in the picture."""


def add(commands: Any) -> None:
    sub = command(
        commands, "compare", run, "two models, or one drawn in two ways, from the same noise: which is better?"
    )
    sub.add_argument("a", metavar="A", help="a run folder or a .safetensors file")
    sub.add_argument("b", metavar="B", nargs="?", help="another one (default A with the settings of --set)")
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of B's drawing")
    sub.add_argument("--n", type=whole(2, 10**6), default=5000, help="images of each (default 5000)")
    sub.add_argument("--seed", type=seed, default=0, metavar="N", help="of the noise (default 0)")
    sub.add_argument("--data", metavar="DATA", help="what to compare with (default the data of A)")
    sub.add_argument(
        "--out", type=path, default=Path("compare.png"), metavar="FILE.png", help="the picture of the pairs"
    )
    data_options(sub)
    device_options(sub)


def run(args: argparse.Namespace) -> dict[str, Any]:
    png_only(args.out)
    if args.b is None and not args.set:
        raise UsageError(
            "there is nothing to compare: name a second model, or change a setting with --set sampler=heun"
        )

    from dataclasses import asdict

    import torch

    from ..data.labels import labels_for
    from ..evaluation.extractors import extractor_for
    from ..evaluation.features import Featured, featured
    from ..evaluation.paired import check_count, conclusion, differences
    from ..model.config import parse_settings
    from ..model.generate import generate
    from ..model.model_file import read
    from ..system.files import write_atomic
    from ..viz.grids import make_grid, png

    changes = parse_settings(args.set)
    a, b = (read(path, args.device, args.precision) for path in (args.a, args.b or args.a))
    b = b.changed(**changes)
    if a.info.shape != b.info.shape or a.info.class_names != b.info.class_names:
        raise DataError(
            f"{args.a} and {args.b} draw images of other shapes or classes: compare models of the same data"
        )
    images, n = data_of(args, a, args.n)
    labels = labels_for(a.info, images, n, args.seed)
    changed = {
        key: (before, after)
        for (key, before), after in zip(asdict(a.config).items(), asdict(b.config).values(), strict=True)
        if before != after
    }
    for key, (before, after) in changed.items():
        say(args, f"{key}: {before} -> {after}")

    extractor = extractor_for(images, quiet=args.json)
    real = featured(images, extractor, extractor.name)
    check_count(n, real)
    drawn, sides, seconds = [], [], []
    for name, model in (("A", a), ("B", b)):
        say(args, f"{name}: {sampling_text(model, n)}")
        began = time.perf_counter()
        drawn.append(generate(model, n, labels, args.seed, quiet=args.json))
        seconds.append(time.perf_counter() - began)
        sides.append(Featured(*extractor(drawn[-1])))
    known = images.classes and images.class_names == a.info.class_names
    asked = labels if known and sides[0].logits.shape[1] == images.classes else None
    found = differences(sides[0], sides[1], real, asked)
    say(args, f"{extractor.name}, {n:,} pairs, seed {args.seed}:")
    for difference in found:
        say(args, f"  {difference}")
    say(args, f"A drew {n / seconds[0]:,.0f} images/s, B {n / seconds[1]:,.0f}.")
    answer = conclusion(found[0])
    said = "" if args.b is None else " Another seed of the same training may differ as much: compare several."
    say(args, f"By FID: {answer}.{said}")
    first = min(PAIRS, n)
    rows = zip(*(side[:first].split(10) for side in drawn), strict=True)
    write_atomic(args.out, png(make_grid(torch.cat([half for row in rows for half in row]), 10)))
    say(args, f"Pairs, A's images above B's: {args.out}")
    return {
        "a": args.a,
        "b": args.b or args.a,
        "n": n,
        "extractor": extractor.name,
        "changed": changed,
        "scores": [asdict(difference) | {"better": difference.verdict} for difference in found],
        "conclusion": answer,
        "images_per_second": [round(n / s, 1) for s in seconds],
        "out": str(args.out),
    }
