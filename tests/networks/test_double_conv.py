import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from oracles import close
from torch import nn

from simple_diffusion.data.batches import batches
from simple_diffusion.data.digits import digits
from simple_diffusion.data.images import Images
from simple_diffusion.denoiser import Denoiser
from simple_diffusion.losses import denoising_loss
from simple_diffusion.networks.double_conv import DoubleConvUNet, SelfAttention
from simple_diffusion.networks.embedding import sinusoid
from simple_diffusion.schedules import Discrete
from simple_diffusion.targets import noise as noise_target
from simple_diffusion.training import train

SMALL = {"channels": 1, "base_channels": 8, "time_dim": 16, "n_scaling": 2, "n_bottleneck": 2}
LEVELS = torch.tensor([-1.0, 0.5])


def unet(seed=0, **options):
    """A small network without weights of exactly 0 or 1."""
    torch.manual_seed(seed)
    net = DoubleConvUNet(**(SMALL | options))
    for p in net.parameters():
        p.data += 0.2 * torch.randn_like(p)
    return net.eval()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- a reference implementation of the published network -------------------------------------------------------------


def their_conv(a, b, middle=None):
    """conv, norm, GELU, nothing, conv, norm."""
    middle = middle or b
    first, second = nn.Conv2d(a, middle, 3, padding=1, bias=False), nn.Conv2d(middle, b, 3, padding=1, bias=False)
    return nn.Sequential(first, nn.GroupNorm(1, middle), nn.GELU(), nn.Identity(), second, nn.GroupNorm(1, b))


class TheirAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm, self.mha = nn.LayerNorm(width), nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x):
        tokens = x.flatten(2).mT
        h = self.norm(tokens)
        tokens = tokens + self.mha(h, h, h, need_weights=True)[0]  # computes the softmax explicitly
        return (tokens + self.mlp(tokens)).mT.reshape(x.shape)


class TheirLevel(nn.Module):
    def __init__(self, a, b, middle, emb, heads):
        super().__init__()
        self.keep, self.change = their_conv(a, a), their_conv(a, b, middle)
        self.shift, self.attention = nn.Linear(emb, b), TheirAttention(b, heads)

    def forward(self, x, emb):
        h = F.gelu(x + self.keep(x))
        return self.attention(self.change(h) + self.shift(F.silu(emb))[..., None, None])


