"""Train other packages from PyPI for the same time on the same machine, and save samples for the same evaluation.

Install the packages in a separate environment. They import torchvision but do not use it here, so it is replaced by an
empty module:

    python3 -m venv peers
    peers/bin/pip install torch matplotlib einops accelerate ema-pytorch importlib-metadata regex requests scipy
    peers/bin/pip install --no-deps smalldiffusion denoising-diffusion-pytorch diffusers pytorch-fid
    peers/bin/python benchmarks/peers.py --data path/to/fashion-mnist --for 10min --out peers-10min
    simple-diffusion evaluate peers-10min/smalldiffusion.npz --data fashion-mnist

Each package is trained twice: with its published settings, and with a smaller network and a learning rate, batch size,
target and sampler that suit a few minutes. All get the images as tensors in memory, so none has to decode them. They
sample without labels for at most --draw seconds, with EMA weights if the package uses EMA. speed.json contains the
speed and the number of samples of each. Compare FID at the same number of samples only.
"""

import argparse
import gzip
import json
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

Sample = Callable[[int], Tensor]
"""n -> n samples `[n, 1, H, W]` in [-1, 1]."""


@contextmanager
def torchvision() -> Iterator[None]:
    """Replace torchvision by a module with functions of any name that do nothing, to import a package."""

    class Nothing(types.ModuleType):
        def __getattr__(self, name: str):
            if name.startswith("__"):
                raise AttributeError(name)
            return lambda *args, **kwargs: None

    top, *parts = (Nothing(name) for name in ("torchvision", "torchvision.transforms", "torchvision.utils"))
    for part in parts:
        setattr(top, part.__name__.split(".")[1], part)
    with patch.dict(sys.modules, {module.__name__: module for module in (top, *parts)}):
        yield


class Clock:
    """Yield batches for a number of seconds; the last one may take longer."""

    def __init__(self, images: Tensor, seconds: float, batch: int, mirrored: bool = True):
        self.images, self.seconds, self.batch, self.mirrored = images, seconds, batch, mirrored
        self.seen, self.took = 0, 0.0

    def __iter__(self) -> Iterator[Tensor]:
        began = time.perf_counter()
        while self.took < self.seconds:
            x = self.images[torch.randint(len(self.images), (self.batch,))]
            if self.mirrored:
                x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(-1), x)
            self.seen += len(x)
            yield x
            self.took = time.perf_counter() - began


def smalldiffusion(clock: Clock, **shape: int) -> Sample:
    """Its settings for Fashion-MNIST: DiT, noise levels of DDPM, AdamW at 1e-3, EMA 0.99, 20 steps with gamma 1.6."""
    with torchvision():
        import smalldiffusion as sd
    from ema_pytorch import EMA

    model = sd.DiT(in_dim=28, channels=1, mlp_ratio=4.0, **shape)
    schedule = sd.ScheduleDDPM(beta_start=0.0001, beta_end=0.02, N=1000)
    ema = EMA(model, beta=0.99, update_after_step=0, update_every=1)
    for _ in sd.training_loop(clock, model, schedule, epochs=1, lr=1e-3):
        ema.update()
    average = ema.ema_model.eval()

    def sample(n: int) -> Tensor:
        *_, x0 = sd.samples(average, schedule.sample_sigmas(20), gam=1.6, batchsize=n)
        return x0

    return sample


def lucidrains(clock: Clock, dim: int, dim_mults: tuple[int, ...], lr: float, objective: str, steps: int) -> Sample:
    """denoising-diffusion-pytorch: its U-Net, loop (Adam, clipping at 1, EMA 0.995 every 10 steps) and DDIM."""
    with torchvision():
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    model = Unet(dim=dim, dim_mults=dim_mults, channels=1, flash_attn=False)
    diffusion = GaussianDiffusion(model, image_size=32, timesteps=1000, sampling_timesteps=steps, objective=objective)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=lr, betas=(0.9, 0.99))
    ema = EMA(diffusion, beta=0.995, update_every=10)
    for x in clock:
        loss = diffusion(torch.nn.functional.pad(x, (2, 2, 2, 2), value=-1) / 2 + 0.5)  # 28 is not divisible by 8
        loss.backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
    average = ema.ema_model.eval()
    return lambda n: average.sample(batch_size=n)[..., 2:-2, 2:-2] * 2 - 1


