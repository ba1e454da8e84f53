"""Denoising diffusion in one file: garments out of noise, after a few minutes on two CPU cores.

    pip install torch numpy pillow
    python ddpm.py                     # 4,000 steps of training on Fashion-MNIST, then ddpm.png
    python ddpm.py --steps 20000       # longer, for better pictures

Ho, Jain & Abbeel 2020, "Denoising Diffusion Probabilistic Models": read it beside this file. Nothing here comes from
elsewhere but tensors and their gradients. From top to bottom: schedule, loss, sampler, network, data, training.
Shapes stand in brackets: B images of 1 channel and H x W pixels are [B, 1, H, W].
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

# --- the schedule: how much of the image is left after n of T small steps of noise ------------------------------------

T = 1000
betas = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)  # variance of the noise that step 1, 2, ..., T adds
alpha_bar = (1 - betas).cumprod(0)  # what all steps so far leave of the image's variance (eq. 4)
alpha = alpha_bar.sqrt().float()  # [T]
sigma = (1 - alpha_bar).sqrt().float()  # [T]


def at(table: Tensor, n: Tensor) -> Tensor:
    """Entry n = 1 ... T of a table [T], for each n [B], to be multiplied with images: [B, 1, 1, 1]."""
    return table[n - 1].view(-1, 1, 1, 1)


def q_sample(x0: Tensor, n: Tensor, eps: Tensor) -> Tensor:
    """x_n: the image after n steps of noise, in one leap (eq. 4). eps is standard normal noise, shaped like x0."""
    return at(alpha, n) * x0 + at(sigma, n) * eps


# --- the loss: guess the noise (algorithm 1) --------------------------------------------------------------------------


def denoising_loss(net: nn.Module, x0: Tensor, n: Tensor, eps: Tensor) -> Tensor:
    """How far the network's guess of the noise is from the noise: the mean square (eq. 14)."""
    eps_hat = net(q_sample(x0, n, eps), n)
    return (eps_hat - eps).square().mean()


# --- the sampler: take the guessed noise away, a little at a time (algorithm 2) ---------------------------------------


def ddpm_step(x: Tensor, n: int, eps_hat: Tensor, z: Tensor) -> Tensor:
    """From x_n to x_(n-1), given the noise that the network sees in x_n, and fresh noise z.

    The step is a draw from q(x_(n-1) | x_n, x0) (eq. 6 and 7), where x0 is the image that the network guesses.
    """
    x0_hat = (x - sigma[n - 1] * eps_hat) / alpha[n - 1]
    x0_hat = x0_hat.clamp(-1, 1)  # no pixel is darker than black: without this, small errors grow from step to step
    if n == 1:
        return x0_hat
    beta, before, now = betas[n - 1].item(), alpha_bar[n - 2].item(), alpha_bar[n - 1].item()
    mean = (before**0.5 * beta * x0_hat + (1 - beta) ** 0.5 * (1 - before) * x) / (1 - now)  # eq. 7
    variance = (1 - before) / (1 - now) * beta  # eq. 7
    return mean + variance**0.5 * z


@torch.no_grad()
def sample(net: nn.Module, count: int, height: int, width: int) -> Tensor:
    """Images [count, 1, height, width] in [-1, 1], out of noise."""
    x = torch.randn(count, 1, height, width)
    for n in range(T, 0, -1):
        eps_hat = net(x, torch.full((count,), n))
        x = ddpm_step(x, n, eps_hat, torch.randn_like(x))
        if n % 100 == 0:
            print(f"drawing, step {n} of {T}", flush=True)
    return x


# --- the network: a small U-Net, from an image and n to an image ------------------------------------------------------


def sinusoid(n: Tensor, width: int) -> Tensor:
    """The number n [B] as waves [B, width], so that a network can tell 500 from 501 and from 600."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2 - 1))
    angles = n[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


class Block(nn.Module):
    """Two convolutions that add to what is there, and are told n in between."""

    def __init__(self, before: int, after: int, told: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(1, before), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(1, after), nn.Conv2d(after, after, 3, padding=1)
        self.tell = nn.Linear(told, after)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        nn.init.zeros_(
            self.conv2.weight
        )  # at first a block changes nothing, which makes deep networks easy to begin with

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.tell(told)[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    """Each position looks at all others, and adds what it finds."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.qkv, self.out = (
            nn.GroupNorm(1, width),
            nn.Conv2d(width, 3 * width, 1),
            nn.Conv2d(width, width, 1),
        )
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).mT.chunk(3, 2)  # each [B, positions, width]
        found = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(found.mT.view_as(x))


