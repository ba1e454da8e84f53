import pytest
import torch
import torch.nn.functional as F
from torch import nn

from simple_diffusion.networks.unet import Attention, UNet, group_norm

SIZES = [(1, 1), (5, 7), (16, 10)]
LEVELS = torch.tensor([-1.0, 0.5])


def unet(channels=1, classes=3, widths=(32, 32), blocks=(1, 1), seed=0, **options):
    """A small network whose residual branches and head are not zero, as after training."""
    torch.manual_seed(seed)
    net = UNet(channels, classes, widths, blocks, **options)
    for p in net.parameters():
        nn.init.normal_(p, mean=float(p.ndim == 1), std=0.1)
    return net.eval()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "size"), [(1, (28, 28)), (3, (1, 1)), (5, (5, 7))])
def test_any_size_and_number_of_channels(channels, size):
    x = noise(2, channels, *size)
    out = unet(channels)(x, LEVELS, torch.tensor([0, 1]))
    assert out.shape == x.shape
    assert out.isfinite().all()
    assert (out != 0).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", [{}, {"widths": (32, 32, 32), "blocks": (1, 1, 1)}, {"patch": 1}, {"patch": 4}])
def test_an_odd_size_is_a_larger_image_with_zeros_to_the_right_and_below(size, options):
    net, x, (height, width) = unet(2, **options), noise(2, 2, *size), size
    padded = F.pad(x, (0, -width % net.stride, 0, -height % net.stride))
    assert (padded.shape == x.shape) == (height % net.stride == width % net.stride == 0)
    torch.testing.assert_close(net(x, LEVELS), net(padded, LEVELS)[..., :height, :width], rtol=0, atol=1e-5)


def test_every_output_depends_on_every_input():
    net, x = unet(2), noise(1, 2, 5, 7).requires_grad_()
    for place in ((0, 0, 0), (1, 4, 6), (0, 2, 3)):
        (grad,) = torch.autograd.grad(net(x, LEVELS[:1])[0][place], x)
        assert (grad != 0).all()  # through attention, also across the image


@pytest.mark.parametrize("channels", [8, 48, 64])
def test_odd_widths_work(channels):
    net = unet(widths=(channels, channels), blocks=(1, 1))
    assert net(noise(2, 1, 8, 8), LEVELS).isfinite().all()
    assert group_norm(channels).num_groups == (channels // 32 if channels % 32 == 0 else 1)


@pytest.mark.parametrize(("row", "column"), [(0, 63), (40, 20)])
def test_without_attention_the_receptive_field_is_local(row, column):
    net, x = unet(), noise(1, 1, 64, 64).requires_grad_()
    for layer in net.modules():
        if isinstance(layer, Attention):
            nn.init.zeros_(layer.out.weight)
        if isinstance(layer, nn.GroupNorm):
            layer.forward = lambda h: h  # its mean and variance depend on the whole map
    (grad,) = torch.autograd.grad(net(x, LEVELS[:1])[0, 0, row, column], x)
    rows, columns = grad[0, 0].nonzero().T
    assert grad[0, 0, row, column] != 0
    assert (rows - row).abs().max() < 32
    assert (columns - column).abs().max() < 32


def test_skip_connections_carry_detail_past_the_lower_level():
    net, x = unet(), noise(2, 1, 8, 8)
    nn.init.zeros_(net.shrink[0].weight)  # the lower level does not depend on the image
    a, b = net(x, LEVELS), net(x.flip(-1), LEVELS)
    assert (a - b).abs().max() > 1e-3


def test_widths_and_blocks_must_match():
    with pytest.raises(ValueError, match="widths"):
        UNet(1, widths=(32, 64), blocks=(1,))


# --- conditions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [0, 3])
def test_the_first_output_is_zero(classes):
    torch.manual_seed(0)
    net = UNet(1, classes)
    assert any(p.any() for p in net.parameters())
    assert not net(noise(2, 1, 28, 28), LEVELS, torch.tensor([0, classes]) if classes else None).any()


def test_residual_branches_start_as_the_identity():
    torch.manual_seed(0)
    net, h, emb = UNet(1, widths=(32, 64)), noise(2, 64, 4, 4), noise(2, 128)
    assert torch.equal(net.middle(h, emb), h)


def test_label_and_level_matter_and_no_label_is_the_last():
    net, x = unet(), noise(2, 1, 8, 8)
    outs = [net(x, LEVELS, torch.full((2,), label)) for label in range(4)] + [net(x, LEVELS + 0.1)]
    for i, a in enumerate(outs):
        for b in outs[:i]:
            assert (a - b).abs().flatten(1).amax(1).min() > 1e-3
    assert torch.equal(net(x, LEVELS), outs[3])
    unlabelled = unet(classes=0)
    with pytest.raises(ValueError, match="the network has no classes"):
        unlabelled(x, LEVELS, torch.tensor([0, 1]))


def test_embeddings_of_different_noise_levels_differ():
    embedding = unet().embedding
    levels = torch.linspace(-2, 2.5, 400)  # log(sigma/alpha)/4 of all schedules
    distance = torch.cdist(*[F.normalize(embedding(levels, None))] * 2)
    assert (distance + 9 * torch.eye(400)).min() > 1e-3


def test_a_sample_does_not_depend_on_its_neighbors():
    net, x, y, cond = unet(), noise(3, 1, 8, 8), noise(3, 1, 8, 8, seed=1), torch.tensor([0, 1, 2])
    levels = torch.tensor([-1.0, 0.0, 1.0])
    y[1] = x[1]
    a, b = net(x, levels, cond), net(y, levels.flip(0), cond.flip(0))
    assert torch.equal(a[1], b[1])
    assert not torch.equal(a[0], b[0])
    torch.testing.assert_close(net(x[1:2], levels[1:2], cond[1:2]), a[1:2], rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_parameter():
    net = unet(widths=(32, 32, 64), blocks=(1, 2, 1))
    cond = torch.arange(4)
    net(noise(4, 1, 16, 16), torch.linspace(-1, 1, 4), cond).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.flatten(1 if p.ndim > 1 else 0).abs().amax(-1).min() > 0, name  # every row of it


def test_dropout_acts_in_training_only():
    net, x = unet(dropout=0.5), noise(2, 1, 8, 8)
    assert torch.equal(net(x, LEVELS), net(x, LEVELS))
    net.train()
    assert not torch.equal(net(x, LEVELS), net(x, LEVELS))


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "heads"), [(8, 1), (8, 2), (6, 3)])
def test_attention_is_softmax_of_queries_and_keys(channels, heads):
    torch.manual_seed(0)
    attention, x = Attention(channels, channels // heads), noise(2, channels, 3, 4)
    for p in (attention.qkv.weight, attention.out.weight):
        nn.init.normal_(p)
    (to_qkv, to_out), tokens = (
        (p.weight.flatten(1) for p in (attention.qkv, attention.out)),
        attention.norm(x).flatten(2),
    )
    want = x.flatten(2).clone()
    for one in torch.arange(channels).chunk(heads):  # the channels of each head
        q, k, v = (torch.einsum("oc,bcn->bon", to_qkv[one + part * channels], tokens) for part in range(3))
        share = (torch.einsum("bci,bcj->bij", q, k) / len(one) ** 0.5).softmax(-1)
        want += torch.einsum("oc,bij,bcj->boi", to_out[:, one], share, v)
    torch.testing.assert_close(attention(x).flatten(2), want, rtol=1e-4, atol=1e-4)
