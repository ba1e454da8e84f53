"""Recorded work: replayed on each batch's own numbers, it trains to the same bits as work that is launched each time.

A CPU has no graphs. What stands in for one here does the same work again and copies its results into the tensors of
the first time, which is all that a replay does; `benchmarks/gpu.py` compares the real ones.
"""

from functools import partial
from itertools import islice

import pytest
import torch
from torch import Tensor

from simple_diffusion.data.batches import batches
from simple_diffusion.data.images import Images
from simple_diffusion.data.info import DataInfo
from simple_diffusion.model.build import ModelSpec
from simple_diffusion.model.config import Config
from simple_diffusion.randomness import Draws
from simple_diffusion.run.cuda_graphs import Replayed, hold_learning_rate
from simple_diffusion.run.steps import learner
from simple_diffusion.system.data_parallel import split_rows
from simple_diffusion.training import train, uncaptured


def again(work):
    """A recording that runs the work again on the tensors that it first read, into those that it first wrote."""
    results, begun = work(), []

    def replay() -> None:
        if not begun:  # the first replay is the run above
            begun.append(True)
            return
        for result, fresh in zip(results, work(), strict=True):
            result.copy_(fresh)

    return replay, results


def images(count: int = 64) -> Images:
    pixels = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images("noise", pixels, torch.arange(count) % 3, ("a", "b", "c"))


def trained(optimizer: str, record, steps: int = 6) -> tuple[list[Tensor], list[float]]:
    """The weights after some steps, and the losses."""
    config = Config(widths=(32, 32), blocks=(1, 1), optimizer=optimizer, batch=8, precision="fp32")
    data, info = images(), DataInfo.of(images())
    denoiser, chosen = learner(ModelSpec(config, info), torch.device("cpu"))
    loss = ModelSpec(config, info).training_loss()
    capture = uncaptured
    if record is not None:
        hold_learning_rate(chosen, torch.device("cpu"))
        capture = partial(Replayed, capture=record)
    stream = train(denoiser, batches(data, 8), chosen, loss=loss, lr=lambda n: 1e-2 / n, capture=capture)
    losses = [step.losses for step in islice(stream, steps)]
    return list(denoiser.parameters()), torch.cat(losses).tolist()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_replayed_training_is_training(optimizer, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # a batch in one part, as on a GPU
    (weights, losses), (replayed, their_losses) = trained(optimizer, None), trained(optimizer, again)
    assert torch.allclose(torch.tensor(losses), torch.tensor(their_losses), rtol=1e-4)
    for ours, theirs in zip(weights, replayed, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)  # the rate is a float32 tensor there


def test_a_replay_reads_the_new_batch_and_its_draws():
    def work(batch):
        noise, u = batch.draws.normal("noise", (2,)), batch.draws.uniform("u")
        return noise + u[:, None], batch.x0.clone(), batch.cond + 1, batch.draws.stratified("time")

    replayed, stream = Replayed(work, again), batches(images(), 4)
    for batch in islice(stream, 5):
        noise, x0, cond, times = replayed(batch)
        draws = Draws(0, batch.draws.step, range(4), total=4)
        assert torch.equal(noise, draws.normal("noise", (2,)) + draws.uniform("u")[:, None])
        assert torch.equal(times, draws.stratified("time"))
        assert torch.equal(x0, batch.x0)
        assert torch.equal(cond, batch.cond + 1)


def test_work_runs_once_a_call():
    count = torch.zeros(())

    def recorded_only(work):  # as a graph: recording launches nothing
        def replay() -> None:
            count.add_(1)

        return replay, ()

    replayed = Replayed(lambda: count.add_(1) and None, recorded_only)
    for n in range(1, 5):
        replayed()
        assert count == n


def test_a_batch_in_several_parts_cannot_be_held():
    replayed = Replayed(lambda batch: tuple(batch[rows].draws.uniform("u") for rows in split_rows(4, 2)), again)
    with pytest.raises(AssertionError, match="not split"):
        replayed(next(batches(images(), 4)))
