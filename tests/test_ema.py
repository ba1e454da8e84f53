import math

import pytest
import torch
from oracles import close
from torch import nn

from simple_diffusion.ema import EMA, constant_decay, mixture, overlap, power_decay, power_exponent


def model(*values):
    made = nn.Module()
    made.weight = nn.Parameter(torch.tensor(values, dtype=torch.float64))
    made.register_buffer("count", torch.tensor(0))
    made.register_buffer("scale", torch.tensor([1.0]))
    return made


def follow(values, decay):
    """The average after every update, where the weight runs through `values`."""
    fast, kept = model(-100.0), []
    ema = EMA(fast, decay)
    for n, value in enumerate(values, 1):
        with torch.no_grad():
            fast.weight.fill_(value)
        ema.update(fast, n)
        kept.append(ema.model.weight.item())
    return kept


def profile(decay, n):
    """How much each of n updates counts in the average, `[n]`."""
    decays = torch.tensor([decay(i) for i in range(1, n + 1)], dtype=torch.float64)
    later = decays.flip(0).cumprod(0).flip(0)  # what the updates i ... n leave of what stood before
    return (1 - decays) * torch.cat([later[1:], torch.ones(1, dtype=torch.float64)])


@pytest.mark.parametrize(
    "decay", [power_decay(), power_decay(0.2), constant_decay(), constant_decay(0.9), constant_decay(0.9, 40)]
)
def test_the_first_update_copies_and_the_average_follows_its_profile(decay):
    values = torch.randn(300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kept = follow(values, decay)
    assert kept[0] == values[0]
    for n in (2, 50, 300):
        weights = profile(decay, n)
        assert (weights >= 0).all()
        assert weights.sum().item() == pytest.approx(1, abs=1e-12)  # nothing of the start is left
        assert kept[n - 1] == pytest.approx((weights * values[:n]).sum().item(), abs=1e-12)


def test_constant_decay_forgets_its_start_and_then_is_constant():
    decay = constant_decay(0.9)
    assert [decay(n) for n in (1, 2, 11)] == [0, 1 / 11, 0.5]
    assert {decay(n) for n in range(91, 1000)} == {0.9}
    kept = follow([0.0] * 100 + [1.0] * 200, decay)
    for k in (1, 10, 200):
        assert kept[99 + k] == pytest.approx(1 - 0.9**k, abs=1e-12)
    assert constant_decay()(10**6) == 0.999


@pytest.mark.parametrize("warmup", [0, 1, 20])
def test_updates_of_the_warmup_are_copies_and_the_ramp_starts_after_them(warmup):
    decay, values = constant_decay(0.9, warmup), torch.linspace(-1, 3, 200).double().tolist()
    kept = follow(values, decay)
    assert kept[:warmup] == values[:warmup]
    assert kept[warmup] == values[warmup]  # the ramp starts at 0, as without a warmup
    assert [decay(warmup + m) for m in (2, 11)] == [1 / 11, 0.5]  # and no jump follows the copies
    assert kept[warmup:] == follow(values[warmup:], constant_decay(0.9))
    assert {decay(warmup + m) for m in range(91, 1000)} == {0.9}


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2, 0.279])
def test_length_is_the_standard_deviation_of_the_profile_relative_to_the_run(width):
    n = 20_000
    weights, place = profile(power_decay(width), n), torch.arange(1, n + 1, dtype=torch.float64) / n
    mean = (weights * place).sum()
    deviation = (weights * (place - mean) ** 2).sum().sqrt().item()
    assert deviation == pytest.approx(width, rel=1e-3)
    assert mean > 0.5  # the later weights count for more


def test_power_average_of_a_ramp_is_its_integral():
    """Profile (g + 1) t^g on [0, 1] has mean (g + 1)/(g + 2); g = 6.94 is EDM2's exponent for a width of 0.10."""
    n = 5000
    assert follow(torch.arange(1, n + 1) / n, power_decay(0.1))[-1] == pytest.approx(7.94 / 8.94, abs=1e-3)


@pytest.mark.parametrize("width", [0, -0.1, 0.28, 1, math.nan])
def test_power_decay_refuses_lengths_that_no_profile_has(width):
    with pytest.raises(ValueError, match="EMA length must lie"):
        power_decay(width)


@pytest.mark.parametrize("decay", [power_decay(), constant_decay()])
def test_constant_weights_have_a_bit_exact_average(decay):
    fast = model(0.1, 1e-30, -3e5, 1 / 3)
    ema = EMA(fast, decay)
    for n in range(1, 200):
        ema.update(fast, n)
    assert torch.equal(ema.model.weight, fast.weight)


