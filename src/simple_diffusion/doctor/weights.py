"""Diagnoses of the weights and of the training run."""

import torch
from torch import Tensor, nn

from ..data.images import to_unit
from ..denoising_error import LEVELS, level_noise, model_error
from ..randomness import permutation
from .patient import MAX_EXCESS, Finding, Patient, Skip, ratio

NON_FINITE_FIX = "train again with a lower learning rate (--set lr=1e-3) and --precision fp32, or restore a backup"
OVERFITTING_FIX = (
    "use more images, or train with --preset few-images, which augments, uses dropout and stops when the held-out "
    "loss rises"
)

# --- the weights


def non_finite(patient: Patient) -> Finding:
    """The first layer whose weights, or whose outputs on real images, are not finite."""
    if patient.non_finite:
        first, *others = patient.non_finite
        more = f", and {len(others)} other weights" if others else ""
        return Finding(MAX_EXCESS, f"{first.removeprefix('net.')} contains NaN or infinity{more}", NON_FINITE_FIX)
    for name, tensor in ({} if patient.checkpoint is None else patient.checkpoint.tensors).items():
        if not tensor.isfinite().all():
            return Finding(MAX_EXCESS, f"{name} in the checkpoint contains NaN or infinity", NON_FINITE_FIX)
    if reason := patient.missing("network"):
        raise Skip(reason)
    layers = {name: module for name, module in patient.denoiser.net.named_modules() if name}
    if bad := non_finite_outputs(patient, layers):
        return Finding(MAX_EXCESS, f"on real images the outputs of {bad[0]} are not finite", NON_FINITE_FIX)
    return Finding(0.0, f"all weights, and the outputs of all {len(layers)} layers, are finite", NON_FINITE_FIX)


def non_finite_outputs(patient: Patient, layers: dict[str, nn.Module]) -> list[str]:
    """The names of the layers whose outputs on noisy real images are not finite, in the order of the computation."""
    found: list[str] = []

    def hook(name: str):
        def record(module: nn.Module, inputs, output) -> None:
            if isinstance(output, Tensor) and not output.isfinite().all():
                found.append(name)

        return record

    images, denoiser = patient.images, patient.denoiser
    if images is None:
        x0 = torch.zeros(8, *patient.info.shape)
    else:
        x0 = to_unit(images.pixels[permutation(len(images), 0, "doctor")[:8]])
    cond = (torch.arange(len(x0)) % patient.info.classes).to(patient.device) if patient.info.classes else None
    handles = [module.register_forward_hook(hook(name)) for name, module in layers.items()]
    try:
        for number, level in enumerate(LEVELS):
            t = denoiser.schedule.time_of(level[None])
            x = denoiser.schedule.add_noise(x0, t, level_noise(x0, number))
            with torch.no_grad():
                denoiser(x.to(patient.device), t.float(), cond)
    finally:
        for handle in handles:
            handle.remove()
    return found


def slow_ema(patient: Patient) -> Finding:
    """How much of the initial weights is still in the EMA?

    The EMA lies between the initial weights and the newest ones: the share is its place on that line, 0 at the newest.
    With an EMA length of 5 % of the run it is a few hundredths; the bound is a quarter.
    """
    whole = part = 0.0
    average, before = dict(patient.average.named_parameters()), dict(patient.initial.named_parameters())
    for name, now in patient.raw.named_parameters():
        way = before[name].to(now) - now
        whole += way.square().sum().item()
        part += (way * (average[name] - now)).sum().item()
    share = part / max(whole, 1e-12)
    return Finding(
        3 * share / max(1 - share, 1e-9),
        f"{share:.0%} of the EMA weights are still the initial weights (at most 25%)",
        "train again with a shorter EMA, --set ema_decay=0 --set ema_length=0.05, or train for longer",
    )


def bad_ema(patient: Patient) -> Finding:
    """Is the EMA a worse denoiser than the raw weights? In a healthy run it is at least as good."""
    probe = patient.probe(patient.split[0])
    worse = ratio(model_error(patient.average, *probe), model_error(patient.raw, *probe))
    return Finding(
        (worse - 1) / 0.25,
        f"the denoising error of the EMA weights is {worse:.2f} times that of the raw weights (at most 1.25)",
        "train again with --set ema_decay=0 --set ema_length=0.05; if you changed the code of the EMA, check it",
    )


# --- the training run


def learning_rate(patient: Patient) -> Finding:
    """Did the weights diverge, or did the loss rise again?

    A learning rate that is too high moves all the weights far from their initial values. The growth of the median
    weight is measured, because a single damaged layer does not point to the learning rate.
    """
    rise, about_loss = 1.0, ""
    losses = torch.tensor([loss for _, loss in patient.log], dtype=torch.float64)
    if len(losses) >= 10 and losses.isfinite().all():
        mean = losses.unfold(0, max(len(losses) // 10, 3), 1).mean(1)
        rise = (mean[-1] / mean.min()).item()
        about_loss = f", and the final loss is {rise:.2f} times the lowest loss (at most 1.5)"
    return Finding(
        max(patient.growth / patient.max_growth, (rise - 1) / 0.5),
        f"the weights are {patient.growth:.2f} times as large as the initial weights (at most "
        f"{patient.max_growth:.3g}){about_loss}",
        f"train again with a lower learning rate: --set lr={patient.config.lr / 10:.2g}",
    )


def too_little_training(patient: Patient) -> Finding:
    """Is the denoising error below that of the linear (Wiener) denoiser?

    The linear denoiser uses the mean image and the smoothness of the images, and nothing else. A network that does not
    beat it has not learned any shapes.
    """
    after = ""
    if patient.checkpoint is not None:
        after = f" after {patient.checkpoint.numbers.n * patient.config.batch:,} images"
    return Finding(
        patient.relative_error / 0.9,
        f"at medium noise levels the denoising error is {patient.relative_error:.2f} times that of the linear (Wiener) "
        f"denoiser{after} (at most 0.9)",
        "train for longer, for example --for 10min; --dry-run estimates how many images a run sees",
    )


def overfitting(patient: Patient) -> Finding:
    """Is the denoising error higher on held-out images than on training images?"""
    _, unseen = patient.split
    assert unseen is not None
    gap = ratio(model_error(patient.denoiser, *patient.probe(unseen)), patient.error)
    return Finding(
        (gap - 1) / 0.3,
        f"the denoising error on held-out images is {gap:.2f} times that on training images (at most 1.3)",
        OVERFITTING_FIX,
    )
