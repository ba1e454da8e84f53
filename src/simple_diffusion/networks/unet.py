"""The default network: a small U-Net with a patch size of 2 and with attention at its lowest resolution.

For images of 28 x 28 pixels it computes at 14 x 14 and 7 x 7. At these sizes a convolution spends more time on
arithmetic than on memory access. `docs/notes/network.md` has the measurements behind its layers.
"""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_integer, check_number
from .dropout import Dropout
from .embedding import Labels

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups of 32 channels, or one group: channels-last CPU kernels are five times slower on groups below 16."""
    return nn.GroupNorm(channels // 32 if channels % 32 == 0 else 1, channels)


def zeroed(layer: Layer) -> Layer:
    """Set the layer's weight to 0, so that its residual block starts as the identity (Zhang et al. 2019)."""
    nn.init.zeros_(layer.weight)
    return layer


class Embedding(nn.Module):
    """Embed the noise level `[B]` and the label `[B]` together: `[B, width]`."""

    def __init__(self, width: int, classes: int, augmentations: int):
        super().__init__()
        frequencies = math.pi * 2 ** torch.linspace(-1, 4, 32)  # noise levels lie in about [-1.7, 2.5]
        self.register_buffer("frequencies", frequencies)
        self.level = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = Labels(classes, width, augmentations)

    def forward(self, noise_level: Tensor, cond: Tensor | None) -> Tensor:
        angles = noise_level[:, None] * self.frequencies  # [B] -> [B, 32]
        return F.silu(self.level(torch.cat([angles.cos(), angles.sin()], 1)) + self.labels(cond))


class ResBlock(nn.Module):
    """Two 3 x 3 convolutions on a residual branch; the embedding scales the output of the first one."""

    def __init__(self, channels_in: int, channels: int, emb: int, dropout: float):
        super().__init__()
        self.norm = group_norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        self.scale = nn.Linear(emb, channels)
        self.dropout = Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(channels, channels, 3, padding=1, bias=False))
        self.skip = nn.Conv2d(channels_in, channels, 1, bias=False) if channels_in != channels else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm(x)))
        h = h * (1 + self.scale(emb))[:, :, None, None]
        return self.skip(x) + self.conv2(self.dropout(F.silu(h)))


class Attention(nn.Module):
    """Self-attention over the positions of the feature map, on a residual branch (Vaswani et al. 2017, eq. 1).

    For the 49 positions of a 28 x 28 image PyTorch's fused kernel took at least twice as long on a CPU
    (docs/notes/network.md).
    """

    def __init__(self, channels: int, head: int = 64):
        super().__init__()
        self.heads = channels // head if channels % head == 0 else 1
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out = zeroed(nn.Linear(channels, channels, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(b, height * width, c)  # [B, C, H, W] -> [B, N, C]
        q, k, v = self.qkv(tokens).view(b, -1, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)  # [B, h, N, C/h]
        weights = (q @ k.transpose(-1, -2) * (c // self.heads) ** -0.5).softmax(-1)  # [B, h, N, N]
        h = self.out((weights @ v).transpose(1, 2).reshape(b, -1, c))
        return x + h.view(b, height, width, c).permute(0, 3, 1, 2)


class Level(nn.ModuleList):
    """Residual blocks in sequence, each followed by attention if `attend`."""

    def __init__(self, channels_in: int, channels: int, blocks: int, emb: int, attend: bool, dropout: float):
        super().__init__()
        for i in range(blocks):
            self.append(ResBlock(channels if i else channels_in, channels, emb, dropout))
            if attend:
                self.append(Attention(channels))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class UNet(nn.Module):
    """net(x, noise_level, cond) for images of any number of channels, height and width.

    channels       of the image
    classes        number of classes, 0 for none; the label `classes` means "no label"
    widths         channels of each level; level i has 1 / (patch 2^i) of the resolution, and the last has attention
    blocks         number of residual blocks of each level, on the way down and again on the way up (the last level
                   has them once)
    patch          patch size: a pixel-unshuffle turns each patch x patch square of pixels into channels
    dropout        inside the residual blocks, a probability in [0, 1)
    augmentations  number of augmentations that the network is conditioned on (`Labels`), 1 for none

    x `[B, channels, H, W]`, noise_level = log(sigma/alpha)/4 `[B]`, cond `[B]` int64 or None ->
    `[B, channels, H, W]`. Raises ValueError for a number that is not allowed, unless widths and blocks have the same
    length, and for images of another number of channels.

    A U-Net (Ronneberger et al. 2015) of residual blocks and attention, as DDPM's (Ho et al. 2020, appendix B).
    """

    def __init__(
        self,
        channels: int = 1,
        classes: int = 0,
        widths: tuple[int, ...] = (64, 128),
        blocks: tuple[int, ...] = (1, 2),
        patch: int = 2,
        dropout: float = 0.0,
        augmentations: int = 1,
    ):
        super().__init__()
        if not widths or len(widths) != len(blocks):
            raise ValueError(f"widths and blocks need one number for each level, got {widths} and {blocks}")
        for name, numbers in {"channels": (channels,), "widths": widths, "blocks": blocks, "patch": (patch,)}.items():
            for number in numbers:
                check_integer(name, number, 1)
        check_number("dropout", dropout, 0, 1, "[)")
        self.channels, self.patch, self.stride = channels, patch, patch * 2 ** (len(widths) - 1)
        emb, (*upper, lowest) = 2 * widths[-1], widths
        self.embedding = Embedding(emb, classes, augmentations)
        self.stem = nn.Conv2d(channels * patch**2, widths[0], 3, padding=1, bias=False)
        self.down, self.shrink, self.grow, self.up = (nn.ModuleList() for _ in range(4))
        for width, below, depth in zip(upper, widths[1:], blocks, strict=False):
            self.down.append(Level(width, width, depth, emb, attend=False, dropout=dropout))
            self.shrink.append(nn.Conv2d(width, below, 3, padding=1, stride=2, bias=False))
            self.grow.append(nn.Conv2d(below, width, 1, bias=False))
            self.up.append(Level(2 * width, width, depth, emb, attend=False, dropout=dropout))
        self.middle = Level(lowest, lowest, blocks[-1], emb, attend=True, dropout=dropout)
        self.norm = group_norm(widths[0])
        self.head = zeroed(nn.Conv2d(widths[0], channels * patch**2, 3, padding=1, bias=False))

    def forward(self, x: Tensor, noise_level: Tensor, cond: Tensor | None = None) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"the network takes images [B, {self.channels}, H, W], got {tuple(x.shape)}")
        height, width = x.shape[-2:]
        bottom, right = -height % self.stride, -width % self.stride
        emb = self.embedding(noise_level, cond)
        h = F.pixel_unshuffle(F.pad(x, (0, right, 0, bottom)), self.patch)  # [B, C, H, W] -> [B, C p^2, H/p, W/p]
        h = self.stem(h)
        skips = []
        for level, shrink in zip(self.down, self.shrink, strict=True):
            h = level(h, emb)
            skips.append(h)
            h = shrink(h)
        h = self.middle(h, emb)
        for level, grow, skip in zip(reversed(self.up), reversed(self.grow), reversed(skips), strict=True):
            h = F.interpolate(grow(h), scale_factor=2.0, mode="nearest")
            h = level(torch.cat([h, skip], 1), emb)
        h = self.head(F.silu(self.norm(h)))
        return F.pixel_shuffle(h, self.patch)[..., :height, :width]
