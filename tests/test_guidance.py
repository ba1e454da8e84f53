import math

import pytest
import torch
from checks import Spy, Z
from oracles import Gaussian, Mixture, close, f64

from simple_diffusion.guidance import AutoGuided, Guided, drop_labels
from simple_diffusion.randomness import Draws
from simple_diffusion.samplers import karras_grid
from simple_diffusion.sampling import sample
from simple_diffusion.schedules import Karras

T, NULL = f64(0.5), 2
COND = torch.arange(9) % 2


def guided(scale, t=T, x=Z, cond=COND):
    spy = Spy(Mixture(Karras()))
    return Guided(spy, scale, NULL)(x, t, cond), spy.calls


# --- sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "label"), [(1.0, COND), (1, COND), (0.0, torch.full((9,), NULL)), (0, None)])
def test_scales_0_and_1_are_exact_with_one_evaluation(scale, label):
    out, calls = guided(scale)
    assert torch.equal(out, Mixture(Karras())(Z, T, label))
    assert [len(x) for x, _, _ in calls] == [9]


@pytest.mark.parametrize("scale", [-1.0, 0.3, 1.5, 4.0])
def test_guidance_moves_from_the_unconditional_mean_past_the_conditional_one(scale):
    oracle = Mixture(Karras())
    d_null, d_cond = oracle(Z, T), oracle(Z, T, COND)
    assert not torch.allclose(d_null, d_cond, atol=0.01)
    out, calls = guided(scale)
    close(out, d_null + scale * (d_cond - d_null))
    ((x, _, labels),) = calls  # both halves at once
    assert x.shape == (18, 1)
    assert labels.tolist() == [NULL] * 9 + COND.tolist()


def test_guidance_is_affine_in_scale():
    scales = (-1.0, 0.0, 0.25, 1.0, 3.0)
    outs = [guided(scale)[0] for scale in scales]
    for scale, out in zip(scales, outs, strict=True):
        close(out, outs[1] + scale * (outs[3] - outs[1]))


@pytest.mark.parametrize("scale", [0, 1, 2.5])
def test_guidance_takes_a_time_for_each_image_or_one_for_all(scale):
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    whole = guided(scale, t=t)[0]
    for i in range(9):
        close(whole[i : i + 1], guided(scale, t=t[i], x=Z[i : i + 1], cond=COND[i : i + 1])[0])
    for one in (t[3], t[3:4]):
        close(guided(scale, t=one)[0], guided(scale, t=t[3].expand(9))[0])


def test_guidance_requires_labels_and_keeps_the_schedule():
    oracle = Mixture(Karras())
    assert Guided(oracle, 2.0, NULL).schedule is oracle.schedule
    with pytest.raises(ValueError, match="label"):
        Guided(oracle, 2.0, NULL)(Z, T)


# --- training --------------------------------------------------------------------------------------------------------


def kept(p, steps, size=8, seed=0, samples=None):
    """Labels that the loss gets to see in each step: `[steps, size]`, of images whose label is their number."""
    samples = samples or range(size)
    seen = drop_labels(lambda denoiser, x0, cond, draws: cond, null=99, p=p)
    cond = torch.tensor(list(samples))
    return torch.stack([seen(None, None, cond, Draws(seed, step, samples, total=size)) for step in range(steps)])


def test_labels_are_dropped_sample_by_sample_at_their_rate():
    n, size, p = 1500, 8, 0.2
    labels = kept(p, n)
    dropped = labels == 99
    assert torch.equal(labels[~dropped], torch.arange(size).expand(n, size)[~dropped])
    for rate in (dropped.double().mean(0) - p).abs():  # every place of the batch
        assert rate < 5 * math.sqrt(p * (1 - p) / n)
    assert abs(dropped.double().mean() - p) < 5 * math.sqrt(p * (1 - p) / n / size)
    assert (dropped.double().T.corrcoef() - torch.eye(size)).abs().max() < 5 / math.sqrt(n)


def test_dropping_depends_on_the_random_numbers_only():
    whole = kept(0.5, 50)
    assert torch.equal(whole, kept(0.5, 50))
    assert torch.equal(whole[:, [6, 1]], kept(0.5, 50, samples=[6, 1]))
    assert not torch.equal(whole, kept(0.5, 50, seed=1))
    assert len(set(map(tuple, whole.tolist()))) > 40


@pytest.mark.parametrize(("p", "share"), [(0.0, 0), (1.0, 1)])
def test_probabilities_0_and_1_drop_no_label_and_every_label(p, share):
    assert ((kept(p, 200) == 99).double() == share).all()


