"""The U-Net of "The Annotated Diffusion Model" (Rogge & Rasul 2022), which descends from that of DDPM (Ho et al. 2020).

It adds weight-standardized convolutions (Qiao et al. 2019) with group normalization (Wu & He 2018), FiLM (Perez et al.
2018), and linear attention (Shen et al. 2021) at every resolution.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dropout import Dropout
from .embedding import Labels, sinusoid

HEADS, HEAD = 4, 32
"""Number of heads of each attention, and channels of each head."""


class StandardizedConv(nn.Conv2d):
    """A 3 x 3 convolution whose weights are normalized to mean 0 and variance 1 for each output channel.

    Qiao et al. 2019.
    """

    def __init__(self, channels_in: int, channels: int):
        super().__init__(channels_in, channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        return F.conv2d(input, (self.weight - mean) * (var + 1e-5).rsqrt(), self.bias, padding=1)


class ResBlock(nn.Module):
    """Two convolutions on a residual branch; the embedding scales and shifts the output of the first one."""

    def __init__(self, channels_in: int, channels: int, emb: int, groups: int, dropout: float):
        super().__init__()
        self.film = nn.Linear(emb, 2 * channels)
        self.conv1, self.norm1 = StandardizedConv(channels_in, channels), nn.GroupNorm(groups, channels)
        self.conv2, self.norm2 = StandardizedConv(channels, channels), nn.GroupNorm(groups, channels)
        self.dropout = Dropout(dropout)
        self.skip = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.film(emb)[:, :, None, None].chunk(2, 1)  # [B, C, 1, 1] each
        h = F.silu(self.norm1(self.conv1(x)) * (scale + 1) + shift)
        h = F.silu(self.norm2(self.conv2(self.dropout(h))))
        return self.skip(x) + h


class Attention(nn.Module):
    """Self-attention over the positions of the feature map, on a residual branch (Vaswani et al. 2017, eq. 1)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.qkv = nn.Linear(channels, 3 * HEADS * HEAD, bias=False)
        self.out = nn.Linear(HEADS * HEAD, channels)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries, keys and values `[B, heads, N, 32]` -> `[B, heads, N, 32]`."""
        return F.scaled_dot_product_attention(q, k, v)

    def branch(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # [B, C, H, W] -> [B, N, C], no copy if channels-last
        q, k, v = self.qkv(tokens).unflatten(2, (3, HEADS, HEAD)).permute(2, 0, 3, 1, 4)  # [B, heads, N, 32] each
        h = self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))
        return h.transpose(1, 2).unflatten(2, x.shape[2:])  # [B, N, C] -> [B, C, H, W]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class LinearAttention(Attention):
    """Attention whose cost is linear in the number of positions (Shen et al. 2021).

    Two softmaxes, of the queries over channels and of the keys over positions, replace the softmax of q k^T.
    """

    def __init__(self, channels: int):
        super().__init__(channels)
        self.out_norm = nn.GroupNorm(1, channels)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        context = k.softmax(2).transpose(2, 3) @ v  # [B, heads, 32, 32] for any N
        return q.softmax(3) * HEAD**-0.5 @ context

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out_norm(self.branch(x))


class Level(nn.Module):
    """Two residual blocks, linear attention, and a convolution to the size and width of the next level."""

    def __init__(self, channels_in: int, channels: int, emb: int, groups: int, dropout: float, leave: nn.Module):
        super().__init__()
        self.block1 = ResBlock(channels_in, channels, emb, groups, dropout)
        self.block2 = ResBlock(channels_in, channels, emb, groups, dropout)
        self.attention = LinearAttention(channels)
        self.leave = leave


class Down(Level):
    """A level on the way down. It appends the outputs of its blocks to the skip connections."""

    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        x = self.block1(x, emb)
        skips.append(x)
        x = self.attention(self.block2(x, emb))
        skips.append(x)
        return self.leave(x)


class Up(Level):
    """A level on the way up. Each of its blocks takes the last skip connection as further input."""

    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        x = self.block1(torch.cat([x, skips.pop()], 1), emb)
        x = self.block2(torch.cat([x, skips.pop()], 1), emb)
        return self.leave(self.attention(x))


def dim_mults_of(widths: Sequence[int], groups: int = 4) -> tuple[int, ...]:
    """The widths of all levels in multiples of the first one, as `AnnotatedUNet` takes them.

    Raises ValueError unless they are multiples of the first one, and that of the groups of the normalization.
    """
    first = widths[0]
    if first % groups or any(width % first for width in widths):
        raise ValueError(
            f"the annotated network needs widths that are multiples of {groups} and of the first one, got {widths}"
        )
    return tuple(width // first for width in widths)


class AnnotatedUNet(nn.Module):
    """net(x, noise_level, cond) for images of any number of channels, height and width.

    dim             base width, even; the embedding of the noise level has 4 dim channels
    init_dim        width of the stem, None for dim
    out_dim         channels of the output, None for `channels`
    dim_mults       width of each level in multiples of dim; level i has 1 / 2^i of the resolution
    channels        of the image
    self_condition  whether the network also takes its own estimate as input, in further channels
    groups          of the group normalizations in the residual blocks; divides init_dim, dim and each level's width
    classes         number of classes, 0 for none; the label `classes` means "no label"
    augmentations   number of augmentations that the network is conditioned on (`Labels`), 1 for none
    dropout         between the two convolutions of the residual blocks, a probability in [0, 1)

    x `[B, channels, H, W]`, noise_level = log(sigma/alpha)/4 `[B]`, cond `[B]` int64 or None -> `[B, out_dim, H, W]`.

    Self-conditioning (Chen, Zhang & Hinton 2022, "Analog Bits", algorithm 1) keeps no state between calls. A call first
    runs the network without gradient on an estimate of 0, then again with the first `channels` channels of that output
    as the estimate. In training, rows 1, 3, 5, ... of the batch get the estimate and the others keep 0, in place of the
    paper's random choice with probability 1/2; a batch of one row therefore trains without it. In eval mode all rows
    get the estimate, and a call takes two forward passes.

    Raises ValueError for sizes that do not match.
    """

    def __init__(
        self,
        dim: int = 64,
        init_dim: int | None = None,
        out_dim: int | None = None,
        dim_mults: tuple[int, ...] = (1, 2, 4, 8),
        channels: int = 3,
        self_condition: bool = False,
        groups: int = 4,
        classes: int = 0,
        augmentations: int = 1,
        dropout: float = 0.0,
    ):
        super().__init__()
        init_dim = dim if init_dim is None else init_dim
        out_dim = channels if out_dim is None else out_dim
        widths = [init_dim, *(dim * mult for mult in dim_mults)]
        if min(dim, channels, out_dim, groups, augmentations) < 1 or classes < 0:
            raise ValueError("dim, channels, out_dim, groups and augmentations must be at least 1, classes at least 0")
        if dim % 2:
            raise ValueError(f"dim must be even, for sines and cosines of the noise level, got {dim}")
        if not dim_mults or min(widths) < 1:
            raise ValueError(f"dim_mults needs at least one level, and all widths must be at least 1, got {widths}")
        if any(width % groups for width in (dim, *widths)):
            raise ValueError(f"groups must divide dim and all widths, got {groups} for {dim} and {widths}")
        if self_condition and out_dim < channels:
            raise ValueError(
                f"self_condition needs an out_dim of at least the image's {channels} channels, got {out_dim}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")

        self.dim, self.channels, self.self_condition = dim, channels, self_condition
        self.stride = 2 ** (len(dim_mults) - 1)
        emb = 4 * dim
        shared = emb, groups, dropout
        self.time = nn.Sequential(nn.Linear(dim, emb), nn.GELU(), nn.Linear(emb, emb))
        self.labels = Labels(classes, emb, augmentations)
        self.stem = nn.Conv2d(channels * (2 if self_condition else 1), init_dim, 1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for i, (width, below) in enumerate(pairwise(widths)):
            if i < len(dim_mults) - 1:  # stride 2: equals a pixel-unshuffle and a 1 x 1 convolution
                shrink = nn.Conv2d(width, below, 2, stride=2)
            else:
                shrink = nn.Conv2d(width, below, 3, padding=1)
            grow = nn.Conv2d(below, width, 3, padding=1)
            if i > 0:
                grow = nn.Sequential(nn.Upsample(scale_factor=2.0), grow)
            self.down.append(Down(width, width, *shared, leave=shrink))
            self.up.append(Up(below + width, below, *shared, leave=grow))
        self.middle1, self.middle2 = (ResBlock(widths[-1], widths[-1], *shared) for _ in range(2))
        self.attention = Attention(widths[-1])
        self.final = ResBlock(2 * init_dim, dim, *shared)
        self.head = nn.Conv2d(dim, out_dim, 1)

    def forward(self, x: Tensor, noise_level: Tensor, cond: Tensor | None = None) -> Tensor:
        if not self.self_condition:
            return self.once(x, noise_level, cond)
        estimate = torch.zeros_like(x)
        rows = slice(1, None, 2) if self.training else slice(None)
        if len(x[rows]):
            with torch.no_grad():
                inputs = torch.cat([x, estimate], 1)[rows], noise_level[rows], None if cond is None else cond[rows]
                estimate[rows] = self.once(*inputs)[:, : self.channels].to(x.dtype)
            torch.clear_autocast_cache()  # up to torch 2.6 it keeps the casts of weights without their gradients
        return self.once(torch.cat([x, estimate], 1), noise_level, cond)

    def once(self, x: Tensor, noise_level: Tensor, cond: Tensor | None) -> Tensor:
        """One forward pass; x `[B, C, H, W]` includes the channels of the estimate if the network takes one."""
        height, width = x.shape[-2:]
        emb = F.silu(self.time(sinusoid(noise_level, self.dim).to(x.dtype)) + self.labels(cond))
        x = self.stem(F.pad(x, (0, -width % self.stride, 0, -height % self.stride)))
        stem, skips = x, []
        for level in self.down:
            x = level(x, emb, skips)
        x = self.middle2(self.attention(self.middle1(x, emb)), emb)
        for level in reversed(self.up):
            x = level(x, emb, skips)
        x = self.final(torch.cat([x, stem], 1), emb)
        return self.head(x)[..., :height, :width]
