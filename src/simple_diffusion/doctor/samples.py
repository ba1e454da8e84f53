"""Diagnoses of the samples."""

import math

import torch
from torch import Tensor

from ..data.images import Images, to_unit
from ..denoising_error import LEVELS, model_error, noised
from ..evaluation.memorization import NEIGHBOUR, find_copies
from ..guidance import Guided
from ..randomness import permutation
from ..samplers import FINE, SAMPLERS, karras_grid
from ..sampling import sample
from .patient import DRAWN, MEASURED, MOST, Finding, Patient, Unknown, ratio
from .weights import OVER_FITTING_MEND


def copies(patient: Patient) -> Finding:
    """Are samples nearer to one training image than all but 1 % of these are to each other?

    A fifth of the samples is the bound: twenty times what chance gives, and 64 samples can tell it.
    """
    train = patient.split[0]
    if len(train) < NEIGHBOUR + 2:
        raise Unknown(f"{len(train)} images are too few to tell near from far")
    pixels = train.pixels[permutation(len(train), 0, "doctor")[:MEASURED]]
    views = [to_unit(view(pixels)).flatten(1) for view in patient.spec.augmentations]
    found = find_copies(patient.samples.flatten(1), views, None)
    return Finding(
        found.share / 0.2,
        f"{found.near} of {DRAWN} samples lie nearer to one training image than 99 % of these lie to each other",
        OVER_FITTING_MEND,
    )


# --- the drawing


def labels_ignored(patient: Patient) -> Finding:
    """Does the network err more when it is told a wrong label, or none? And does the sampler pass the label on?

    Measured at high noise, where the label says most; the bound is 0.5 % more.
    """
    if patient.config.guidance == 0:
        return Finding(MOST, "guidance is 0: the sampler ignores the label", "draw with --guidance 1.5")
    if ratio(patient.error, patient.blur) > 1:
        raise Unknown("it has not learned enough to tell")
    x0, cond = patient.probe(patient.split[0])
    if cond is None:
        raise Unknown("the data does not have the labels that it knows")
    classes = patient.info.classes

    def of(labels: Tensor) -> Tensor:
        return model_error(patient.denoiser, x0, labels)[LEVELS > 0.5].log().mean()

    gain = (torch.minimum(of((cond + 1) % classes), of(torch.full_like(cond, classes))) - of(cond)).exp().item() - 1
    worth = label_share(patient.split[0])
    why = (
        f"; the labels say {worth:.1%} of the pixels' variance, no more than chance, so check the labels of the data"
        if worth < 0.002
        else f"; the labels say {worth:.0%} of the pixels' variance"
    )
    return Finding(
        0.005 / max(gain, 5e-4),
        f"told a wrong label or none, the network errs {gain:.1%} more at high noise than with the right one{why}",
        "check that each label belongs to its image (simple-diffusion data DATA draws them by class) and train with "
        "--set drop_labels=0.1",
    )


def label_share(images: Images) -> float:
    """Share of the pixels' variance that lies between the classes, less what chance would give."""
    some = images[permutation(len(images), 0, "doctor")[:MEASURED]]
    assert some.labels is not None
    x, labels = to_unit(some.pixels).flatten(1), some.labels
    within = sum(
        (x[labels == label] - x[labels == label].mean(0)).square().sum().item() for label in labels.unique().tolist()
    )
    total = (x - x.mean(0)).square().sum().item()
    n, k = len(x), len(labels.unique())
    return 1 - within / max(total, 1e-12) * (n - 1) / max(n - k, 1)


