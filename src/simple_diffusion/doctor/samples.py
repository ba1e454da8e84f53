"""Diagnoses of the samples."""

import math

import torch
from torch import Tensor

from ..data.images import Images, to_unit
from ..denoising_error import LEVELS, level_noise, model_error
from ..evaluation.memorization import find_near_duplicates
from ..guidance import Guided
from ..randomness import permutation
from ..samplers import FINE, SAMPLERS, karras_grid
from ..sampling import sample
from .patient import MAX_EXCESS, MEASURED, SAMPLES, Finding, Patient, Skip, ratio
from .weights import OVERFITTING_FIX

CALIBRATION = 250
"""Training images that calibrate the threshold of near-duplicates: enough for a bound of 20%, and soon compared."""


def memorization(patient: Patient) -> Finding:
    """How many samples are near-duplicates: closer to a training image than 99% of these are to each other?

    The bound is a fifth of the samples: twenty times the share expected by chance, and measurable with 64 samples. All
    training images are searched, because a sample is a near-duplicate of any of them.
    """
    train, _ = patient.split
    views = [view(train.pixels).flatten(1) for view in patient.spec.augmentations]
    found = find_near_duplicates(patient.samples.flatten(1), views, None, limit=CALIBRATION)
    return Finding(
        found.share / 0.2,
        f"{found.count} of {SAMPLES} samples are near-duplicates of a training image (at most 20%)",
        OVERFITTING_FIX,
    )


def labels_ignored(patient: Patient) -> Finding:
    """How much does the denoising error rise with a wrong label, or with none? And does the sampler use the label?

    It is measured at high noise levels, where the label matters most. The bound is 0.5 %.
    """
    if patient.config.guidance == 0:
        return Finding(
            MAX_EXCESS, "the guidance scale is 0, so that the sampler ignores the labels", "sample with --guidance 1.5"
        )
    if ratio(patient.error, patient.wiener) > 1:
        raise Skip("the network has not learned enough")
    x0, cond = patient.probe(patient.split[0])
    if cond is None:
        raise Skip("the data does not have the classes of the model")
    classes = patient.info.classes

    def log_error(labels: Tensor) -> Tensor:
        return model_error(patient.denoiser, x0, labels)[LEVELS > 0.5].log().mean()

    wrong = torch.minimum(log_error((cond + 1) % classes), log_error(torch.full_like(cond, classes)))
    gain = (wrong - log_error(cond)).exp().item() - 1
    explained = label_share(patient.split[0])
    about = (
        f"{explained:.1%} of the pixel variance, no more than random labels"
        if explained < 0.002
        else (f"{explained:.0%} of the pixel variance")
    )
    return Finding(
        0.005 / max(gain, 5e-4),
        f"with a wrong label, or none, the denoising error at high noise levels is {gain:.1%} higher (at least 0.5%); "
        f"the labels explain {about}",
        "check that each label belongs to its image (simple-diffusion data DATA --out grid.png shows them by class), "
        "then train again with --set drop_labels=0.1",
    )


def label_share(images: Images) -> float:
    """The share of the pixel variance that lies between the classes, minus what random labels would give."""
    some = images[permutation(len(images), 0, "doctor")[:MEASURED]]
    assert some.labels is not None
    x, labels = to_unit(some.pixels).flatten(1), some.labels
    within = sum(
        (x[labels == label] - x[labels == label].mean(0)).square().sum().item() for label in labels.unique().tolist()
    )
    total = (x - x.mean(0)).square().sum().item()
    n, k = len(x), len(labels.unique())
    return 1 - within / max(total, 1e-12) * (n - 1) / max(n - k, 1)


