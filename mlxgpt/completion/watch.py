"""The project's files as they are saved: looked at from time to time, and what has changed brought into the index."""

import threading
import time
from pathlib import Path

from mlxgpt.completion import project
from mlxgpt.completion.jobs import Busy
from mlxgpt.completion.opening import Names, open_suggester
from mlxgpt.completion.service import Service
from mlxgpt.completion.suggest import Suggester, chosen
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


class Watched:
    """The suggester of `names`, and from when a service has it, what is saved in its project. Raises UsageError."""

    def __init__(self, names: Names) -> None:
        chosen(names.using, names.model is not None)
        self._names = names
        self._seen: project.State | None = None
        self._watcher: Watcher | None = None

    def open(self) -> Suggester:
        """The suggester; the project's files are seen before they are read. Raises Error, UsageError."""
        names = self._names
        self._seen = None if names.root is None else project.state(names.root)
        return open_suggester(names.model, names.root, names.using, names.quantize, context=names.context)

    def start(self, service: Service) -> None:
        """Begin to look for what is saved, where the suggester that `service` opened knows a project."""
        names = self._names
        if names.root is not None and self._seen is not None and (names.using != "model" or names.context):
            self._watcher = Watcher(service, names.root, self._seen)
            self._watcher.start()

    def close(self) -> None:
        """Look no more."""
        if self._watcher is not None:
            self._watcher.close()
