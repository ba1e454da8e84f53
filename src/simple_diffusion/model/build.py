"""From a configuration to objects: network, denoiser, loss, sampler. Here strings become code."""

import math
from functools import partial

from torch import Tensor, nn

from ..augmentation import AUGMENTATIONS, Augmentation, augmented
from ..data.info import DataInfo
from ..denoiser import Clipped, Denoiser, PosteriorMean
from ..guidance import EVERYWHERE, AutoGuided, Guided, drop_labels
from ..losses import CRITERIA, Density, LogNormal, Loss, MinSNR, Weight, denoising_loss, on_steps, uniform
from ..networks.annotated import AnnotatedUNet
from ..networks.double_conv import DoubleConvUNet
from ..networks.unet import UNet
from ..samplers import GRIDS, SAMPLERS, Sampler
from ..system.device import PRECISIONS
from ..targets import TARGETS
from .config import Config, memory_format, schedule_of


def views_of(config: Config, info: DataInfo) -> list[Augmentation]:
    """The views that a model was trained on, the plain one first."""
    return AUGMENTATIONS[config.augment](info.height == info.width)


def views_told(config: Config, info: DataInfo) -> int:
    """How many views the network tells apart, 1 if it is told none."""
    return len(views_of(config, info)) if config.augment_conditioning == "yes" else 1


def network_of(config: Config, info: DataInfo) -> nn.Module:
    """The untrained network."""
    widths, lowest = config.widths, config.blocks[-1]
    told = {"views": views_told(config, info), "dropout": config.dropout}
    if config.network == "annotated":
        mults = tuple(width // widths[0] for width in widths)
        return AnnotatedUNet(widths[0], dim_mults=mults, channels=info.channels, classes=info.classes, **told)
    if config.network == "double-conv":
        return DoubleConvUNet(
            info.channels,
            base_channels=widths[0],
            n_scaling=len(widths),
            n_bottleneck=lowest,
            num_classes=info.classes,
            **told,
        )
    return UNet(info.channels, info.classes, widths, config.blocks, config.patch, **told)


def build(config: Config, info: DataInfo) -> Denoiser:
    """The untrained denoiser of a fitted config, for the data of a card; weights from torch's global generator."""
    net = network_of(config, info).to(memory_format=memory_format(config))  # pyrefly: ignore[no-matching-overload]
    return Denoiser(net, schedule_of(config), TARGETS[config.target], info.std, PRECISIONS[config.precision])


def build_density(config: Config, info: DataInfo) -> Density:
    """The density of training times."""
    lognormal = LogNormal(math.log(info.std) + config.level_mean, config.level_std)
    return {"uniform": uniform, "steps": on_steps}.get(config.density, lognormal)


def weight_of(config: Config) -> Weight | None:
    """The weight of the noise levels, None for weight 1 on the network's output."""
    return MinSNR() if config.weight == "min-snr" else None


def build_loss(config: Config, info: DataInfo) -> Loss:
    """The loss of a config on plain images and their labels: the density of times, the measure and the weight."""
    density, weight, criterion = build_density(config, info), weight_of(config), CRITERIA[config.criterion]
    return partial(denoising_loss, density=density, weight=weight, criterion=criterion)


def build_training_loss(config: Config, info: DataInfo) -> Loss:
    """The same on what is trained on: views of the images, and labels of which some are dropped."""
    loss, views = build_loss(config, info), views_of(config, info)
    if len(views) > 1:
        loss = augmented(loss, views, info.classes, told=config.augment_conditioning == "yes")
    return drop_labels(loss, null=info.classes, p=config.drop_labels) if info.classes else loss


def build_sampler(
    config: Config, info: DataInfo, denoiser: PosteriorMean, guide: PosteriorMean | None = None
) -> tuple[PosteriorMean, Tensor, Sampler]:
    """(denoiser with guidance and clipping, grid of times, sampler): what `samples` takes; `guide` is the snapshot."""
    interval = config.guidance_low, config.guidance_high
    if guide is not None:
        denoiser = AutoGuided(denoiser, guide, config.autoguidance, interval)
    if info.classes:
        unconditional = config.guidance == 0  # at every level, not only where guidance acts
        denoiser = Guided(denoiser, config.guidance, info.classes, EVERYWHERE if unconditional else interval)
    times = GRIDS[config.grid](denoiser.schedule, config.sampler_steps)
    return Clipped(denoiser), times, SAMPLERS[config.sampler]
