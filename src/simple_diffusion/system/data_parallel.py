"""Data parallelism: the processes of a run, and the threads of a CPU, share the rows of each batch."""

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .distributed import all_sum, rank, world_size
from .threads import parallel_map


def split_rows(rows: int, parts: int) -> list[slice]:
    """Split `rows` rows into consecutive parts whose lengths differ by at most one. Empty parts are left out."""
    ends = [rows * i // parts for i in range(parts + 1)]
    return [slice(start, end) for start, end in pairwise(ends) if end > start]


def add(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """The sum of the tensors, in which None counts as zero; None if all are None."""
    present = [tensor for tensor in tensors if tensor is not None]
    return reduce(torch.add, present) if present else None


def shares_state(work: Callable[[], object], module: nn.Module) -> bool:
    """Whether `work` must not run in several threads at once, because they would share more than the weights.

    This is true if it uses PyTorch's global generator, as nn.Dropout does, updates a buffer of the module, or
    normalizes over the batch. The work is done once, without gradients; then generator and buffers are restored.
    """
    if any(isinstance(part, _BatchNorm) and part.training for part in module.modules()):
        return True
    generator, buffers = torch.get_rng_state(), [buffer.clone() for buffer in module.buffers()]
    with torch.no_grad():
        work()
        changed = not torch.equal(generator, torch.get_rng_state())
        torch.set_rng_state(generator)
        for buffer, before in zip(module.buffers(), buffers, strict=True):
            changed |= not torch.equal(buffer, before)
            buffer.copy_(before)
    return changed


def sum_over_parts(
    work: Callable[[slice], Sequence[Tensor | None]],
    rows: int,
    like: Sequence[Tensor],
    accumulate: int = 1,
    in_turn: bool = False,
) -> list[Tensor | None]:
    """Sum the results of `work` over all parts of a batch; every process of the run gets the same sums.

    Each process computes consecutive parts, on a CPU as many at a time as it has threads.

    work        rows of the batch -> its results on these rows; None counts as zero
    rows        number of rows of the batch
    like        tensors of the results' shapes and layouts, on the device that computes them
    accumulate  how many parts are computed one after another
    in_turn     compute no parts at the same time, for work of which `shares_state` is true

    With one process, a result is None where every part returned None; with several processes it is then zero.
    """
    device = like[0].device
    threads = torch.get_num_threads() if device.type == "cpu" and not in_turn else 1
    own = threads * accumulate
    parts = split_rows(rows, world_size() * own)[rank() * own : (rank() + 1) * own]
    results = [*map(work, parts)] if in_turn else [*parallel_map(work, parts, device)]
    sums = [add(tensors) for tensors in zip(*results, strict=True)] if results else [None] * len(like)
    if world_size() == 1:
        return sums
    return [*all_sum([torch.zeros_like(t) if s is None else s for s, t in zip(sums, like, strict=True)])]
