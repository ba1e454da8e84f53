"""Several processes that share a run: torch.distributed, started by torchrun, with gloo on CPUs and NCCL on GPUs.

Alone, a process is rank 0 of 1, and nothing here does anything. All messages are tensors: nothing that arrives is run.
"""

import hashlib
import importlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import DivergedError, ResourceError, SimpleDiffusionError, UsageError, reason
from .signals import stop_on_signals

TIMEOUT = timedelta(minutes=30)
"""How long the others wait for one that hangs, or has much to do alone; of one that dies they hear at once."""

ROLL_CALL = 3.0  # seconds
"""How long a process that is left alone listens for who else is left."""


class LostError(ResourceError):
    """Another process of the run does not answer any more."""


def rank() -> int:
    """This process's number, 0 in front."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes share the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started.

    Raises ResourceError, which names them, where others go away.
    """
    # An optimiser imports this, and it holds on to the group that it finds: then a group that is lost can't be closed.
    importlib.import_module("torch._dynamo")
    gpus, me, everyone = torch.cuda.is_available(), int(os.environ["RANK"]), range(int(os.environ["WORLD_SIZE"]))
    if gpus:  # pragma: no cover (GPU)
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if gpus and dist.is_nccl_available() else "gloo"
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
        group = dist.PrefixStore("group", store)
        dist.init_process_group(backend, store=group, rank=me, world_size=len(everyone), timeout=TIMEOUT)
    except RuntimeError as error:
        raise ResourceError(f"it can't join the other processes of this run: {reason(error)}") from error
    try:
        yield
    except LostError as error:
        with stop_on_signals():  # torchrun ends us now, and this must be said before
            dist.destroy_process_group()  # so that whoever waits for this one hears of it too
            gone = ", ".join(map(str, missing(store, me, everyone)))
        if gone:
            raise ResourceError(f"process {gone} of this run ended first: it says why, or torchrun does") from error
        raise ResourceError(f"the processes of this run lost touch: {error}") from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def missing(store: dist.Store, me: int, everyone: Sequence[int]) -> list[int]:
    """Who does not answer to a roll call."""
    until, gone = time.monotonic() + ROLL_CALL, [0]  # process 0 keeps the book: without it, it is the one
    with suppress(RuntimeError):  # process 0 has waited long enough, and went
        store.set(f"{me} is here", "")
        while (gone := [n for n in everyone if not store.check([f"{n} is here"])]) and time.monotonic() < until:
            time.sleep(0.1)
    return gone


def all_reduce(message: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """The message, with what all processes say in it. Raises LostError."""
    if world_size() == 1:
        return message
    try:
        dist.all_reduce(message, op)
        return message
    except torch.OutOfMemoryError:  # pragma: no cover (GPU)
        raise
    except RuntimeError as error:
        lost = LostError(reason(error))
    raise lost  # not in the block above: by `error` it would hold on to the group, whose end the others wait for


def all_sum(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sum over the processes of each tensor, in its own layout; all of them in one message."""
    if world_size() == 1:
        return list(tensors)
    message = all_reduce(torch.cat([tensor.flatten() for tensor in tensors]))
    parts = message.split([tensor.numel() for tensor in tensors])
    # The layout matters: the norm of a gradient is summed in the order of its memory.
    return [torch.empty_like(t).copy_(part.view(t.shape)) for part, t in zip(parts, tensors, strict=True)]


def all_max(*numbers: float) -> list[float]:
    """The largest of each number over the processes."""
    return all_reduce(torch.tensor(numbers, dtype=torch.float64), dist.ReduceOp.MAX).tolist()


def broadcast(*numbers: float) -> list[float]:
    """What rank 0 says: clocks differ, and all must do the same."""
    return all_max(*(number if rank() == 0 else -torch.inf for number in numbers))


def on_rank0(work: Callable[[], None]) -> None:
    """Let rank 0 do it alone; the others learn whether it could. Raises its error there, and its like elsewhere."""
    failure: SimpleDiffusionError | None = None
    if rank() == 0:
        try:
            work()
        except SimpleDiffusionError as error:
            failure = error
    (code,) = broadcast(failure.exit_code if failure else 0)
    if failure:
        raise failure
    if code:
        error = ResourceError("process 0 of this run could not go on: it says why")
        error.exit_code = int(code)
        raise error


def same(pieces: Iterable[Any]) -> bool:
    """Does every process hold these bytes?"""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    number = int.from_bytes(digest.digest()[:6])  # a float64 holds 53 bits
    high, low = all_max(number, -number)
    return high == -low


def check_same_task(task: object) -> None:
    """Raise UsageError unless every process was given what prints the same."""
    if not same([repr(task).encode()]):
        raise UsageError("the processes of this run see other settings or data: give all the same command and files")


def check_same_weights(tensors: Sequence[Tensor]) -> None:
    """Raise DivergedError unless every process holds the same bits."""
    if world_size() > 1 and not same(t.detach().flatten().view(torch.uint8).cpu().numpy() for t in tensors):
        raise DivergedError("the processes of this run hold different weights: go on from the last checkpoint")
