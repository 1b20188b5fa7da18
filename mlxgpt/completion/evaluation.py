"""How good completions are: at random cursors in held-out files, against the rest of the line that is there."""

import difflib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mlxgpt.completion.suggest import Suggester


@dataclass(frozen=True)
class Cursor:
    """A place in a file: `prefix` is all before it, `truth` the rest of its line without trailing spaces."""

    name: str
    line: int
    prefix: bytes
    truth: str


@dataclass(frozen=True)
class Scores:
    """Means over cursors, as fractions; latencies in milliseconds.

    exact_match: the suggestion is the rest of the line. edit_similarity: 2 × matching characters / all characters
    (Ratcliff and Obershelp, as CodeXGLUE's fuzzy ratio). completed_ratio: characters of the truth that the
    suggestion gives before its first mistake, of all the truth's characters.
    """

    cursors: int
    exact_match: float
    edit_similarity: float
    completed_ratio: float
    p50: float
    p95: float


def pick_cursors(documents: Sequence[tuple[str, bytes]], count: int, seed: int) -> list[Cursor]:
    """`count` cursors, uniform over the non-blank lines of all (name, content), then over the line's columns.

    The cursor stands on or after the line's first visible character and before its last.
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
        column = draw.randrange(len(text) - len(text.lstrip()), len(text))
        prefix = data[:start] + text[:column].encode("utf-8", "surrogateescape")
        cursors.append(Cursor(name, number, prefix, text[column:]))
    return cursors


def _lines(data: bytes) -> Iterator[tuple[int, int, str]]:
    """Each line's number from 1, where it starts, and its text."""
    start = 0
    for number, line in enumerate(data.split(b"\n"), 1):
        yield number, start, line.decode("utf-8", "surrogateescape")
        start += len(line) + 1


def common_prefix(a: str, b: str) -> int:
    """Number of leading characters that two strings share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def evaluate(
    suggester: Suggester, cursors: Sequence[Cursor], show: Callable[[Cursor, str], None] = lambda cursor, text: None
) -> Scores:
    """Complete at every cursor and score it; `show` sees each cursor and what was suggested."""
    exact = similarity = completed = 0.0
    latencies = []
    for cursor in cursors:
        answer = suggester.suggest(cursor.prefix)
        text = answer.completion
        latencies.append(answer.latency_ms)
        exact += text == cursor.truth
        similarity += difflib.SequenceMatcher(None, text, cursor.truth, autojunk=False).ratio()
        completed += common_prefix(text, cursor.truth)
        show(cursor, text)
    n = max(1, len(cursors))
    characters = max(1, sum(len(c.truth) for c in cursors))
    p50, p95 = np.percentile(latencies or [0.0], [50, 95]).tolist()
    return Scores(len(cursors), exact / n, similarity / n, completed / characters, p50, p95)
