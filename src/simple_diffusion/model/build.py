"""From a configuration to objects: network, denoiser, loss and sampler. Names of settings become code only here."""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..augmentation import AUGMENTATIONS, Augmentation, augmented
from ..data.info import DataInfo
from ..denoiser import Clipped, Denoiser, PosteriorMean
from ..guidance import EVERYWHERE, AutoGuided, Guided, drop_labels
from ..losses import CRITERIA, Density, LogNormal, Loss, MinSNR, Weight, denoising_loss, on_steps, uniform
from ..networks.registry import NETWORKS
from ..samplers import GRIDS, SAMPLERS, Sampler
from ..system.device import PRECISIONS
from ..targets import TARGETS
from .config import Config, memory_format, schedule_of


@dataclass(frozen=True)
class ModelSpec:
    """The specification of a model: a configuration and the properties of its data. Its methods build the parts.

    config  fitted to the device
    info    shape, classes, mean and standard deviation of the data
    """

    config: Config
    info: DataInfo

    def changed(self, **settings: Any) -> "ModelSpec":
        """The specification with other settings. Raises UsageError for a value that is not allowed."""
        return replace(self, config=replace(self.config, **settings))

    @property
    def augmentations(self) -> list[Augmentation]:
        """The augmentations of training images, the identity first."""
        return AUGMENTATIONS[self.config.augment](self.info.height == self.info.width)

    @property
    def augment_labels(self) -> int:
        """The number of augmentations that the network is conditioned on, 1 for none."""
        return len(self.augmentations) if self.config.augment_conditioning == "yes" else 1

    @property
    def weight(self) -> Weight | None:
        """Weight of each noise level in the loss, None for weight 1 on the error of the network's output."""
        return MinSNR() if self.config.weight == "min-snr" else None

    @property
    def density(self) -> Density:
        """Density of the noise levels in training."""
        lognormal = LogNormal(math.log(self.info.std) + self.config.level_mean, self.config.level_std)
        return {"uniform": uniform, "steps": on_steps}.get(self.config.density, lognormal)

    def network(self) -> nn.Module:
        """The untrained network, initialized by torch's global generator."""
        config, info = self.config, self.info
        return NETWORKS[config.network].build(
            info.channels,
            info.classes,
            config.widths,
            config.blocks,
            config.patch,
            augmentations=self.augment_labels,
            dropout=config.dropout,
        )

    def denoiser(self) -> Denoiser:
        """The untrained denoiser, initialized by torch's global generator."""
        config = self.config
        net = self.network().to(memory_format=memory_format(config))  # pyrefly: ignore[no-matching-overload]
        target, dtype = TARGETS[config.target], PRECISIONS[config.precision]
        mean = self.info.mean if config.center == "yes" else 0.0
        return Denoiser(net, schedule_of(config), target, self.info.std, mean, dtype)

    def loss(self) -> Loss:
        """The loss without augmentation and dropped labels, for the held-out loss."""
        criterion = CRITERIA[self.config.criterion]
        return partial(denoising_loss, density=self.density, weight=self.weight, criterion=criterion)

    def training_loss(self) -> Loss:
        """The loss with augmentation and dropped labels, for training."""
        config, classes, loss = self.config, self.info.classes, self.loss()
        if len(self.augmentations) > 1:
            loss = augmented(loss, self.augmentations, classes, conditioned=config.augment_conditioning == "yes")
        return drop_labels(loss, null=classes, p=config.drop_labels) if classes else loss

    def sampler(
        self, denoiser: PosteriorMean, guide: PosteriorMean | None = None
    ) -> tuple[PosteriorMean, Tensor, Sampler]:
        """(denoiser with guidance and clipping, time grid, sampler), the arguments of `sample_batches`.

        guide  early snapshot of the averaged weights for autoguidance, or None
        """
        config, classes = self.config, self.info.classes
        interval = config.guidance_low, config.guidance_high
        if guide is not None:
            denoiser = AutoGuided(denoiser, guide, config.autoguidance, interval)
        if classes:
            unconditional = config.guidance == 0  # without labels at every noise level
            denoiser = Guided(denoiser, config.guidance, classes, EVERYWHERE if unconditional else interval)
        times = GRIDS[config.grid](denoiser.schedule, config.sampler_steps)
        return Clipped(denoiser), times, SAMPLERS[config.sampler].function
