"""Which token wrote what of a suggestion: the parts are the text, whole characters each, whatever was cut off."""

import math

from hypothesis import given
from hypothesis import strategies as st

from mlxgpt.completion.spelling import spelled_by, without


def test_tokens_spell_their_own_characters():
    parts = spelled_by([b"ret", b"urn", b" x"], [-0.1, -0.2, -0.3], 0, "return x")
    assert parts == (("ret", -0.1), ("urn", -0.2), (" x", -0.3))


def test_what_stands_before_the_cursor_is_not_shown_and_counts_with_what_follows():
    assert spelled_by([b"re", b"turn", b"ed"], [-1.0, -2.0, -4.0], 3, "urned") == (("urn", -3.0), ("ed", -4.0))
    assert spelled_by([b"re", b"t", b"urn"], [-1.0, -2.0, -4.0], 3, "urn") == (("urn", -7.0),)


def test_what_was_taken_off_the_end_is_left_out():
    assert spelled_by([b"f(x", b"))", b"\n"], [-1.0, -2.0, -4.0], 0, "f(x)") == (("f(x", -1.0), (")", -2.0))
    assert spelled_by([b"f(x", b")", b"\n"], [-1.0, -2.0, -4.0], 0, "") == ()


def test_tokens_that_spell_one_character_are_one_part():
    data = "é→".encode()
    pieces = [data[i : i + 1] for i in range(len(data))]
    assert spelled_by(pieces, [-1.0] * 5, 0, "é→") == (("é", -2.0), ("→", -3.0))


def test_what_the_tokens_do_not_spell_is_one_part():
    assert spelled_by([b"a", b"\r\n", b"b"], [-1.0, -1.0, -1.0], 0, "a\nb") == (("a\nb", -3.0),)


@given(st.lists(st.binary(max_size=3)), st.integers(0, 4), st.integers(0, 9))
def test_the_parts_are_always_the_text(pieces, there, cut):
    said = b"".join(pieces)[there:].decode("utf-8", "ignore")[:cut]
    parts = spelled_by(pieces, [-1.0] * len(pieces), there, said)
    assert "".join(text for text, _ in parts) == said
    assert all(math.isfinite(p) for _, p in parts)
    for count in range(len(said) + 2):
        assert "".join(text for text, _ in without(parts, count)) == said[count:]
