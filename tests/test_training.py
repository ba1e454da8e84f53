import math
from copy import deepcopy
from functools import partial
from itertools import islice

import pytest
import torch
from oracles import WIDE, Bayes, Mixture, close, normal
from torch import nn

from simple_diffusion.data.batches import Batch
from simple_diffusion.denoiser import Clipped, Denoiser
from simple_diffusion.ema import EMA
from simple_diffusion.errors import DivergedError
from simple_diffusion.guidance import Guided, drop_labels
from simple_diffusion.losses import LogNormal, denoising_loss, uniform
from simple_diffusion.optimizers import adamw
from simple_diffusion.randomness import Draws, permutation
from simple_diffusion.samplers import karras_grid
from simple_diffusion.sampling import sample
from simple_diffusion.schedules import Cosine, Flow, Karras, Linear
from simple_diffusion.targets import flow, noise, v
from simple_diffusion.training import LEARNING_RATES, train, warmup_constant, warmup_linear

ROWS = {  # schedule, target and density of noise levels, as in the papers
    "ddpm": (Linear(), noise, uniform),
    "cosine": (Cosine(), v, uniform),
    "flow": (Flow(), flow, uniform),
    "edm": (Karras(), v, LogNormal()),
}


# --- the update, on the loss (w x0 - 1)^2 ----------------------------------------------------------------------------


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, -2.0], dtype=torch.float64))


def square(model, x0, cond, draws):
    return ((x0 * model.w).sum(1) - 1) ** 2


def points(n, batch=4):
    return [Batch(normal(batch, 2, seed=step), None, Draws(0, step, range(batch))) for step in range(n)]


def by_hand(batches, lr, betas, clip, start=0):
    """AdamW without weight decay and with clipped gradients, after its paper."""
    w, m, v = Line().w.detach().clone(), 0.0, 0.0
    for n, batch in enumerate(batches, 1):
        losses = (batch.x0 @ w - 1) ** 2
        grad = (2 * (batch.x0 @ w - 1)[:, None] * batch.x0).mean(0)
        norm = grad.norm()
        grad = grad * min(1.0, clip / (norm.item() + 1e-6))
        m = betas[0] * m + (1 - betas[0]) * grad
        v = betas[1] * v + (1 - betas[1]) * grad**2
        w = w - lr(start + n) * (m / (1 - betas[0] ** n)) / ((v / (1 - betas[1] ** n)).sqrt() + 1e-8)
        yield w, losses, norm


@pytest.mark.parametrize("clip", [1e9, 1.0, 0.01])
@pytest.mark.parametrize("start", [0, 100])
def test_training_is_adamw(clip, start):
    model = Line()
    lr = lambda n: 0.1 / n  # noqa: E731
    steps = train(model, points(20), adamw(model, betas=(0.8, 0.95)), loss=square, lr=lr, clip=clip, start=start)
    for n, (step, hand) in enumerate(zip(steps, by_hand(points(20), lr, (0.8, 0.95), clip, start), strict=True), 1):
        w, losses, norm = hand
        close(model.w.detach(), w, 1e-10)
        close(step.losses, losses, 1e-10)
        close(step.grad_norm, norm, 1e-10)  # before clipping
        assert (step.n, step.lr) == (start + n, lr(start + n))
        assert step.loss == pytest.approx(losses.mean().item())
        assert not step.losses.requires_grad


def test_default_optimizer_is_adamw_without_decay():
    (group,) = adamw(Line()).param_groups
    assert (group["lr"], group["betas"], group["weight_decay"], group["eps"]) == (3e-3, (0.9, 0.99), 0.0, 1e-8)


def test_the_caller_can_stop_and_the_model_is_in_training_mode():
    model, batches = Line().eval(), iter(points(10))
    assert len(list(islice(train(model, batches, adamw(model), loss=square, lr=lambda n: 0.1), 3))) == 3
    assert model.training
    assert len(list(batches)) >= 6  # at most one more batch is taken


