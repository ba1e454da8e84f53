"""A U-Net of double convolutions with attention at every level, the network of many DDPM tutorials.

It follows figure 1 of Ronneberger et al. 2015: max-pooling on the way down, bilinear upsampling, and pairs of 3 x 3
convolutions. The embedding of noise level and label is added to the feature maps. The network computes at full
resolution and takes far more time than `unet.UNet`; it is included because published results use it.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dropout import Dropout
from .embedding import Labels, sinusoid


class DoubleConv(nn.Sequential):
    """Two 3 x 3 convolutions, each normalized over all channels, with GELU (Hendrycks & Gimpel 2016) between them."""

    def __init__(self, channels_in: int, middle: int, channels: int, dropout: float):
        super().__init__(
            nn.Conv2d(channels_in, middle, 3, padding=1, bias=False),
            nn.GroupNorm(1, middle),
            nn.GELU(),
            Dropout(dropout),
            nn.Conv2d(middle, channels, 3, padding=1, bias=False),
            nn.GroupNorm(1, channels),
        )


class SelfAttention(nn.Module):
    """A pre-norm transformer layer over the positions of the feature map (Vaswani et al. 2017; Xiong et al. 2020)."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels)
        )
        nn.init.xavier_uniform_(self.qkv.weight)  # initialized as nn.MultiheadAttention
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        tokens = x.permute(0, 2, 3, 1).reshape(b, height * width, c)  # [B, C, H, W] -> [B, N, C]
        q, k, v = self.qkv(self.norm(tokens)).view(b, -1, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v)  # [B, heads, N, C/heads]
        tokens = tokens + self.out(h.transpose(1, 2).reshape(b, -1, c))
        tokens = tokens + self.mlp(tokens)
        return tokens.view(b, height, width, c).permute(0, 3, 1, 2)


class Level(nn.Module):
    """A residual double convolution, one that changes the width, the added embedding, and attention if it has heads."""

    def __init__(self, channels_in: int, middle: int, channels: int, emb: int, heads: int, dropout: float):
        super().__init__()
        self.keep = DoubleConv(channels_in, channels_in, channels_in, dropout)
        self.change = DoubleConv(channels_in, middle, channels, dropout)
        self.shift = nn.Linear(emb, channels)
        self.attention = SelfAttention(channels, heads) if heads else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.change(F.gelu(x + self.keep(x)))
        return self.attention(h + self.shift(emb)[:, :, None, None])


def base_channels_of(widths: Sequence[int], heads: int = 4) -> int:
    """The width of the first level, which determines the others: `DoubleConvUNet` takes only this one.

    Raises ValueError unless the widths double at each level, and the heads of the attention divide them.
    """
    first = widths[0]
    if first % heads or list(widths) != [first * 2**i for i in range(len(widths))]:
        raise ValueError(
            f"the double-conv network needs widths that are multiples of {heads} and double at each level, got {widths}"
        )
    return first


class DoubleConvUNet(nn.Module):
    """net(x, noise_level, cond) for images of any number of channels, height and width.

    channels      of the image
    out_channels  of the output, `channels` if None
    time_dim      width of the embedding of noise level and label, even
    base_channels channels at full resolution; the width doubles with each level but the last
    n_scaling     how many times the resolution is halved
    n_bottleneck  number of double convolutions at the lowest resolution: the first half of them double the width, the
                  second half halve it again, and the middle one of an odd number keeps it
    num_classes   number of classes, 0 for none; the label `num_classes` means "no label"
    augmentations number of augmentations that the network is conditioned on (`Labels`), 1 for none
    attention     whether each level ends with self-attention over all positions
    heads         of the attention; their number divides base_channels
    dropout       inside the double convolutions, a probability in [0, 1)

    x `[B, channels, H, W]`, noise_level = log(sigma/alpha)/4 `[B]`, cond `[B]` int64 or None ->
    `[B, out_channels, H, W]`. Raises ValueError for a setting that is out of range.

    The defaults are those of the published network. That network is conditioned on the step number; this one is
    conditioned on the noise level, which means the same with every schedule.
    """

    def __init__(
        self,
        channels: int = 3,
        out_channels: int | None = None,
        time_dim: int = 256,
        base_channels: int = 64,
        n_scaling: int = 3,
        n_bottleneck: int = 3,
        num_classes: int = 0,
        augmentations: int = 1,
        attention: bool = True,
        heads: int = 4,
        dropout: float = 0.0,
    ):
        super().__init__()
        out_channels = channels if out_channels is None else out_channels
        at_least_1 = {"channels": channels, "out_channels": out_channels, "base_channels": base_channels}
        at_least_1 |= {"augmentations": augmentations, "heads": heads}
        at_least_0 = {"n_scaling": n_scaling, "n_bottleneck": n_bottleneck, "num_classes": num_classes}
        for low, numbers in ((1, at_least_1), (0, at_least_0)):
            for name, number in numbers.items():
                if number < low:
                    raise ValueError(f"{name} must be at least {low}, got {number}")
        if time_dim < 2 or time_dim % 2:
            raise ValueError(f"time_dim must be even, for a sine and a cosine of each frequency, got {time_dim}")
        if attention and base_channels % heads:
            raise ValueError(f"heads must divide base_channels, got {heads} heads for {base_channels} channels")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")

        self.time_dim, self.stride = time_dim, 2**n_scaling
        self.labels = Labels(num_classes, time_dim, augmentations)
        widths = [base_channels * 2**i for i in range(n_scaling)] or [base_channels]
        levels = {"emb": time_dim, "heads": heads if attention else 0, "dropout": dropout}
        self.stem = DoubleConv(channels, base_channels, base_channels, dropout)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for i in range(n_scaling):
            above, width, below = widths[max(i - 1, 0)], widths[i], widths[min(i + 1, n_scaling - 1)]
            self.down.append(Level(width, below, below, **levels))
            self.up.append(Level(2 * width, width, above, **levels))
        grown = [widths[-1] * 2**i for i in range(n_bottleneck // 2 + 1)]
        path = grown + grown[::-1][1 - n_bottleneck % 2 :]
        self.bottleneck = nn.Sequential(*(DoubleConv(a, b, b, dropout) for a, b in pairwise(path)))
        self.head = nn.Conv2d(base_channels, out_channels, 1)

    def forward(self, x: Tensor, noise_level: Tensor, cond: Tensor | None = None) -> Tensor:
        height, width = x.shape[-2:]
        bottom, right = -height % self.stride, -width % self.stride
        emb = F.silu(sinusoid(noise_level, self.time_dim).to(x.dtype) + self.labels(cond))
        h = self.stem(F.pad(x, (0, right, 0, bottom)))
        skips = []
        for level in self.down:
            skips.append(h)
            h = level(F.max_pool2d(h, 2), emb)
        h = self.bottleneck(h)
        for level, skip in zip(reversed(self.up), reversed(skips), strict=True):
            h = F.interpolate(h, scale_factor=2.0, mode="bilinear", align_corners=True)
            h = level(torch.cat([skip, h], 1), emb)
        return self.head(h)[..., :height, :width]
