"""How a process ends in which MLX ran on a thread of its own: at once.

A thread is not over when Python has joined it. What MLX keeps for it is freed after that, under the interpreter's lock
(seen in MLX 0.32.2). Before Python 3.14 a thread that waits for the lock while the interpreter shuts down is ended
where it is: here in a C++ destructor, and the whole process with it, by SIGABRT. So is a thread that comes back from
MLX only then, such as one that still loads a model.
"""

import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn

_at_once = threading.Event()


def at_once() -> None:
    """The interpreter is not to shut down when this process ends: MLX runs on another thread than the main one."""
    _at_once.set()


def leave(status: int) -> NoReturn:
    """End this process with a status, once what it wrote is out: at once if it is to be so, else by SystemExit."""
    if _at_once.is_set():
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # who read it has gone, or it is closed
                stream.flush()
        os._exit(status)
    sys.exit(status)
