"""Ctrl-C and SIGTERM: a run reads them between two steps, saves, and goes."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped:
    """Which signal asked the run to stop, 0 if none did."""

    number = 0


@contextmanager
def stop_on_signals() -> Iterator[Stopped]:
    """While inside, the signals only leave a note, however many come."""
    stopped = Stopped()

    def note(number: int, frame: object) -> None:
        stopped.number = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