def test_buffers_are_copied_and_the_average_is_not_trained():
    fast = nn.Sequential(model(1.0), nn.Dropout())
    ema = EMA(fast)
    fast[0].count += 7
    fast[0].scale *= 0.25
    ema.update(fast, 1000)
    assert ema.model[0].count.item() == 7
    assert ema.model[0].scale.item() == 0.25
    assert not any(m.training for m in ema.model.modules())
    assert all(m.training for m in fast.modules())
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert all(p.requires_grad for p in fast.parameters())
    with torch.no_grad():
        fast[0].weight.zero_()
    close(ema.model[0].weight, torch.ones(1, dtype=torch.float64))  # shares no memory with the model


def test_later_updates_do_not_change_a_snapshot():
    fast = nn.Sequential(model(1.0))
    ema = EMA(fast, constant_decay(0.9))
    ema.update(fast, 1)
    kept = ema.snapshot()
    with torch.no_grad():
        fast[0].weight.fill_(5.0)
        fast[0].count.fill_(9)
    ema.update(fast, 11)
    assert (kept[0].weight.item(), kept[0].count.item()) == (1.0, 0)
    assert (ema.model[0].weight.item(), ema.model[0].count.item()) == (3.0, 9)
    assert type(kept) is nn.Sequential
    assert not any(p.requires_grad for p in kept.parameters())


def test_buffers_must_be_those_of_the_model():
    """A network that was taken apart since is no network to follow."""
    ema, other = EMA(nn.Sequential(model(1.0))), nn.Sequential(model(1.0))
    del other[0].scale
    with pytest.raises(ValueError, match="zip"):
        ema.update(other, 1)


def test_default_is_a_power_function_of_5_percent():
    assert [EMA(model(0.0)).decay(n) for n in (1, 2, 500)] == [power_decay(0.05)(n) for n in (1, 2, 500)]


# --- an average of another width, afterwards

KEPT = [(width, n) for n in (800, 1600, 2400, 3200, 4000) for width in (0.05, 0.1)]


@pytest.mark.parametrize(("one", "other"), [((0.05, 3000), (0.1, 4000)), ((0.2, 4000), (0.2, 4000))])
def test_the_overlap_of_two_profiles_is_their_sum_over_the_updates(one, other):
    profiles = [profile(power_decay(width), n) for width, n in (one, other)]
    first = min(one[1], other[1])
    assert (profiles[0][:first] * profiles[1][:first]).sum().item() == pytest.approx(overlap(one, other), rel=1e-2)


@pytest.mark.parametrize("width", [0.04, 0.07, 0.08, 0.13, 0.16])
def test_a_mixture_approximates_an_average_that_was_not_saved(width):
    """Its profile, summed up from those of the averages, is as far from the wanted one as it says."""
    n = KEPT[-1][1]
    shares, off = mixture(KEPT, (width, n))
    assert sum(shares) == pytest.approx(1, abs=1e-12)
    mixed = torch.zeros(n, dtype=torch.float64)
    for share, (each, then) in zip(shares, KEPT, strict=True):
        mixed[:then] += share * profile(power_decay(each), then)
    wanted = profile(power_decay(width), n)
    assert 0.02 < off < 0.1
    assert ((mixed - wanted).norm() / wanted.norm()).item() == pytest.approx(off, rel=0.05)
    single = min((profile(power_decay(each), n) - wanted).norm() / wanted.norm() for each in (0.05, 0.1))
    assert off < single / 2


@pytest.mark.parametrize("wanted", [KEPT[-1], KEPT[-2], KEPT[3]])
def test_a_mixture_reproduces_a_saved_average(wanted):
    shares, off = mixture(KEPT, wanted)
    assert off < 1e-6
    for share, one in zip(shares, KEPT, strict=True):
        assert share == pytest.approx(float(one == wanted), abs=1e-6)


def test_a_mixture_reports_a_large_distance_from_an_unreachable_profile():
    assert mixture(KEPT, (0.02, 4000))[1] > 0.3
    assert mixture(KEPT[:1], (0.1, 4000))[1] > 0.9  # nothing is left but the first fifth


@pytest.mark.parametrize("width", [0.03, 0.1, 0.25])
def test_the_exponent_agrees_with_the_length(width):
    g = power_exponent(width)
    assert (g + 1) / ((g + 2) ** 2 * (g + 3)) == pytest.approx(width**2, rel=1e-9)
