"""Several processes that train one run together: torch.distributed, started by torchrun; gloo on CPUs, NCCL on GPUs.

Without torchrun a process is rank 0 of 1, and the functions here return their input. The processes exchange tensors
only, so that no received data are executed.
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
"""How long a process waits for another one that hangs or has long work of its own. It does not wait for a dead one."""

CHECK_IN_SECONDS = 3.0
"""How long the processes that are left have to check in after one of them failed."""


class ConnectionLostError(ResourceError):
    """Another process of the run does not answer any more. Exit code 6."""


def rank() -> int:
    """The number of this process, 0 for the first."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started, for the time of the context.

    Raises ResourceError if the connection to another process is lost; the message names the ranks that failed.
    """
    # An optimizer imports this module, which keeps a reference to the group that exists then. A group with such a
    # reference can't be closed after a failure, so it is imported before there is one.
    importlib.import_module("torch._dynamo")
    gpus, me, size = torch.cuda.is_available(), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if gpus:  # pragma: no cover (GPU)
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if gpus and dist.is_nccl_available() else "gloo"
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
        group = dist.PrefixStore("group", store)
        dist.init_process_group(backend, store=group, rank=me, world_size=size, timeout=TIMEOUT)
    except RuntimeError as error:
        raise ResourceError(f"this process could not join the other processes of the run: {reason(error)}") from error
    try:
        yield
    except ConnectionLostError as error:
        with stop_on_signals():  # torchrun terminates this process soon, but it must report the cause before
            dist.destroy_process_group()  # processes that wait for this one then learn of the failure
            failed = ", ".join(map(str, failed_ranks(store, me, size)))
        if failed:
            raise ResourceError(f"rank {failed} of this run failed: see its error message or torchrun's") from error
        raise ResourceError(f"the processes of this run lost their connection: {error}") from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def failed_ranks(store: dist.Store, me: int, size: int) -> list[int]:
    """The ranks that do not check in within a few seconds. All processes that are left call this."""
    deadline, failed = time.monotonic() + CHECK_IN_SECONDS, [0]  # rank 0 holds the store: without a store, it failed
    with suppress(RuntimeError):  # rank 0 has exited, and the store with it
        store.set(f"{me} is here", "")
        while (failed := [n for n in range(size) if not store.check([f"{n} is here"])]) and time.monotonic() < deadline:
            time.sleep(0.1)
    return failed


def all_reduce(tensor: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """Reduce the tensor over all processes, in place. Raises ConnectionLostError."""
    if world_size() == 1:
        return tensor
    try:
        dist.all_reduce(tensor, op)
        return tensor
    except torch.OutOfMemoryError:  # pragma: no cover (GPU)
        raise
    except RuntimeError as error:
        lost = ConnectionLostError(reason(error))
    raise lost  # outside of the block: a chained `error` would keep the group alive, and the others wait for its end


def all_sum(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sum of each tensor over the processes, in the tensor's own memory layout. One all-reduce serves all."""
    flat = all_reduce(torch.cat([tensor.flatten() for tensor in tensors]))
    parts = flat.split([tensor.numel() for tensor in tensors])
    # The layout matters: the norm of a gradient is summed in the order of its memory.
    return [torch.empty_like(t).copy_(part.view(t.shape)) for part, t in zip(parts, tensors, strict=True)]


def all_max(*numbers: float) -> list[float]:
    """The maximum of each number over the processes."""
    return all_reduce(torch.tensor(numbers, dtype=torch.float64), dist.ReduceOp.MAX).tolist()


def broadcast(*numbers: float) -> list[float]:
    """The numbers of rank 0: where clocks or files differ, all processes follow it."""
    return all_max(*(number if rank() == 0 else -torch.inf for number in numbers))


def on_rank0(work: Callable[[], None]) -> None:
    """Do the work in rank 0 alone; the other processes wait for it.

    If it fails, rank 0 raises the error of the work, and the other processes raise ResourceError with its exit code.
    """
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
        error = ResourceError("rank 0 of this run failed: see its error message")
        error.exit_code = int(code)
        raise error


def same_everywhere(pieces: Iterable[Any]) -> bool:
    """Whether all processes pass the same bytes."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    number = int.from_bytes(digest.digest()[:6])  # a float64 holds 53 bits
    high, low = all_max(number, -number)
    return high == -low


def check_same_settings(settings: object) -> None:
    """Raise UsageError unless the settings have the same `repr` in all processes."""
    if not same_everywhere([repr(settings).encode()]):
        raise UsageError("the processes of this run have different settings or data: start all with the same command")


def check_same_weights(tensors: Sequence[Tensor]) -> None:
    """Raise DivergedError unless the tensors are bit-exact in all processes."""
    if world_size() == 1:
        return
    if not same_everywhere(t.detach().flatten().view(torch.uint8).cpu().numpy() for t in tensors):
        raise DivergedError("the processes of this run have different weights: resume from the last checkpoint")
