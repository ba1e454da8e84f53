"""log.csv: the progress of a run, one row for each half percent of it."""

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from ..system.files import unwritable, write_atomic

FILE = "log.csv"
COLUMNS = ("step", "images", "seconds", "loss", "learning_rate", "images_per_second", "held_out_loss")


def row_of(line: str) -> tuple[int, float, str] | None:
    """(step, loss, the line), or None if the line is not a whole row, as a crash may leave it."""
    cells = line.split(",")
    try:
        return (int(cells[0]), float(cells[3]), line) if len(cells) == len(COLUMNS) else None
    except ValueError:
        return None


class Log:
    """The file, to which rows are appended.

    after   rows of later steps are removed: a run that is resumed from a checkpoint writes them again
    loss    of the last row that was kept, NaN if there is none

    Raises ResourceError if the disk is full or the file cannot be written.
    """

    def __init__(self, folder: Path, after: int = 0):
        self.path = folder / FILE
        rows = []
        if after:
            with suppress(OSError):  # a missing log starts empty
                rows = list(
                    filter(None, map(row_of, self.path.read_text(encoding="utf-8", errors="replace").splitlines()))
                )
        rows = [row for row in rows if row[0] <= after]
        self.loss = rows[-1][1] if rows else math.nan
        kept = [line for _, _, line in rows]
        write_atomic(self.path, "".join(f"{line}\n" for line in [",".join(COLUMNS), *kept]).encode())
        try:
            self.file: TextIO = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  closed by `close`
        except OSError as error:
            raise unwritable(self.path, error) from error

    def row(self, step: int, *values: str) -> None:
        """Append a row; the values are in the order of COLUMNS."""
        try:
            print(step, *values, sep=",", file=self.file, flush=True)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def sync(self) -> None:
        """Flush the rows to the disk, before a checkpoint is written that relies on them."""
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
