"""The likeliest line: best-first search over continuations, token by token."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

Path = tuple[int, ...]


@dataclass(frozen=True)
class Found:
    """A continuation, its log-probability (nats), whether it ends as it should, and how much likelier it is than the
    likeliest other one, as far as that was followed (nats). `open` are the paths that were not followed further, with
    their log-probabilities, those that would have been next first."""

    path: Path
    logprob: float
    ended: bool
    margin: float
    open: Sequence[tuple[Path, float]] = field(default=(), repr=False)


def best_first(
    expand: Callable[[Path], Sequence[tuple[int, float]]],
    ends: Callable[[Path], bool],
    most_tokens: int,
    expansions: int,
    patience: float,
) -> Found:
    """The likeliest continuation that `ends`, by uniform-cost search (Dijkstra) with a reward for depth.

    expand: a path -> its likeliest next tokens and their log-probabilities, the likeliest first. `patience` is the
    log-probability a token that a longer path may be behind by and still go first: with 0 the answer is the likeliest
    of all, the larger it is the sooner one is found. Where none was found after so many `expansions`, it is the
    greedy one: the likeliest found by then would be the shortest.
    """
    heap: list[tuple[float, int, float, Path]] = [(0.0, 0, 0.0, ())]
    pushed = 0
    for _ in range(expansions):
        if not heap:
            return Found((), 0.0, False, 0.0)
        _, _, logprob, path = heapq.heappop(heap)
        if path and (ended := ends(path)) | (len(path) >= most_tokens):
            return Found(path, logprob, ended, logprob - _best(heap), _open(heap))
        for token, p in expand(path) if most_tokens else ():
            pushed += 1
            total = logprob + p
            heapq.heappush(heap, (-total - patience * (len(path) + 1), pushed, total, (*path, token)))
    path, logprob = _greedy(expand, ends, most_tokens, (), 0.0)
    return Found(path, logprob, bool(path) and ends(path), logprob - _best(heap), _open(heap))


def others(
    expand: Callable[[Path], Sequence[tuple[int, float]]],
    ends: Callable[[Path], bool],
    most_tokens: int,
    found: Found,
) -> Iterator[Found]:
    """Continuations that part from the one `best_first` found with the same arguments, and from each other, at one
    token: the paths it left open, each finished greedily. Their margin is how much less likely than `found` they are.
    """
    for start, begun in found.open:
        path, logprob = _greedy(expand, ends, most_tokens, start, begun)
        if path and path != found.path:  # which it is where that was finished greedily itself
            yield Found(path, logprob, ends(path), logprob - found.logprob)


def _greedy(
    expand: Callable[[Path], Sequence[tuple[int, float]]], ends: Callable[[Path], bool], most_tokens: int, path: Path,
    logprob: float,
) -> tuple[Path, float]:  # fmt: skip
    """A path that goes on with the likeliest token each time, and its log-probability."""
    while len(path) < most_tokens and not (path and ends(path)) and (children := expand(path)):
        path, logprob = (*path, children[0][0]), logprob + children[0][1]
    return path, logprob


def _open(heap: list[tuple[float, int, float, Path]]) -> list[tuple[Path, float]]:
    return [(path, logprob) for _, _, logprob, path in sorted(heap)]


def _best(heap: list[tuple[float, int, float, Path]]) -> float:
    """The log-probability of the likeliest path that is still open; -50 where there is none."""
    return max((node[2] for node in heap), default=-50.0)
