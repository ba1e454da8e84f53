"""Dropout with a seed for each thread."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_here = threading.local()


@contextmanager
def dropout_seed(seed: int) -> Iterator[None]:
    """Inside the context, the `Dropout` modules of this thread use a generator with this seed.

    All threads share the generator of PyTorch's own dropout, so that its numbers depend on the order of the threads.
    """
    before = getattr(_here, "seed", None)
    _here.seed, _here.generators = seed, {}
    try:
        yield
    finally:
        _here.seed, _here.generators = before, {}


class Dropout(nn.Module):
    """In training, set each element to 0 with probability p and scale the others by 1/(1 - p).

    Srivastava et al. 2014.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        kept = torch.empty_like(x).bernoulli_(1 - self.p, generator=generator_of(x.device))
        return x * kept / (1 - self.p)


def generator_of(device: torch.device) -> torch.Generator | None:
    """This thread's generator on a device, or None for PyTorch's global one."""
    seed = getattr(_here, "seed", None)
    if seed is None:
        return None
    if device not in _here.generators:
        _here.generators[device] = torch.Generator(device).manual_seed(seed)
    return _here.generators[device]
