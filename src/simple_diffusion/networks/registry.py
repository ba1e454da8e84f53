"""The networks by name: how a configuration builds each of them, and what it must check before."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from .annotated import AnnotatedUNet, dim_mults_of
from .double_conv import DoubleConvUNet, base_channels_of
from .unet import UNet


@dataclass(frozen=True)
class NetworkInfo:
    """A network as the configuration knows it.

    build          (channels, classes, widths, blocks, patch, **shared) -> the untrained network; shared are its
                   augmentations and dropout
    least_weights  (widths, blocks) -> a lower bound of the number of weights, for which nothing has to be built
    check          raises ValueError for widths that the network does not support
    """

    build: Callable[..., nn.Module]
    least_weights: Callable[[Sequence[int], Sequence[int]], int]
    check: Callable[[Sequence[int]], object]


def any_widths(widths: Sequence[int]) -> None:
    """All widths are supported."""


def annotated(
    channels: int, classes: int, widths: Sequence[int], blocks: Sequence[int], patch: int, **shared
) -> AnnotatedUNet:
    """The annotated U-Net has two blocks on each side of a level, and no patches."""
    return AnnotatedUNet(widths[0], dim_mults=dim_mults_of(widths), channels=channels, classes=classes, **shared)


def double_conv(
    channels: int, classes: int, widths: Sequence[int], blocks: Sequence[int], patch: int, **shared
) -> DoubleConvUNet:
    """The double-conv U-Net takes the last number of blocks, for its bottleneck, and no patches."""
    shape = {"base_channels": base_channels_of(widths), "n_scaling": len(widths), "n_bottleneck": blocks[-1]}
    return DoubleConvUNet(channels, num_classes=classes, **shape, **shared)


def weights_of_blocks(widths: Sequence[int], blocks: Sequence[int]) -> int:
    """The weights of residual blocks: two convolutions of 3 x 3 each."""
    return 18 * sum(width**2 * n for width, n in zip(widths, blocks, strict=True))


NETWORKS: dict[str, NetworkInfo] = {
    "unet": NetworkInfo(UNet, weights_of_blocks, any_widths),
    "annotated": NetworkInfo(annotated, lambda widths, _: weights_of_blocks(widths, [4] * len(widths)), dim_mults_of),
    "double-conv": NetworkInfo(  # the bottleneck doubles its width with every second block
        double_conv, lambda widths, blocks: 9 * (widths[-1] * 2 ** (blocks[-1] // 2)) ** 2, base_channels_of
    ),
}
"""Networks by name."""
