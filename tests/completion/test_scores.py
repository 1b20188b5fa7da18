"""Completion figures on cases small enough to count by hand, and where cursors may stand."""

import pytest

from mlxgpt.completion.evaluation import Cursor, common_prefix, evaluate, pick_cursors
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
    """A suggester that says what it was told to, and takes the milliseconds it was told."""

    def __init__(self, answers: dict[bytes, tuple[str, float]]) -> None:
        self.answers = answers

    def suggest(self, prefix: bytes, suffix: bytes = b"") -> Suggestion:
        text, latency = self.answers[prefix]
        return Suggestion(text, 1, -1.0, latency)


def score(*cases: tuple[str, str, float], show=lambda cursor, text: None):
    cursors = [Cursor("f", i, b"%d" % i, truth) for i, (truth, _, _) in enumerate(cases)]
    answers = {b"%d" % i: (text, latency) for i, (_, text, latency) in enumerate(cases)}
    return evaluate(Saying(answers), cursors, show)  # type: ignore[arg-type]


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


def test_scores_of_nothing_and_of_one():
    assert evaluate(None, []).__dict__ == {  # type: ignore[arg-type]
        "cursors": 0, "exact_match": 0, "edit_similarity": 0, "completed_ratio": 0, "p50": 0, "p95": 0,
    }  # fmt: skip
    one = score(("ab", "ab", 7.0))
    assert (one.exact_match, one.edit_similarity, one.completed_ratio, one.p50, one.p95) == (1, 1, 1, 7, 7)


def test_each_cursor_is_shown_with_its_suggestion():
    shown = []
    score(("ab", "x", 1.0), ("cd", "y", 1.0), show=lambda cursor, text: shown.append((cursor.truth, text)))
    assert shown == [("ab", "x"), ("cd", "y")]


@pytest.mark.parametrize(("a", "b", "n"), [("", "", 0), ("a", "", 0), ("ab", "ac", 1), ("ab", "abc", 2), ("é", "é", 1)])
def test_common_prefix(a, b, n):
    assert common_prefix(a, b) == common_prefix(b, a) == n
