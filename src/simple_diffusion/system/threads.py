"""Work for the cores of a CPU: each computes on a piece of its own.

Cores that share the work on one small batch mostly wait for each other.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")


def _alone() -> None:
    """Let this thread compute on one core."""
    torch.get_num_threads()  # a thread takes over the common setting when it first asks for it: that comes before ours
    torch.set_num_threads(1)


@lru_cache(maxsize=4)
def workers(number: int, process: int) -> ThreadPoolExecutor:
    """So many threads, each of which computes on one core alone; they stay, as making one takes milliseconds.

    process   the number of this process: threads do not outlive a fork
    """
    cores = torch.get_num_threads()
    pool = ThreadPoolExecutor(number, initializer=_alone)
    all_there = Barrier(number)
    wait([pool.submit(all_there.wait) for _ in range(number)])
    torch.set_num_threads(cores)  # the common setting is the one that was made last
    return pool


def parallel_map(
    work: Callable[[Item], Result], items: Iterable[Item], device: torch.device | str = "cpu"
) -> Iterator[Result]:
    """`map(work, items)`, whose results come in the order of the items.

    On a CPU, as many threads as torch has compute at once, each a whole item; other devices take one item at a time.
    """
    threads = torch.get_num_threads()
    if threads == 1 or torch.device(device).type != "cpu":
        yield from map(work, items)
        return
    pool = workers(threads, os.getpid())
    ahead: deque[Future[Result]] = deque()
    try:
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > 2 * threads:  # enough to keep all threads busy, few enough to fit in memory
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:  # an error, or nobody wants the rest
        for future in ahead:
            future.cancel()
        wait(ahead)


def on_one_thread(items: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same items, each computed on one core: sums over a tensor depend in their last bits on how many share it."""
    if torch.get_num_threads() == 1:
        yield from items
        return
    pool = workers(1, os.getpid())
    while (item := pool.submit(next, items, None).result()) is not None:
        yield item
