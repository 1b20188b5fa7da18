"""What a project's own text says comes next: n-grams of every order at once, nested by the file that is edited.

After Hellendoorn and Devanbu, "Are deep neural networks the best choice for modeling source code?" (FSE 2017): counts
of the project and of the open file are added up, the file's own counting more, and orders are interpolated from the
longest that matches downwards as by Witten and Bell (1991).

A `Segment` sorts every position of a text by what stands before it, read backwards. All places where some tokens
stood are then one interval, whatever their number: one array of positions serves n-grams of every order.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ORDER = 32  # tokens of context that are told apart, a power of two
MOST = 512  # places of an interval that are looked at: of more, as many at even distances
BUFFER_WEIGHT = 8.0  # how much a place in the open file counts beside one in the project's other files
BOUNDARY = -2  # stands between documents
UNKNOWN = -1  # stands for text that the index has never seen
NEGLIGIBLE = 1e-3  # probability left for shorter contexts below which they are not looked at


class Segment:
    """Token ids int32 [n] and the order [n] of their positions by the tokens before them, nearest first."""

    def __init__(self, tokens: np.ndarray, order: np.ndarray | None = None) -> None:
        self.tokens = np.ascontiguousarray(tokens, np.int32)
        self.order = _sorted_by_context(self.tokens) if order is None else order
        self.alive: np.ndarray | None = None  # bool [n]: whether a position still counts; None: all do
        before = self.tokens[self.order - 1]  # the last token before each position
        before[self.order == 0] = BOUNDARY
        self._ids, self._starts = np.unique(before, return_index=True)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return self.tokens.nbytes + self.order.nbytes + (0 if self.alive is None else self.alive.nbytes)

    def count(self, start: int, end: int, alive: bool) -> None:
        """Have positions [start, end) count, or no more."""
        if self.alive is None:
            self.alive = np.ones(len(self.tokens), bool)
        self.alive[start:end] = alive

    def matches(self, context: Sequence[int]) -> list[tuple[int, int]]:
        """The interval of `order` whose positions follow the last n tokens of `context`, for n = 0, 1, … while
        there is one."""
        found = [(0, len(self.tokens))]
        if not context or not len(self.tokens):
            return found
        at = int(np.searchsorted(self._ids, context[-1]))
        if at == len(self._ids) or self._ids[at] != context[-1]:
            return found
        low = int(self._starts[at])
        high = int(self._starts[at + 1]) if at + 1 < len(self._starts) else len(self.tokens)
        found.append((low, high))
        for n in range(2, min(ORDER, len(context)) + 1):
            low, high = self._narrow(low, high, n, context[-n])
            if low == high:
                break
            found.append((low, high))
        return found

    def _narrow(self, low: int, high: int, n: int, token: int) -> tuple[int, int]:
        """The part of an interval where the n-th token before is `token`."""
        if high - low <= 256:
            positions = self.order[low:high] - n
            values = np.where(positions < 0, BOUNDARY, self.tokens[positions])
            start, end = np.searchsorted(values, [token, token + 1])
            return low + int(start), low + int(end)
        tokens, order = self.tokens, self.order

        def key(i: int) -> int:
            position = order[i] - n
            return tokens[position] if position >= 0 else BOUNDARY

        places = range(low, high)
        start = bisect_left(places, token, key=key)
        return low + start, low + bisect_right(places, token, lo=start, key=key)

    def followers(self, low: int, high: int) -> tuple[np.ndarray, float]:
        """Tokens at (up to `MOST` of) an interval's positions, and how many places each of them stands for."""
        stride = -(-(high - low) // MOST)
        positions = self.order[low:high:stride] if stride > 1 else self.order[low:high]
        if self.alive is not None:
            positions = positions[self.alive[positions]]
        return self.tokens[positions], float(max(1, stride))

    def occurrences(self, tokens: np.ndarray) -> np.ndarray:
        """How often each of these token ids [k] stands in the text, not counting at its very end: int64 [k]."""
        at = np.minimum(np.searchsorted(self._ids, tokens), len(self._ids) - 1)
        lows, highs = self._starts[at], np.append(self._starts, len(self.tokens))[at + 1]
        counts = np.where(self._ids[at] == tokens, highs - lows, 0)
        if self.alive is not None:
            for i in np.flatnonzero(counts):
                counts[i] = self.alive[self.order[lows[i] : highs[i]] - 1].sum()
        return counts


def _sorted_by_context(tokens: np.ndarray) -> np.ndarray:
    """Positions int32 [n] by the `ORDER` tokens before each, nearest first: prefix doubling (Manber, Myers 1990)."""
    n = len(tokens)
    rank = np.empty(n, np.int64)
    if n:
        rank[0] = 0
        rank[1:] = tokens[:-1] - BOUNDARY  # from 0; the start of the text is a boundary
    order = np.argsort(rank, kind="stable")
    length = 1
    while length < ORDER and n:
        step = np.empty(n, np.int64)
        step[0] = 0
        ranked = rank[order]
        np.cumsum(ranked[1:] != ranked[:-1], out=step[1:])
        rank[order] = step
        if step[-1] == n - 1:  # all told apart
            break
        earlier = np.zeros(n, np.int64)
        earlier[length:] = rank[:-length] + 1 if length < n else 0
        rank = rank * (n + 1) + earlier
        order = np.argsort(rank, kind="stable")
        length *= 2
    return order.astype(np.int32)


@dataclass(frozen=True)
class Prediction:
    """What comes next: token ids and their probabilities, likeliest first; `length` tokens of context were found
    elsewhere, at `places` places (those in the open file counting more)."""

    ids: list[int]
    probabilities: list[float]
    length: int
    places: float

    @property
    def top(self) -> float:
        """The greatest probability; 0 where nothing is known."""
        return self.probabilities[0] if self.probabilities else 0.0

    @property
    def best(self) -> int | None:
        """The likeliest token; None where nothing is known."""
        return self.ids[0] if self.ids else None


class Interpolation:
    """N-grams over several segments, each place in one counting as much as its weight says."""

    def __init__(self, segments: Sequence[tuple[Segment, float]]) -> None:
        self.segments = [(segment, weight) for segment, weight in segments if len(segment)]

    def predict(self, context: Sequence[int], allowed: set[int] | None = None) -> Prediction:
        """What follows `context`, as far as it is known: of any ids, or of the `allowed` alone.

        Witten and Bell's interpolation: of N places with T different followers, N / (N + T) of the probability goes by
        their counts and the rest by the next shorter context.
        """
        found = [(segment, weight, segment.matches(context)) for segment, weight in self.segments]
        longest = max((len(intervals) for *_, intervals in found), default=0) - 1
        left, probability, known, places = 1.0, dict[int, float](), -1, 0.0
        seen: tuple | None = None
        for n in range(longest, -1, -1):
            intervals = [(s, w, i[n]) for s, w, i in found if len(i) > n]
            here = tuple(i for *_, i in intervals)
            if here != seen:  # a shorter context may stand at just the same places
                counts = _counts(intervals, allowed)
                total = sum(counts.values())
                seen = here
            if not counts:
                continue
            if known < 0:
                known, places = n, total
            share = left / (total + len(counts))
            for token, count in counts.items():
                probability[token] = probability.get(token, 0.0) + share * count
            left *= len(counts) / (total + len(counts))
            if left < NEGLIGIBLE:
                break
        ordered = sorted(probability.items(), key=lambda item: -item[1])
        whole = sum(probability.values()) if allowed is not None else 1.0
        return Prediction([t for t, _ in ordered], [p / whole for _, p in ordered], max(0, known), places)


def _counts(intervals: list[tuple[Segment, float, tuple[int, int]]], allowed: set[int] | None) -> dict[int, float]:
    """How often each token follows, over the segments, weighted."""
    counts: dict[int, float] = {}
    for segment, weight, (low, high) in intervals:
        if allowed is not None and high - low == len(segment) > MOST:  # no sample of the whole text has a rare word
            ids = np.array(sorted(allowed), np.int64)
            number = segment.occurrences(ids)
            for token, count in zip(ids[number > 0].tolist(), number[number > 0].tolist(), strict=True):
                counts[token] = counts.get(token, 0.0) + weight * count
            continue
        followers, each = segment.followers(low, high)
        if len(followers) <= 16:
            for token in followers.tolist():
                counts[token] = counts.get(token, 0.0) + weight * each
        else:
            ids, number = np.unique(followers, return_counts=True)
            for token, count in zip(ids.tolist(), number.tolist(), strict=True):
                counts[token] = counts.get(token, 0.0) + weight * each * count
    if allowed is not None:
        counts = {token: count for token, count in counts.items() if token in allowed}
    return counts
