"""What is left out of a corpus: how many files for each reason, and which."""

from collections import Counter
from collections.abc import Iterable, Mapping


class Skipped(Counter[str]):
    """Files left out, counted by reason. `files` says for each reason which they were, with more about why; what was
    counted without a name is in the counts alone."""

    def __init__(self, counts: Mapping[str, int] | Iterable[str] = ()) -> None:
        super().__init__(counts)
        named = counts.files if isinstance(counts, Skipped) else {}
        self.files: dict[str, list[tuple[str, str]]] = {reason: list(held) for reason, held in named.items()}

    def add(self, reason: str, path: str, more: str = "") -> None:
        """Count the file or folder at `path`."""
        self[reason] += 1
        self.files.setdefault(reason, []).append((path, more))
