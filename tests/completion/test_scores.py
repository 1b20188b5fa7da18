"""Completion figures on cases small enough to count by hand, and where cursors may stand."""

import pytest

from mlxgpt.completion.cursors import Cursor, pick_cursors
from mlxgpt.completion.evaluation import common_prefix, evaluate
from mlxgpt.completion.suggest import Suggestion

DOCUMENTS = [
    ("a.py", b"import os\n\n   \n\tx = 1  \r\n}\n"),
    ("b.py", "é = 'ü'\n".encode() + b"\xff\xfe = 2"),
    ("empty.py", b"\n\n  \n"),
]


def test_cursors_are_the_same_for_a_seed():
    assert pick_cursors(DOCUMENTS, 50, 1) == pick_cursors(DOCUMENTS, 50, 1)
    assert pick_cursors(DOCUMENTS, 50, 1) != pick_cursors(DOCUMENTS, 50, 2)
    assert len(pick_cursors(DOCUMENTS, 50, 1)) == 50


def test_a_cursor_stands_in_a_line_that_goes_on_as_the_truth_says():
    contents = dict(DOCUMENTS)
    seen = set()
    for cursor in pick_cursors(DOCUMENTS, 500, 0):
        truth = cursor.truth.encode("utf-8", "surrogateescape")
        rest = contents[cursor.name][len(cursor.prefix) :]
        assert contents[cursor.name].startswith(cursor.prefix)
        assert rest.startswith(truth)
        assert rest[len(truth) :].split(b"\n")[0].strip() == b""
        assert truth
        assert cursor.truth == cursor.truth.rstrip()
        assert cursor.line == cursor.prefix.count(b"\n") + 1
        begun = cursor.prefix.rsplit(b"\n", 1)[-1]
        assert begun.strip() or not truth[:1].isspace()  # not within the indentation
        seen.add((cursor.name, cursor.line, len(begun)))
    # every place there is: line 1 of a.py has 9, line 4 five after its tab; b.py has 7 characters, of which
    # two take two bytes, and 6
    places = {("a.py", 1, n) for n in range(9)} | {("a.py", 4, n) for n in range(1, 6)}
    places |= {("b.py", 1, n) for n in (0, 2, 3, 4, 5, 6, 8)} | {("b.py", 2, n) for n in range(6)}
    assert seen == places


@pytest.mark.parametrize("documents", [[], [("a", b"")], [("a", b"\n \n\t\n")], [("a", b"}\n")]])
def test_no_line_no_cursor(documents):
    assert pick_cursors(documents, 10, 0) == []


class Saying:
    """A suggester that says what it was told to, and takes the milliseconds it was told; half of them where it was
    given all but the last character before."""

    def __init__(self, answers: dict[bytes, tuple[str, float]], sure: dict[bytes, float]) -> None:
        self.answers, self.sure = answers, sure
        self.given: bytes | None = None

    def suggest(
        self, prefix: bytes, suffix: bytes = b"", max_tokens: int = 64, *, document: str | None = None
    ) -> Suggestion:
        if not max_tokens:
            self.given = prefix
            return Suggestion("", 0, 0.0, 0.0)
        text, latency = self.answers[prefix]
        latency *= 0.5 if self.given == prefix[:-1] else 1.0
        self.given = None
        return Suggestion(text, 1, -1.0, latency, self.sure.get(prefix, 0.0))


def score(*cases: tuple[str, str, float], show=lambda cursor, text: None, sure=(), names=()):
    names = names or ["f"] * len(cases)
    cursors = [Cursor(names[i], i, b"%d" % i, truth) for i, (truth, _, _) in enumerate(cases)]
    answers = {b"%d" % i: (text, latency) for i, (_, text, latency) in enumerate(cases)}
    confidences = {b"%d" % i: confidence for i, confidence in enumerate(sure)}
    return evaluate(Saying(answers, confidences), cursors, show)  # type: ignore[arg-type]


