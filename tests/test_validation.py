"""The held-out loss: the split, the measurement, and the weights that are kept."""

import pytest
import torch
from oracles import Gaussian

from simple_diffusion.data.images import Images
from simple_diffusion.errors import DataError
from simple_diffusion.losses import LogNormal, denoising_loss
from simple_diffusion.schedules import Karras
from simple_diffusion.validation import ROWS, HeldOut, keep_out


def numbered(n):
    """Image i has the pixels i and the label i % 3."""
    pixels = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 1, 4, 4).contiguous()
    return Images("numbered", pixels, torch.arange(n) % 3, ("a", "b", "c"))


def test_every_image_is_on_one_side_with_its_label():
    train, kept = keep_out(numbered(50), 0.1, seed=0)
    assert len(kept) == 5
    assert sorted([*train.pixels[:, 0, 0, 0].tolist(), *kept.pixels[:, 0, 0, 0].tolist()]) == list(range(50))
    for side in (train, kept):
        assert torch.equal(side.labels, side.pixels[:, 0, 0, 0] % 3)
    assert not torch.equal(kept.pixels, keep_out(numbered(50), 0.1, seed=1)[1].pixels)


@pytest.mark.parametrize(("n", "share"), [(4, 0.1), (1, 0.5)])
def test_an_empty_side_is_refused(n, share):
    with pytest.raises(DataError, match="can't be held out"):
        keep_out(numbered(n), share, seed=0)


class Scripted:
    """A denoiser with a loss that the test sets."""

    def __init__(self):
        self.value = torch.nn.Parameter(torch.tensor(0.0))

    def parameters(self):
        return iter([self.value])

    def state_dict(self):
        return {"value": self.value.data}


def scripted_loss(denoiser, x0, cond, draws):
    return denoiser.value.detach().expand(len(x0))


def test_the_weights_of_the_lowest_loss_are_kept():
    held_out, denoiser = HeldOut(numbered(5), scripted_loss, seed=0), Scripted()
    for progress, value in ((0.1, 3.0), (0.2, 1.0), (0.3, 2.0)):
        denoiser.value.data.fill_(value)
        assert held_out.check(denoiser, progress) == value
    assert (held_out.best, held_out.best_progress) == (1.0, 0.2)
    assert held_out.weights["value"] == 1.0  # a copy


def test_the_rows_repeat_the_images_with_different_noise():
    seen = []

    def loss(denoiser, x0, cond, draws):
        seen.append((x0, cond, draws.normal("noise", (1,)), draws.stratified("time")))
        return torch.zeros(len(x0))

    HeldOut(numbered(5), loss, seed=0).measure(Scripted())
    x0, cond, noise, time = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert torch.equal(cond, torch.arange(ROWS) % 5 % 3)
    assert len(noise.unique()) == ROWS
    assert (time.sort().values * ROWS).floor().tolist() == list(range(ROWS))  # one time in each stratum
    assert torch.equal(x0[:, 0, 0, 0], (torch.arange(ROWS) % 5) / 127.5 - 1)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_images_have_the_memory_format_of_the_run(layout):
    pixels = torch.zeros(5, 3, 4, 4, dtype=torch.uint8)

    def loss(denoiser, x0, cond, draws):
        assert x0.is_contiguous(memory_format=layout)
        return torch.zeros(len(x0))

    assert HeldOut(Images("black", pixels), loss, 0, layout).measure(Scripted()) == 0


class Exact(Gaussian):
    """The ideal denoiser of N(mean, std^2), with the interface that the loss uses."""

    data_std = 1.0

    def parameters(self):
        return iter([torch.zeros(1)])

    def coefficients(self, t, x):
        alpha, sigma = self.schedule.levels(t, x)
        return alpha, sigma, 1.0, 0.0  # the target is the clean image

    def normalize(self, x0):
        return x0

    def predict(self, x_t, t, cond=None):
        return self(x_t, t)


def test_the_held_out_loss_of_the_ideal_denoiser_is_its_closed_form():
    """Its error at noise level s is the posterior variance s^2 v / (s^2 + v), where v is the variance of the data."""
    generator = torch.Generator().manual_seed(0)
    pixels = (128 + 40 * torch.randn(2000, 1, 8, 8, generator=generator)).round().clamp(0, 255).to(torch.uint8)
    images = Images("gaussian", pixels)
    exact, times = Exact(Karras(), images.mean, images.std), LogNormal(-1.0, 0.5)
    held_out = HeldOut(images, lambda d, x, c, r: denoising_loss(d, x, c, r, density=times), seed=0)
    level = times(((torch.arange(4096).double() + 0.5) / 4096), Karras())
    variance = Karras().ratio(level) ** 2
    expected = (variance * images.std**2 / (variance + images.std**2)).mean().item()
    assert held_out.measure(exact) == pytest.approx(expected, rel=0.04)  # 256 x 64 squares: standard deviation 1.1 %
