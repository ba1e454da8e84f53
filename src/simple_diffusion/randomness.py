"""Random numbers that are derived, never stored: every draw is a pure function of (seed, purpose, step, sample).

So a sample's noise does not depend on the batch it came in, on how many processes share the batch, on what was drawn
before it, or on whether the run was interrupted. The bits come from NumPy's counter-based Philox generator (Salmon et
al. 2011): the key is a stable hash of (seed, purpose, step), the counter is the sample's number.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


def philox(seed: int, purpose: str, step: int = 0) -> np.random.Philox:
    """The bit generator of one (seed, purpose, step), at sample 0."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(digest, "little"))


def permutation(n: int, seed: int, purpose: str, step: int = 0) -> Tensor:
    """A random order of n things: int64 `[n]`, a pure function of (seed, purpose, step)."""
    return torch.from_numpy(np.random.Generator(philox(seed, purpose, step)).permutation(n))


@dataclass(frozen=True)
class Draws:
    """The random numbers of the samples numbered `samples` at one step of one seed.

    Row b of each draw belongs to sample `samples[b]` and depends on (seed, purpose, step, samples[b]) alone.

    seed     of the whole run
    step     of training, or of the sampler
    samples  the samples' numbers, one a row: their places in the step's batch, or the numbers of the images drawn
    total    how many samples the step has in all, in this process and others; only `stratified` asks
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

        Over the whole step the numbers lie evenly, whatever the processes that share it.
        """
        return (torch.tensor(self.samples) + self.uniform(purpose)) / self.total

    def __getitem__(self, rows: slice) -> "Draws":
        """The same draws of some of the rows."""
        return replace(self, samples=self.samples[rows])

    def seed_of(self, purpose: str) -> int:
        """A seed in 0 .. 2^63 - 1 for a generator that these samples share."""
        return int(philox(self.seed, f"{purpose}/{self.samples[0]}", self.step).random_raw()) >> 1

    def _generators(self, purpose: str):
        bits = philox(self.seed, purpose, self.step)
        generator, fresh = np.random.Generator(bits), bits.state
        for sample in self.samples:
            # A sample owns 2^128 draws: its number stands in the upper half of the 256-bit counter.
            fresh["state"]["counter"][:] = (0, 0, sample, 0)
            bits.state = fresh
            yield generator
