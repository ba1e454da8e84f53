"""Diagnoses of the data and the settings."""

import math

import torch

from ..model.config import schedule_of
from ..samplers import GRIDS
from .patient import MOST, Finding, Patient

# --- the data


def data_changed(patient: Patient) -> Finding | None:
    """Are the images still those that it was trained on?"""
    assert patient.images is not None
    same = patient.images.fingerprint == patient.info.fingerprint
    return Finding(
        0.0 if same else MOST,
        f"the images of {patient.images.name} are {'' if same else 'not '}those that the model was trained on",
        f"train anew on {patient.images.name}, or name the old images with --data",
    )


def pixel_range(patient: Patient) -> Finding:
    """Do the pixels fill the range from black to white? Half of it is the bound: photographs fill nearly all of it.

    A loader that scales twice, or not at all, leaves half the range or 1/255 of it.
    """
    low, high = patient.info.mean - 1.7 * patient.info.std, patient.info.mean + 1.7 * patient.info.std
    how = "by the mean and deviation on its card"
    if patient.images is not None:
        counts = torch.bincount(patient.images.pixels.flatten(), minlength=256).double()
        share = counts.cumsum(0) / counts.sum()
        low, high = ((share >= q).nonzero()[0].item() / 127.5 - 1 for q in (0.002, 0.998))
        how = "but for 0.4 %"
    span = max(high - low, 1e-3)
    return Finding(
        1.0 / span,
        f"pixels lie from {low:.2f} to {high:.2f} of [-1, 1], {how}: mean {patient.info.mean:.2f}, deviation "
        f"{patient.info.std:.3f}",
        "save the images as uint8 from 0 to 255, or floats that use all of [0, 1] or [-1, 1], and train anew; "
        f"look at them with: simple-diffusion data {patient.info.name}",
    )


# --- the settings


def terminal_snr(patient: Patient) -> Finding:
    """How much of an image is left where the sampler starts from pure noise (Lin et al. 2024, section 3.1)?

    The bound is 0.05 of the noise: Stable Diffusion's 0.068 shows in its brightness, and all our schedules keep 0.03.
    """
    schedule = schedule_of(patient.config)
    start = GRIDS[patient.config.grid](schedule, patient.config.sampler_steps)[:1]
    left = schedule.alpha(start).item() / schedule.sigma(start).item() * math.hypot(patient.info.mean, patient.info.std)
    return Finding(
        left / 0.05,
        f"the sampler starts from pure noise where the {patient.config.schedule} schedule leaves images at "
        f"{left:.3f} of the noise",
        "train with a schedule that ends in noise: --set schedule=karras --set timesteps=0 --set grid=karras, or for a "
        "table of betas --set schedule=linear",
    )


def trained_levels(patient: Patient) -> Finding:
    """Does training visit all the noise levels that the sampler walks through?

    Three bands that decide shape, parts and grain each get 10 % of the draws in every preset: the bound is 2 %.
    """
    schedule, times = schedule_of(patient.config), patient.spec.density
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    level = schedule.ratio(times(u, schedule)) / patient.info.std
    bands = {"above 1.5": level > 1.5, "from 0.3 to 1.5": (level >= 0.3) & (level <= 1.5), "below 0.3": level < 0.3}
    name, share = min(((name, band.double().mean().item()) for name, band in bands.items()), key=lambda pair: pair[1])
    return Finding(
        0.02 / max(share, 1 / 2000),
        f"{share:.1%} of the training is at noise {name} times the data's deviation",
        "let training visit every level: --set level_mean=-0.5 --set level_std=1.2",
    )


def guidance_untrained(patient: Patient) -> Finding:
    """Was the answer without a label, from which guidance pushes away, ever trained? 10 % of the labels is usual."""
    share = patient.config.drop_labels
    guided = patient.config.guidance not in (0.0, 1.0)
    return Finding(
        0.02 / max(share, 1e-3) if guided else 0.0,
        f"{share:.0%} of the labels were dropped in training, and guidance is {patient.config.guidance:g}",
        "draw with --guidance 1, or train with --set drop_labels=0.1",
    )
