"""Ctrl-C and SIGTERM: a run reads them between two steps, saves, and goes."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped:
    """Which signal asked the run to stop, 0 if none did."""

    number = 0


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """While inside, SIGTERM ends the process as Ctrl-C does: what was begun is undone. The exit code is 143."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