class Theirs(nn.Module):
    """The published network: takes the sinusoids of the time `[B, emb]`, and labels or None."""

    def __init__(self, emb, base, n_scaling, n_bottleneck, classes, heads):
        super().__init__()
        self.labels = nn.Embedding(classes, emb)
        self.stem, self.head = their_conv(1, base), nn.Conv2d(base, 1, 1)
        self.down, self.bottleneck, self.up = nn.ModuleList(), nn.Sequential(), nn.ModuleList()
        width = base
        for i in range(n_scaling):
            wider = width if i == n_scaling - 1 else 2 * width
            self.down.append(TheirLevel(width, wider, wider, emb, heads))
            width = wider
        for factor in [2.0] * (n_bottleneck // 2) + [1.0] * (n_bottleneck % 2) + [0.5] * (n_bottleneck // 2):
            self.bottleneck.append(their_conv(width, int(width * factor)))
            width = int(width * factor)
        for i in range(n_scaling):
            narrower = width if i == n_scaling - 1 else width // 2
            self.up.insert(0, TheirLevel(2 * width, narrower, width, emb, heads))  # it runs last and has index 0
            width = narrower

    def forward(self, x, waves, label=None):
        emb = waves if label is None else waves + self.labels(label)
        h = self.stem(x)
        skips = []
        for level in self.down:
            skips.append(h)
            h = level(F.max_pool2d(h, 2), emb)
        h = self.bottleneck(h)
        for level in reversed(self.up):
            h = F.interpolate(h, scale_factor=2, mode="bilinear", align_corners=True)
            h = level(torch.cat([skips.pop(), h], 1), emb)
        return self.head(h)


RENAMED = {
    "labels.of_class": "labels",
    "attention.qkv.": "attention.mha.in_proj_",
    "attention.out": "attention.mha.out_proj",
}


def theirs_with_weights_of(net, n_bottleneck, heads=4):
    """The published network with the weights of ours, matched by name."""
    weights = {}
    for name, value in net.state_dict().items():
        for ours, there in RENAMED.items():
            name = name.replace(ours, there)
        weights[name] = value.clone()
    there = Theirs(net.time_dim, net.head.in_channels, len(net.down), n_bottleneck, net.labels.classes, heads)
    there.load_state_dict(weights, strict=True)
    return there.to(net.head.weight)


@pytest.mark.parametrize(("n_scaling", "n_bottleneck"), [(0, 0), (1, 1), (2, 2), (3, 3), (1, 5)])
def test_it_is_the_published_network(n_scaling, n_bottleneck):
    net = unet(n_scaling=n_scaling, n_bottleneck=n_bottleneck, num_classes=3).double()
    there = theirs_with_weights_of(net, n_bottleneck)
    x, waves, cond = noise(2, 1, 16, 16).double(), sinusoid(LEVELS, 16).double(), torch.tensor([2, 0])
    for label in (cond, None):
        close(net(x, LEVELS, label), there(x, waves, label), 1e-10)


PUBLISHED_COUNTS = [
    (23_332_739, {}),
    (23_331_457, {"channels": 1}),
    (23_334_017, {"channels": 1, "num_classes": 10}),
    (51_585, {"channels": 1, "num_classes": 10, "base_channels": 16, "n_scaling": 1, "n_bottleneck": 0}),
    (1_508_513, {"channels": 1, "num_classes": 10, "base_channels": 16}),
    (14_794_529, {"channels": 1, "num_classes": 10, "base_channels": 16, "n_scaling": 4, "n_bottleneck": 5}),
]


@pytest.mark.parametrize(("count", "options"), PUBLISHED_COUNTS)
def test_it_has_as_many_parameters_as_the_published_one(count, options):
    with torch.device("meta"):
        assert sum(p.numel() for p in DoubleConvUNet(**options).parameters()) == count


def test_attention_starts_as_the_published_one():
    torch.manual_seed(0)
    ours, there = SelfAttention(32, 4), nn.MultiheadAttention(32, 4)
    for bias in (ours.qkv.bias, ours.out.bias, there.in_proj_bias, there.out_proj.bias):
        assert not bias.any()
    bound = math.sqrt(6 / (32 + 3 * 32))  # Glorot & Bengio 2010, eq. 16
    for weight in (ours.qkv.weight, there.in_proj_weight):
        assert 0.98 * bound < weight.abs().max() <= bound


@pytest.mark.parametrize(("channels", "heads"), [(8, 1), (8, 2), (6, 3), (8, 8)])
def test_attention_is_softmax_of_queries_and_keys(channels, heads):
    torch.manual_seed(0)
    attention, x = SelfAttention(channels, heads).double(), noise(2, channels, 3, 4).double()
    for p in attention.parameters():
        nn.init.normal_(p)
    tokens = x.flatten(2).mT  # [B, N, C]
    queries, keys, values = attention.qkv(attention.norm(tokens)).chunk(3, -1)
    mixed = torch.zeros_like(tokens)
    for one in torch.arange(channels).chunk(heads):  # the channels of each head
        scores = torch.einsum("bic,bjc->bij", queries[..., one], keys[..., one]) / len(one) ** 0.5
        mixed[..., one] = torch.einsum("bij,bjc->bic", scores.softmax(-1), values[..., one])
    tokens = tokens + attention.out(mixed)
    close(attention(x), (tokens + attention.mlp(tokens)).mT.reshape(x.shape), 1e-11)


# --- every setting ---------------------------------------------------------------------------------------------------

SIZES = [(1, 1), (5, 7), (16, 8)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n_scaling", [0, 1, 3])
def test_any_size_is_a_larger_image_with_zeros_to_the_right_and_below(n_scaling, size):
    net, x, (height, width) = unet(channels=2, n_scaling=n_scaling), noise(2, 2, *size), size
    assert net.stride == 2**n_scaling
    padded = F.pad(x, (0, -width % net.stride, 0, -height % net.stride))
    out = net(x, LEVELS)
    assert out.shape == x.shape
    torch.testing.assert_close(out, net(padded, LEVELS)[..., :height, :width], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("channels", "out_channels", "want"), [(1, None, 1), (3, None, 3), (3, 6, 6), (2, 1, 1)])
def test_channels(channels, out_channels, want):
    net = unet(channels=channels, out_channels=out_channels)
    assert net(noise(2, channels, 8, 12), LEVELS).shape == (2, want, 8, 12)


@pytest.mark.parametrize(("time_dim", "base_channels"), [(2, 4), (6, 12), (64, 8), (256, 20)])
def test_widths(time_dim, base_channels):
    net, x = unet(time_dim=time_dim, base_channels=base_channels, num_classes=2), noise(2, 1, 8, 8)
    assert (net(x, LEVELS) - net(x, LEVELS + 0.1)).abs().amax((1, 2, 3)).min() > 1e-4
    assert net.labels.of_class.weight.shape == (2, time_dim)
    assert {len(level.shift.weight) for level in net.down} == {2 * base_channels}


@pytest.mark.parametrize("size", [(8, 8), (12, 20)])
def test_without_attention_it_is_the_network_whose_attention_adds_nothing(size):
    net, plain = unet(heads=2), unet(attention=False)
    for layer in net.modules():
        if isinstance(layer, SelfAttention):
            for last in (layer.out, layer.mlp[-1]):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
    assert not any(isinstance(layer, SelfAttention) for layer in plain.modules())
    missing, unknown = plain.load_state_dict(net.state_dict(), strict=False)
    assert not missing
    assert all("attention" in name for name in unknown)
    x = noise(2, 1, *size)
    torch.testing.assert_close(plain(x, LEVELS), net(x, LEVELS))


def test_heads_divide_the_channels():
    nets, x = [unet(heads=heads) for heads in (1, 2, 4, 8)], noise(2, 1, 8, 8)
    outs = [net(x, LEVELS) for net in nets]  # the same weights
    for a, b in itertools.combinations(outs, 2):
        assert (a - b).abs().max() > 1e-4
    assert unet(base_channels=6, heads=3)(x, LEVELS).isfinite().all()
    assert unet(base_channels=6, attention=False)(x, LEVELS).isfinite().all()  # 4 heads are allowed here


def test_dropout_acts_in_training_only():
    net, x = unet(dropout=0.5), noise(2, 1, 8, 8)
    assert torch.equal(net(x, LEVELS), net(x, LEVELS))
    torch.testing.assert_close(net(x, LEVELS), unet()(x, LEVELS))
    net.train()
    assert not torch.equal(net(x, LEVELS), net(x, LEVELS))


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"channels": 0}, "channels"),
        ({"out_channels": 0}, "out_channels"),
        ({"time_dim": 15}, "time_dim"),
        ({"time_dim": 0}, "time_dim"),
        ({"base_channels": 0}, "base_channels"),
        ({"base_channels": 6}, "heads"),
        ({"heads": 3}, "heads"),
        ({"heads": 0}, "heads"),
        ({"n_scaling": -1}, "n_scaling"),
        ({"n_bottleneck": -1}, "n_bottleneck"),
        ({"num_classes": -1}, "num_classes"),
        ({"augmentations": 0}, "augmentations"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": math.nan}, "dropout"),
    ],
)
def test_a_setting_out_of_range_is_refused(wrong, word):
    with pytest.raises(ValueError, match=f"^{word} "):
        DoubleConvUNet(**(SMALL | wrong))


