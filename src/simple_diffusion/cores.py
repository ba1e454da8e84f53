"""Work for the cores of a CPU: each computes on a piece of its own.

Cores that share the work on one small batch mostly wait for each other.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def single_threaded(workers: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of workers each of which computes on one core alone."""
    cores = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)  # new threads take the setting that was made last


def on_all_cores(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map(work, items)` in order, one thread a core, each computing on that core alone."""
    cores = torch.get_num_threads()
    with single_threaded(cores) as pool:
        ahead: deque[Future[Result]] = deque()
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > 2 * cores:  # enough to keep all busy, and no more results than that in memory
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def on_one_core(items: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same items, each computed on one core: sums over a tensor depend in their last bits on how many share it."""
    if torch.get_num_threads() == 1:
        yield from items
        return
    with single_threaded(1) as pool:
        while (item := pool.submit(next, items, None).result()) is not None:
            yield item
