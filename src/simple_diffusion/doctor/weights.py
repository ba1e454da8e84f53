"""Diagnoses of the weights and the training."""

import torch
from torch import Tensor, nn

from ..data.images import to_unit
from ..denoising_error import LEVELS, model_error, noised
from .patient import MOST, Finding, Patient, Unknown, ratio

# --- the weights


def non_finite(patient: Patient) -> Finding:
    """The first layer, in the order of the computation, whose weights or answers on real images are not finite."""
    if patient.bad:
        named = patient.bad[0].removeprefix("net.")
        more = f", and {len(patient.bad) - 1} more" if len(patient.bad) > 1 else ""
        return Finding(MOST, f"the weights {named} hold NaN or infinity{more}", NON_FINITE_MEND)
    kept = {} if patient.checkpoint is None else patient.checkpoint.tensors
    for name, tensor in kept.items():
        if not tensor.isfinite().all():
            return Finding(MOST, f"{name} of the last checkpoint holds NaN or infinity", NON_FINITE_MEND)
    if lost := patient.lacks("network"):
        raise Unknown(lost)
    found: list[str] = []

    def hook(name: str):
        def look(module: nn.Module, inputs, output) -> None:
            if isinstance(output, Tensor) and not output.isfinite().all():
                found.append(name)

        return look

    layers = [pair for pair in patient.denoiser.net.named_modules() if pair[0]]
    handles = [module.register_forward_hook(hook(name)) for name, module in layers]
    try:
        images = patient.images
        x0 = torch.zeros(8, *patient.info.shape) if images is None else to_unit(images.pixels[:8])
        cond = torch.arange(len(x0)) % patient.info.classes if patient.info.classes else None
        for number, level in enumerate(LEVELS):
            t = patient.denoiser.schedule.time_of(level[None])
            alpha = patient.denoiser.schedule.alpha(t).item()
            x = alpha * noised(x0, level.item(), number)
            with torch.no_grad():
                patient.denoiser(x.to(patient.device), t.float(), None if cond is None else cond.to(patient.device))
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return Finding(MOST, f"the answers of {found[0]} are not finite on real images", NON_FINITE_MEND)
    return Finding(0.0, f"all weights and all answers of {len(layers)} layers are finite", NON_FINITE_MEND)


NON_FINITE_MEND = (
    "train anew with a lower learning rate (--set lr=1e-3) in --precision fp32, or go back to an older copy"
)


def ema_age(patient: Patient) -> Finding:
    """How much of the weights before the first step is still in the average?

    The average lies between there and where training is now: its place on that line, 0 at the newest weights. A
    memory of 5 % of the run leaves a few hundredths; the bound is a quarter, one part of the old in three of the new.
    """
    whole = part = 0.0
    kept = dict(patient.average.named_parameters())
    before = dict(patient.start.named_parameters())
    for name, now in patient.raw.named_parameters():
        way = before[name].to(now) - now
        whole += way.square().sum().item()
        part += (way * (kept[name] - now)).sum().item()
    share = part / max(whole, 1e-12)
    return Finding(
        3 * share / max(1 - share, 1e-9),
        f"{share:.0%} of the averaged weights are those from before the first step",
        "let the average forget: --set ema_decay=0 --set ema_length=0.05, or train for longer",
    )


def ema_bad(patient: Patient) -> Finding:
    """Is the average a worse denoiser than the weights themselves? It is better or equal in a healthy run."""
    probe = patient.probe(patient.split[0])
    worse = ratio(model_error(patient.average, *probe), model_error(patient.raw, *probe))
    return Finding(
        (worse - 1) / 0.25,
        f"the averaged weights err {worse:.2f} times as much as the weights themselves",
        "the training is sound and its average is not: --set ema_length=0.05 --set ema_decay=0, or look at the code of "
        "the average",
    )


# --- the training


def diverged(patient: Patient) -> Finding:
    """Did the weights run away, or the loss rise again after it had fallen?

    A learning rate that is too high throws all the weights far from where they began. The median layer's growth is
    measured: a single layer that is damaged says nothing of the learning rate.
    """
    rise, said = 1.0, ""
    losses = torch.tensor([loss for _, loss in patient.log], dtype=torch.float64)
    if len(losses) >= 10 and losses.isfinite().all():
        mean = losses.unfold(0, max(len(losses) // 10, 3), 1).mean(1)
        rise = (mean[-1] / mean.min()).item()
        said = f", and the loss ended at {mean[-1]:.3g} after {mean.min():.3g}"
    return Finding(
        max(patient.runaway, (rise - 1) / 0.5),
        f"the weights are {patient.growth:.2f} times as large as before the first step{said}",
        f"train anew with a lower learning rate: --set lr={patient.config.lr / 10:.2g}",
    )


def under_trained(patient: Patient) -> Finding:
    """Does the network denoise better than the best blur of the same images?

    A blur knows how smooth the images are and nothing else, so who does not beat it has not begun to see shapes.
    """
    seen = (
        "" if patient.checkpoint is None else f" after {patient.checkpoint.numbers.n * patient.config.batch:,} images"
    )
    return Finding(
        patient.against_blur / 0.9,
        f"at middle noise the network errs {patient.against_blur:.2f} times as much as the best blur{seen}",
        "train for longer: --for 10min, or more; --dry-run says how long it takes to be recognisable",
    )


def over_fitting(patient: Patient) -> Finding:
    """Does it denoise images that it has not seen worse than those it was trained on?"""
    unseen = patient.split[1]
    assert unseen is not None
    gap = ratio(model_error(patient.denoiser, *patient.probe(unseen)), patient.error)
    return Finding(
        (gap - 1) / 0.3,
        f"on unseen images the error is {gap:.2f} times that on training images",
        OVER_FITTING_MEND,
    )


OVER_FITTING_MEND = "use more images, or --preset few-images, which mirrors, drops out and stops on a held-out loss"