def test_dropping_labels_changes_no_other_argument_of_the_loss():
    def loss(*args):
        return args

    denoiser, x0, draws = object(), torch.zeros(3, 1), Draws(0, 1, range(3), total=3)
    got = drop_labels(loss, null=5, p=1.0)(denoiser, x0, torch.arange(3), draws)
    assert (got[0], got[1], got[3]) == (denoiser, x0, draws)
    assert got[2].tolist() == [5, 5, 5]
    assert got[2].dtype == torch.int64
    assert drop_labels(loss, null=5, p=1.0)(denoiser, x0, None, draws)[2] is None


def test_labels_stay_on_their_device():
    cond = torch.zeros(3, dtype=torch.int64, device="meta")
    got = drop_labels(lambda denoiser, x0, cond, draws: cond, null=5)(None, None, cond, Draws(0, 1, range(3)))
    assert got.device.type == "meta"


def test_outside_its_interval_guidance_is_the_conditional_mean_at_one_evaluation():
    mixture = Mixture(Karras())
    calls = []

    class Counted:
        schedule = mixture.schedule

        def __call__(self, x_t, t, cond=None):
            calls.append(len(x_t))
            return mixture(x_t, t, cond)

    x, cond = torch.randn(6, 1, dtype=torch.float64), torch.arange(6) % 2
    guided, always = Guided(Counted(), 2.0, 2, interval=(0.5, 3.0)), Guided(mixture, 2.0, 2)
    for level, inside in ((0.1, False), (0.499, False), (0.501, True), (2.999, True), (3.001, False), (50.0, False)):
        t = mixture.schedule.time_of(torch.tensor([level], dtype=torch.float64))
        calls.clear()
        out = guided(x, t, cond)
        assert torch.equal(out, always(x, t, cond) if inside else mixture(x, t, cond))
        assert calls == ([12] if inside else [6])
    levels = torch.tensor([0.1, 1.0, 9.0, 1.0, 0.2, 2.0], dtype=torch.float64)  # each sample at its own level
    t = mixture.schedule.time_of(levels)
    inside = ((levels > 0.5) & (levels < 3))[:, None]
    expected = torch.where(inside, always(x, t, cond), mixture(x, t, cond))
    torch.testing.assert_close(guided(x, t, cond), expected, rtol=0, atol=1e-15)


# --- autoguidance ----------------------------------------------------------------------------------------------------


def worse():
    """The same data, taken for broader than it is."""
    return Spy(Mixture(Karras(), std=0.5))


def test_autoguidance_of_1_is_the_model_alone():
    model, guide = Spy(Mixture(Karras())), worse()
    assert torch.equal(AutoGuided(model, guide, 1.0)(Z, T, COND), model.denoiser(Z, T, COND))
    assert (len(model.calls), len(guide.calls)) == (1, 0)


@pytest.mark.parametrize("cond", [None, COND])
@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 4.0])
def test_autoguidance_moves_from_the_guide_past_the_model(scale, cond):
    model, guide = Mixture(Karras()), worse()
    good, bad = model(Z, T, cond), guide.denoiser(Z, T, cond)
    assert not torch.allclose(good, bad, atol=0.01)
    close(AutoGuided(model, guide, scale)(Z, T, cond), bad + scale * (good - bad))


def test_autoguidance_acts_inside_its_interval_alone():
    model, guide = Mixture(Karras()), worse()
    levels = f64(0.1, 0.5, 1.0, 3.0, 9.0, 0.4, 2.0, 3.1, 0.6)
    t = model.schedule.time_of(levels)
    acts = ((levels >= 0.45) & (levels <= 3.05))[:, None]
    guided = AutoGuided(model, guide, 2.0, interval=(0.45, 3.05))
    close(guided(Z, t), torch.where(acts, 2 * model(Z, t) - guide.denoiser(Z, t), model(Z, t)))
    guide.calls.clear()
    guided(Z, t[4])
    assert not guide.calls


def test_autoguidance_corrects_a_model_with_too_large_a_variance():
    """The data are N(0, 1); the model takes the standard deviation for 1.2, and the guide for 1.5."""
    model, guide = Gaussian(Karras(), 0.0, 1.2), Gaussian(Karras(), 0.0, 1.5)
    times = karras_grid(Karras(), 20)
    models = model, AutoGuided(model, guide, 1.5)
    plain, guided = (sample(each, (2048, 1), times, batch=2048).std().item() for each in models)
    assert plain == pytest.approx(1.2, rel=0.05)
    assert abs(guided - 1) < 0.6 * abs(plain - 1)


def test_guidance_by_label_and_autoguidance_combine():
    model, guide = Mixture(Karras()), worse()
    both = Guided(AutoGuided(model, guide, 2.0), 1.5, NULL)(Z, T, COND)
    null, label = (2 * model(Z, T, cond) - guide.denoiser(Z, T, cond) for cond in (None, COND))
    close(both, null + 1.5 * (label - null))