def test_scores_by_hand():
    scores = score(
        ("abcd", "abcd", 10.0), ("abcd", "abxd", 20.0), ("ab", "", 30.0), ("abcdefghij", "abcdefghijk", 40.0)
    )
    assert scores.cursors == 4
    assert scores.exact_match == 1 / 4
    # 2 × matching / all: 8/8, 6/8, 0, 20/21
    assert scores.edit_similarity == pytest.approx((1 + 0.75 + 0 + 20 / 21) / 4)
    # characters before the first mistake: 4, 2, 0 and 10, of 20
    assert scores.completed_ratio == 16 / 20
    assert scores.p50 == 25.0
    assert scores.p95 == pytest.approx(38.5)
    assert (scores.warm_p50, scores.warm_p95) == (12.5, pytest.approx(19.25))


def test_scores_of_nothing_and_of_one():
    none = evaluate(None, [])  # type: ignore[arg-type]
    assert (none.cursors, none.exact_match, none.edit_similarity, none.completed_ratio, none.p50, none.p95) == (0,) * 6
    assert (none.gated.shown, none.gated.completed_ratio, none.kinds) == (0, 0, {})
    one = score(("ab", "ab", 7.0))
    assert (one.exact_match, one.edit_similarity, one.completed_ratio, one.p50, one.p95) == (1, 1, 1, 7, 7)


def test_the_gate_by_hand():
    """Of the five surest one is wrong, 20 %; with the sixth two are. The last cursor has no suggestion."""
    right, wrong = ("ab", "ab", 1.0), ("ab", "ac", 1.0)
    cases = [right, right, wrong, right, right, wrong, wrong, ("ab", "", 1.0)]
    scores = score(*cases, sure=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.0])
    assert (scores.gated.false_show, scores.gated.threshold, scores.gated.shown) == (0.25, 0.5, 5 / 8)
    assert scores.gated.completed_ratio == (2 + 2 + 1 + 2 + 2) / 16
    points = {round(p.threshold, 2): (p.shown, p.false_show) for p in scores.acceptance}
    assert points[0] == (7 / 8, 3 / 7)
    assert points[0.65] == (3 / 8, 1 / 3)
    assert points[0.95] == (0, 0)


def test_a_tie_in_confidence_is_shown_whole_or_not_at_all():
    scores = score(("ab", "ab", 1.0), ("ab", "x", 1.0), sure=[0.5, 0.5])
    assert (scores.gated.shown, scores.gated.threshold) == (0, 1.01)


def test_kinds_of_files_are_scored_apart():
    scores = score(
        ("ab", "ab", 1.0), ("ab", "a", 1.0), ("cd", "", 1.0), ("cd", "cd", 1.0),
        names=["x/a.py", "b.py", "Makefile", "c.tar.gz"],
    )  # fmt: skip
    assert {name: (k.cursors, k.exact_match, k.completed_ratio) for name, k in scores.kinds.items()} == {
        ".gz": (1, 1, 1), ".py": (2, 0.5, 0.75), "Makefile": (1, 0, 0),
    }  # fmt: skip


def test_cursors_at_token_boundaries_and_what_follows_them():
    for cursor in pick_cursors(DOCUMENTS, 200, 0, "token"):
        begun = cursor.prefix.rsplit(b"\n", 1)[-1].decode("utf-8", "surrogateescape")
        word = begun[-1:].isalnum() and cursor.truth[0].isalnum()
        assert not word
        assert not cursor.truth[0].isspace()
        whole = dict(DOCUMENTS)[cursor.name]
        assert cursor.prefix + cursor.truth.encode("utf-8", "surrogateescape") + cursor.suffix == whole


def test_each_cursor_is_shown_with_its_suggestion():
    shown = []
    score(("ab", "x", 1.0), ("cd", "y", 1.0), show=lambda cursor, text: shown.append((cursor.truth, text)))
    assert shown == [("ab", "x"), ("cd", "y")]


@pytest.mark.parametrize(("a", "b", "n"), [("", "", 0), ("a", "", 0), ("ab", "ac", 1), ("ab", "abc", 2), ("é", "é", 1)])
def test_common_prefix(a, b, n):
    assert common_prefix(a, b) == common_prefix(b, a) == n
