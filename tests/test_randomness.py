from hashlib import sha256

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from simple_diffusion.data.batches import batches, order
from simple_diffusion.data.images import Images, to_unit
from simple_diffusion.randomness import Draws, permutation, philox

DRAWS = {
    "normal": lambda draws, purpose="a": draws.normal(purpose, (2, 3)),
    "uniform": lambda draws, purpose="a": draws.uniform(purpose),
    "stratified": lambda draws, purpose="a": draws.stratified(purpose),
}
every_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)


# --- random numbers --------------------------------------------------------------------------------------------------


@every_draw
def test_rows_do_not_depend_on_their_batch(draw):
    whole = draw(Draws(3, 5, range(10), total=10))
    for part in ([0], [9, 2], [4, 5, 6, 7], [3] * 3, range(10)):
        assert torch.equal(draw(Draws(3, 5, part, total=10)), whole[list(part)])


@every_draw
def test_earlier_random_numbers_do_not_matter(draw):
    draws = Draws(3, 5, range(4), total=4)
    first = draw(draws)
    for other in DRAWS.values():
        other(draws, "b")
    torch.manual_seed(1)
    np.random.default_rng(1)
    assert torch.equal(draw(draws), first)


@every_draw
def test_seed_step_sample_and_purpose_all_matter(draw):
    base = draw(Draws(3, 5, range(8), total=8))
    assert len(base.unique()) == base.numel()
    for other in (
        draw(Draws(4, 5, range(8), total=8)),
        draw(Draws(3, 6, range(8), total=8)),
        draw(Draws(3, 5, range(8), total=8), "b"),
    ):
        assert not torch.isin(other, base).any()


def test_the_sample_number_is_the_upper_half_of_the_philox_counter():
    """So the numbers of two samples never overlap."""
    key = philox(3, "a", 5).state["state"]["key"]
    for sample in (0, 1, 7, 2**40):
        generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, sample, 0]))
        want = torch.from_numpy(generator.standard_normal(15, dtype=np.float32))
        assert torch.equal(Draws(3, 5, [0, sample]).normal("a", (5, 3))[1].flatten(), want)


def test_all_versions_of_numpy_give_the_same_numbers():
    """NumPy may change its random numbers between versions; a run would then repeat no earlier one.

    The value is that of NumPy 1.26.4 and 2.4.6. If it changes, the page on reliability must name the version.
    """
    draws, order = Draws(0, 1, range(1000), total=1000), permutation(60_000, 0, "order", 1)
    numbers = [draws.normal("noise", (28, 28)), draws.uniform("drop label"), draws.stratified("time"), order]
    digest = sha256(b"".join(number.numpy().tobytes() for number in numbers))
    assert digest.hexdigest()[:16] == "6bdb1a83b01ddd80"


def test_shapes_and_dtypes():
    draws = Draws(0, 0, [4, 2])
    assert draws.normal("a", (3, 4, 5)).shape == (2, 3, 4, 5)
    assert draws.normal("a", ()).shape == (2,)
    assert draws.normal("a", (0,)).shape == (2, 0)
    assert draws.normal("a", (3,)).dtype == torch.float32
    assert draws.uniform("a").dtype == draws.stratified("a").dtype == torch.float64


