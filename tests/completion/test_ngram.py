"""N-grams: every order is found where it stands, and probabilities are those of counting by hand."""

import random
from collections import Counter

import numpy as np
import pytest

from mlxgpt.completion.lexer import Lexer
from mlxgpt.completion.ngram import BOUNDARY, MOST, ORDER, UNKNOWN, Interpolation, Segment


def tokens(count: int, vocabulary: int, seed: int = 0) -> np.ndarray:
    return np.array(random.Random(seed).choices(range(vocabulary), k=count), np.int32)


def followers(segment: Segment, context: list[int]) -> list[Counter]:
    """What follows the last n tokens of a context, for each n that occurs."""
    return [Counter(segment.followers(*interval)[0].tolist()) for interval in segment.matches(context)]


@pytest.mark.parametrize(("count", "vocabulary"), [(300, 3), (2000, 2), (400, 40), (5, 9), (1, 1), (300, 1)])
def test_every_order_finds_just_the_places_where_it_stands(count, vocabulary):
    text = tokens(count, vocabulary).tolist()
    segment = Segment(np.array(text))
    draw = random.Random(1)
    for _ in range(40):
        at = draw.randrange(len(text) + 1)
        context = text[max(0, at - ORDER - 3) : at] if draw.random() < 0.8 else draw.choices(range(vocabulary), k=5)
        found = followers(segment, context)
        for n in range(1, ORDER + 1):
            end = context[len(context) - n :]
            expected = [text[i] for i in range(n, len(text)) if text[i - n : i] == end] if n <= len(context) else []
            if not expected:
                assert len(found) <= n
                break
            if len(expected) <= MOST:
                assert found[n] == Counter(expected)
            else:
                assert set(found[n]) <= set(expected)


def test_an_unknown_token_ends_the_context():
    segment = Segment(np.array([1, 2, 3, 1, 2, 4]))
    assert [sorted(c) for c in followers(segment, [UNKNOWN, 1, 2])][1:] == [[3, 4], [3, 4]]
    assert len(segment.matches([1, UNKNOWN])) == 1
    assert segment.matches([]) == [(0, 6)]


def test_places_can_be_taken_out_and_put_back():
    segment = Segment(np.array([1, 2, 1, 3, 1, 4]))
    segment.count(2, 4, alive=False)
    assert followers(segment, [1])[1] == Counter([2, 4])
    segment.count(2, 4, alive=True)
    assert followers(segment, [1])[1] == Counter([2, 3, 4])


def test_probabilities_by_hand():
    """Witten and Bell: after [1], 2 twice and 3 once: N = 3, T = 2, so 3/5 by counts; the rest by unigrams."""
    segment = Segment(np.array([1, 2, 1, 2, 1, 3]))
    found = Interpolation([(segment, 1.0)]).predict([9, 1])
    # unigrams: 1 three times, 2 twice, 3 once: N = 6, T = 3, so 6/9 of the 2/5 that are left, by counts
    expected = {2: 2 / 5 + 2 / 5 * 2 / 9, 3: 1 / 5 + 2 / 5 * 1 / 9, 1: 2 / 5 * 3 / 9}
    assert dict(zip(found.ids, found.probabilities, strict=True)) == pytest.approx(expected)
    assert found.ids == [2, 3, 1]
    assert (found.length, found.places, found.best) == (1, 3, 2)


def test_a_weight_is_as_many_places():
    once, thrice = Segment(np.array([1, 2, 1, 3])), Segment(np.array([1, 3] * 3))
    weighted = Interpolation([(once, 1.0), (Segment(np.array([1, 3])), 3.0)]).predict([1])
    counted = Interpolation([(once, 1.0), (thrice, 1.0)]).predict([1])
    assert weighted.ids[0] == counted.ids[0] == 3
    assert weighted.places == 5
    assert weighted.top > Interpolation([(once, 1.0)]).predict([1]).top


