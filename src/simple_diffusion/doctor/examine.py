"""What is wrong with a trained model: each diagnosis one function that measures, ranked by how far past its bound.

A diagnosis divides its measure by a bound that healthy runs keep (docs/doctor.md has the runs): above 1 it accuses. A
finding that says why stands before one that only says what is seen, and of each kind the one that is furthest past its
bound stands first.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..errors import SimpleDiffusionError
from .patient import Finding, Patient
from .samples import copies, drifting, guidance_saturating, labels_ignored, too_few_steps
from .settings import data_changed, guidance_untrained, pixel_range, terminal_snr, trained_levels
from .weights import diverged, ema_age, ema_bad, non_finite, over_fitting, under_trained


@dataclass(frozen=True)
class Diagnosis:
    """One question: what is asked, what the answer needs, and whether it says why (a cause) or what is seen."""

    asks: str
    look: Callable[[Patient], Finding | None]
    needs: tuple[str, ...] = ()
    cause: bool = True


DIAGNOSES: dict[str, Diagnosis] = {
    "first layer that is not finite": Diagnosis("are all numbers finite?", non_finite),
    "other data": Diagnosis("is the data what it was?", data_changed, ("data",)),
    "pixel range": Diagnosis("do the pixels fill [-1, 1]?", pixel_range),
    "terminal SNR": Diagnosis("does the schedule end in noise?", terminal_snr),
    "levels not trained": Diagnosis("does training visit every noise level?", trained_levels),
    "EMA age": Diagnosis("has the average forgotten the start?", ema_age, ("network", "checkpoint")),
    "raw good but EMA bad": Diagnosis(
        "is the average as good as the weights?", ema_bad, ("network", "checkpoint", "data")
    ),
    "learning rate too high": Diagnosis("are weights and loss where they should be?", diverged, ("weights",)),
    "trained too little": Diagnosis("is it learning?", under_trained, ("network", "data")),
    "over-fitting": Diagnosis("are unseen images as easy?", over_fitting, ("network", "unseen images")),
    "copies": Diagnosis("are the samples copies?", copies, ("network", "data")),
    "labels ignored": Diagnosis("do the labels matter?", labels_ignored, ("network", "data", "labels")),
    "guidance never trained": Diagnosis("was no label trained?", guidance_untrained, ("labels",)),
    "guidance saturating": Diagnosis("does guidance leave the range?", guidance_saturating, ("network", "labels")),
    "too few steps": Diagnosis("are the steps enough?", too_few_steps, ("network",)),
    "channel means drifting": Diagnosis(
        "are samples as bright as the data?", drifting, ("network", "data"), cause=False
    ),
}
"""The diagnoses by name."""


@dataclass(frozen=True)
class Examination:
    """What the doctor says.

    findings   name -> what is wrong, the likeliest cause first; empty for a healthy run
    sound      name -> what was looked at and is well
    unknown    name -> why it could not be looked at
    """

    findings: dict[str, Finding]
    sound: dict[str, Finding]
    unknown: dict[str, str]


def examine(patient: Patient) -> Examination:
    """Every diagnosis of DIAGNOSES, ranked."""
    measured: dict[str, Finding] = {}
    unknown: dict[str, str] = {}
    for name, diagnosis in DIAGNOSES.items():
        try:
            missing = next(filter(None, map(patient.lacks, diagnosis.needs)), None)
            finding = None if missing else diagnosis.look(patient)
        except SimpleDiffusionError as error:
            missing, finding = str(error), None
        if finding is None:
            unknown[name] = missing or ""
        else:
            measured[name] = finding
            if name == "first layer that is not finite" and finding.excess > 1 and patient.model is not None:
                patient = replace(patient, model=None)  # there is no answer to look at
    ranked = sorted(measured, key=lambda name: (not DIAGNOSES[name].cause, -measured[name].excess))
    return Examination(
        {name: measured[name] for name in ranked if measured[name].excess > 1},
        {name: measured[name] for name in measured if measured[name].excess <= 1},
        unknown,
    )
