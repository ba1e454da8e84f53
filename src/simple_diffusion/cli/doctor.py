"""`simple-diffusion doctor`: what is wrong with a trained model, the most likely cause first."""

import argparse
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from ..errors import SimpleDiffusionError
from .options import (
    command,
    data_options,
    device_options,
    load,
    path,
    read_as,
    refuse_without_labels,
    sampling_options,
    sampling_settings,
    say,
)

if TYPE_CHECKING:
    from ..doctor.examine import Examination


def add(commands: Any) -> None:
    sub = command(commands, "doctor", run, "list what is wrong with a trained model, the most likely cause first")
    sub.add_argument(
        "model",
        type=path,
        metavar="MODEL",
        help="a run folder, or a .safetensors file (fewer checks)",
    )
    sub.add_argument("--data", metavar="DATA", help="its data (default: the training data)")
    sampling_options(sub)
    data_options(sub)
    device_options(sub)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from ..data.sources import held_out
    from ..doctor.examine import examine
    from ..doctor.patient import attach, load_patient

    settings = sampling_settings(args)
    patient = load_patient(args.model, args.device, args.precision)
    refuse_without_labels(settings, patient.info)
    patient = replace(patient, spec=patient.spec.changed(**settings), seed=args.seed)
    source = args.data or patient.info.name
    size, skip_bad = read_as(args, patient.config)
    images = test = None
    try:
        images = load(args, source, size, skip_bad)
        with suppress(SimpleDiffusionError):
            test = held_out(
                source, class_names=images.class_names, root=args.data_root, size=size or None, skip_bad=skip_bad
            )
    except SimpleDiffusionError as error:
        if args.data:
            raise
        say(args, f"The data cannot be read ({error}), so some checks are skipped. Name it with --data.")
    patient = attach(patient, images, test)
    result = examine(patient)
    show(args, result)
    return {
        "model": str(args.model),
        "healthy": not result.findings,
        "findings": [{"name": name} | asdict(finding) for name, finding in result.findings.items()],
        "passed": [{"name": name} | asdict(finding) for name, finding in result.passed.items()],
        "skipped": result.skipped,
    }


def show(args: argparse.Namespace, result: "Examination") -> None:
    """Print the findings with their fixes, then what passed and what was skipped."""
    checks = len(result.findings) + len(result.passed)
    if result.findings:
        say(args, f"{len(result.findings)} of {checks} checks found something:\n")
    else:
        say(args, f"All {checks} checks passed.")
    for number, (name, finding) in enumerate(result.findings.items(), 1):
        say(args, f"{number}. {name}: {finding.evidence}.\n   Fix: {finding.fix}.")
    if result.passed:
        say(args, "\nPassed:")
    for name, finding in result.passed.items():
        say(args, f"  {name}: {finding.evidence}.")
    if result.skipped:
        say(args, "\nSkipped:")
    for name, reason in result.skipped.items():
        say(args, f"  {name}: {reason}.")
