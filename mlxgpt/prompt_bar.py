"""How far a long prompt is computed, as a bar on stderr that is gone when decoding starts."""

import sys
from typing import Any

LONG = 512  # tokens still to be computed; shorter prompts, and streams that are no terminal, get no bar


class PromptBar:
    """Called with the tokens done and all of them; a context that takes the bar away however it ends."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` tokens are computed; nothing from the last on."""
        if done >= total:
            self.close()
        elif self._bar is not None:
            self._bar.update(0, completed=done, refresh=True)
        elif total - done > LONG and sys.stderr.isatty():
            self._open(done, total)

    def _open(self, done: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("prompt"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"), TimeRemainingColumn()
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)
        self._bar.add_task("", total=total, completed=done)
        self._bar.start()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> "PromptBar":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
