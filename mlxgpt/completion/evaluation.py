"""How good completions are: at cursors in held-out files, against the rest of the line that is there."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

import numpy as np

from mlxgpt.completion.cursors import Cursor
from mlxgpt.completion.gate import Point, acceptance
from mlxgpt.completion.suggest import Suggester

WARM = 100  # cursors at which the latency with a warm prefix is measured
FALSE_SHOW = 0.25  # the share of what is shown that may be wrong where gated suggestions are compared


@dataclass(frozen=True)
class Kind:
    """The scores of one kind of file, as in `Scores`."""

    cursors: int
    exact_match: float
    edit_similarity: float
    completed_ratio: float


@dataclass(frozen=True)
class Gated:
    """Where the gate lets at most `false_show` of wrong ones through among those it shows: its threshold there, the
    share of cursors at which something is shown, and the characters of the truth that those suggestions complete."""

    false_show: float
    threshold: float
    shown: float
    completed_ratio: float


@dataclass(frozen=True)
class Scores:
    """Means over cursors, as fractions. Everything is suggested, whatever its confidence. Latencies in milliseconds:
    where the file was not seen before, and (`warm`, at the first `WARM` cursors) where all of it was but the last
    character before the cursor.

    exact_match: the suggestion is the rest of the line. edit_similarity: 2 × matching characters / all characters
    (Ratcliff and Obershelp, as CodeXGLUE's fuzzy ratio). completed_ratio: characters of the truth that the
    suggestion gives before its first mistake, of all the truth's characters. acceptance: what each threshold of
    confidence would have shown. kinds: the same by file name suffix.
    """

    cursors: int
    exact_match: float
    edit_similarity: float
    completed_ratio: float
    p50: float
    p95: float
    warm_p50: float
    warm_p95: float
    gated: Gated = field(default_factory=lambda: Gated(FALSE_SHOW, 1.01, 0.0, 0.0))
    acceptance: list[Point] = field(default_factory=list)
    kinds: dict[str, Kind] = field(default_factory=dict)


@dataclass(frozen=True)
class _Case:
    """One cursor's outcome: `completed` of the truth's `characters`; `said` is whether anything was suggested."""

    kind: str
    said: bool
    right: bool
    similarity: float
    completed: int
    characters: int
    confidence: float


def common_prefix(a: str, b: str) -> int:
    """Number of leading characters that two strings share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def evaluate(
    suggester: Suggester, cursors: Sequence[Cursor], show: Callable[[Cursor, str], None] = lambda cursor, text: None,
    paths: Mapping[str, str] = {},
) -> Scores:  # fmt: skip
    """Complete at every cursor and score it; `show` sees each cursor and what was suggested. `paths` are the documents'
    in their project, by the cursors' names, where what they import is to be found."""
    cases, latencies, warm = [], [], []
    for i, cursor in enumerate(cursors):
        path = paths.get(cursor.name)
        answer = suggester.suggest(cursor.prefix, cursor.suffix, document=path)
        text, truth = answer.completion, cursor.truth
        latencies.append(answer.latency_ms)
        if i < WARM:
            suggester.suggest(cursor.prefix[:-1], cursor.suffix, 0, document=path)
            warm.append(suggester.suggest(cursor.prefix, cursor.suffix, document=path).latency_ms)
        if path is not None:
            suggester.forget(path)
        similarity = difflib.SequenceMatcher(None, text, truth, autojunk=False).ratio()
        kind = PurePath(cursor.name).suffix or PurePath(cursor.name).name
        cases.append(
            _Case(
                kind, bool(text), text == truth, similarity, common_prefix(text, truth), len(truth), answer.confidence
            )
        )
        show(cursor, text)
    whole = _kind(cases)
    p50, p95 = np.percentile(latencies or [0.0], [50, 95]).tolist()
    warm_p50, warm_p95 = np.percentile(warm or [0.0], [50, 95]).tolist()
    kinds = {name: _kind([c for c in cases if c.kind == name]) for name in sorted({c.kind for c in cases})}
    curve = acceptance([(c.confidence, c.right) for c in cases if c.said], len(cases))
    return Scores(
        whole.cursors, whole.exact_match, whole.edit_similarity, whole.completed_ratio, p50, p95, warm_p50,
        warm_p95, _gated(cases, FALSE_SHOW), curve, kinds,
    )  # fmt: skip


def _kind(cases: Sequence[_Case]) -> Kind:
    n, characters = max(1, len(cases)), max(1, sum(c.characters for c in cases))
    return Kind(
        len(cases), sum(c.right for c in cases) / n, sum(c.similarity for c in cases) / n,
        sum(c.completed for c in cases) / characters,
    )  # fmt: skip


def _gated(cases: Sequence[_Case], false_show: float) -> Gated:
    """The lowest threshold that keeps to `false_show` on these very cases: suggesters are compared at one rate."""
    ordered = sorted((c for c in cases if c.said), key=lambda c: -c.confidence)
    best, wrong = 0, 0
    for i, case in enumerate(ordered, 1):
        wrong += not case.right
        tied = i < len(ordered) and ordered[i].confidence == case.confidence
        if not tied and wrong <= false_show * i:
            best = i
    characters = max(1, sum(c.characters for c in cases))
    threshold = ordered[best - 1].confidence if best else 1.01
    shown = ordered[:best]
    return Gated(false_show, threshold, best / max(1, len(cases)), sum(c.completed for c in shown) / characters)