def guidance_saturating(patient: Patient) -> Finding:
    """How far does guidance push the denoiser's answers out of the range of images, from where they are clipped?

    Measured on real images at the middle of the interval in which it guides. The bound is a root mean square of 0.1
    more than without guidance.
    """
    config, cond = patient.config, patient.labels
    if config.guidance <= 1 or cond is None:
        raise Unknown("it is drawn without guidance")
    plain, schedule = patient.denoiser, patient.denoiser.schedule
    level = math.sqrt(max(config.guidance_low, 0.1) * min(config.guidance_high, 20.0)) * 2
    t = schedule.time_of(torch.tensor([level], dtype=torch.float64)).to(patient.device)
    if patient.images is None:
        x0 = patient.drawn(guidance=1.0)
    else:
        index = permutation(len(patient.images), 0, "doctor")[:DRAWN]
        x0 = to_unit(patient.images.pixels[index])
        cond = patient.images.labels[index] if patient.images.labels is not None else cond[: len(index)]
    x0, cond = x0.to(patient.device), cond.to(patient.device)
    x = schedule.alpha(t).to(x0) * noised(x0, level, 0)
    with torch.no_grad():
        each = [Guided(plain, scale, patient.info.classes)(x, t.float(), cond) for scale in (1.0, config.guidance)]
    before, after = ((x.abs() - 1).clamp(min=0).square().mean().sqrt().item() for x in each)
    return Finding(
        (after - before) / 0.1,
        f"guidance {config.guidance:g} pushes the answers {after:.2f} out of [-1, 1], {before:.2f} without it",
        "draw with a smaller --guidance: 1.5 to 3 is usual",
    )


def too_few_steps(patient: Patient) -> Finding:
    """How far are the samples from those of many steps and the same noise?

    For the solvers of the ODE the distance is image by image, in units of that between two samples; the samplers that
    add noise draw other images each time, so of them the grain is compared: the mean square of neighbours' difference.
    """
    fine = exact(patient)
    config, samples = patient.config, patient.samples
    info, many = SAMPLERS[config.sampler], FINE[1]
    if not info.solves_ode:
        here, there = grain(samples), grain(fine)
        off = max(here / there, there / here) - 1
        said, bound = (
            f"the grain of {config.sampler}'s images differs by {off:.0%} from that of {many} exact steps",
            0.3,
        )
    else:
        apart = (fine - fine.roll(1, 0)).square().mean().sqrt().clamp(min=1e-6)
        off = ((samples - fine).square().mean().sqrt() / apart).item()
        said = (
            f"{config.sampler}'s images are {off:.0%} as far from those of {many} exact steps as two images are apart"
        )
        bound = 0.35
    other = "" if config.sampler == "dpmpp" else ", or with --sampler dpmpp --steps 20"
    return Finding(
        off / bound,
        f"in {config.sampler_steps} steps {said}",
        f"draw with --steps {max(info.usual_steps, 2 * config.sampler_steps)}{other}",
    )


def exact(patient: Patient) -> Tensor:
    """DRAWN samples of the same noise by the FINE solver on the Karras grid, in [-1, 1]."""
    assert patient.model is not None
    name, steps = FINE
    denoiser, _, _ = patient.spec.sampler(patient.denoiser, patient.model.guide)
    times = karras_grid(patient.denoiser.schedule, steps)
    shape = (DRAWN, *patient.info.shape)
    given = {"sampler": SAMPLERS[name].function, "seed": patient.seed, "device": patient.device}
    return sample(denoiser, shape, times, patient.labels, **given).clamp(-1, 1)


def grain(images: Tensor) -> float:
    """Mean square of the difference of neighbouring pixels of images `[N, C, H, W]`."""
    return sum(images.diff(dim=d).square().mean().item() for d in (2, 3) if images.shape[d] > 1) + 1e-6


def drifting(patient: Patient) -> Finding:
    """Are the samples darker, brighter or tinted? Each channel's mean against the data's.

    The bound is 0.1 beyond two standard errors: 13 of the 256 levels of grey.
    """
    train = patient.split[0]
    data = to_unit(train.pixels[permutation(len(train), 0, "doctor")[:MEASURED]]).mean((2, 3))  # [N, C]
    drawn = patient.samples.mean((2, 3))
    off = drawn.mean(0) - data.mean(0)
    error = data.std(0, correction=0) / math.sqrt(DRAWN)
    beyond = (off.abs() - 2 * error).clamp(min=0).max().item()
    names = ("grey",) if len(off) == 1 else ("red", "green", "blue")
    said = ", ".join(f"{name} {value:+.2f}" for name, value in zip(names, off.tolist(), strict=True))
    return Finding(
        beyond / 0.1,
        f"means of {DRAWN} samples less those of the data, in [-1, 1]: {said} (± {2 * error.max():.2f} by chance)",
        "see the causes above; without one, train for longer, or with --set target=v",
    )
