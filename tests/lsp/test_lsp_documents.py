"""Positions in all three encodings against Python's own codecs, and edits against splices of whole texts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxgpt.lsp.debounce import Debounce
from mlxgpt.lsp.documents import Document

TEXT = st.text(st.sampled_from("aé€😀\r\n\f\u2028 "), max_size=40)
SIZE = {"utf-8": 1, "utf-16": 2, "utf-32": 4}
ENCODING = st.sampled_from(sorted(SIZE))


@settings(deadline=None)
@given(TEXT, ENCODING, st.integers(0, 40))
def test_a_position_and_back(text, encoding, offset):
    document, offset = Document(text), min(offset, len(text))
    line, column = document.position(offset, encoding)
    before = text[:offset]
    breaks = before.replace("\r\n", "\n").replace("\r", "\n")
    within_break = before.endswith("\r") and text[offset:].startswith("\n")
    assert line == breaks.count("\n") - within_break
    if within_break:
        offset -= 1
    else:
        last = breaks[breaks.rfind("\n") + 1 :]
        assert column == len(last.encode(encoding if encoding == "utf-8" else f"{encoding}-le")) // SIZE[encoding]
    assert document.offset(line, column, encoding) == offset


@pytest.mark.parametrize(("encoding", "offsets"), [("utf-8", [0, 1, 1, 1, 1, 2]), ("utf-16", [0, 1, 1, 2, 3, 3])])
def test_a_position_within_a_character_is_before_it(encoding, offsets):
    document = Document("a😀b\r\nc")
    assert [document.offset(0, column, encoding) for column in range(6)] == offsets
    assert document.offset(0, 99, encoding) == 3
    assert document.offset(9, 0, encoding) == 6


@settings(deadline=None)
@given(TEXT, TEXT, st.integers(0, 40), st.integers(0, 40))
def test_an_edit_is_a_splice(text, new, start, end):
    start, end = sorted((min(start, len(text)), min(end, len(text))))
    changed = Document(text).changed(start, end, new, 2)
    assert (changed.text, changed.version) == (text[:start] + new + text[end:], 2)
    assert Document(text).changed(end, start, new, 2) == changed


def test_the_wait_grows_with_latency_and_typing_and_is_none_when_idle():
    def wait(latency: float, gap: float) -> float:
        debounce, now = Debounce(0.3), 0.0
        for _ in range(50):
            debounce.asked(now)
            debounce.answered(latency)
            now += gap
        return debounce.asked(now)

    assert Debounce(0.3).asked(5.0) == 0
    assert wait(0.1, 2.0) == 0
    assert wait(0.005, 0.1) == pytest.approx(0.00025, rel=0.01)
    assert wait(0.1, 0.2) == pytest.approx(0.05, rel=0.01)
    assert wait(0.1, 0.1) == pytest.approx(0.1, rel=0.01)
    assert wait(9.0, 0.1) == 0.3
    assert wait(0.05, 0.2) < wait(0.1, 0.2) < wait(0.1, 0.15)