def test_normal_is_normal_and_uniform_uniform():
    n = 200_000
    assert kstest(Draws(0, 1, range(20)).normal("a", (n // 20,)).flatten(), "norm").pvalue > 1e-4
    one_each = [Draws(0, step, range(50)) for step in range(100)]  # of many keys, not of one stream
    assert kstest(torch.cat([draws.normal("a", (1,)).flatten() for draws in one_each]), "norm").pvalue > 1e-4
    assert kstest(torch.cat([draws.uniform("a") for draws in one_each]), "uniform").pvalue > 1e-4


def test_neighboring_streams_are_not_correlated():
    n = 20_000
    draws = [(0, 0, 0, "a"), (0, 0, 1, "a"), (0, 1, 0, "a"), (1, 0, 0, "a"), (0, 0, 0, "b"), (10, 0, 0, "a")]
    rows = torch.cat([Draws(seed, step, [sample]).normal(purpose, (n,)) for seed, step, sample, purpose in draws])
    assert (rows.corrcoef() - torch.eye(len(draws))).abs().max() < 5 / n**0.5
    assert (rows[:, 1:] * rows[:, :-1]).mean(1).abs().max() < 5 / n**0.5


@pytest.mark.parametrize("shares", [[range(64)], [range(20), range(20, 64)], [range(0, 64, 2), range(1, 64, 2)]])
def test_each_stratum_has_one_sample_for_any_number_of_processes(shares):
    parts = [Draws(0, 1, share, total=64).stratified("time") for share in shares]
    u = torch.cat(parts).sort().values
    assert torch.equal((u * 64).floor().long(), torch.arange(64))
    inside = torch.cat([Draws(0, step, range(64), total=64).stratified("time") * 64 % 1 for step in range(50)])
    assert kstest(inside, "uniform").pvalue > 1e-4


# --- the order of the images -----------------------------------------------------------------------------------------


def test_permutations_depend_on_seed_purpose_and_step():
    base = permutation(100, 0, "a", 1)
    assert torch.equal(base, permutation(100, 0, "a", 1))
    for other in (permutation(100, 1, "a", 1), permutation(100, 0, "b", 1), permutation(100, 0, "a", 2)):
        assert torch.equal(other.sort().values, torch.arange(100))
        assert not torch.equal(other, base)


def test_permutations_are_uniform():
    counts = np.zeros((4, 4))
    for epoch in range(2000):
        counts[np.arange(4), permutation(4, 0, "order", epoch)] += 1
    assert abs(counts - 500).max() < 5 * (2000 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize("n", [1, 2, 7, 10])
def test_each_epoch_shows_every_image_once(n):
    shown = order(0, 6 * n, n, seed=0).view(6, n)
    assert torch.equal(shown.sort(1).values, torch.arange(n).expand(6, n))
    assert n < 7 or len(shown.unique(dim=0)) == 6
    assert n < 7 or not torch.equal(shown, order(0, 6 * n, n, seed=1).view(6, n))


@pytest.mark.parametrize("n", [1, 3, 10])
def test_the_order_resumes_at_any_place(n):
    whole = order(0, 40, n, seed=0)
    for start, count in ((0, 1), (1, 39), (n, n), (n - 1, 2), (17, 23)):
        assert torch.equal(order(start, count, n, seed=0), whole[start : start + count])


# --- batches ---------------------------------------------------------------------------------------------------------


def images(n, labeled=True):
    pixels = torch.arange(n, dtype=torch.uint8).reshape(n, 1, 1, 1).expand(n, 1, 2, 2).contiguous()
    return Images("numbers", pixels, torch.arange(n) % 3 if labeled else None, ("a", "b", "c") if labeled else ())


def shown(stream, steps):
    return [batch for batch, _ in zip(stream, range(steps), strict=False)]


@pytest.mark.parametrize("size", [1, 3, 10, 25])  # of 10 images
def test_batches_show_the_images_in_order_with_their_labels(size):
    stream = shown(batches(images(10), size, seed=4), 70)  # more than the 64 steps that are planned at once
    numbers = torch.stack([((batch.x0[:, 0, 0, 0] + 1) * 127.5).round().long() for batch in stream])
    assert torch.equal(numbers.flatten(), order(0, 70 * size, 10, 4))
    for step, (batch, row) in enumerate(zip(stream, numbers, strict=True), 1):
        assert torch.equal(batch.x0, to_unit(images(10).pixels[row]))
        assert torch.equal(batch.cond, row % 3)
        assert batch.draws == Draws(4, step, range(size), total=size)


@pytest.mark.parametrize("start", [1, 5, 64, 65])
def test_batches_resume_at_any_step(start):
    whole = shown(batches(images(10), 4, seed=1), 70)[start:]
    rest = shown(batches(images(10), 4, seed=1, start=start), 70 - start)
    for a, b in zip(whole, rest, strict=True):
        assert torch.equal(a.x0, b.x0)
        assert torch.equal(a.cond, b.cond)
        assert a.draws == b.draws


def test_images_without_labels_have_no_cond():
    assert next(batches(images(3, labeled=False), 2)).cond is None
