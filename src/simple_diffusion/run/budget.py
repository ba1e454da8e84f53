"""How much of a run is over, in seconds or in steps, and the learning rate that follows from it."""

import math
import time
from dataclasses import dataclass, field

from ..errors import UsageError
from ..model.config import Config
from ..system.distributed import broadcast
from ..training import LEARNING_RATES

MOST_RESERVE = 0.03
"""The largest share of a timed run that is reserved for what follows the last step: the run may end this much early."""

LONG_START = 0.2
"""Share of a timed run before its first step from which a note is printed."""


@dataclass
class Budget:
    """How much of a run is over.

    config    gives the length
    started   `time.perf_counter()` when the command began; a run of a given time ends that long after it
    before    seconds that the run had taken when it was stopped, for a run that is resumed
    reserve   seconds reserved for what follows the last step; set by how long saving and sampling take
    progress  share of the training that is over: 0 at the first step, however long loading took, and 1 at the end
    signal    number of a signal that any process has received, 0 for none
    began     seconds that the run had taken at the first step of this process, when `progress` was `began_at`
    now       seconds that the run had taken at the last update
    """

    config: Config
    started: float
    before: float = 0.0
    reserve: float = 1.0
    progress: float = 0.0
    began: float = field(init=False)
    began_at: float = field(init=False)
    now: float = field(init=False)

    def __post_init__(self) -> None:
        self.begin()

    def refuse_late(self) -> None:
        """Raise UsageError if no time is left for training."""
        if self.left == 0:
            raise UsageError(
                f"loading took {self.elapsed:.1f} s of the {self.config.seconds:g} s of the run: train longer, such as "
                f"--for {10 * math.ceil(self.elapsed)}s"
            )

    @property
    def elapsed(self) -> float:
        """Seconds that the run has taken."""
        return self.before + time.perf_counter() - self.started

    @property
    def left(self) -> float:
        """Seconds until the end: of the training, if the time is given, or by the steps since `begin`."""
        if not self.config.steps:
            return max(self.config.seconds - self.reserve - self.elapsed, 0.0)
        done = self.progress - self.began_at
        return (1 - self.progress) * (self.elapsed - self.began) / done if done else math.inf

    @property
    def start_note(self) -> str:
        """What to tell the user if little of a timed run is left for training, else ""."""
        if self.config.steps or self.before or self.began < LONG_START * self.config.seconds:
            return ""
        return f"Loading took {self.began:.0f} s of the {self.config.seconds:g} s, so that {self.left:.0f} s are left."

    def begin(self) -> None:
        """Count from now, just before the first step of the process: loading is no progress."""
        self.began = self.now = self.elapsed
        self.began_at = self.progress

    def expect(self, seconds: float) -> None:
        """Reserve these seconds for the end of the run, but at most MOST_RESERVE of its length."""
        self.reserve = min(seconds, MOST_RESERVE * self.config.seconds)

    def advance(self, step: int) -> float:
        """Advance to the update of a step 1, 2, ..., and return its learning rate, in the middle of its progress."""
        before = self.progress
        if self.config.steps:
            self.progress = step / self.config.steps
        else:  # the progress that is left, evenly over the time that is left, by the clock of rank 0
            last, self.now = self.now, self.elapsed
            left = max(self.config.seconds - self.reserve - last, 1e-9)
            self.progress = broadcast(before + (1 - before) * min((self.now - last) / left, 1.0))[0]
        rate = LEARNING_RATES[self.config.lr_schedule]
        return self.config.lr * rate((before + self.progress) / 2, self.config.warmup)


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