def diffusers(clock: Clock, widths: tuple[int, ...], blocks: int, lr: float, warmup: int, steps: int) -> Sample:
    """Its example `train_unconditional.py`: UNet2DModel with attention at the second-lowest level, DDPM, AdamW, EMA."""
    from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    down, up = ["DownBlock2D"] * len(widths), ["UpBlock2D"] * len(widths)
    down[-2], up[1] = "AttnDownBlock2D", "AttnUpBlock2D"
    model = UNet2DModel(
        sample_size=32,
        in_channels=1,
        out_channels=1,
        layers_per_block=blocks,
        block_out_channels=widths,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
    )
    ddpm = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    solver = ddpm if steps == 1000 else DPMSolverMultistepScheduler.from_config(ddpm.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.95, 0.999), weight_decay=1e-6)
    ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    for n, x in enumerate(clock, 1):
        x = torch.nn.functional.pad(x, (2, 2, 2, 2), value=-1)
        noise, t = torch.randn_like(x), torch.randint(0, 1000, (len(x),))
        for group in optimizer.param_groups:
            group["lr"] = lr * min(n / warmup, 1)
        loss = torch.nn.functional.mse_loss(model(ddpm.add_noise(x, noise, t), t).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
    ema.copy_to(model.parameters())
    model.eval()

    def sample(n: int) -> Tensor:
        x = torch.randn(n, 1, 32, 32)
        solver.set_timesteps(steps)
        for t in solver.timesteps:
            x = solver.step(model(x, t).sample, t, x).prev_sample
        return x[..., 2:-2, 2:-2]

    return sample


PEERS: dict[str, tuple[int, Callable[[Clock], Sample]]] = {  # name -> (batch size, training function)
    "smalldiffusion": (1024, lambda c: smalldiffusion(c, patch_size=2, depth=6, head_dim=32, num_heads=6)),
    "smalldiffusion-small": (64, lambda c: smalldiffusion(c, patch_size=4, depth=6, head_dim=32, num_heads=4)),
    "lucidrains": (64, lambda c: lucidrains(c, 64, (1, 2, 4, 8), 8e-5, "pred_noise", 250)),
    "lucidrains-small": (64, lambda c: lucidrains(c, 32, (1, 2, 2), 1e-3, "pred_v", 50)),
    "diffusers": (16, lambda c: diffusers(c, (128, 128, 256, 256, 512, 512), 2, 1e-4, 500, 1000)),
    "diffusers-small": (64, lambda c: diffusers(c, (32, 64, 64), 1, 1e-3, 100, 20)),
}


def seconds_of(text: str) -> float:
    """`90s`, `10min` or `1h` -> seconds."""
    for unit, size in (("min", 60), ("h", 3600), ("s", 1)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * size
    return float(text)


@torch.no_grad()
def sampled(sample: Sample, n: int, seconds: float, batch: int = 100) -> Tensor:
    """As many samples as the time allows, at least one batch and at most n: uint8."""
    began, parts = time.perf_counter(), []
    while len(parts) * batch < n and (not parts or time.perf_counter() - began < seconds):
        parts.append(((sample(batch).clamp(-1, 1) + 1) * 127.5).round().byte())
    return torch.cat(parts)[:n]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train-images-idx3-ubyte.gz")
    parser.add_argument("--for", dest="seconds", type=seconds_of, default=600.0, metavar="TIME")
    parser.add_argument("--draw", type=float, default=300.0, metavar="SECONDS", help="time limit of sampling")
    parser.add_argument("--n", type=int, default=10000, help="number of images to sample")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--out", type=Path, default=Path("peers-out"))
    args = parser.parse_args()
    content = gzip.decompress((args.data / "train-images-idx3-ubyte.gz").read_bytes())
    pixels = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    images = torch.from_numpy(pixels.astype(np.float32)) / 127.5 - 1
    args.out.mkdir(parents=True, exist_ok=True)
    record = args.out / "speed.json"
    done = json.loads(record.read_text()) if record.is_file() else {}
    for name in args.peers:
        torch.manual_seed(args.seed)
        batch, peer = PEERS[name]
        clock = Clock(images, args.seconds, batch)
        sample = peer(clock)
        began = time.perf_counter()
        samples = sampled(sample, args.n, args.draw)
        speed = len(samples) / (time.perf_counter() - began)
        np.savez(args.out / f"{name}.npz", images=samples.permute(0, 2, 3, 1).numpy())
        done[name] = {
            "images seen": clock.seen,
            "seconds": round(clock.took),
            "images/s": round(clock.seen / clock.took, 1),
            "drawn": len(samples),
            "sampled images/s": round(speed, 1),
        }
        record.write_text(json.dumps(done, indent=1) + "\n")
        print(name, done[name], flush=True)


if __name__ == "__main__":
    main()
