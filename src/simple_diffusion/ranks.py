"""Several processes that share a run: torch.distributed, started by torchrun, with gloo on CPUs and NCCL on GPUs.

Alone, a process is rank 0 of 1, and nothing here does anything.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import DivergedError, ResourceError, SimpleDiffusionError

TIMEOUT = timedelta(minutes=10)
"""How long the others wait for a process that hangs; of one that dies they hear at once."""


def rank() -> int:
    """This process's number, 0 in front."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes share the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started; without torchrun, nothing.

    Raises ResourceError where another process goes away.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    me = rank()
    try:
        yield
    except RuntimeError as error:  # of a collective
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ResourceError(f"process {me} lost touch with another process of this run, which ended first") from error
    finally:
        dist.destroy_process_group()


def summed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sum over the processes of each float32 tensor; all of them in one message."""
    if world() == 1:
        return list(tensors)
    message = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(message)
    parts = message.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def united(tensor: Tensor) -> Tensor:
    """A tensor on the CPU of which each process has filled in other rows, and left 0 in the rest: all rows."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def largest(*numbers: float) -> list[float]:
    """The largest of each number over the processes; where only rank 0 gives more than 0, what rank 0 says."""
    if world() == 1:
        return list(numbers)
    message = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(message, dist.ReduceOp.MAX)
    return message.tolist()


def on_first(work: Callable[[], None]) -> None:
    """Let rank 0 do it alone; the others learn whether it could. Raises its error there, and its like elsewhere."""
    failure: SimpleDiffusionError | None = None
    if rank() == 0:
        try:
            work()
        except SimpleDiffusionError as error:
            failure = error
    (code,) = largest(failure.exit_code if failure else 0)
    if failure:
        raise failure
    if code:
        error = ResourceError("process 0 of this run could not go on: it says why")
        error.exit_code = int(code)
        raise error


def check_equal(tensors: Sequence[Tensor]) -> None:
    """Raise DivergedError unless every process holds the same bits."""
    if world() > 1:
        sums = [sum(t.detach().cpu().contiguous().view(torch.uint8).long().sum().item() for t in tensors)]
        high, low = largest(float(sums[0]), -float(sums[0]))
        if high != -low:
            raise DivergedError(
                "the processes of this run no longer hold the same weights: go on from the last checkpoint"
            )
