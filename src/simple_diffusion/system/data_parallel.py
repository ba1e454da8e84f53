"""Data parallelism: the processes of a run, and the threads of a CPU, share the rows of each batch."""

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor

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


def sum_over_parts(
    work: Callable[[slice], Sequence[Tensor | None]], rows: int, like: Sequence[Tensor], accumulate: int = 1
) -> list[Tensor | None]:
    """Sum the results of `work` over all parts of a batch; every process of the run gets the same sums.

    Each process computes consecutive parts, on a CPU as many at a time as it has threads.

    work        rows of the batch -> its results on these rows; None counts as zero
    rows        number of rows of the batch
    like        tensors of the results' shapes and layouts, on the device that computes them
    accumulate  how many parts are computed one after another

    With one process, a result is None where every part returned None; with several processes it is then zero.
    """
    device = like[0].device
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    own = threads * accumulate
    parts = split_rows(rows, world_size() * own)[rank() * own : (rank() + 1) * own]
    results = list(parallel_map(work, parts, device))
    sums = [add(tensors) for tensors in zip(*results, strict=True)] if results else [None] * len(like)
    if world_size() == 1:
        return sums
    return [*all_sum([torch.zeros_like(t) if s is None else s for s, t in zip(sums, like, strict=True)])]
