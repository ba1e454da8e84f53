"""A run's state on disk: what is saved comes back and goes on as it was, and nothing else is taken for it."""

import shutil
from collections import namedtuple
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import assert_equal

from simple_diffusion.data.images import Images
from simple_diffusion.data.info import DataInfo
from simple_diffusion.ema import EMA
from simple_diffusion.errors import CheckpointError, DataError, ResourceError, UsageError
from simple_diffusion.model.build import ModelSpec
from simple_diffusion.model.config import Config
from simple_diffusion.model.posthoc_ema import SHARES, save_averages
from simple_diffusion.run.checkpoint import (
    Checkpoint,
    Numbers,
    State,
    checkpoints,
    differences,
    latest,
    made_by,
    room_for,
    save_checkpoint,
)
from simple_diffusion.run.steps import learner, updates
from simple_diffusion.validation import HeldOut

INFO = DataInfo("photos", 9, 1, 8, 8, ("a", "b"), 0.1, 0.5, "0" * 64)
CONFIG = Config(widths=(8, 8), blocks=(1, 1), batch=4, precision="fp32", optimizer="adamw")


def images() -> Images:
    pixels = torch.randint(0, 256, (9, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images("photos", pixels, torch.arange(9) % 2, ("a", "b"))


def fresh(config: Config = CONFIG, measures: bool = True) -> State:
    """The state of a run before its first step."""
    denoiser, optimizer = learner(ModelSpec(config, INFO), torch.device("cpu"))
    held_out = HeldOut(images(), ModelSpec(config, INFO).loss(), 0) if measures else None
    return State(denoiser, optimizer, EMA(denoiser), held_out)


def go_on(state: State, config: Config, steps: int) -> State:
    """The same state after so many steps more."""
    start = state.numbers.n
    made = updates(ModelSpec(config, INFO), images(), state.denoiser, state.optimizer, lambda n: 0.01, start=start)
    for step in islice(made, steps):
        state.ema.update(state.denoiser, step.n)
        state.losses.append(step.losses)
        state.numbers.n = step.n
    return state


def trained(config: Config = CONFIG, measures: bool = True) -> State:
    """The state of a run that has everything that a run can have: a guide, best weights, losses not yet logged."""
    state = go_on(fresh(config, measures), config, 2)
    state.guide = state.ema.snapshot()
    if state.held_out is not None:
        state.numbers.held_out_loss = state.held_out.check(state.ema.model, 0.25)
        state.numbers.best, state.numbers.best_progress = state.held_out.best, 0.25
    return go_on(state, config, 1)


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measures", [True, False])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_state_comes_back_and_goes_on_as_if_it_had_never_stopped(tmp_path, optimizer, measures):
    config = replace(CONFIG, optimizer=optimizer)
    state = trained(config, measures)
    state.numbers.seconds, state.numbers.bad = 12.5, 2
    path = save_checkpoint(tmp_path, ModelSpec(config, INFO), state)
    assert path == tmp_path / "checkpoints" / "step-00000003.safetensors"
    found = latest(tmp_path)
    assert (found.path, found.config, found.info, found.numbers) == (path, config, INFO, state.numbers)
    assert (found.made_by, found.damaged) == (made_by(), ())
    again = fresh(replace(config, seed=5), measures)  # other weights, all of which go
    again.restore(found.tensors, found.numbers)
    for _ in range(2):
        assert_equal(again.tensors(), state.tensors())
        if state.held_out is not None and again.held_out is not None:
            assert (again.held_out.best, again.held_out.best_progress) == (state.held_out.best, 0.25)
        go_on(state, config, 2)
        go_on(again, config, 2)
    assert again.numbers.n == 7
    for parameter, memory in again.optimizer.state.items():  # in the layout of the weight, as the optimiser wants it
        assert all(kept.stride() == parameter.stride() for kept in memory.values() if kept.ndim)
    assert not any(p.requires_grad for module in (again.ema.model, again.guide) for p in module.parameters())


def test_a_state_without_steps_comes_back(tmp_path):
    """Nothing was measured, logged or remembered by the optimiser yet."""
    state, again = fresh(), fresh(replace(CONFIG, seed=5))
    save_checkpoint(tmp_path, ModelSpec(CONFIG, INFO), state)
    found = latest(tmp_path)
    assert {name.partition(".")[0] for name in found.tensors} == {"model", "average"}
    again.restore(found.tensors, found.numbers)
    assert_equal(again.tensors(), state.tensors())
    assert (again.guide, again.losses, again.numbers) == (None, [], Numbers())
    assert (again.held_out.best, again.held_out.weights) == (float("inf"), None)


def test_the_second_average_comes_back_and_is_left_out_where_none_was_kept(tmp_path):
    state, again = fresh(measures=False), fresh(replace(CONFIG, seed=5), measures=False)
    state.second, again.second = EMA(state.denoiser), EMA(again.denoiser)
    tensors = state.tensors()
    again.restore(tensors, state.numbers)
    assert_equal(again.tensors(), tensors)
    assert_equal(again.second.model.state_dict(), state.denoiser.state_dict())
    with pytest.raises(ValueError, match=r"^second does not belong to this network$"):
        fresh(measures=False).restore(tensors, state.numbers)
    again.restore({name: t for name, t in tensors.items() if not name.startswith("second.")}, state.numbers)
    assert again.second is None


def test_losses_are_kept_in_float32():
    state = fresh()
    state.losses = [torch.ones(2, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.bfloat16)]
    assert_equal({"losses": state.tensors()["log.losses"]}, {"losses": torch.tensor([1.0, 1, 0, 0, 0])})


FOREIGN = {  # what is changed in the tensors of a good state, and what the error names
    "a weight too few": (lambda t: t.pop("model.net.head.weight"), "net.head.weight"),
    "no weights": (lambda t: [t.pop(name) for name in [*t] if name.startswith("model.")], "Missing"),
    "no average": (lambda t: [t.pop(name) for name in [*t] if name.startswith("average.")], "Missing"),
    "a weight of another shape": (lambda t: t.update({"model.net.head.weight": torch.zeros(3)}), "net.head.weight"),
    "an average of another shape": (lambda t: t.update({"average.net.head.weight": torch.zeros(3)}), "net.head.weight"),
    "a guide with a weight too few": (lambda t: t.pop("guide.net.head.weight"), "net.head.weight"),
    "no best weights": (lambda t: [t.pop(name) for name in [*t] if name.startswith("best.")], "Missing"),
    "a best weight too few": (lambda t: t.pop("best.net.head.weight"), "net.head.weight"),
    "best weights of another network": (lambda t: t.update({"best.net.head.weight": torch.zeros(3)}), "head.weight"),
    "a memory of another shape": (
        lambda t: t.update({"optimizer.net.head.weight.exp_avg": torch.zeros(3)}),
        r"net\.head\.weight\.exp_avg must have shape \(4, 8, 3, 3\), got \(3,\)",
    ),
    "a memory of no weight": (lambda t: t.update({"optimizer.net.tail.exp_avg": torch.zeros(1)}), "net.tail.exp_avg"),
    "a part that there is not": (lambda t: t.update({"plans.world": torch.zeros(1)}), "plans"),
    "a name without a part": (lambda t: t.update({"plans": torch.zeros(1)}), "plans"),
    "a number that is not finite": (
        lambda t: t["average.net.head.weight"][1, 2].fill_(float("nan")),
        "average.net.head.weight contains",
    ),
    "a loss that is not finite": (lambda t: t["log.losses"].fill_(float("inf")), "log.losses"),
}


@pytest.fixture(scope="module")
def whole() -> State:
    return trained()


@pytest.mark.parametrize(("change", "word"), FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_state_of_this_run_is_refused_by_its_name(whole, change, word):
    tensors = {name: tensor.clone() for name, tensor in whole.tensors().items()}
    change(tensors)
    with pytest.raises(ValueError, match=word):
        fresh().restore(tensors, whole.numbers)


def test_best_weights_of_a_run_that_measures_nothing_are_refused(whole):
    with pytest.raises(ValueError, match=r"^best does not belong to this network$"):
        fresh(measures=False).restore(whole.tensors(), whole.numbers)


# --- the folder -------------------------------------------------------------------------------------------------------


def test_the_newest_two_are_kept_and_what_claims_to_be_newer_goes(tmp_path):
    state = fresh(measures=False)
    for n in (1, 2, 3):
        state.numbers.n = n
        save_checkpoint(tmp_path, ModelSpec(CONFIG, INFO), state)
    (tmp_path / "checkpoints" / "step-00000009.safetensors").write_bytes(b"damaged")
    other = tmp_path / "checkpoints" / "notes.txt"
    other.touch()
    assert latest(tmp_path).numbers.n == 3
    state.numbers.n = 4
    save_checkpoint(tmp_path, ModelSpec(CONFIG, INFO), state)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000004.safetensors", "step-00000003.safetensors"]
    assert other.exists()


def test_checkpoints_sort_by_number_beyond_eight_digits(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    names = ["step-100000000.safetensors", "step-99999999.safetensors", "step-00000009.safetensors"]
    for name in names:
        (tmp_path / "checkpoints" / name).touch()
    assert [path.name for path in checkpoints(tmp_path)] == names


def test_damaged_checkpoints_are_passed_over_and_told_of_newest_first(tmp_path):
    with pytest.raises(CheckpointError, match=f"no checkpoint in {tmp_path}.*without --resume"):
        latest(tmp_path)
    state = fresh(measures=False)
    save_checkpoint(tmp_path, ModelSpec(CONFIG, INFO), state)
    bad = [tmp_path / "checkpoints" / f"step-0000000{n}.safetensors" for n in (8, 7)]
    for path in bad:
        path.write_bytes(b"damaged")
    found = latest(tmp_path)
    assert found.numbers.n == 0
    assert [path.name in remark for path, remark in zip(bad, found.remarks(), strict=True)] == [True, True]
    assert all(remark.endswith("; resuming from step-00000000.safetensors instead") for remark in found.remarks())
    found.path.unlink()
    with pytest.raises(CheckpointError, match=f"all checkpoints in {tmp_path} are damaged: .*{bad[0].name}"):
        latest(tmp_path)


@pytest.mark.parametrize(("measures", "two"), [(True, False), (False, False), (False, True)])
def test_the_room_asked_for_is_what_a_run_will_keep(tmp_path, monkeypatch, measures, two):
    """Two checkpoints and one being written, a model with its guide, and what averages are kept, less the headers."""
    config = replace(CONFIG, widths=(32, 64))
    state = trained(config, measures)
    state.second = EMA(state.denoiser) if two else None
    taken = 3 * save_checkpoint(tmp_path, ModelSpec(config, INFO), state).stat().st_size
    weights = sum(4 * weight.numel() for weight in state.denoiser.state_dict().values())
    taken += 2 * weights
    if two:
        save_averages(tmp_path, 1, {0.05: state.denoiser, 0.1: state.ema.model})
        taken += len(SHARES) * (tmp_path / "averages" / "step-00000001.safetensors").stat().st_size
    asked = taken // weights * weights  # the headers are less than the weights
    assert asked > 0.9 * taken

    def ask(free: int) -> None:
        usage = {tmp_path: namedtuple("usage", "free")(free)}
        monkeypatch.setattr(shutil, "disk_usage", usage.__getitem__)
        room_for(tmp_path, state)

    ask(asked)
    sentence = (
        f"^{tmp_path} needs {asked / 1e6:,.0f} MB, and the disk has room for {asked / 1e6:,.0f} MB: free the disk$"
    )
    with pytest.raises(ResourceError, match=sentence):
        ask(asked - 1)


# --- what a run depends on --------------------------------------------------------------------------------------------


def checkpoint(folder: Path, **changes) -> Checkpoint:
    return Checkpoint(folder / "checkpoints" / "step-1", ModelSpec(CONFIG, INFO), Numbers(), {}, made_by() | changes)


def test_a_run_goes_on_as_it_was_or_every_change_is_named(tmp_path):
    found = checkpoint(tmp_path)
    found.refuse_changes(ModelSpec(CONFIG, INFO))
    with pytest.raises(
        UsageError, match=f"^the run in {tmp_path} has other settings: seed is 3 and was 0; lr is 0.5 and was 0.003; "
    ):
        found.refuse_changes(ModelSpec(replace(CONFIG, lr=0.5, seed=3), replace(INFO, count=8)))
    changed = replace(INFO, count=8, fingerprint="other")
    with pytest.raises(DataError, match=f"^the data of {tmp_path} has changed: count is 8 and was 9; restore"):
        found.refuse_changes(ModelSpec(CONFIG, changed))
    found.refuse_changes(ModelSpec(replace(CONFIG, data="moved/photos"), replace(INFO, name="moved/photos")))


def test_what_the_last_bits_depend_on_is_told_where_it_changed(tmp_path):
    assert checkpoint(tmp_path).remarks() == []
    (remark,) = checkpoint(tmp_path, torch="1.0", numpy="1.26.4", processes=8).remarks()
    now = f"torch is {torch.__version__} and was 1.0; numpy is {np.__version__} and was 1.26.4"
    assert remark.endswith(f": {now}; processes is 1 and was 8")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert differences({"threads": threads}, made_by()).count(f"threads is {threads + 1} and was {threads}") == 1
    finally:
        torch.set_num_threads(threads)


def test_what_an_older_checkpoint_does_not_record_is_not_reported_as_changed(tmp_path):
    old = checkpoint(tmp_path)
    del old.made_by["numpy"]
    assert old.remarks() == []
