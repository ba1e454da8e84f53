"""Diagnoses of the data and the settings."""

import math

import torch

from ..model.config import schedule_of
from ..samplers import GRIDS
from ..system.terminal import command_line
from .patient import MAX_EXCESS, Finding, Patient

# --- the data


def changed_data(patient: Patient) -> Finding:
    """Are these images the ones the model was trained on?"""
    assert patient.images is not None
    name = patient.images.name
    same = patient.images.fingerprint == patient.info.fingerprint
    return Finding(
        0.0 if same else MAX_EXCESS,
        f"the images of {name} are {'' if same else 'not '}the ones that the model was trained on, by their SHA-256",
        f"train again on {name}, or name the original images with --data",
    )


def pixel_range(patient: Patient) -> Finding:
    """Do the pixels fill the range from black to white? The bound is half of it; photographs fill nearly all.

    A loader that scales twice leaves half the range; one that divides by 255 and stores bytes leaves 1/255.
    """
    low, high = patient.info.mean - 1.7 * patient.info.std, patient.info.mean + 1.7 * patient.info.std
    how = "by the mean and standard deviation in the model file"
    if patient.images is not None:
        counts = torch.bincount(patient.images.pixels.flatten(), minlength=256).double()
        share = counts.cumsum(0) / counts.sum()
        low, high = ((share >= q).nonzero()[0].item() / 127.5 - 1 for q in (0.002, 0.998))
        how = "without the 0.4% most extreme ones"
    return Finding(
        1.0 / max(high - low, 1e-3),
        f"the pixels lie from {low:.2f} to {high:.2f} in [-1, 1], {how} (they must span 1.0); their mean is "
        f"{patient.info.mean:.2f}, their standard deviation {patient.info.std:.3f}",
        "save the images as uint8 from 0 to 255, or as floats that use all of [0, 1] or [-1, 1], and train again; "
        f"{command_line(['simple-diffusion', 'data', patient.info.name, '--out', 'grid.png'])} shows them",
    )


# --- the settings


def terminal_snr(patient: Patient) -> Finding:
    """How much of the image is left at the level where the sampler starts from pure noise (Lin et al. 2024, sec. 3.1)?

    The bound is 0.05 of the noise. At Stable Diffusion's 0.068 the samples are too gray. Our schedules stay below 0.03,
    except tables that are not scaled to their length.
    """
    schedule = schedule_of(patient.config)
    start = GRIDS[patient.config.grid](schedule, patient.config.sampler_steps)[:1]
    left = schedule.alpha(start).item() / schedule.sigma(start).item() * math.hypot(patient.info.mean, patient.info.std)
    return Finding(
        left / 0.05,
        f"the sampler starts from pure noise at a level where the {patient.config.schedule} schedule leaves an image "
        f"of {left:.3f} times the noise (at most 0.05)",
        "train again with a schedule that ends in noise: --set schedule=karras --set timesteps=0 --set grid=karras, "
        "or, for a table of betas, --set schedule=linear",
    )


def untrained_levels(patient: Patient) -> Finding:
    """Does training cover all the noise levels that the sampler visits?

    There are three bands, which decide the shapes, the parts and the grain of an image. The log-normal density of the
    presets gives each of them at least 15 % of the training samples, DDPM's steps at least 2.4 % (for data of standard
    deviation 0.3 or more); the bound is 2 %.
    """
    schedule, density = schedule_of(patient.config), patient.spec.density
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    level = schedule.ratio(density(u, schedule)) / patient.info.std
    bands = {"above 1.5": level > 1.5, "from 0.3 to 1.5": (level >= 0.3) & (level <= 1.5), "below 0.3": level < 0.3}
    name, share = min(((name, band.double().mean().item()) for name, band in bands.items()), key=lambda pair: pair[1])
    return Finding(
        0.02 / max(share, 1 / 2000),
        f"{share:.1%} of the training samples have a noise level {name} times the standard deviation of the data "
        "(at least 2%)",
        "train again with all noise levels: --set level_mean=-0.5 --set level_std=1.2",
    )


def untrained_guidance(patient: Patient) -> Finding:
    """Was the prediction without a label, which guidance needs, trained? Usually 10 % of the labels are dropped."""
    share = patient.config.drop_labels
    guided = patient.config.guidance not in (0.0, 1.0)
    return Finding(
        0.02 / max(share, 1e-3) if guided else 0.0,
        f"training dropped {share:.0%} of the labels (at least 2% if samples are guided), and the guidance scale is "
        f"{patient.config.guidance:g}",
        "sample with --guidance 1, or train again with --set drop_labels=0.1",
    )
