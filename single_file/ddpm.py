"""Denoising diffusion (DDPM) in one file: generates images of clothes after about ten minutes on two CPU cores.

    pip install torch numpy pillow
    python ddpm.py                     # trains for 4,000 steps on Fashion-MNIST, then writes ddpm.png
    python ddpm.py --steps 20000       # trains longer, for better samples

The equations and algorithms are those of Ho, Jain & Abbeel 2020, "Denoising Diffusion Probabilistic Models". From top
to bottom: schedule, loss, sampler, network, data, training. The file uses only PyTorch, NumPy and Pillow. Shapes are in
brackets: B images with 1 channel and H x W pixels are [B, 1, H, W].
"""

import argparse
import copy
import gzip
import hashlib
import math
import urllib.request
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

# --- the schedule: signal and noise after n of T steps ----------------------------------------------------------------

T = 1000
betas = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)  # variance of the noise of step 1, 2, ..., T
alpha_bar = (1 - betas).cumprod(0)  # share of the variance of x0 in x_n (eq. 4)
alpha = alpha_bar.sqrt().float()  # [T]
sigma = (1 - alpha_bar).sqrt().float()  # [T]


def at(table: Tensor, n: Tensor) -> Tensor:
    """The entries n [B] = 1 ... T of a table [T], in a shape that multiplies images: [B, 1, 1, 1]."""
    return table[n - 1].view(-1, 1, 1, 1)


def q_sample(x0: Tensor, n: Tensor, eps: Tensor) -> Tensor:
    """x_n, the image after n steps of noise, in closed form (eq. 4). eps is standard normal, with the shape of x0."""
    return at(alpha, n) * x0 + at(sigma, n) * eps


# --- the loss: predict the noise (algorithm 1) ------------------------------------------------------------------------


def denoising_loss(net: nn.Module, x0: Tensor, n: Tensor, eps: Tensor) -> Tensor:
    """Mean squared error of the noise prediction (eq. 14)."""
    eps_hat = net(q_sample(x0, n, eps), n)
    return (eps_hat - eps).square().mean()


# --- the sampler: remove the predicted noise step by step (algorithm 2) -----------------------------------------------


def ddpm_step(x: Tensor, n: int, eps_hat: Tensor, z: Tensor) -> Tensor:
    """One step from x_n to x_(n-1), with the noise prediction eps_hat and new noise z.

    It samples from q(x_(n-1) | x_n, x0) (eq. 6 and 7), with the x0 prediction in place of x0.
    """
    x0_hat = (x - sigma[n - 1] * eps_hat) / alpha[n - 1]
    x0_hat = x0_hat.clamp(-1, 1)  # without this, small errors grow from step to step
    if n == 1:
        return x0_hat
    beta, before, now = betas[n - 1].item(), alpha_bar[n - 2].item(), alpha_bar[n - 1].item()
    mean = (before**0.5 * beta * x0_hat + (1 - beta) ** 0.5 * (1 - before) * x) / (1 - now)  # eq. 7
    variance = (1 - before) / (1 - now) * beta  # eq. 7
    return mean + variance**0.5 * z


@torch.no_grad()
def sample(net: nn.Module, count: int, height: int, width: int) -> Tensor:
    """Generate images [count, 1, height, width] in [-1, 1] from noise."""
    x = torch.randn(count, 1, height, width)
    for n in range(T, 0, -1):
        eps_hat = net(x, torch.full((count,), n))
        x = ddpm_step(x, n, eps_hat, torch.randn_like(x))
        if (T + 1 - n) % 100 == 0:
            print(f"sampling, step {T + 1 - n} of {T}", flush=True)
    return x


# --- the network: a small U-Net ---------------------------------------------------------------------------------------


