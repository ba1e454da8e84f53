"""What a training run prints to stderr: a progress bar in a terminal, else a line with each picture."""

from ..errors import printable
from ..system.distributed import rank
from ..system.terminal import STDERR, progress_bar


class Display:
    """The progress bar of a run and the lines beside it. Only rank 0 prints.

    name    of the run
    quiet   print nothing
    """

    def __init__(self, name: str, quiet: bool):
        self.quiet = quiet or rank() > 0
        layout = "{desc} {percentage:3.0f}%|{bar}| {postfix}"
        self.bar = progress_bar(total=1.0, desc=printable(name), bar_format=layout, hidden=self.quiet)

    def print(self, text: str) -> None:
        """Print a line that stays."""
        if not self.quiet:
            self.bar.write(printable(text, keep="\n"), file=STDERR)

    def update(self, progress: float, loss: float, speed: float, seconds_left: float) -> None:
        """Move the bar."""
        self.bar.set_postfix_str(f"loss {loss:.4f}, {speed:,.0f} images/s, {seconds_left:,.0f} s left")
        self.bar.update(progress - self.bar.n)

    def picture(self, progress: float, step: int, loss: float) -> None:
        """Print how far the run is, where there is no bar."""
        if self.bar.disable:
            self.print(f"{progress:4.0%}  step {step}, loss {loss:.4f}")

    def close(self) -> None:
        self.bar.close()
