"""The default network: a small U-Net that starts at half resolution and attends at its lowest level.

Most of the work happens at 14 x 14 and 7 x 7, where a convolution's arithmetic outweighs the memory it moves: the sizes
that a few minutes on two cores can train. `docs/architecture.md` says how the shape was chosen.
"""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dropout import Dropout
from .embedding import Labels

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups of 32 channels or all at once: channels-last CPU kernels are five times slower on groups below 16."""
    return nn.GroupNorm(channels // 32 if channels % 32 == 0 else 1, channels)


def zeroed(layer: Layer) -> Layer:
    """The layer with weight 0: a residual branch that starts as the identity (Zhang et al. 2019)."""
    nn.init.zeros_(layer.weight)
    return layer


class Embedding(nn.Module):
    """Noise level `[B]` and label `[B]` -> one vector `[B, width]`."""

    def __init__(self, width: int, classes: int, views: int):
        super().__init__()
        frequencies = math.pi * 2 ** torch.linspace(-1, 4, 32)  # noise levels span about [-2, 1.5]
        self.register_buffer("frequencies", frequencies)
        self.level = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = Labels(classes, width, views)

    def forward(self, noise_level: Tensor, cond: Tensor | None) -> Tensor:
        angles = noise_level[:, None] * self.frequencies  # [B] -> [B, 32]
        return F.silu(self.level(torch.cat([angles.cos(), angles.sin()], 1)) + self.labels(cond))


class ResBlock(nn.Module):
    """Two 3 x 3 convolutions on a residual branch, the first one's output scaled by the embedding."""

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
    """Self-attention over the positions of the map, on a residual branch (Vaswani et al. 2017, eq. 1).

    Written out: on the 49 to 64 positions of small images this takes half the time of PyTorch's fused kernel on a CPU.
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
    """Residual blocks in a row, each followed by attention if `attend`."""

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

    channels  of the image
    classes   number of labels, 0 for none; the label `classes` means "no label"
    widths    channels of each level; level i works at 1 / (patch 2^i) of the resolution, the last one attends
    blocks    residual blocks of each level, the same number on the way down and up (the last level counts once)
    patch     pixels folded into channels at the door (pixel-unshuffle)
    dropout   inside the residual blocks, a probability in [0, 1)
    views     augmentations that it may be told of (`Labels`), 1 for none

    x `[B, channels, H, W]`, noise_level = log(sigma/alpha)/4 `[B]`, cond `[B]` int64 or None ->
    `[B, channels, H, W]`. Raises ValueError for widths and blocks of two lengths.

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
        views: int = 1,
    ):
        super().__init__()
        if len(widths) != len(blocks):
            raise ValueError(f"widths and blocks need one number a level each, not {widths} and {blocks}")
        self.patch, self.stride = patch, patch * 2 ** (len(widths) - 1)
        emb, (*upper, lowest) = 2 * widths[-1], widths
        self.embedding = Embedding(emb, classes, views)
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
