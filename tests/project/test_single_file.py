"""single_file/ddpm.py gives the same numbers as the library: noise levels, loss and steps. It does not import it."""

import ast
import gzip
import importlib.util
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import simple_diffusion as sd
from simple_diffusion.randomness import Draws

FILE = Path(__file__).parents[2] / "single_file" / "ddpm.py"


@pytest.fixture(scope="module")
def ddpm():
    spec = importlib.util.spec_from_file_location("ddpm", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class ByLevel(torch.nn.Module):
    """The network of the file with the library's inputs: it converts the noise level to the number of the step."""

    def __init__(self, net, schedule):
        super().__init__()
        self.net, self.table = net, schedule.ratio(torch.arange(1, 1001) / 1000.0).log() / 4

    def forward(self, x, noise_level, cond=None):
        n = (noise_level.view(-1, 1) - self.table).abs().argmin(1) + 1
        return self.net(x, n.expand(len(x)))


@pytest.fixture
def pair(ddpm):
    """The network of the file with random weights, and the library's denoiser with the same network."""
    torch.manual_seed(0)
    net = ddpm.UNet(width=8)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    schedule = sd.Discrete(sd.linear_betas(1000))
    return net, sd.Denoiser(ByLevel(net, schedule), schedule, sd.targets.noise)


def test_it_is_short_and_needs_only_torch_numpy_and_pillow():
    text = FILE.read_text()
    assert len(text.splitlines()) <= 300
    roots = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            roots.add(node.module.split(".")[0])
    assert roots - sys.stdlib_module_names == {"torch", "numpy", "PIL"}


def test_the_noise_levels_equal_those_of_the_library(ddpm):
    schedule, t = sd.Discrete(sd.linear_betas(1000)), torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(ddpm.alpha.double(), schedule.alpha(t), rtol=1e-6, atol=0)
    torch.testing.assert_close(ddpm.sigma.double(), schedule.sigma(t), rtol=1e-6, atol=0)


def test_the_loss_equals_that_of_the_library(ddpm, pair):
    net, denoiser = pair
    draws, x0 = Draws(0, 1, range(6), total=6), torch.rand(6, 1, 28, 28) * 2 - 1
    t = sd.on_steps(draws.stratified("time"), denoiser.schedule)
    theirs = sd.denoising_loss(denoiser, x0, None, draws, density=sd.on_steps).mean()
    ours = ddpm.denoising_loss(net, x0, (t * 1000).round().long(), draws.normal("noise", (1, 28, 28)).float())
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)


@pytest.mark.parametrize("n", [1000, 500, 2, 1])
def test_a_step_equals_that_of_the_library(ddpm, pair, n):
    net, denoiser = pair
    x, z = torch.randn(3, 1, 28, 28), torch.randn(3, 1, 28, 28)
    times = torch.tensor([n, n - 1][: 1 if n == 1 else 2], dtype=torch.float64) / 1000
    with torch.no_grad():
        theirs = next(iter(sd.ddpm(sd.Clipped(denoiser), x, times, noise=lambda step, x: z)))
        ours = ddpm.ddpm_step(x, n, net(x, torch.full((3,), n)), z)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_with_the_exact_noise_sampling_returns_the_image(ddpm):
    """All data are one image, and the exact noise replaces the network."""
    x0 = torch.rand(1, 1, 28, 28) * 2 - 1

    def exact(x, n):
        return (x - ddpm.at(ddpm.alpha, n) * x0) / ddpm.at(ddpm.sigma, n)

    torch.testing.assert_close(ddpm.sample(exact, 2, 28, 28), x0.expand(2, -1, -1, -1), rtol=0, atol=1e-3)


def test_pixels_do_not_wrap_around(ddpm, tmp_path):
    ddpm.save_images(torch.tensor([-1e9, -1.0, 0.0, 1.0, 1.1, 1e9]).view(6, 1, 1, 1), tmp_path / "a.png", columns=6)
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == [[0, 0, 128, 255, 255, 255]]


@pytest.mark.slow
def test_training_on_squares_reduces_the_loss(ddpm, tmp_path):
    """The images are squares on the left or on the right. A constant prediction has the loss 1."""
    pixels = np.zeros((64, 28, 28), np.uint8)
    pixels[::2, 8:20, 2:14] = pixels[1::2, 8:20, 14:26] = 255
    data = tmp_path / "squares.gz"
    data.write_bytes(gzip.compress(struct.pack(">iiii", 0x803, *pixels.shape) + pixels.tobytes()))
    command = [sys.executable, str(FILE), "--data", str(data), "--steps", "60", "--width", "8", "--count", "2"]
    done = subprocess.run([*command, "--out", str(tmp_path / "a.png")], check=True, capture_output=True, text=True)
    losses = [float(line.split()[-1]) for line in done.stdout.splitlines() if ", loss " in line]
    assert losses[0] > 0.8
    assert min(losses) < 0.5
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (2 * 28, 28)