class UNet(nn.Module):
    """Down to a quarter of the height and width, and up again, with a bridge from each level to its like."""

    def __init__(self, width: int = 48):
        super().__init__()
        told = 4 * width
        self.time = nn.Sequential(nn.Linear(width, told), nn.SiLU(), nn.Linear(told, told), nn.SiLU())
        self.enter = nn.Conv2d(4, width, 3, padding=1)
        self.left = Block(width, width, told)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.low1 = Block(2 * width, 2 * width, told)
        self.look = Attention(2 * width)
        self.low2 = Block(2 * width, 2 * width, told)
        self.up = nn.Conv2d(2 * width, width, 3, padding=1)
        self.right = Block(2 * width, width, told)
        self.leave = nn.Sequential(nn.GroupNorm(1, width), nn.SiLU(), nn.Conv2d(width, 4, 3, padding=1))
        self.width = width

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        told = self.time(sinusoid(n, self.width))
        h = self.enter(F.pixel_unshuffle(x, 2))  # 2 x 2 pixels become 4 channels: a quarter of the work
        bridge = self.left(h, told)
        h = self.low2(self.look(self.low1(self.down(bridge), told)), told)
        h = self.up(F.interpolate(h, scale_factor=2.0))
        h = self.right(torch.cat([h, bridge], 1), told)
        return F.pixel_shuffle(self.leave(h), 2)


# --- the data: 60,000 garments of 28 x 28 pixels ----------------------------------------------------------------------

URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/train-images-idx3-ubyte.gz"
SHA256 = "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"


def load_images(path: Path) -> Tensor:
    """A gzipped IDX file -> images [N, 1, H, W] in [-1, 1]; downloaded if it is not there."""
    if not path.exists():
        print(f"downloading {URL}")
        with urllib.request.urlopen(URL, timeout=60) as answer:
            content = answer.read()
        if hashlib.sha256(content).hexdigest() != SHA256:
            raise SystemExit(f"what {URL} sent is not Fashion-MNIST: get {path.name} elsewhere and pass it with --data")
        path.write_bytes(content)
    content = gzip.decompress(path.read_bytes())
    count, height, width = np.frombuffer(content, ">i4", 3, offset=4)
    pixels = np.frombuffer(content, np.uint8, offset=16).reshape(count, 1, height, width)
    return torch.from_numpy(pixels.astype(np.float32)) / 127.5 - 1


def save_images(x: Tensor, path: Path, columns: int = 10) -> None:
    """Draw images [N, 1, H, W] in [-1, 1] as one picture."""
    rows = [torch.cat(list(row), -1) for row in x[:, 0].split(columns)]  # each [H, columns * W]
    sheet = ((torch.cat(rows) + 1) * 127.5).round().clamp(0, 255).byte()  # without the clamp, 256 would become 0
    Image.fromarray(sheet.numpy()).save(path)


# --- training ---------------------------------------------------------------------------------------------------------


def train(x0: Tensor, steps: int, net: nn.Module, batch: int = 64, lr: float = 2e-3) -> nn.Module:
    """Train the network. Returns the average of the weights over the last part of the run, which draws better."""
    average = copy.deepcopy(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr, betas=(0.9, 0.99))
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(step / (0.03 * steps), 1) * (1 - step / steps)  # up at once, then slowly down to 0
        some = x0[torch.randint(len(x0), (batch,))]
        loss = denoising_loss(net, some, torch.randint(1, T + 1, (batch,)), torch.randn_like(some))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        decay = min(0.998, step / (step + 10))  # short at first: early weights should not be remembered
        with torch.no_grad():
            for old, new in zip(average.parameters(), net.parameters(), strict=True):
                old.lerp_(new, 1 - decay)
        if step == 1 or step % max(steps // 20, 1) == 0:
            print(f"step {step} of {steps}, loss {loss.item():.4f}", flush=True)
    return average


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path("train-images-idx3-ubyte.gz"), help="a gzipped IDX file")
    options.add_argument("--steps", type=int, default=4000, help="of training, 64 images each")
    options.add_argument("--width", type=int, default=48, help="channels of the network's upper level")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--count", type=int, default=50, help="images to draw")
    options.add_argument("--out", type=Path, default=Path("ddpm.png"), help="where the picture goes")
    args = options.parse_args()
    torch.manual_seed(args.seed)
    x0 = load_images(args.data)
    net = train(x0, args.steps, UNet(args.width))
    save_images(sample(net, args.count, *x0.shape[2:]), args.out)
    print(args.out)


if __name__ == "__main__":
    main()
