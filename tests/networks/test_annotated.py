"""The annotated U-Net: sizes, parts, self-conditioning, conditions."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from simple_diffusion.denoiser import Denoiser
from simple_diffusion.networks.annotated import (
    HEAD,
    HEADS,
    AnnotatedUNet,
    Attention,
    LinearAttention,
    ResBlock,
    StandardizedConv,
)
from simple_diffusion.networks.dropout import Dropout
from simple_diffusion.networks.embedding import sinusoid
from simple_diffusion.schedules import Cosine
from simple_diffusion.targets import noise as noise_target

LEVELS = torch.tensor([-1.0, 0.5])


def unet(dim=8, channels=1, dim_mults=(1, 2), seed=0, **options):
    torch.manual_seed(seed)
    return AnnotatedUNet(dim, channels=channels, dim_mults=dim_mults, **options).eval()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def numbers_in(net):
    return sum(p.numel() for p in net.parameters())


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "parameters"),
    [  # those of the network that it reproduces
        ({}, 35_705_347),
        ({"dim": 28}, 7_095_427),
        ({"dim": 32}, 9_191_683),
        ({"dim": 128}, 140_698_627),
        ({"channels": 1}, 35_705_089),  # two channels less: 2 x 64 weights in the stem, 2 x 65 numbers in the head
        ({"self_condition": True}, 35_705_539),  # three channels more in the stem
        ({"out_dim": 6}, 35_705_347 + 3 * 65),
        ({"groups": 32, "dropout": 0.5}, 35_705_347),
    ],
)
def test_number_of_parameters(options, parameters):
    with torch.device("meta"):
        assert numbers_in(AnnotatedUNet(**options)) == parameters


def test_each_label_and_augmentation_has_one_row_of_weights():
    assert numbers_in(unet(classes=10, augmentations=3)) == numbers_in(unet()) + (10 + 2) * 4 * 8


@pytest.mark.parametrize(("size", "dim_mults"), [((8, 8), (1,)), ((1, 1), (2, 1)), ((5, 6), (2, 1, 1))])
@pytest.mark.parametrize("self_condition", [False, True])
def test_an_odd_size_is_a_larger_image_with_zeros_to_the_right_and_below(size, dim_mults, self_condition):
    net, x, (height, width) = (
        unet(channels=2, dim_mults=dim_mults, self_condition=self_condition),
        noise(2, 2, *size),
        size,
    )
    out = net(x, LEVELS)
    assert out.shape == x.shape
    assert out.isfinite().all()
    padded = F.pad(x, (0, -width % net.stride, 0, -height % net.stride))
    want = net.once(torch.cat([padded, torch.zeros_like(padded)], 1)[:, : net.stem.in_channels], LEVELS, None)
    want = want[..., :height, :width]
    if self_condition:
        estimate = F.pad(want, (0, -width % net.stride, 0, -height % net.stride))
        want = net.once(torch.cat([padded, estimate], 1), LEVELS, None)[..., :height, :width]
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dim_mults", [(1,), (3, 1), (1, 2, 2)])
def test_each_level_has_its_width_and_half_the_resolution_of_the_one_above(dim_mults):
    net, maps = unet(dim_mults=dim_mults, init_dim=12), []
    for part in (*net.down, net.middle2, *reversed(net.up)):
        part.register_forward_hook(lambda module, args, out: maps.append(tuple(out.shape[1:])))
    net(noise(1, 1, 16, 8), LEVELS[:1])
    widths = [12, *(8 * mult for mult in dim_mults)]
    sizes = [(16 >> i, 8 >> i) for i in range(len(dim_mults))]
    down = [(width, *size) for width, size in zip(widths[1:], [*sizes[1:], sizes[-1]], strict=True)]
    up = [(width, *size) for width, size in zip(widths[:-1], [sizes[0], *sizes[:-1]], strict=True)]
    assert maps == [*down, down[-1], *reversed(up)]


@pytest.mark.parametrize("training", [True, False])
def test_all_arguments_work_together(training):
    net = unet(
        12, 3, (2, 1, 3), init_dim=18, out_dim=5, self_condition=True, groups=6, classes=4, augmentations=2, dropout=0.1
    )
    out = net.train(training)(noise(2, 3, 9, 14), LEVELS, torch.tensor([4, 7]))
    assert out.shape == (2, 5, 9, 14)
    assert out.isfinite().all()


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_groups_are_those_of_the_residual_blocks(groups):
    net, x = unet(groups=groups), noise(2, 1, 8, 8)
    blocks = [m for m in net.modules() if isinstance(m, ResBlock)]
    assert {norm.num_groups for block in blocks for norm in (block.norm1, block.norm2)} == {groups}
    assert (net(x, LEVELS) - unet(groups=4)(x, LEVELS)).abs().max() > 1e-3  # the same parameters


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"dim": 0}, "dim"),
        ({"dim": 9, "groups": 1}, "dim must be even"),
        ({"init_dim": 0}, "width"),
        ({"init_dim": 10}, "all widths"),
        ({"dim_mults": ()}, "dim_mults"),
        ({"dim_mults": (1, 0)}, "dim_mults"),
        ({"channels": 0}, "channels"),
        ({"out_dim": 0}, "out_dim"),
        ({"groups": 0}, "groups"),
        ({"groups": 3}, "groups"),
        ({"classes": -1}, "classes"),
        ({"augmentations": 0}, "augmentations"),
        ({"channels": 3, "out_dim": 2, "self_condition": True}, "self_condition"),
        ({"dropout": -0.1}, "dropout"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_sizes_that_do_not_match_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        unet(**options)


# --- parts -----------------------------------------------------------------------------------------------------------


def test_only_the_direction_of_the_weights_counts():
    torch.manual_seed(0)
    conv, x = StandardizedConv(3, 4).double(), noise(2, 3, 5, 6).double()
    conv.weight.data *= 1000  # the variance is then far above the 1e-5 that keeps it from 0
    before = conv(x)
    centered = conv.weight - conv.weight.mean((1, 2, 3), keepdim=True)
    want = F.conv2d(x, centered / centered.square().mean((1, 2, 3), keepdim=True).sqrt(), conv.bias, padding=1)
    torch.testing.assert_close(before, want, rtol=1e-8, atol=1e-8)
    channelwise = torch.tensor([0.5, 2.0, 10.0, 3.0], dtype=torch.float64)[:, None, None, None]
    conv.weight.data = conv.weight * channelwise - 70 * channelwise
    torch.testing.assert_close(conv(x), before, rtol=1e-8, atol=1e-8)
    conv.weight.data[0, 0, 0, 0] *= -1
    assert (conv(x) - before)[:, 0].abs().max() > 0.1


@pytest.mark.parametrize(("channels_in", "channels"), [(8, 8), (12, 8)])
def test_a_residual_block_is_its_formula(channels_in, channels):
    torch.manual_seed(0)
    block = ResBlock(channels_in, channels, emb=6, groups=2, dropout=0.0).double()
    for norm in (block.norm1, block.norm2):
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x, emb = noise(2, channels_in, 4, 5).double(), noise(2, 6).double()
    numbers = emb @ block.film.weight.T + block.film.bias
    h = F.group_norm(block.conv1(x), 2, block.norm1.weight, block.norm1.bias, 1e-5)
    h = torch.einsum("bchw,bc->bchw", h, numbers[:, :channels] + 1) + numbers[:, channels:, None, None]
    h = F.group_norm(block.conv2(h * h.sigmoid()), 2, block.norm2.weight, block.norm2.bias, 1e-5)
    skip = x
    if channels_in != channels:
        skip = torch.einsum("oc,bchw->bohw", block.skip.weight[:, :, 0, 0], x) + block.skip.bias[:, None, None]
    torch.testing.assert_close(block(x, emb), skip + h * h.sigmoid(), rtol=1e-9, atol=1e-9)


def projected(attention, x):
    """Queries, keys and values `[B, channel of the head, N]` of each head."""
    tokens = F.group_norm(x, 1, attention.norm.weight, attention.norm.bias, 1e-5).flatten(2)
    qkv = torch.einsum("oc,bcn->bon", attention.qkv.weight, tokens)
    for head in range(HEADS):
        yield (qkv[:, (part * HEADS + head) * HEAD :][:, :HEAD] for part in range(3))


def attended(attention, heads):
    out = torch.einsum("oc,bcn->bon", attention.out.weight, torch.cat(heads, 1))
    return out + attention.out.bias[:, None]


def random_attention(kind, channels):
    torch.manual_seed(0)
    attention = kind(channels).double()
    for p in attention.parameters():
        nn.init.normal_(p)
    return attention, noise(2, channels, 3, 4).double()


def test_attention_is_softmax_of_queries_and_keys():
    attention, x = random_attention(Attention, 6)
    heads = []
    for q, k, v in projected(attention, x):
        share = (torch.einsum("bci,bcj->bij", q, k) / math.sqrt(32)).softmax(2)
        heads.append(torch.einsum("bij,bcj->bci", share, v))
    want = x.flatten(2) + attended(attention, heads)
    torch.testing.assert_close(attention(x).flatten(2), want, rtol=1e-9, atol=1e-9)


def test_linear_attention_is_attention_whose_weights_are_a_product():
    """The N x N weights written out: how much position i takes from position j."""
    attention, x = random_attention(LinearAttention, 6)
    heads = []
    for q, k, v in projected(attention, x):
        share = torch.einsum("bci,bcj->bij", q.softmax(1), k.softmax(2))
        torch.testing.assert_close(share.sum(2), torch.ones(2, 12, dtype=torch.float64))  # as in softmax attention
        heads.append(torch.einsum("bij,bcj->bci", share, v) / math.sqrt(32))
    norm = attention.out_norm
    want = x.flatten(2) + F.group_norm(attended(attention, heads), 1, norm.weight, norm.bias, 1e-5)
    torch.testing.assert_close(attention(x).flatten(2), want, rtol=1e-9, atol=1e-9)


def test_every_level_attends_linearly_and_the_middle_in_full():
    net = unet(dim_mults=(1, 2, 2))
    kinds = [type(m) for m in net.modules() if isinstance(m, Attention)]
    assert kinds.count(LinearAttention) == 6
    assert kinds.count(Attention) == 1
    assert type(net.attention) is Attention


def test_going_down_is_pixel_unshuffle_and_a_1_x_1_convolution():
    conv, x = unet().down[0].leave, noise(2, 8, 4, 6)
    want = F.conv2d(F.pixel_unshuffle(x, 2), conv.weight.flatten(1)[:, :, None, None], conv.bias)
    torch.testing.assert_close(conv(x), want, rtol=1e-4, atol=1e-5)


def test_going_up_repeats_pixels_before_a_3_x_3_convolution():
    (_, conv), x = unet().up[1].leave, noise(2, 16, 3, 2)
    want = F.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3), conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(unet().up[1].leave(x), want, rtol=1e-4, atol=1e-5)


def test_both_blocks_of_a_level_and_the_stem_are_skips():
    net, seen = unet(dim_mults=(1, 2, 3), init_dim=12), {}
    for name, part in net.named_modules():
        part.register_forward_hook(lambda module, args, out, name=name: seen.update({name: (args, out)}))
    net(noise(2, 1, 8, 8), LEVELS)
    for i, width in enumerate((12, 8, 16)):
        for taker, giver in (("block1", "attention"), ("block2", "block1")):
            into, out = seen[f"up.{i}.{taker}"][0][0], seen[f"down.{i}.{giver}"][1]
            assert out.shape[1] == width
            assert torch.equal(into[:, -width:], out)
    assert torch.equal(seen["final"][0][0], torch.cat([seen["up.0"][1], seen["stem"][1]], 1))


def test_maps_keep_channels_last():
    net = unet(channels=3).to(memory_format=torch.channels_last)
    kept = {}
    for name, part in net.named_modules():
        if not isinstance(part, (nn.Linear, Dropout)):
            part.register_forward_hook(lambda module, args, out, name=name: kept.update({name: out}))
    net(noise(2, 3, 8, 8).contiguous(memory_format=torch.channels_last), LEVELS)
    maps = {name: out for name, out in kept.items() if isinstance(out, torch.Tensor) and out.ndim == 4}
    assert len(maps) > 30
    assert not [name for name, out in maps.items() if not out.is_contiguous(memory_format=torch.channels_last)]


# --- self-conditioning -----------------------------------------------------------------------------------------------


@pytest.fixture
def self_conditioned():
    """A self-conditioned network with 2 channels in and 3 out, and its inputs: 4 images, noise levels and labels."""
    net = unet(channels=2, out_dim=3, self_condition=True, classes=3)
    return net, noise(4, 2, 6, 5), torch.linspace(-1, 1, 4), torch.tensor([0, 1, 2, 3])


def explicit(net, x, levels, cond):
    """The outputs for the estimate 0, and for the first output as estimate."""
    first = net.once(torch.cat([x, torch.zeros_like(x)], 1), levels, cond)
    return first, net.once(torch.cat([x, first[:, :2].detach()], 1), levels, cond)


def test_in_eval_mode_all_rows_take_the_first_output(self_conditioned):
    net, *inputs = self_conditioned
    first, second = explicit(net, *inputs)
    assert torch.equal(net(*inputs), second)
    assert (first - second).abs().flatten(1).amax(1).min() > 1e-3
    assert torch.equal(net(*inputs), net(*inputs))  # no state between calls


def test_in_training_the_odd_rows_take_the_first_output(self_conditioned):
    net, *inputs = self_conditioned
    first, second = explicit(net.train(), *inputs)
    out = net(*inputs)
    torch.testing.assert_close(out[::2], first[::2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out[1::2], second[1::2], rtol=1e-4, atol=1e-5)
    assert (out - first)[1::2].abs().flatten(1).amax(1).min() > 1e-3


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_batches_of_any_length_train(self_conditioned, rows):
    net, *inputs = self_conditioned
    net.train()
    whole = net(*inputs)
    torch.testing.assert_close(net(*(one[:rows] for one in inputs)), whole[:rows], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", [True, False])
def test_no_gradient_passes_through_the_first_output(self_conditioned, mode):
    net, *inputs = self_conditioned
    first, second = explicit(net.train(mode), *inputs)  # with the first output detached
    even = (torch.arange(4) % 2 == 0)[:, None, None, None]
    want = torch.autograd.grad(torch.where(even & mode, first, second).square().sum(), [*net.parameters()])
    got = torch.autograd.grad(net(*inputs).square().sum(), [*net.parameters()])
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())


# --- conditions ------------------------------------------------------------------------------------------------------


def test_the_blocks_are_conditioned_on_noise_level_and_label():
    net, seen, cond = (
        unet(classes=3, augmentations=2).double(),
        [],
        torch.tensor([2, 5]),
    )  # the latter: class 1 under augmentation 1
    net.middle1.register_forward_hook(lambda module, args, out: seen.append(args[1]))
    net(noise(2, 1, 8, 8).double(), LEVELS, cond)
    (first, _, last), rows, augmentations = net.time, net.labels.of_class.weight, net.labels.of_view.weight
    h = sinusoid(LEVELS, 8).double() @ first.weight.T + first.bias
    h = h * (1 + torch.erf(h / math.sqrt(2))) / 2  # GELU (Hendrycks & Gimpel 2016)
    h = h @ last.weight.T + last.bias + torch.stack([rows[2], rows[1] + augmentations[0]])
    torch.testing.assert_close(seen[0], h * h.sigmoid(), rtol=1e-6, atol=1e-6)


def test_label_augmentation_and_noise_level_matter_and_no_label_is_the_last():
    net, x = unet(classes=3, augmentations=2), noise(2, 1, 8, 8)
    outs = [net(x, LEVELS, torch.full((2,), label)) for label in range(8)] + [net(x, LEVELS + 0.1)]
    for i, a in enumerate(outs):
        for b in outs[:i]:
            assert (a - b).abs().flatten(1).amax(1).min() > 1e-4
    assert torch.equal(net(x, LEVELS), outs[3])
    unlabelled = unet()
    with pytest.raises(ValueError, match="the network has no classes"):
        unlabelled(x, LEVELS, torch.tensor([0, 0]))


@pytest.mark.parametrize("self_condition", [False, True])
def test_a_sample_does_not_depend_on_its_neighbors(self_condition):
    net = unet(classes=3, self_condition=self_condition)
    x, y, cond = noise(3, 1, 8, 8), noise(3, 1, 8, 8, seed=1), torch.tensor([0, 1, 2])
    levels = torch.tensor([-1.0, 0.0, 1.0])
    y[1] = x[1]
    a, b = net(x, levels, cond), net(y, levels.flip(0), cond.flip(0))
    torch.testing.assert_close(a[1], b[1], rtol=1e-4, atol=1e-5)
    assert (a[0] - b[0]).abs().max() > 1e-3


def test_dropout_acts_in_training_only():
    net, x = unet(dropout=0.5), noise(2, 1, 8, 8)
    assert torch.equal(net(x, LEVELS), unet()(x, LEVELS))
    net.train()
    assert not torch.equal(net(x, LEVELS), net(x, LEVELS))
    dropped = [m for m in net.modules() if isinstance(m, Dropout)]
    assert len(dropped) == sum(isinstance(m, ResBlock) for m in net.modules())
    for layer in dropped:
        layer.p = 0.0
    assert torch.equal(net(x, LEVELS), unet()(x, LEVELS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("self_condition", [False, True])
def test_gradients_reach_every_parameter(self_condition, dtype):
    """Also in bf16, where autocast may reuse the weights that a pass without gradient has cast."""
    net = unet(channels=2, dim_mults=(1, 2, 3), self_condition=self_condition, classes=3, augmentations=2).train()
    denoiser = Denoiser(net, Cosine(), noise_target, dtype=dtype)
    cond = torch.arange(7)  # all labels, under augmentations 0 and 1
    denoiser.predict(noise(7, 2, 8, 8), torch.linspace(0.1, 0.9, 7), cond).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.flatten(1 if p.ndim > 1 else 0).abs().amax(-1).min() > 0, name  # every row of it


def test_bf16_is_close_to_float32():
    net, x, cond = unet(self_condition=True, classes=3), noise(2, 1, 8, 8), torch.tensor([0, 3])
    a, b = (
        Denoiser(net, Cosine(), noise_target, dtype=d).predict(x, torch.tensor([0.2, 0.7]), cond)
        for d in (torch.float32, torch.bfloat16)
    )
    assert b.dtype == torch.float32
    assert 0 < (a - b).abs().max() < 0.05 * a.abs().max()