def sinusoid(n: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of n [B]: [B, width]. Nearby and distant steps both differ clearly."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2 - 1))
    angles = n[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


class Block(nn.Module):
    """A residual block of two convolutions, conditioned on the embedding of n."""

    def __init__(self, before: int, after: int, embedding: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(1, before), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(1, after), nn.Conv2d(after, after, 3, padding=1)
        self.condition = nn.Linear(embedding, after)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        nn.init.zeros_(self.conv2.weight)  # the block starts as the identity, which makes training stable

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.condition(embedding)[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    """Self-attention over all positions, as a residual block."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.qkv = nn.GroupNorm(1, width), nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).mT.chunk(3, 2)  # each [B, positions, width]
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.mT.view_as(x))


class UNet(nn.Module):
    """Half and quarter resolution, with a skip connection at half resolution: x [B, 1, H, W], n [B] -> [B, 1, H, W]."""

    def __init__(self, width: int = 48):
        super().__init__()
        self.width, embedding = width, 4 * width
        self.time = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())
        self.stem = nn.Conv2d(4, width, 3, padding=1)
        self.block_down = Block(width, width, embedding)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle1 = Block(2 * width, 2 * width, embedding)
        self.attention = Attention(2 * width)
        self.middle2 = Block(2 * width, 2 * width, embedding)
        self.up = nn.Conv2d(2 * width, width, 3, padding=1)
        self.block_up = Block(2 * width, width, embedding)
        self.head = nn.Sequential(nn.GroupNorm(1, width), nn.SiLU(), nn.Conv2d(width, 4, 3, padding=1))

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        embedding = self.time(sinusoid(n, self.width))
        h = self.stem(F.pixel_unshuffle(x, 2))  # 2 x 2 pixels become 4 channels: a quarter of the compute
        skip = self.block_down(h, embedding)
        h = self.middle1(self.down(skip), embedding)
        h = self.middle2(self.attention(h), embedding)
        h = self.up(F.interpolate(h, scale_factor=2.0))
        h = self.block_up(torch.cat([h, skip], 1), embedding)
        return F.pixel_shuffle(self.head(h), 2)


# --- the data: 60,000 images of clothes, 28 x 28 pixels ---------------------------------------------------------------

URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/train-images-idx3-ubyte.gz"
SHA256 = "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"


def load_images(path: Path) -> Tensor:
    """Images [N, 1, H, W] in [-1, 1] from a gzipped IDX file, which is downloaded if it does not exist."""
    if not path.exists():
        print(f"downloading {URL}")
        with urllib.request.urlopen(URL, timeout=60) as answer:
            content = answer.read()
        if hashlib.sha256(content).hexdigest() != SHA256:
            raise SystemExit(f"the file at {URL} has a wrong checksum: download {path.name} elsewhere and pass --data")
        path.write_bytes(content)
    content = gzip.decompress(path.read_bytes())
    count, height, width = np.frombuffer(content, ">i4", 3, offset=4)
    pixels = np.frombuffer(content, np.uint8, offset=16).reshape(count, 1, height, width)
    return torch.from_numpy(pixels.astype(np.float32)) / 127.5 - 1


def save_images(x: Tensor, path: Path, columns: int = 10) -> None:
    """Write images [N, 1, H, W] in [-1, 1] as a grid into one picture."""
    rows = [torch.cat(list(row), -1) for row in x[:, 0].split(columns)]  # each [H, columns * W]
    sheet = ((torch.cat(rows) + 1) * 127.5).round().clamp(0, 255).byte()  # without clamp, 256 becomes 0
    Image.fromarray(sheet.numpy()).save(path)


# --- training ---------------------------------------------------------------------------------------------------------


def train(x0: Tensor, steps: int, net: nn.Module, batch: int = 64, lr: float = 2e-3) -> nn.Module:
    """Train the network for `steps` updates and return a copy with the moving average (EMA) of the weights."""
    ema = copy.deepcopy(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr, betas=(0.9, 0.99))
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = (
                lr * min(step / (0.03 * steps), 1) * (1 - step / steps)
            )  # warm-up over 3 % of the steps, then decay to 0
        images = x0[torch.randint(len(x0), (batch,))]
        loss = denoising_loss(net, images, torch.randint(1, T + 1, (batch,)), torch.randn_like(images))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        decay = min(0.998, step / (step + 10))  # smaller at first, to forget the initial weights
        with torch.no_grad():
            for old, new in zip(ema.parameters(), net.parameters(), strict=True):
                old.lerp_(new, 1 - decay)
        if step == 1 or step % max(steps // 20, 1) == 0:
            print(f"step {step} of {steps}, loss {loss.item():.4f}", flush=True)
    return ema


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path("train-images-idx3-ubyte.gz"), help="a gzipped IDX file")
    options.add_argument("--steps", type=int, default=4000, help="training steps, with 64 images each")
    options.add_argument("--width", type=int, default=48, help="channels of the network at half resolution")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--count", type=int, default=50, help="number of images to generate")
    options.add_argument("--out", type=Path, default=Path("ddpm.png"), help="file for the picture of the samples")
    args = options.parse_args()
    torch.manual_seed(args.seed)
    x0 = load_images(args.data)
    net = train(x0, args.steps, UNet(args.width))
    save_images(sample(net, args.count, *x0.shape[2:]), args.out)
    print(args.out)


if __name__ == "__main__":
    main()
