"""Which lines of a project are about the same things as a text: BM25 over chunks of lines, kept up to date on save.

score(chunk, query) = Σ over the query's terms of
    ln(1 + (N - n + 0.5) / (n + 0.5)) · tf / (k1 · (1 - b + b · l / L) + tf)

with N chunks, n of which have the term, tf times in this one, which is l terms long, L on average (Robertson and
Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009, equation 3.15; the 1 in the logarithm, as in
Lucene, keeps a term that most chunks have from counting against one). n and L count chunks that have gone until their
part is merged.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

K1, B = 1.2, 0.75  # the usual values (section 3.5 there)
LINES = 16  # of a chunk
MOST_QUERY = 128  # terms of a query, the rarest
# getHTTPResponse_v2 -> get, http, response, v, 2
TERM = re.compile(rb"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[\x80-\xff]+")


class Chunk(NamedTuple):
    """Whole lines of a document."""

    name: str
    text: bytes


@dataclass
class _Part:
    """Chunks, and for each term in the order of their numbers the chunks that have it and how often: `terms`, `places`,
    `counts` [postings], `lengths` and `alive` [chunks]."""

    chunks: list[Chunk]
    terms: np.ndarray
    places: np.ndarray
    counts: np.ndarray
    lengths: np.ndarray
    alive: np.ndarray

    def postings(self, term: int) -> slice:
        """Where those of a term are."""
        return slice(*np.searchsorted(self.terms, [term, term + 1]).tolist())


def terms_of(text: bytes) -> list[bytes]:
    """The words of identifiers and prose, in lower case."""
    return [term.lower() for term in TERM.findall(text)]


class Bm25:
    """Named documents in chunks of lines, to be searched."""

    def __init__(self, documents: Iterable[tuple[str, bytes]] = ()) -> None:
        self._numbers: dict[bytes, int] = {}
        self._parts: list[_Part] = []
        self._append(documents)

    def __len__(self) -> int:
        """Chunks that can be found."""
        return sum(int(part.alive.sum()) for part in self._parts)

    def update(self, name: str, data: bytes | None) -> None:
        """A document is new, has changed, or (None) is gone."""
        for part in self._parts:
            part.alive &= np.array([chunk.name != name for chunk in part.chunks], bool)
        if data is not None:
            self._append([(name, data)])

    def search(self, query: bytes, most: int, within: Collection[str] | None = None, besides: str = "") -> list[Chunk]:
        """The `most` chunks with the highest scores above 0, the best first, of the documents `within` (None: all) but
        for `besides`."""
        numbers = {self._numbers[term] for term in terms_of(query) if term in self._numbers}
        total = sum(len(part.chunks) for part in self._parts)
        length = sum(float(part.lengths.sum()) for part in self._parts) / max(1, total)
        having = {n: sum(s.stop - s.start for s in (part.postings(n) for part in self._parts)) for n in numbers}
        scored: list[tuple[float, Chunk]] = []
        for part in self._parts:
            scores = np.zeros(len(part.chunks))
            norm = K1 * (1 - B + B * part.lengths / max(1.0, length))
            for number in sorted(numbers, key=lambda n: having[n])[:MOST_QUERY]:
                found, n = part.postings(number), having[number]
                places, tf = part.places[found], part.counts[found]
                scores[places] += np.log1p((total - n + 0.5) / (n + 0.5)) * tf / (norm[places] + tf)
            scores[~part.alive] = 0
            for i in np.argsort(-scores, kind="stable").tolist():
                chunk = part.chunks[i]
                if scores[i] <= 0 or (len(scored) >= most and (not most or scores[i] <= scored[-1][0])):
                    break
                if chunk.name != besides and (within is None or chunk.name in within):
                    scored = sorted([*scored, (float(scores[i]), chunk)], key=lambda pair: -pair[0])[:most]
        return [chunk for _, chunk in scored]

    def _append(self, documents: Iterable[tuple[str, bytes]]) -> None:
        """A new part of these documents, and of the parts before it that are not twice as large (as `index` merges)."""
        chunks = [Chunk(name, text) for name, data in documents for text in _cut(data)]
        if not chunks:
            return
        terms: list[int] = []
        places: list[int] = []
        counts: list[int] = []
        lengths: list[int] = []
        for place, chunk in enumerate(chunks):
            its = Counter(terms_of(chunk.text))
            terms += [self._numbers.setdefault(term, len(self._numbers)) for term in its]
            counts += its.values()
            places += [place] * len(its)
            lengths.append(its.total())
        a, b, c, d = (np.array(values, np.int32) for values in (terms, places, counts, lengths))
        new = _ordered(_Part(chunks, a, b, c, d, np.ones(len(chunks), bool)))
        while self._parts and int(self._parts[-1].alive.sum()) < 2 * len(new.chunks):
            new = _merged(self._parts.pop(), new)
        self._parts.append(new)


def _cut(data: bytes) -> list[bytes]:
    """A text in chunks of lines, those without a term left out."""
    lines = data.splitlines(keepends=True)
    chunks = (b"".join(lines[i : i + LINES]) for i in range(0, len(lines), LINES))
    return [chunk for chunk in chunks if TERM.search(chunk)]


def _ordered(part: _Part) -> _Part:
    order = np.argsort(part.terms, kind="stable")
    part.terms, part.places, part.counts = part.terms[order], part.places[order], part.counts[order]
    return part


def _merged(a: _Part, b: _Part) -> _Part:
    """Both parts' chunks that are alive."""
    alive = np.concatenate([a.alive, b.alive])
    numbers = np.cumsum(alive, dtype=np.int32) - 1
    places = np.concatenate([a.places, b.places + np.int32(len(a.chunks))])
    kept = alive[places]
    chunks = [chunk for chunk, is_alive in zip(a.chunks + b.chunks, alive, strict=True) if is_alive]
    return _ordered(
        _Part(
            chunks, np.concatenate([a.terms, b.terms])[kept], numbers[places[kept]],
            np.concatenate([a.counts, b.counts])[kept], np.concatenate([a.lengths, b.lengths])[alive],
            np.ones(len(chunks), bool),
        )
    )  # fmt: skip
