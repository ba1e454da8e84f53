"""Parallel work on a CPU: each thread computes whole items.

This is faster than sharing each operation between the threads: on small tensors they mostly wait for each other.
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


def _use_one_thread() -> None:
    """Let torch compute the operations of this thread without further threads."""
    torch.get_num_threads()  # on first use a thread adopts the global setting, which would replace ours
    torch.set_num_threads(1)


@lru_cache(maxsize=4)
def workers(number: int, process: int) -> ThreadPoolExecutor:
    """A pool of `number` threads. It is kept, because to start a thread takes milliseconds.

    process   the id of this process: threads do not survive a fork
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(number, initializer=_use_one_thread)
    all_started = Barrier(number)
    wait([pool.submit(all_started.wait) for _ in range(number)])
    torch.set_num_threads(threads)  # the new threads have changed the global setting
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
            if len(ahead) > 2 * threads:  # keeps all threads busy, and few results in memory
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:  # after an error, or if the caller stops early
        for future in ahead:
            future.cancel()
        wait(ahead)


def on_one_thread(items: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same items, each computed by one thread, without gradients.

    The last bits of a sum depend on how many threads share it.
    """
    if torch.get_num_threads() == 1:
        yield from items
        return
    pool = workers(1, os.getpid())
    following = torch.no_grad()(next)  # each thread has its own switch for gradients
    while (item := pool.submit(following, items, None).result()) is not None:
        yield item