def test_what_is_allowed_shares_all_the_probability():
    segment = Segment(tokens(500, 12))
    found = Interpolation([(segment, 1.0)]).predict([3, 4], {5, 6, 700})
    assert set(found.ids) == {5, 6}
    assert sum(found.probabilities) == pytest.approx(1)
    assert Interpolation([(segment, 1.0)]).predict([3], {700}).ids == []
    assert Interpolation([]).predict([3]).best is None


def test_a_rare_word_is_found_by_its_beginning_in_a_long_text():
    text = tokens(20 * MOST, 5).tolist()
    text[3333] = 77
    segment = Segment(np.array(text))
    assert segment.occurrences(np.array([0, 2, 77, 78])).tolist() == [text[:-1].count(i) for i in (0, 2, 77, 78)]
    found = Interpolation([(segment, 1.0)]).predict([UNKNOWN], {77, 78})
    assert (found.ids, found.probabilities) == ([77], [1.0])
    segment.count(3000, 4000, alive=False)
    assert segment.occurrences(np.array([77, 2])).tolist() == [0, (text[:3000] + text[4000:-1]).count(2)]


def test_probabilities_are_a_distribution_whatever_the_text():
    draw = random.Random(3)
    for vocabulary in (2, 5, 60):
        segments = [(Segment(tokens(800, vocabulary, s)), w) for s, w in ((1, 1.0), (2, 8.0))]
        for _ in range(20):
            found = Interpolation(segments).predict(draw.choices(range(vocabulary), k=6))
            assert 0.5 < sum(found.probabilities) <= 1 + 1e-9
            assert found.probabilities == sorted(found.probabilities, reverse=True)


def test_the_start_of_a_text_is_a_boundary():
    segment = Segment(np.array([BOUNDARY, 7, 8, BOUNDARY, 7, 9]))
    assert followers(segment, [BOUNDARY, 7])[2] == Counter([8, 9])


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        (
            b"if x_1 == 10:\n\tfoo()\r\n",
            [b"if", b" ", b"x_1", b" ", b"=", b"=", b" ", b"10", b":", b"\n", b"\t", b"foo"],
        ),
        ("é = 'ü'".encode(), ["é".encode(), b" ", b"=", b" ", b"'", "ü".encode(), b"'"]),
        (b"\xff\xfe\0", [b"\xff\xfe", b"\0"]),
        (b"", []),
    ],
)
def test_lexical_tokens(text, pieces):
    lexer = Lexer()
    ids = lexer.learn(text)
    assert (ids[0], ids[-1]) == (lexer.bos_id, lexer.eos_id)
    assert lexer.decode(ids) == text
    assert [lexer.token_bytes[i] for i in ids[1:-1]][: len(pieces)] == pieces
    assert lexer.encode(text) == ids[1:-1]


def test_a_lexer_keeps_what_it_learned_and_says_what_is_new():
    lexer = Lexer()
    lexer.learn(b"alpha beta alphabet")
    assert lexer.encode(b"alpha gamma") == [lexer.encode(b"alpha")[0], lexer.encode(b" ")[0], UNKNOWN]
    assert {lexer.token_bytes[i] for i in lexer.completions(b"alpha")} == {b"alpha", b"alphabet"}
    lexer.learn(b" ".join(b"al%d_" % i + b"pha%d" % i for i in range(100)))
    lexer.learn(b"alphanumeric")
    assert {lexer.token_bytes[i] for i in lexer.completions(b"alph")} == {b"alpha", b"alphabet", b"alphanumeric"}
    assert lexer.completions(b"zeta") == []


def test_the_token_that_may_still_grow_is_split_off():
    lexer = Lexer()
    lexer.learn(b"x = alpha")
    for prefix, remainder in ((b"x = al", b"al"), (b"x = ", b" "), (b"x =", b""), (b"x\n", b""), (b"", b"")):
        ids, rest = lexer.split(prefix)
        assert rest == remainder
        assert lexer.decode(ids) + rest == prefix
        assert ids[0] == lexer.bos_id
