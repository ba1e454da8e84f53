"""The update of Muon, and the parameters that it updates."""

import io
import pickle
from copy import deepcopy

import pytest
import torch

from simple_diffusion.networks.unet import UNet
from simple_diffusion.optimizers import OPTIMIZERS, Muon, adamw, muon, orthogonalized


def well_conditioned(n: int, rows: int, columns: int) -> torch.Tensor:
    """Matrices whose singular values lie in 0.3 .. 1."""
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(n, rows, columns), full_matrices=False)
    return u @ torch.diag_embed(torch.rand(n, min(rows, columns)) * 0.7 + 0.3) @ v


@pytest.mark.parametrize("shape", [(8, 8), (6, 40), (40, 6), (96, 432)])
def test_orthogonalization_keeps_the_singular_vectors_and_equalizes_the_values(shape):
    matrices = well_conditioned(3, *shape)
    out = orthogonalized(matrices)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    core = u.mT @ out @ v.mT  # diagonal, where the singular vectors are the same
    diagonal = core.diagonal(dim1=-2, dim2=-1)
    assert diagonal.min() > 0.5
    assert diagonal.max() < 1.5
    torch.testing.assert_close(core, torch.diag_embed(diagonal), rtol=0, atol=1e-4)
    values = torch.linalg.svdvals(matrices.double())
    values = values / values.norm(dim=-1, keepdim=True)
    for _ in range(5):  # the published iteration on the singular values
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    torch.testing.assert_close(diagonal.double(), values, rtol=1e-4, atol=1e-5)


def test_orthogonalization_ignores_the_scale_and_commutes_with_the_transpose():
    matrices = well_conditioned(2, 12, 30)
    # A power of two scales without rounding, so that only the 1e-7 added to the norm differs.
    assert torch.equal(orthogonalized(1024 * matrices), orthogonalized(matrices))
    assert torch.equal(orthogonalized(matrices.mT), orthogonalized(matrices).mT)
    assert torch.equal(orthogonalized(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4))


@pytest.mark.parametrize("shape", [(64, 64), (32, 16, 3, 3), (200, 20)])
def test_an_update_of_a_matrix_has_the_size_of_adamws(shape):
    """Its root mean square is 0.2 lr for a matrix of full rank (Liu et al. 2025, section 2.2)."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(shape))
    weight.grad = 1e-4 * torch.randn(shape)
    Muon([weight], [], lr=0.01).step()
    rms = weight.square().mean().sqrt().item()
    assert rms == pytest.approx(0.2 * 0.01, rel=0.25)
    assert (weight * weight.grad).sum() < 0  # downhill


def test_the_momentum_is_nesterovs():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(5, 9))
    optimizer = Muon([weight], [], lr=0.0, momentum=0.9)
    gradients = torch.randn(3, 5, 9)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    kept = 0.1 * (0.81 * gradients[0] + 0.9 * gradients[1] + gradients[2])
    torch.testing.assert_close(optimizer.state[weight]["momentum"], kept)
    optimizer.param_groups[0]["lr"] = 1.0
    weight.grad = torch.zeros(5, 9)
    optimizer.step()
    expected = -0.2 * 3 * orthogonalized(0.81 * kept[None])[0]  # Nesterov: 0.9 of the momentum after its decay by 0.9
    torch.testing.assert_close(weight.detach(), expected, atol=0.02, rtol=0)


def test_every_parameter_is_in_one_group_and_adamw_updates_all_but_matrices():
    net = UNet(3, classes=4, widths=(8, 16), blocks=(1, 1), augmentations=2)
    optimizer = muon(net, lr=0.01, betas=(0.8, 0.95))
    matrices, others = (group["params"] for group in optimizer.param_groups)
    assert sorted(map(id, matrices + others)) == sorted(map(id, net.parameters()))
    names = {id(p): name for name, p in net.named_parameters()}
    assert {names[id(p)] for p in others if p.ndim > 1} == {
        "embedding.labels.of_class.weight",
        "embedding.labels.of_view.weight",
    }
    assert all(p.ndim > 1 for p in matrices)

    twin = UNet(3, classes=4, widths=(8, 16), blocks=(1, 1), augmentations=2)
    twin.load_state_dict(net.state_dict())
    reference = adamw(twin, lr=0.01, betas=(0.8, 0.95))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for _ in range(3):
        torch.manual_seed(1)
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        optimizer.step()
        reference.step()
    other_ids = {id(p) for p in others}
    for (name, p), q in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q) == (id(p) in other_ids), name
        assert not torch.equal(p, before[name]), name


def test_both_groups_follow_the_learning_rate_of_param_groups():
    """`train` sets `lr` in `param_groups`, and AdamW must use it too."""
    net = torch.nn.Linear(3, 3)
    optimizer = muon(net, lr=1.0)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in net.parameters()]
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


def test_a_parameter_without_gradient_does_not_change():
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    optimizer = muon(net)
    optimizer.step()  # no parameter has a gradient
    assert not optimizer.state
    net[0].weight.grad = torch.ones(3, 3)
    before = net[1].weight.detach().clone()
    optimizer.step()
    assert torch.equal(net[1].weight, before)
    assert net[1].weight not in optimizer.state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_solves_a_linear_problem(name):
    torch.manual_seed(0)
    net, x = torch.nn.Linear(6, 6), torch.randn(64, 6)
    truth = torch.randn(6, 6)
    optimizer = OPTIMIZERS[name](net, 0.1, (0.9, 0.99))
    for n in range(200):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - n / 200)
        optimizer.zero_grad()
        (net(x) - x @ truth).square().mean().backward()
        optimizer.step()
    assert (net(x) - x @ truth).square().mean() < 1e-3


def by_load_state_dict(net, optimizer):
    twin = deepcopy(net)
    other = OPTIMIZERS["muon" if isinstance(optimizer, Muon) else "adamw"](twin, 1.0, (0.5, 0.5))
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    return twin, other


def by_file(net, optimizer):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    twin = deepcopy(net)
    other = OPTIMIZERS["muon" if isinstance(optimizer, Muon) else "adamw"](twin, 1.0, (0.5, 0.5))
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    return twin, other


@pytest.mark.parametrize(
    "moved",
    [by_load_state_dict, by_file, lambda *pair: deepcopy(pair), lambda *pair: pickle.loads(pickle.dumps(pair))],
    ids=["load_state_dict", "file", "deepcopy", "pickle"],
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_continues_from_its_state(name, moved):
    def steps(net, optimizer, numbers):
        for number in numbers:
            generator = torch.Generator().manual_seed(number)
            for parameter in net.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()

    torch.manual_seed(0)
    net = UNet(1, classes=3, widths=(8, 16), blocks=(1, 1))
    optimizer = OPTIMIZERS[name](net, 0.01, (0.8, 0.95))
    steps(net, optimizer, range(5))
    twin, other = moved(net, optimizer)
    steps(net, optimizer, range(5, 10))
    steps(twin, other, range(5, 10))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))
    assert len(other.state) == len(list(net.parameters()))


def test_muon_calls_a_closure():
    net = torch.nn.Linear(3, 2)
    before, wanted = net.weight.detach().clone(), net(torch.ones(1, 3)).sum().item()

    def closure():
        loss = net(torch.ones(1, 3)).sum()
        loss.backward()
        return loss

    assert muon(net).step(closure).item() == wanted
    assert not torch.equal(net.weight, before)
