"""Ctrl-C (SIGINT) and SIGTERM. A training run checks for them between two steps, saves a checkpoint and exits."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped:
    """The number of the last signal that asked the run to stop, 0 if there was none."""

    number = 0


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """SIGTERM raises SystemExit, as Ctrl-C raises KeyboardInterrupt, so that cleanup code runs. Exit code 143."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stop_on_signals() -> Iterator[Stopped]:
    """SIGINT and SIGTERM do not interrupt, however many arrive; their number is stored in the yielded `Stopped`."""
    stopped = Stopped()

    def note(number: int, frame: object) -> None:
        stopped.number = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
