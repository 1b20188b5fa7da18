"""Ctrl-C as a question that long work asks at places where it can end cleanly."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Within it Ctrl-C raises nothing: the yielded function tells whether it was pressed. Main thread only."""
    pressed = False

    def note(number, frame) -> None:
        nonlocal pressed
        pressed = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
