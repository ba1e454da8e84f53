"""Your own network in place of the U-Net: any module net(x, noise_level, cond) -> the shape of x."""

import sys

import torch
from torch import Tensor, nn

import simple_diffusion as sd


class ConvNet(nn.Module):
    """Five convolutions. The noise level and the label enter as one bias for each channel.

    x `[B, C, H, W]` has unit variance; noise_level = log(sigma/alpha)/4 `[B]`; cond `[B]` is a label, or None.
    """

    def __init__(self, channels: int, classes: int, width: int = 64):
        super().__init__()
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.noise_level = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width)  # one more, for "no label"
        layers = [nn.Sequential(nn.Conv2d(width, width, 5, padding=2), nn.SiLU()) for _ in range(4)]
        self.body = nn.Sequential(*layers)
        self.leave = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor, noise_level: Tensor, cond: Tensor | None = None) -> Tensor:
        bias = self.noise_level(noise_level[:, None])
        if cond is not None:
            bias = bias + self.label(cond)
        return self.leave(self.body(self.enter(x) + bias[:, :, None, None]))


steps = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
images = sd.load_images("digits")
denoiser = sd.Denoiser(ConvNet(1, images.classes), sd.Karras(), sd.targets.v, images.std, images.mean)
model = sd.fit(denoiser, images, steps).model
samples = sd.sample(model, (40, 1, 28, 28), sd.karras_grid(model.schedule, 12), torch.arange(40) % 10)
sd.make_grid(sd.to_uint8(samples), columns=10).save("own_network.png")
