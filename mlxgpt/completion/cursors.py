"""Places in held-out files at which completions are tried."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

At = Literal["anywhere", "token"]
WORDS = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Cursor:
    """A place in a file: `prefix` is all before it, `truth` the rest of its line without trailing spaces, and `suffix`
    what comes after the line, from its end on."""

    name: str
    line: int
    prefix: bytes
    truth: str
    suffix: bytes = b""


def pick_cursors(documents: Sequence[tuple[str, bytes]], count: int, seed: int, at: At = "anywhere") -> list[Cursor]:
    """`count` cursors, uniform over the non-blank lines of all (name, content), then over the line's columns.

    The cursor stands on or after the line's first visible character and before its last; with `at` "token" only where
    a word or sign begins.
    """
    lines = [
        (name, number, data, start, line)
        for name, data in documents
        for number, start, line in _lines(data)
        if len(line.strip()) > 1
    ]
    if not lines:
        return []
    draw = random.Random(seed)
    cursors = []
    for name, number, data, start, line in draw.choices(lines, k=count):
        text = line.rstrip()
        if at == "token":
            column = draw.choice([match.start() for match in WORDS.finditer(text)])
        else:
            column = draw.randrange(len(text) - len(text.lstrip()), len(text))
        prefix = data[:start] + text[:column].encode("utf-8", "surrogateescape")
        end = start + len(text.encode("utf-8", "surrogateescape"))
        cursors.append(Cursor(name, number, prefix, text[column:], data[end:]))
    return cursors


def _lines(data: bytes) -> Iterator[tuple[int, int, str]]:
    """Each line's number from 1, where it starts, and its text."""
    start = 0
    for number, line in enumerate(data.split(b"\n"), 1):
        yield number, start, line.decode("utf-8", "surrogateescape")
        start += len(line) + 1