# --- conditions ------------------------------------------------------------------------------------------------------


def test_labels_and_level_matter_and_no_label_adds_nothing():
    net, x = unet(num_classes=3), noise(2, 1, 8, 8)
    outs = [net(x, LEVELS, torch.full((2,), label)) for label in range(4)] + [net(x, LEVELS + 0.1)]
    for a, b in itertools.combinations(outs, 2):
        assert (a - b).abs().flatten(1).amax(1).min() > 1e-3
    assert torch.equal(net(x, LEVELS), outs[3])
    nn.init.zeros_(net.labels.of_class.weight)
    torch.testing.assert_close(net(x, LEVELS, torch.tensor([0, 1])), outs[3])
    without = unet()
    with pytest.raises(ValueError, match="the network has no classes"):
        without(x, LEVELS, torch.tensor([0, 0]))


def test_each_augmentation_gives_another_output():
    net, x = unet(num_classes=3, augmentations=8), noise(1, 1, 8, 8)
    outs = [net(x, LEVELS[:1], torch.tensor([1 + 4 * number])) for number in range(8)]
    for a, b in itertools.combinations(outs, 2):
        assert (a - b).abs().max() > 1e-3


def test_a_sample_does_not_depend_on_its_neighbors():
    net, x, y, cond = unet(num_classes=3), noise(3, 1, 8, 8), noise(3, 1, 8, 8, seed=1), torch.tensor([0, 1, 2])
    levels = torch.tensor([-1.0, 0.0, 1.0])
    y[1] = x[1]
    a, b = net(x, levels, cond), net(y, levels.flip(0), cond.flip(0))
    torch.testing.assert_close(a[1], b[1])
    assert (a[0] - b[0]).abs().max() > 1e-3


def test_gradients_reach_every_parameter():
    net = unet(num_classes=3, augmentations=2, n_bottleneck=3)
    net(noise(6, 1, 8, 8), torch.linspace(-1, 1, 6), torch.tensor([0, 1, 2, 4, 5, 6])).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        rows = p.grad.flatten(1 if p.ndim > 1 else 0).abs().amax(-1)
        assert rows.min() > 0, name


def test_every_pixel_and_channel_sees_the_image():
    net, x = unet(channels=2), noise(1, 2, 5, 7).requires_grad_()
    for place in ((0, 0, 0), (1, 4, 6), (0, 2, 3)):
        (grad,) = torch.autograd.grad(net(x, LEVELS[:1])[0][place], x)
        assert (grad != 0).all()


# --- machines --------------------------------------------------------------------------------------------------------


