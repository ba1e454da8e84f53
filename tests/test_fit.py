"""`fit` trains as the loop of `train` and `EMA.update` does."""

from itertools import islice

import pytest
import torch
from oracles import close

from simple_diffusion import fid
from simple_diffusion.data.batches import batches
from simple_diffusion.data.images import Images
from simple_diffusion.data.sources import load_images
from simple_diffusion.denoiser import Denoiser
from simple_diffusion.ema import EMA, constant_decay
from simple_diffusion.errors import DataError, DivergedError
from simple_diffusion.evaluation.extractors import extractor_for
from simple_diffusion.evaluation.metrics import Moments, frechet_distance
from simple_diffusion.networks.unet import UNet
from simple_diffusion.optimizers import adamw, muon
from simple_diffusion.schedules import Cosine
from simple_diffusion.targets import v
from simple_diffusion.training import fit, train, warmup_linear

STEPS = 20


def noisy_images(n: int = 40, side: int = 8) -> Images:
    pixels = torch.randint(0, 256, (n, 1, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images("noise", pixels)


def untrained() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(UNet(widths=(8, 16), blocks=(1, 1)), Cosine(), v)


def weights(denoiser: Denoiser) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in denoiser.parameters()])


@pytest.mark.parametrize("optimizer", [None, muon])
def test_fit_is_train_with_an_ema(optimizer):
    images, by_hand, denoiser = noisy_images(), untrained(), untrained()
    ema = EMA(by_hand, constant_decay(0.5))
    stream = islice(batches(images, 16, seed=3), STEPS)
    make = optimizer or adamw
    rate = {"lr": lambda n: 2e-3 * warmup_linear((n - 0.5) / STEPS)}
    for step in train(by_hand, stream, make(by_hand), **rate):
        ema.update(by_hand, step.n)

    given = {} if optimizer is None else {"optimizer": optimizer(denoiser)}
    got = fit(denoiser, images, STEPS, lr=2e-3, batch=16, decay=constant_decay(0.5), seed=3, **given)
    assert torch.equal(weights(denoiser), weights(by_hand))
    assert torch.equal(weights(got.model), weights(ema.model))
    assert not torch.equal(weights(got.model), weights(denoiser))
    assert not denoiser.training
    assert not got.model.training


def test_fit_changes_the_weights_and_depends_on_its_seed():
    images, first = noisy_images(), weights(untrained())
    a, b, c = (weights(fit(untrained(), images, STEPS, batch=16, seed=seed).model) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert (a - first).abs().max() > 1e-4


def test_fit_stops_if_the_loss_is_not_finite():
    def broken(denoiser, x0, cond, draws):
        return denoiser.predict(x0, torch.tensor(0.5)).flatten(1).mean(1) * float("nan")

    with pytest.raises(DivergedError, match="step 1 "):
        fit(untrained(), noisy_images(), STEPS, loss=broken)


def test_fid_is_the_distance_of_the_features():
    digits = load_images("digits")[:400]
    pixels = digits.pixels[:96].roll(2, -1)
    extractor = extractor_for(digits)
    want = frechet_distance(Moments.of(extractor(digits.pixels)[0]), Moments.of(extractor(pixels)[0]))
    close(fid(pixels, digits), want, 1e-9)
    assert fid(digits.pixels[:96], digits) < want
    with pytest.raises(DataError, match="28 x 14"):
        fid(pixels[..., :14], digits)
