"""CUDA graphs: the work of a GPU on a batch, captured once and replayed for each later batch.

A small network launches hundreds of small kernels, which takes Python longer than the GPU computes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..data.batches import Batch
from ..randomness import Draws

Tensors = tuple[Tensor, ...]

CaptureGraph = Callable[[Callable[[], Tensors]], tuple[Callable[[], None], Tensors]]
"""work -> (function that repeats the work on the same tensors, tensors that hold its results)."""


def cuda_graph(work: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:  # pragma: no cover (GPU)
    """Capture the kernels that the work launches, without running them."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = work()
    return graph.replay, results


def hold_learning_rate(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Keep the learning rate in a tensor on the device, where a captured update reads it."""
    for group in optimizer.param_groups:
        group |= {"lr": torch.zeros((), device=device), "capturable": True}


@dataclass(frozen=True)
class StaticDraws(Draws):
    """Random numbers in tensors on a device that keep their place in memory when they are updated."""

    device: torch.device | str = "cpu"
    tensors: dict[tuple, Tensor] = field(default_factory=dict)

    def update(self, draws: Draws) -> None:
        """Replace all numbers that were requested so far by those of other draws."""
        for (method, *arguments), numbers in self.tensors.items():
            numbers.copy_(getattr(draws, method)(*arguments))

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        return self._static("normal", purpose, tuple(shape))

    def uniform(self, purpose: str) -> Tensor:
        return self._static("uniform", purpose)

    def stratified(self, purpose: str) -> Tensor:
        return self._static("stratified", purpose)

    def __getitem__(self, rows: slice) -> Draws:
        assert range(len(self.samples))[rows] == range(len(self.samples)), "a captured batch is not split"
        return self

    def _static(self, *key) -> Tensor:
        if key not in self.tensors:
            method, *arguments = key
            self.tensors[key] = getattr(super(), method)(*arguments).to(self.device)
        return self.tensors[key]


class Replayed:
    """Work on batches of one shape: the first call runs it, the second captures it, and later calls replay it.

    work      batch, or nothing -> tensors, or None; its random numbers are those of the batch, and it never waits for
              the GPU
    capture   `cuda_graph`, or another way to capture the work
    """

    def __init__(self, work: Callable[..., Tensors | None], capture: CaptureGraph = cuda_graph):
        self.work, self.capture = work, capture
        self.batch: Batch | None = None
        self.calls = 0
        self.replay: Callable[[], None] = lambda: None
        self.results: Tensors = ()

    def __call__(self, *batch: Batch) -> Tensors:
        static = [self._copied(given) for given in batch]
        self.calls += 1
        if self.calls == 1:  # libraries and optimizers allocate their memory in the first call
            return self.work(*static) or ()
        if self.calls == 2:
            self.replay, self.results = self.capture(lambda: self.work(*static) or ())
        self.replay()
        return tuple(result.clone() for result in self.results)  # the next replay overwrites the results

    def _copied(self, batch: Batch) -> Batch:
        """The content of the batch in the tensors of the first batch, which the captured work reads."""
        if self.batch is None:
            d, x0, cond = batch.draws, batch.x0.clone(), batch.cond
            draws = StaticDraws(d.seed, d.step, d.samples, d.total, x0.device)
            self.batch = Batch(x0, None if cond is None else cond.clone(), draws)
            return self.batch
        self.batch.x0.copy_(batch.x0)
        if self.batch.cond is not None and batch.cond is not None:
            self.batch.cond.copy_(batch.cond)
        assert isinstance(self.batch.draws, StaticDraws)
        self.batch.draws.update(batch.draws)
        return self.batch