def test_it_moves_with_to():
    net = unet(num_classes=3, augmentations=2).to("meta")  # a tensor that stays on the CPU would raise an error
    out = net(noise(2, 1, 8, 8).to("meta"), LEVELS.to("meta"), torch.tensor([0, 1]).to("meta"))
    assert out.device.type == "meta"


def test_layout_does_not_matter_and_bf16_is_close():
    net, x = unet(channels=3, num_classes=3), noise(4, 3, 16, 16)
    levels, cond = torch.linspace(-1, 1, 4), torch.arange(4)
    want = net(x, levels, cond)
    net = net.to(memory_format=torch.channels_last)
    torch.testing.assert_close(net(x.to(memory_format=torch.channels_last), levels, cond), want, rtol=1e-3, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x.to(memory_format=torch.channels_last), levels, cond)
    error = (out - want).square().mean().sqrt() / want.std()
    assert 1e-4 < error < 0.1  # bf16 has 8 bits of precision; an error of 0 would mean float32


# --- the published protocol ------------------------------------------------------------------------------------------

T = 1000
BETAS = torch.linspace(-6, 6, T, dtype=torch.float64).sigmoid() * (0.02 - 1e-4) + 1e-4
ABAR = (1 - BETAS).cumprod(0)


def their_step(u):
    """The published choice of the step, counted from 0: uniform on 1 ... T - 1, so that step 0 is never trained."""
    return 1 + (u * (T - 1)).long()


def our_time(u, schedule):
    return (their_step(u) + 1).double() / T


def their_loss(there, batch, waves_of):
    n = their_step(batch.draws.stratified("time"))
    abar = ABAR[n].to(batch.x0)[:, None, None, None]
    eps = batch.draws.normal("noise", batch.x0.shape[1:]).to(batch.x0)
    x_t = abar.sqrt() * batch.x0 + (1 - abar).sqrt() * eps
    return F.mse_loss(eps, there(x_t, waves_of(n).to(x_t), batch.cond))


def small_digits():
    """Digits at 16 x 16, averaged from 32 x 32."""
    data = digits("test")
    pixels = F.avg_pool2d(F.pad(data.pixels.float(), (2, 2, 2, 2)), 2).round().to(torch.uint8)
    return Images("small digits", pixels, data.labels, data.class_names)


def waves_of_level(n):
    """The sinusoids of our network at step n, of log(sigma/alpha)/4."""
    return sinusoid(((1 - ABAR[n]) / ABAR[n]).log() / 8, 16)


def waves_of_step(n, width=256):
    angles = n[:, None] * 10000 ** -(torch.arange(0, width, 2) / width)
    return torch.cat([angles.sin(), angles.cos()], 1)


def our_loss(denoiser, x0, cond, draws):
    return denoising_loss(denoiser, x0, cond, draws, density=our_time)


def test_its_loss_is_the_published_one():
    net = unet(num_classes=3).double()
    there = theirs_with_weights_of(net, 2)
    images = Images("noise", (255 * noise(8, 1, 16, 16).sigmoid()).to(torch.uint8), torch.arange(8) % 3, tuple("abc"))
    denoiser = Denoiser(net, Discrete(BETAS), noise_target)
    for batch in itertools.islice(batches(images, 4), 2):
        batch = type(batch)(batch.x0.double(), batch.cond, batch.draws)
        ours = our_loss(denoiser, batch.x0, batch.cond, batch.draws).mean()
        close(ours, their_loss(there, batch, waves_of_level), 1e-5)  # sinusoids are float32


@pytest.mark.slow
def test_it_learns_the_published_protocol_as_well_as_the_published_network():
    """The networks differ only in the sinusoids, which hardly matter in 300 steps: the image shows its noise level."""
    torch.manual_seed(0)
    net = DoubleConvUNet(1, base_channels=16, n_scaling=2, n_bottleneck=1, num_classes=10)
    there = theirs_with_weights_of(net, 1)
    images, steps, lr = small_digits(), 300, 3e-4
    denoiser = Denoiser(net, Discrete(BETAS), noise_target)
    optimizer = torch.optim.Adam(net.parameters(), lr)
    stream = itertools.islice(batches(images, 16), steps)
    run = train(denoiser, stream, optimizer, loss=our_loss, lr=lambda n: lr, clip=math.inf)
    ours = [step.loss for step in run]

    optimizer, theirs = torch.optim.Adam(there.parameters(), lr), []
    for batch in itertools.islice(batches(images, 16), steps):
        loss = their_loss(there, batch, waves_of_step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        theirs.append(loss.item())

    ours, theirs = (sum(losses[-100:]) / 100 for losses in (ours, theirs))
    print(f"\nmean loss of the last 100 steps: ours {ours:.4f}, theirs {theirs:.4f}, ratio {ours / theirs:.3f}")
    assert theirs < 0.5  # a network whose output is 0 has loss 1
    assert ours < 1.05 * theirs