def guidance_too_strong(patient: Patient) -> Finding:
    """How far does guidance push the predictions out of the range of images, where they are clipped?

    It is measured on real images at the middle of the guidance interval. The bound is a root mean square of 0.1 more
    than without guidance.
    """
    config, cond = patient.config, patient.labels
    if config.guidance <= 1 or cond is None:
        raise Skip("the samples are not guided")
    denoiser, schedule = patient.denoiser, patient.denoiser.schedule
    level = math.sqrt(max(config.guidance_low, 0.1) * min(config.guidance_high, 20.0)) * 2
    if patient.images is None:
        x0 = patient.sample(guidance=1.0)
    else:
        index = permutation(len(patient.images), 0, "doctor")[:SAMPLES]
        x0 = to_unit(patient.images.pixels[index])
        cond = patient.images.labels[index] if patient.images.labels is not None else cond[: len(index)]
    x0, cond = x0.to(patient.device), cond.to(patient.device)
    t = schedule.time_of(torch.tensor([level], dtype=torch.float64)).to(x0)
    x = schedule.add_noise(x0, t, level_noise(x0, 0))
    with torch.no_grad():
        each = [Guided(denoiser, scale, patient.info.classes)(x, t, cond) for scale in (1.0, config.guidance)]
    without, guided = ((x.abs() - 1).clamp(min=0).square().mean().sqrt().item() for x in each)
    return Finding(
        (guided - without) / 0.1,
        f"guidance {config.guidance:g} pushes the predictions {guided:.2f} out of [-1, 1] on average, {without:.2f} "
        "without guidance (at most 0.1 more)",
        "sample with a smaller --guidance; 1.5 to 3 is usual",
    )


def too_few_steps(patient: Patient) -> Finding:
    """How far are the samples from those of many steps and the same initial noise?

    The samples of an ODE solver are compared image by image, in units of the distance between two samples. Stochastic
    samplers give other images, so that only their grain is compared: the mean squared difference of neighboring pixels.
    """
    fine = exact_samples(patient)
    config, samples, sampler = patient.config, patient.samples, SAMPLERS[patient.config.sampler]
    reference = "those of {1} steps of {0}".format(*FINE)
    if sampler.solves_ode:
        apart = (fine - fine.roll(1, 0)).square().mean().sqrt().clamp(min=1e-6)
        off, bound = ((samples - fine).square().mean().sqrt() / apart).item(), 0.35
        measured = f"from {reference} by {off:.0%} of the distance between two samples (at most 35%)"
    else:
        here, there = grain(samples), grain(fine)
        off, bound = max(here / there, there / here) - 1, 0.3
        measured = f"in grain from {reference} by {off:.0%} (at most 30%)"
    other = "" if config.sampler == "dpmpp" else ", or with --sampler dpmpp --steps 20"
    return Finding(
        off / bound,
        f"the samples of {config.sampler} with {config.sampler_steps} steps differ {measured}",
        f"sample with --steps {max(sampler.usual_steps, 2 * config.sampler_steps)}{other}",
    )


def exact_samples(patient: Patient) -> Tensor:
    """SAMPLES samples in [-1, 1] with the same initial noise, by the FINE solver on the Karras grid."""
    assert patient.model is not None
    name, steps = FINE
    denoiser, _, _ = patient.spec.sampler(patient.denoiser, patient.model.guide)
    times = karras_grid(patient.denoiser.schedule, steps)
    shape = (SAMPLES, *patient.info.shape)
    options = {"sampler": SAMPLERS[name].function, "seed": patient.seed}
    return sample(denoiser, shape, times, patient.labels, **options).clamp(-1, 1)


def grain(images: Tensor) -> float:
    """Mean squared difference of neighboring pixels of images `[N, C, H, W]`."""
    return sum(images.diff(dim=d).square().mean().item() for d in (2, 3) if images.shape[d] > 1) + 1e-6


def shifted_means(patient: Patient) -> Finding:
    """Are the samples darker, brighter or tinted? The mean of each channel against that of the data.

    The bound is 0.1 (13 of 256 gray levels) plus two standard errors.
    """
    data = to_unit(patient.measured_pixels).mean((2, 3))  # [N, C]
    off = patient.samples.mean((2, 3)).mean(0) - data.mean(0)
    error = data.std(0, correction=0) / math.sqrt(SAMPLES)
    beyond = (off.abs() - 2 * error).clamp(min=0).max().item()
    names = ("gray",) if len(off) == 1 else ("red", "green", "blue")
    shifts = ", ".join(f"{name} {value:+.2f}" for name, value in zip(names, off.tolist(), strict=True))
    return Finding(
        beyond / 0.1,
        f"the channel means of {SAMPLES} samples minus those of the data are {shifts} (at most "
        f"{0.1 + 2 * error.max():.2f}, in [-1, 1])",
        "deal with the findings above first; if there are none, train for longer, or with --set target=v",
    )
