"""How much of a run is done, by the clock or by steps, and the learning rate that follows from it."""

import time
from dataclasses import dataclass

from ..model.config import Config
from ..system.distributed import all_max, rank
from ..training import LEARNING_RATES

MOST_RESERVE = 0.03
"""Share of a run by the clock that may be kept for what follows the last step: it may end so much early."""


@dataclass
class Budget:
    """How much of a run is done.

    config    gives the length
    started   `time.perf_counter()` when the command began: the clock counts everything since
    before    seconds that the run took before, if it was stopped and goes on
    reserve   seconds to keep for what follows the last step; grows to what saving and drawing turn out to take
    progress  share of the run that is over, 1 at its end
    """

    config: Config
    started: float
    before: float = 0.0
    reserve: float = 1.0
    progress: float = 0.0

    @property
    def elapsed(self) -> float:
        return self.before + time.perf_counter() - self.started

    def expect(self, seconds: float) -> None:
        """Keep so much in reserve, but never more than MOST_RESERVE of the run."""
        self.reserve = min(seconds, MOST_RESERVE * self.config.seconds)

    def lr(self, step: int) -> float:
        """The learning rate of the step that comes next."""
        return self.config.lr * LEARNING_RATES[self.config.lr_schedule](self.progress, self.config.warmup)

    def advance(self, step: int, signal: int) -> int:
        """Set the progress after `step` updates, by the clock of rank 0.

        Returns the signal that some process of the run has got, 0 if none has.
        """
        if self.config.steps:
            progress = step / self.config.steps
        else:
            progress = min(1.0, self.elapsed / max(self.config.seconds - self.reserve, 1e-9))
        self.progress, heard = all_max(progress if rank() == 0 else 0.0, signal)
        return int(heard)
