"""Random numbers as a pure function of (seed, purpose, step, sample).

The noise of a sample does not depend on the batch that the sample is in, on the number of processes, on earlier random
numbers, or on interruptions of the run. The generator is NumPy's counter-based Philox (Salmon et al. 2011): the key is
a hash of (seed, purpose, step), and the counter holds the number of the sample.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from .checks import check_type


def philox(seed: int, purpose: str, step: int = 0) -> np.random.Philox:
    """The bit generator of (seed, purpose, step), at sample 0. Raises TypeError unless the seed is an integer."""
    check_type("seed", seed, Integral, "an integer")  # any other text would be a seed, too
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(digest, "little"))


def permutation(n: int, seed: int, purpose: str, step: int = 0) -> Tensor:
    """A random permutation of 0, ..., n - 1: int64 `[n]`, a pure function of (seed, purpose, step)."""
    return torch.from_numpy(np.random.Generator(philox(seed, purpose, step)).permutation(n))


@contextmanager
def torch_seed(seed: int) -> Iterator[None]:
    """Inside the context, PyTorch's generator of the CPU starts from this seed; afterwards it goes on as before."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


@dataclass(frozen=True)
class Draws:
    """The random numbers of some samples in one step.

    Row b of each result depends on (seed, purpose, step, samples[b]) only.

    seed     of the run
    step     of training, or of the sampler
    samples  number of each sample: its row in the step's batch, or the number of the generated image
    total    number of samples of the step in all processes, for `stratified`
    """

    seed: int
    step: int
    samples: Sequence[int]
    total: int = 1

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Standard normal float32 `[B, *shape]`."""
        out = np.empty((len(self.samples), *shape), np.float32)
        for row, generator in zip(out[:, None], self._generators(purpose), strict=True):
            generator.standard_normal(dtype=np.float32, out=row)
        return torch.from_numpy(out)

    def uniform(self, purpose: str) -> Tensor:
        """Uniform float64 `[B]` in [0, 1)."""
        return torch.tensor([g.random() for g in self._generators(purpose)], dtype=torch.float64)

    def stratified(self, purpose: str) -> Tensor:
        """Uniform float64 `[B]` in [0, 1), sample i in the i-th of `total` equal strata (Kingma et al. 2021, I.1).

        The numbers of all samples of a step cover [0, 1) evenly, also when several processes share the step.
        """
        return (torch.tensor(self.samples) + self.uniform(purpose)) / self.total

    def __getitem__(self, rows: slice) -> "Draws":
        """The random numbers of some of the samples."""
        return replace(self, samples=self.samples[rows])

    def seed_of(self, purpose: str) -> int:
        """A seed from 0 to 2^63 - 1 for a generator that these samples share."""
        return int(philox(self.seed, f"{purpose}/{self.samples[0]}", self.step).random_raw()) >> 1

    def _generators(self, purpose: str):
        bits = philox(self.seed, purpose, self.step)
        generator, fresh = np.random.Generator(bits), bits.state
        for sample in self.samples:
            # The sample's number is the upper half of the 256-bit counter, so that each sample has 2^128 numbers.
            fresh["state"]["counter"][:] = (0, 0, sample, 0)
            bits.state = fresh
            yield generator
