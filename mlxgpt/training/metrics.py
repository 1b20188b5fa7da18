"""`metrics.jsonl`: what every step and every evaluation measured, one JSON object a line."""

import json
import math
from pathlib import Path
from typing import Any

from mlxgpt import files
from mlxgpt.errors import Error
from mlxgpt.training.tensorboard import Board


class Metrics:
    """Appends records to a file that is new, or that keeps its records up to a step when a run is resumed.

    A context manager. Each record is on disk, for other processes to read, when `write` returns.
    """

    def __init__(self, path: Path, keep_until: int | None = None, tensorboard: bool = False) -> None:
        """Open `path`; records of steps after `keep_until` are dropped, and all of them where it is None.

        With `tensorboard` they are written to event files beside it too. Raises Error when the file cannot be written.
        """
        self._path = path
        self._open(keep_until)
        self._board = Board(path.parent, keep_until) if tensorboard else None

    def _open(self, keep_until: int | None) -> None:
        kept = b""
        if keep_until is not None and self._path.is_file():
            lines = self._path.read_bytes().splitlines(keepends=True)
            kept = b"".join(line for line in lines if (step := _step(line)) is not None and step <= keep_until)
        files.write(self._path, lambda partial: partial.write_bytes(kept))
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 (closed on leaving the context)

    def rewind(self, step: int) -> None:
        """Drop the records of steps after `step`. Raises Error."""
        self._file.close()
        self._open(step)
        if self._board is not None:
            self._board.rewind(step)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; a number that JSON lacks (NaN) becomes null. Raises Error."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        line = json.dumps(finite).encode() + b"\n"
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            why = files.reason(error, self._path.parent)
            raise Error(f"{self._path} could not be written ({why}); --resume goes on from the checkpoint") from None
        if self._board is not None:
            self._board.write(record)


class Unwritten(Metrics):
    """Metrics of a process that writes nothing: another one does."""

    def __init__(self) -> None:
        pass

    def rewind(self, step: int) -> None:
        """Nothing."""

    def __exit__(self, *exception: object) -> None:
        pass

    def write(self, record: dict[str, Any]) -> None:
        """Nothing."""


def last_losses(path: Path, step: int, count: int) -> list[float]:
    """The losses of the last `count` steps up to `step` in the metrics at `path`, oldest first; of those there are."""
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    records = [json.loads(line) for line in lines if (its := _step(line)) is not None and its <= step]
    losses = [record.get("loss") for record in records if record.get("kind") == "train"]
    return [loss for loss in losses[-count:] if isinstance(loss, float)]


def _step(line: bytes) -> int | None:
    """The step of a record, None for half a line or anything else that is no record."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None
