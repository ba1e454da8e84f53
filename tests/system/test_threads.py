"""Several threads: the gradient of the whole batch, and dropout that depends on its seed only."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from simple_diffusion.data.batches import Batch
from simple_diffusion.data.images import Images
from simple_diffusion.denoiser import Denoiser
from simple_diffusion.guidance import drop_labels
from simple_diffusion.losses import denoising_loss
from simple_diffusion.networks.dropout import Dropout, dropout_seed
from simple_diffusion.networks.unet import UNet
from simple_diffusion.randomness import Draws
from simple_diffusion.schedules import Karras
from simple_diffusion.system.data_parallel import split_rows
from simple_diffusion.system.threads import on_one_thread, parallel_map
from simple_diffusion.targets import v
from simple_diffusion.training import backward, fit, needs_turns


@pytest.fixture(autouse=True)
def _one_thread_after():
    yield
    torch.set_num_threads(1)


def denoiser(dropout=0.0):
    torch.manual_seed(0)
    model = Denoiser(UNet(1, 3, (8, 16), (1, 1), dropout=dropout), Karras(), v).double().train()
    for parameter in model.parameters():  # no weight stays 0
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def batch(n=7):
    x0 = torch.randn(n, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return Batch(x0, torch.arange(n) % 3, Draws(0, 5, range(n), total=n))


def gradients(threads, model, data, loss=denoising_loss):
    torch.set_num_threads(threads)
    losses = backward(loss, model, data)
    return losses, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_the_gradient_is_that_of_the_whole_batch(threads):
    model, loss = denoiser(), drop_labels(denoising_loss, null=3)
    whole = loss(model, batch().x0, batch().cond, batch().draws)
    whole.mean().backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    losses, found = gradients(threads, model, batch(), loss)
    torch.testing.assert_close(losses, whole.detach(), rtol=1e-10, atol=1e-12)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)
    assert torch.get_num_threads() == threads


def test_a_parameter_that_is_not_used_has_no_gradient():
    model = denoiser()
    data = Batch(batch().x0, None, batch().draws)
    _, found = gradients(2, model, data)
    assert found["net.embedding.labels.of_class.weight"] is None
    assert sum(gradient is None for gradient in found.values()) == 1


def test_parts_have_all_rows_in_order_with_their_random_numbers():
    parts = [batch()[rows] for rows in split_rows(7, 3)]
    assert [len(part.x0) for part in parts] == [2, 2, 3]
    assert torch.equal(torch.cat([part.x0 for part in parts]), batch().x0)
    assert torch.equal(torch.cat([part.cond for part in parts]), batch().cond)
    for draw in (lambda d: d.normal("noise", (2,)), lambda d: d.stratified("time")):
        assert torch.equal(torch.cat([draw(part.draws) for part in parts]), draw(batch().draws))
    assert len(split_rows(2, 5)) == 2


def test_dropout_in_several_threads_repeats():
    first, again = (gradients(3, denoiser(dropout=0.5), batch()) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(g, again[1][name]) for name, g in first[1].items() if g is not None)
    assert not torch.equal(first[0], gradients(3, denoiser(), batch())[0])


class Net(nn.Module):
    """A network of a user, with a module in the middle that the threads of a step would share."""

    def __init__(self, middle: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), middle, nn.Conv2d(4, 1, 3, padding=1))

    def forward(self, x, noise_level, cond):
        return self.layers(x)


class Noisy(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5) + 0.1 * torch.randn(4, 1, 1)


def fitted(middle: nn.Module, threads: int) -> Denoiser:
    """A network after three steps. PyTorch's generator is in another state each time."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = Denoiser(Net(middle), Karras(), v)
    torch.manual_seed(fitted.calls)
    fitted.calls += 1
    pixels = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    fit(model, Images("noise", pixels), 3, batch=16)
    return model


fitted.calls = 0


@pytest.mark.parametrize(
    "middle", [nn.Dropout(0.5), nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False), Noisy()]
)
def test_a_network_whose_threads_would_share_state_trains_as_on_one_thread(middle):
    one, two, again = (fitted(deepcopy(middle), threads) for threads in (1, 3, 3))
    for name, value in one.state_dict().items():
        assert torch.equal(two.state_dict()[name], again.state_dict()[name]), name
        torch.testing.assert_close(two.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert all(count == 3 for name, count in two.state_dict().items() if name.endswith("num_batches_tracked"))


def test_only_networks_that_share_state_are_computed_in_turn():
    data, generator = batch(), torch.get_rng_state()
    assert not needs_turns(denoising_loss, denoiser(dropout=0.5), data)
    for middle in (nn.Identity(), nn.GroupNorm(1, 4), nn.Dropout(0.5).eval(), nn.BatchNorm2d(4).eval()):
        assert not needs_turns(denoising_loss, Denoiser(Net(middle.double()).double(), Karras(), v), data)
    spectral = nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1))  # updates a buffer in each call
    model = Denoiser(Net(spectral).double(), Karras(), v)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    torch.set_rng_state(generator)
    assert needs_turns(denoising_loss, model, data)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), generator)


def test_dropout():
    x, drop = torch.ones(200, 500), Dropout(0.3)
    with dropout_seed(7):
        once, twice = drop(x), drop(x)
    with dropout_seed(7):
        assert torch.equal(drop(x), once)
    assert not torch.equal(once, twice)  # further numbers of the generator
    torch.testing.assert_close(once.unique(), torch.tensor([0, 1 / 0.7]))
    assert (once == 0).double().mean().item() == pytest.approx(0.3, abs=5 * (0.21 / 100_000) ** 0.5)
    assert drop.eval()(x) is x
    torch.manual_seed(3)
    free = drop.train()(x)
    torch.manual_seed(3)
    assert torch.equal(drop(x), free)  # without a seed: torch's generator


def test_seeds_differ_by_sample_step_and_purpose():
    draws = Draws(0, 1, range(4))
    seeds = {d.seed_of(p) for d in (draws, draws[2:], Draws(0, 2, range(4)), Draws(1, 1, range(4))) for p in ("a", "b")}
    assert len(seeds) == 8
    assert draws.seed_of("a") == draws[:1].seed_of("a")
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_parallel_map_keeps_the_order_and_raises_errors():
    torch.set_num_threads(3)
    assert list(parallel_map(lambda n: (n, torch.get_num_threads()), range(20))) == [(n, 1) for n in range(20)]
    assert torch.get_num_threads() == 3
    with pytest.raises(ZeroDivisionError):
        list(parallel_map(lambda n: 1 / n, [1, 0]))
    assert torch.get_num_threads() == 3
    assert [int(n) for n in on_one_thread(iter(torch.arange(3)))] == [0, 1, 2]
