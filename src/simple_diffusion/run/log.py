"""log.csv: how a run went, a row each half per cent of it."""

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from ..system.files import unwritable, write_atomic

FILE = "log.csv"
COLUMNS = ("step", "images", "seconds", "loss", "learning_rate", "images_per_second", "held_out_loss")


def row_of(line: str) -> tuple[int, float, str] | None:
    """(step, loss, the line), or None for what is no row: a machine that stops may leave half of one, or anything."""
    cells = line.split(",")
    try:
        return (int(cells[0]), float(cells[3]), line) if len(cells) == len(COLUMNS) else None
    except ValueError:
        return None


class Log:
    """Rows that are added to the file as they come.

    after   rows of later steps are dropped: a run that goes on from a checkpoint writes them again
    loss    of the last row that was kept, NaN if none was

    Raises ResourceError where the disk does not take it.
    """

    def __init__(self, folder: Path, after: int = 0):
        self.path = folder / FILE
        rows = []
        if after:
            with suppress(OSError):  # a log that is gone is begun anew
                rows = list(filter(None, map(row_of, self.path.read_text(errors="replace").splitlines())))
        rows = [row for row in rows if row[0] <= after]
        self.loss = rows[-1][1] if rows else math.nan
        kept = [line for _, _, line in rows]
        write_atomic(self.path, "".join(f"{line}\n" for line in [",".join(COLUMNS), *kept]).encode())
        try:
            self.file: TextIO = open(self.path, "a")  # noqa: SIM115  closed by `close`
        except OSError as error:
            raise unwritable(self.path, error) from error

    def row(self, step: int, *values: str) -> None:
        """Add a row, in the order of COLUMNS."""
        try:
            print(step, *values, sep=",", file=self.file, flush=True)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def sync(self) -> None:
        """See to it that the rows are on the disk, before a checkpoint says that they are."""
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error

    def close(self) -> None:
        try:
            self.sync()
        finally:
            with suppress(OSError):
                self.file.close()
