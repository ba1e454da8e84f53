"""`simple-diffusion doctor`: what is wrong with a trained model, the likeliest cause first."""

import argparse
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from ..errors import SimpleDiffusionError
from .options import (
    command,
    data_options,
    device_options,
    load,
    path,
    read_as,
    sampling_options,
    sampling_settings,
    say,
)


def add(commands: Any) -> None:
    sub = command(commands, "doctor", run, "say what is wrong with a trained model, the likeliest cause first")
    sub.add_argument("model", type=path, metavar="MODEL", help="a run folder, or a .safetensors file, which says less")
    sub.add_argument("--data", metavar="DATA", help="its data (default what the model was trained on)")
    sampling_options(sub)
    data_options(sub)
    device_options(sub)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from ..data.sources import held_out
    from ..doctor.examine import examine
    from ..doctor.patient import attach, load_patient

    patient = load_patient(args.model, args.device, args.precision)
    patient = replace(patient, spec=patient.spec.changed(**sampling_settings(args)), seed=args.seed)
    source = args.data or patient.info.name
    size, skip_bad = read_as(args, patient.config)
    images = test = None
    try:
        images = load(args, source, size, skip_bad)
        with suppress(SimpleDiffusionError):
            test = held_out(source, root=args.data_root, size=size or None, skip_bad=skip_bad)
    except SimpleDiffusionError as error:
        if args.data:
            raise
        say(args, f"Without its data ({error}) there is less to look at; name it with --data.")
    patient = attach(patient, images, test)
    report = examine(patient)

    if report.findings:
        say(args, f"{len(report.findings)} of {len(report.findings) + len(report.sound)} checks found something:\n")
        for number, (name, finding) in enumerate(report.findings.items(), 1):
            say(args, f"{number}. {name}: {finding.evidence}.\n   Mend: {finding.mend}.")
    else:
        say(args, f"A clean bill: {len(report.sound)} checks found nothing.")
    if report.sound:
        say(args, "\nWell:")
    for name, finding in report.sound.items():
        say(args, f"  {name}: {finding.evidence} ({finding.excess:.0%} of the bound).")
    if report.unknown:
        say(args, "\nNot looked at:")
    for name, why in report.unknown.items():
        say(args, f"  {name}: {why}.")
    return {
        "model": str(args.model),
        "healthy": not report.findings,
        "findings": [{"name": name} | asdict(finding) for name, finding in report.findings.items()],
        "sound": [{"name": name} | asdict(finding) for name, finding in report.sound.items()],
        "not_looked_at": report.unknown,
    }
