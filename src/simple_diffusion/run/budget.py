"""How much of a run is over, in seconds or in steps, and the learning rate that follows from it."""

import time
from dataclasses import dataclass

from ..model.config import Config
from ..system.distributed import all_max, rank
from ..training import LEARNING_RATES

MOST_RESERVE = 0.03
"""The largest share of a timed run that is reserved for what follows the last step: the run may end this much early."""


@dataclass
class Budget:
    """How much of a run is over.

    config    gives the length
    started   `time.perf_counter()` when the command began; all time since then counts
    before    seconds that the run had taken when it was stopped, for a run that is resumed
    reserve   seconds reserved for what follows the last step; set by how long saving and sampling take
    progress  share of the run that is over, 1 at its end
    """

    config: Config
    started: float
    before: float = 0.0
    reserve: float = 1.0
    progress: float = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds that the run has taken."""
        return self.before + time.perf_counter() - self.started

    def expect(self, seconds: float) -> None:
        """Reserve these seconds for the end of the run, but at most MOST_RESERVE of its length."""
        self.reserve = min(seconds, MOST_RESERVE * self.config.seconds)

    def lr(self, step: int) -> float:
        """The learning rate of the next step."""
        return self.config.lr * LEARNING_RATES[self.config.lr_schedule](self.progress, self.config.warmup)

    def sync(self, step: int, signal: int) -> int:
        """Let all processes agree on the progress after `step` updates, by the clock of rank 0, and on signals.

        signal   number of the signal that this process received, 0 for none

        Returns the number of a signal that any process received, 0 for none.
        """
        if self.config.steps:
            progress = step / self.config.steps
        else:
            progress = min(1.0, self.elapsed / max(self.config.seconds - self.reserve, 1e-9))
        self.progress, signal_of_any = all_max(progress if rank() == 0 else 0.0, signal)
        return int(signal_of_any)


@dataclass
class Throughput:
    """Training images a second since a step of the run.

    batch   images a step
    step    the step from which they are counted
    time    the budget's clock at that step
    """

    batch: int
    step: int
    time: float

    def restart(self, step: int, now: float) -> None:
        """Count from this step."""
        self.step, self.time = step, now

    def exclude(self, seconds: float) -> None:
        """Do not count these seconds: no step was made in them."""
        self.time += seconds

    def speed(self, step: int, now: float) -> float:
        """Images a second up to this step."""
        return (step - self.step) * self.batch / max(now - self.time, 1e-9)
