"""log.csv: how a run went, a row each half per cent of it."""

import os
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from .files import unwritable, write_atomic

FILE = "log.csv"
COLUMNS = ("step", "images", "seconds", "loss", "learning_rate", "images_per_second", "held_out_loss")


class Log:
    """Rows that are added to the file as they come.

    after   rows of later steps are dropped: a run that goes on from a checkpoint writes them again

    Raises ResourceError where the disk does not take it.
    """

    def __init__(self, folder: Path, after: int = 0):
        self.path = folder / FILE
        lines = []
        if after:
            with suppress(OSError):  # a log that is gone is begun anew
                lines = self.path.read_text().splitlines()[1:]
        kept = [line for line in lines if line.count(",") == len(COLUMNS) - 1 and int(line.split(",")[0]) <= after]
        self.step = int(kept[-1].split(",")[0]) if kept else 0  # of the last row
        write_atomic(self.path, "".join(f"{line}\n" for line in [",".join(COLUMNS), *kept]).encode())
        self.file: TextIO = open(self.path, "a")  # noqa: SIM115  closed by `close`

    def row(self, step: int, *values: str) -> None:
        """Add a row, in the order of COLUMNS."""
        try:
            print(step, *values, sep=",", file=self.file, flush=True)
        except OSError as error:
            raise unwritable(self.path, error) from error
        self.step = step

    def sync(self) -> None:
        """See to it that the rows are on the disk, before a checkpoint says that they are."""
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error

    def close(self) -> None:
        with suppress(OSError):
            self.file.close()
