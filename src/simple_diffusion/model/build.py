"""From a configuration to objects: network, denoiser, loss, sampler. Here strings become code."""

import math
from functools import partial

from torch import Tensor, nn

from ..augmentation import AUGMENTATIONS, Augmentation, augmented
from ..data.info import Card
from ..denoiser import Clipped, Denoiser, PosteriorMean
from ..guidance import EVERYWHERE, AutoGuided, Guided, drop_labels
from ..losses import MEASURES, LogNormal, Loss, MinSNR, Times, Weight, denoising_loss, on_steps, uniform
from ..networks.annotated import AnnotatedUNet
from ..networks.double_conv import DoubleConvUNet
from ..networks.unet import UNet
from ..samplers import GRIDS, SAMPLERS, Sampler
from ..system.device import PRECISIONS
from ..targets import TARGETS
from .config import Config, memory_format, schedule_of


def views_of(config: Config, card: Card) -> list[Augmentation]:
    """The views that a model was trained on, the plain one first."""
    return AUGMENTATIONS[config.augment](card.height == card.width)


def views_told(config: Config, card: Card) -> int:
    """How many views the network tells apart, 1 if it is told none."""
    return len(views_of(config, card)) if config.tell_augment == "yes" else 1


def network_of(config: Config, card: Card) -> nn.Module:
    """The untrained network."""
    widths, lowest = config.widths, config.blocks[-1]
    told = {"views": views_told(config, card), "dropout": config.dropout}
    if config.network == "annotated":
        mults = tuple(width // widths[0] for width in widths)
        return AnnotatedUNet(widths[0], dim_mults=mults, channels=card.channels, classes=card.classes, **told)
    if config.network == "double-conv":
        return DoubleConvUNet(
            card.channels,
            base_channels=widths[0],
            n_scaling=len(widths),
            n_bottleneck=lowest,
            num_classes=card.classes,
            **told,
        )
    return UNet(card.channels, card.classes, widths, config.blocks, config.patch, **told)


def build(config: Config, card: Card) -> Denoiser:
    """The untrained denoiser of a fitted config, for the data of a card; weights from torch's global generator."""
    net = network_of(config, card).to(memory_format=memory_format(config))  # pyrefly: ignore[no-matching-overload]
    return Denoiser(net, schedule_of(config), TARGETS[config.target], card.std, PRECISIONS[config.precision])


def build_times(config: Config, card: Card) -> Times:
    """The density of training times."""
    lognormal = LogNormal(math.log(card.std) + config.level_mean, config.level_std)
    return {"uniform": uniform, "steps": on_steps}.get(config.times, lognormal)


def weight_of(config: Config) -> Weight | None:
    """The weight of the noise levels, None for weight 1 on the network's output."""
    return MinSNR() if config.weight == "min-snr" else None


def build_loss(config: Config, card: Card) -> Loss:
    """The loss of a config on plain images and their labels: the density of times, the measure and the weight."""
    times, weight, measure = build_times(config, card), weight_of(config), MEASURES[config.measure]
    return partial(denoising_loss, times=times, weight=weight, measure=measure)


def build_training_loss(config: Config, card: Card) -> Loss:
    """The same on what is trained on: views of the images, and labels of which some are dropped."""
    loss, views = build_loss(config, card), views_of(config, card)
    if len(views) > 1:
        loss = augmented(loss, views, card.classes, told=config.tell_augment == "yes")
    return drop_labels(loss, null=card.classes, p=config.drop_labels) if card.classes else loss


def build_sampler(
    config: Config, card: Card, denoiser: PosteriorMean, guide: PosteriorMean | None = None
) -> tuple[PosteriorMean, Tensor, Sampler]:
    """(denoiser with guidance and clipping, grid of times, sampler): what `samples` takes; `guide` is the snapshot."""
    interval = config.guidance_low, config.guidance_high
    if guide is not None:
        denoiser = AutoGuided(denoiser, guide, config.autoguidance, interval)
    if card.classes:
        unconditional = config.guidance == 0  # at every level, not only where guidance acts
        denoiser = Guided(denoiser, config.guidance, card.classes, EVERYWHERE if unconditional else interval)
    times = GRIDS[config.grid](denoiser.schedule, config.sampler_steps)
    return Clipped(denoiser), times, SAMPLERS[config.sampler]
