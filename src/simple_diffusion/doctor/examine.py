"""Examine a trained model: run every diagnosis and rank what it finds.

Each diagnosis divides a measurement by a bound that the healthy runs of docs/doctor.md keep. A ratio above 1
is a finding. Findings that explain a cause come before those that only describe a symptom; within each group the one
that is furthest past its bound comes first.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..errors import SimpleDiffusionError
from .patient import Finding, Patient, Skip
from .samples import guidance_too_strong, labels_ignored, memorization, shifted_means, too_few_steps
from .settings import changed_data, pixel_range, terminal_snr, untrained_guidance, untrained_levels
from .weights import bad_ema, learning_rate, non_finite, overfitting, slow_ema, too_little_training


@dataclass(frozen=True)
class Diagnosis:
    """One question about a model.

    question  what is asked
    measure   the function that answers it
    needs     what it needs, as `Patient.missing` names it
    cause     whether a finding is a cause, or only a symptom
    """

    question: str
    measure: Callable[[Patient], Finding]
    needs: tuple[str, ...] = ()
    cause: bool = True


DIAGNOSES: dict[str, Diagnosis] = {
    "non-finite values": Diagnosis("Are all weights and layer outputs finite?", non_finite),
    "changed data": Diagnosis("Is the data still the training data?", changed_data, ("data",)),
    "pixel range": Diagnosis("Do the pixels fill [-1, 1]?", pixel_range),
    "terminal SNR": Diagnosis("Does the schedule end in pure noise?", terminal_snr),
    "untrained noise levels": Diagnosis("Does training cover all noise levels?", untrained_levels),
    "slow EMA": Diagnosis("Has the EMA forgotten the initial weights?", slow_ema, ("network", "checkpoint")),
    "bad EMA": Diagnosis("Is the EMA as good as the raw weights?", bad_ema, ("network", "checkpoint", "data")),
    "learning rate too high": Diagnosis("Are the weights and the loss stable?", learning_rate, ("weights",)),
    "too little training": Diagnosis("Has the network learned shapes?", too_little_training, ("network", "data")),
    "overfitting": Diagnosis("Is the error as low on held-out images?", overfitting, ("network", "held-out images")),
    "memorization": Diagnosis("Are the samples near-duplicates?", memorization, ("network", "data")),
    "labels ignored": Diagnosis("Do the labels matter?", labels_ignored, ("network", "data", "labels")),
    "untrained guidance": Diagnosis("Was the network trained without labels, too?", untrained_guidance, ("labels",)),
    "guidance too strong": Diagnosis("Does guidance leave [-1, 1]?", guidance_too_strong, ("network", "labels")),
    "too few steps": Diagnosis("Are there enough sampling steps?", too_few_steps, ("network",)),
    "shifted channel means": Diagnosis(
        "Are the samples as bright as the data?", shifted_means, ("network", "data"), cause=False
    ),
}
"""The diagnoses by name."""


@dataclass(frozen=True)
class Examination:
    """The result of all diagnoses.

    findings  name -> what is wrong, the most likely cause first; empty for a healthy run
    passed    name -> what was measured and is within its bound
    skipped   name -> why it was not measured
    """

    findings: dict[str, Finding]
    passed: dict[str, Finding]
    skipped: dict[str, str]


def examine(patient: Patient) -> Examination:
    """Run every diagnosis of DIAGNOSES and rank the findings."""
    measured: dict[str, Finding] = {}
    skipped: dict[str, str] = {}
    for name, diagnosis in DIAGNOSES.items():
        try:
            if missing := next(filter(None, map(patient.missing, diagnosis.needs)), None):
                raise Skip(missing)
            finding = measured[name] = diagnosis.measure(patient)
        except SimpleDiffusionError as error:
            skipped[name] = str(error)
            continue
        if diagnosis.measure is non_finite and finding.excess > 1:
            patient = replace(patient, model=None)  # the outputs of this network mean nothing
    ranked = sorted(measured, key=lambda name: (not DIAGNOSES[name].cause, -measured[name].excess))
    return Examination(
        {name: measured[name] for name in ranked if measured[name].excess > 1},
        {name: measured[name] for name in measured if measured[name].excess <= 1},
        skipped,
    )
