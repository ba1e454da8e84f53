"""CUDA graphs: a GPU's work on a batch, recorded once and replayed for each batch that follows.

A small network is hundreds of small kernels, and a GPU runs them sooner than Python launches them one by one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..data.batches import Batch
from ..randomness import Draws

Tensors = tuple[Tensor, ...]

Record = Callable[[Callable[[], Tensors]], tuple[Callable[[], None], Tensors]]
"""work -> (what does the same work on the same tensors, the tensors in which its results then lie)."""


def cuda_graph(work: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:  # pragma: no cover (GPU)
    """What the work launches on the GPU, recorded and not yet run."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = work()
    return graph.replay, results


def hold_learning_rate(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Keep the learning rate in a tensor on the device, where a recorded update reads it."""
    for group in optimizer.param_groups:
        group |= {"lr": torch.zeros((), device=device), "capturable": True}


@dataclass(frozen=True)
class HeldDraws(Draws):
    """Draws whose numbers lie in tensors of a device, which stay where they are when other draws are taken over."""

    device: torch.device | str = "cpu"
    held: dict[tuple, Tensor] = field(default_factory=dict)

    def take_over(self, draws: Draws) -> None:
        """Let the numbers that were asked for be those of other draws from now on."""
        for (kind, *words), numbers in self.held.items():
            numbers.copy_(getattr(draws, kind)(*words))

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        return self._held("normal", purpose, tuple(shape))

    def uniform(self, purpose: str) -> Tensor:
        return self._held("uniform", purpose)

    def stratified(self, purpose: str) -> Tensor:
        return self._held("stratified", purpose)

    def __getitem__(self, rows: slice) -> Draws:
        assert range(len(self.samples))[rows] == range(len(self.samples)), "a recorded batch is not split"
        return self

    def _held(self, *key) -> Tensor:
        if key not in self.held:
            kind, *words = key
            self.held[key] = getattr(super(), kind)(*words).to(self.device)
        return self.held[key]


class Replayed:
    """Work on batches of one shape: the first time it runs as it is, the second time it is recorded, then replayed.

    work    batch, or nothing -> tensors, or None; it waits for nothing on the GPU and draws from the batch alone
    record  how it is recorded
    """

    def __init__(self, work: Callable[..., Tensors | None], record: Record = cuda_graph):
        self.work, self.record = work, record
        self.batch: Batch | None = None
        self.calls = 0
        self.replay: Callable[[], None] = lambda: None
        self.results: Tensors = ()

    def __call__(self, *batch: Batch) -> Tensors:
        held = [self._hold(given) for given in batch]
        self.calls += 1
        if self.calls == 1:  # libraries set themselves up, and optimisers their memory, at the first call
            return self.work(*held) or ()
        if self.calls == 2:
            self.replay, self.results = self.record(lambda: self.work(*held) or ())
        self.replay()
        return tuple(result.clone() for result in self.results)  # the next replay overwrites the results

    def _hold(self, batch: Batch) -> Batch:
        """The numbers of the batch in the tensors of the first one."""
        if self.batch is None:
            d, x0, cond = batch.draws, batch.x0.clone(), batch.cond
            draws = HeldDraws(d.seed, d.step, d.samples, d.total, x0.device)
            self.batch = Batch(x0, None if cond is None else cond.clone(), draws)
            return self.batch
        self.batch.x0.copy_(batch.x0)
        if self.batch.cond is not None and batch.cond is not None:
            self.batch.cond.copy_(batch.cond)
        assert isinstance(self.batch.draws, HeldDraws)
        self.batch.draws.take_over(batch.draws)
        return self.batch