def same(a, b):
    """Bit-exact, also within dictionaries and lists."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
def test_a_gradient_that_is_not_finite_stops_before_anything_is_changed(bad):
    model, batches = Line(), points(5)
    batches[3].x0[1, 0] = bad  # 1e200: the loss overflows
    optimizer = adamw(model)
    steps = train(model, batches, optimizer, loss=square, lr=lambda n: 0.1 / n, start=10)
    done = list(islice(steps, 3))
    assert [step.n for step in done] == [11, 12, 13]
    weights, state = model.w.detach().clone(), deepcopy(optimizer.state_dict())
    with pytest.raises(DivergedError, match="step 14"):
        next(steps)
    assert torch.equal(model.w, weights)
    assert same(optimizer.state_dict(), state)
    assert model.w.isfinite().all()


def test_a_gradient_that_is_not_finite_with_a_finite_loss_stops_too():
    def root(model, x0, cond, draws):
        return (model.w * 0).abs().sum().sqrt() + square(model, x0, cond, draws)  # finite, with an infinite gradient

    model = Line()
    before = model.w.detach().clone()
    with pytest.raises(DivergedError, match="step 1 "):
        next(train(model, points(1), adamw(model), loss=root, lr=lambda n: 0.1))
    assert torch.equal(model.w, before)


# --- the learning rate -----------------------------------------------------------------------------------------------


def test_warmup_linear_rises_to_1_and_falls_to_0_linearly():
    assert [warmup_linear(p, 0.2) for p in (0.0, 0.2, 1.0)] == [0.0, 1.0, 0.0]
    for p, want in ((0.05, 0.25), (0.1, 0.5), (0.4, 0.75), (0.6, 0.5), (0.9, 0.125)):
        assert warmup_linear(p, 0.2) == pytest.approx(want)
    assert warmup_linear(0.03) == 1


def test_warmup_constant_rises_to_1_and_stays_there():
    assert [warmup_constant(p, 0.2) for p in (0.0, 0.05, 0.1, 0.2, 0.7, 1.0)] == [0.0, 0.25, 0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("rate", LEARNING_RATES.values(), ids=LEARNING_RATES)
def test_every_learning_rate_starts_at_0_and_peaks_at_1_after_its_warmup(rate):
    for warmup in (1e-6, 0.03, 0.5, 0.99):
        assert rate(0.0, warmup) == 0
        assert rate(warmup / 4, warmup) == pytest.approx(0.25)
        assert rate(warmup, warmup) == 1
        assert all(0 <= rate(n / 100, warmup) <= 1 for n in range(101))


# --- two labeled clusters on a line ---------------------------------------------------------------------------------


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.label = nn.Embedding(3, 8)
        self.layers = nn.Sequential(nn.Linear(11, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, x, noise_level, cond):
        level = noise_level[:, None]
        return self.layers(torch.cat([x, level, (4 * level).sin(), self.label(cond)], 1))


def clusters(start=0, size=128):
    """Label 0 at -1, label 1 at 1, both with standard deviation 0.1."""
    step = start
    while True:
        step += 1
        draws = Draws(0, step, range(size), total=size)
        labels = permutation(size, 0, "labels", step) % 2
        yield Batch((2.0 * labels - 1)[:, None] + 0.1 * draws.normal("data", (1,)), labels, draws)


def objective(row):
    return drop_labels(partial(denoising_loss, density=ROWS[row][2]), null=2)


def learner(row, seed=0):
    torch.manual_seed(seed)
    denoiser = Denoiser(MLP(), *ROWS[row][:2])
    return denoiser, adamw(denoiser)


@pytest.mark.parametrize("row", ROWS)
def test_training_learns_two_clusters(row):
    denoiser, optimizer = learner(row)
    average, steps = EMA(denoiser), []
    for step in train(denoiser, islice(clusters(), 400), optimizer, loss=objective(row), lr=lambda n: 3e-3):
        average.update(denoiser, step.n)
        steps.append(step)
    average = average.model
    exact = Denoiser(Bayes(denoiser.target, Mixture(WIDE, (-1.0, 1.0), (0.5, 0.5), 0.1)), *ROWS[row][:2])
    ideal, found = (
        sum(objective(row)(model, batch.x0.to(dtype), batch.cond, batch.draws).mean().item() for batch in fresh) / 20
        for fresh in [list(islice(clusters(start=9000), 20))]
        for model, dtype in ((exact, torch.float64), (average, torch.float32))
    )
    assert ideal < found < 1.75 * ideal  # no denoiser has a lower loss than the exact one
    assert steps[0].loss > 3 * ideal
    labels, times = torch.arange(256) % 2, karras_grid(denoiser.schedule, 12)
    x = sample(Clipped(Guided(average, 1.5, null=2)), (256, 1), times, labels)
    for label, mean in ((0, -1), (1, 1)):
        samples = x[labels == label]
        assert abs(samples.mean() - mean) < 0.15
        assert ((samples - mean).abs() < 0.5).float().mean() > 0.95
    x = sample(average, (256, 1), times, torch.full((256,), 2))  # without a label: both clusters
    assert abs((x > 0).float().mean() - 0.5) < 0.2


def test_resumed_training_is_bit_exact():
    def lr(n):
        return 3e-3 * warmup_linear(n / 31)

    def run(denoiser, optimizer, start, n):
        return list(train(denoiser, islice(clusters(start), n), optimizer, loss=objective("edm"), lr=lr, start=start))

    whole, optimizer = learner("edm")
    steps = run(whole, optimizer, 0, 30)
    half, first = learner("edm")
    run(half, first, 0, 11)
    rest, second = learner("edm", seed=1)
    rest.load_state_dict(deepcopy(half.state_dict()))
    second.load_state_dict(deepcopy(first.state_dict()))
    torch.randn(100)  # the global generator does not matter
    more = run(rest, second, 11, 19)
    assert [step.n for step in more] == list(range(12, 31))
    assert same(dict(rest.state_dict()), dict(whole.state_dict()))
    assert same(second.state_dict(), optimizer.state_dict())
    assert torch.equal(more[-1].losses, steps[-1].losses)
    assert not same(dict(half.state_dict()), dict(whole.state_dict()))
