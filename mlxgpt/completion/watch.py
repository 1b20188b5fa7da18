"""The project's files as they are saved: looked at from time to time, and what has changed brought into the index."""

import threading
import time
from pathlib import Path

from mlxgpt.completion import project
from mlxgpt.completion.jobs import Busy
from mlxgpt.completion.service import Service
from mlxgpt.completion.suggest import Suggester
from mlxgpt.errors import Error

EVERY = 2.0  # seconds between two looks
SHARE = 0.02  # of a core that looking may take: a large project is looked at less often


class Watcher:
    """Looks at the files under `root` in a thread of its own, and has `service` index those that change.

    `state` is how they were when they were indexed (`project.state`).
    """

    def __init__(self, service: Service, root: Path, state: project.State, every: float = EVERY) -> None:
        self._service, self._root, self._state, self._every = service, root, state, every
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> int:
        """Look once; returns how many files had changed. What cannot be read now is looked at again."""
        try:
            self._state, changed = project.changes(self._root, self._state)
        except (Error, OSError):
            return 0
        for name, text in changed:

            def update(suggester: Suggester, name: str = name, text: bytes | None = text) -> None:
                suggester.update(name, text)

            self._service.call(update)
        return len(changed)

    def _run(self) -> None:
        pause = self._every
        while not self._ending.wait(pause):
            start = time.thread_time()
            try:
                self.look()
            except Busy:
                return
            pause = max(self._every, (time.thread_time() - start) / SHARE)
