"""The moments of a training run at which something is due: pictures, rows of the log, validation."""

from collections.abc import Iterable

PICTURES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Progress at which the model is saved and a grid of samples is written, in addition to the end of the run."""

ROWS = 200  # rows of the log in a run
CHECKS = 20  # measurements of the held-out loss in a run


class Milestones:
    """Moments of a run, each of which is due once.

    marks     rising numbers
    total     the mark at which the run ends: 1 if the marks are shares of the run
    progress  share of the run that is over already; earlier marks are dropped
    """

    def __init__(self, marks: Iterable[float], total: float = 1, progress: float = 0.0):
        self.total = total
        self.left = [mark for mark in marks if mark > progress * total]

    def reached(self, progress: float) -> bool:
        """Whether the next mark is reached, without passing it."""
        return bool(self.left) and progress * self.total >= self.left[0]

    def due(self, progress: float) -> bool:
        """Whether a mark was reached since the last call that returned True."""
        if not self.reached(progress):
            return False
        self.left = [mark for mark in self.left if mark > progress * self.total]
        return True
