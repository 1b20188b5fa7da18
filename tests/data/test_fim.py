"""Fill-in-the-middle: nothing of a text is lost, cursors are where people have them, and control tokens stay ours."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxgpt.data import fim
from mlxgpt.data.fim import CONTROL, MIDDLE, PREFIX, SUFFIX, Infilling, arrange, cut, restore, shorten
from mlxgpt.errors import Error
from mlxgpt.tokenizer import FIM, CharTokenizer, SentencePieceTokenizer

LINES = "def add(first, second):\n    return first + second  # {}\n\nfor i in range(10):\n    print(add(i, {}))\n"
TEXT = "".join(LINES.format(i, i) for i in range(200))
BPE = SentencePieceTokenizer.train([TEXT, "the quick brown fox jumps over the lazy dog"], 320, FIM)
TOKENIZERS = {"byte": CharTokenizer("", extra=FIM), "char": CharTokenizer("abcde \n", extra=FIM), "bpe": BPE}
texts = st.text(st.sampled_from("abc é😀\n\r\t_(") | st.characters(), max_size=60)
orders = st.sampled_from(["spm", "psm"])


@given(text=texts, order=orders, name=st.sampled_from(sorted(TOKENIZERS)), seed=st.integers(0, 2**32))
@settings(deadline=None)
def test_what_is_rearranged_can_be_put_back(text, order, name, seed):
    text = text.encode("utf-8", "replace").decode()
    tokenizer = TOKENIZERS[name]
    parts_of = cut(text, np.random.default_rng(seed))
    assert "".join(parts_of) == text
    ids, parts = arrange(tokenizer, parts_of, order)
    assert len(ids) == len(parts)
    assert restore(tokenizer, ids, parts) == text.encode()
    controls = [i for i, part in zip(ids, parts, strict=True) if part == CONTROL]
    before, after, middle = tokenizer.fim
    assert controls == [tokenizer.bos_id, before, after, middle, tokenizer.eos_id]
    assert all(bool(tokenizer.token_bytes[i]) == (part != CONTROL) for i, part in zip(ids, parts, strict=True))
    read = [part for part in dict.fromkeys(parts) if part != CONTROL]
    assert read == [p for p in ((SUFFIX, PREFIX, MIDDLE) if order == "spm" else (PREFIX, SUFFIX, MIDDLE)) if p in read]


def test_in_spm_a_cursor_leaves_no_trace_in_the_tokens():
    text = "def add(first, second):\n    return first + second"
    for at in range(len(text)):
        ids, parts = arrange(BPE, (text[:at], text[at:], "\n"), "spm")
        joint = [i for i, part in zip(ids, parts, strict=True) if part in (PREFIX, MIDDLE)]
        assert joint == BPE.encode(text)
        prefix = BPE.decode([i for i, part in zip(ids, parts, strict=True) if part == PREFIX])
        assert text[:at].encode().startswith(prefix), "a token that spans the cursor is to be predicted"


def test_half_of_the_middles_go_to_the_end_of_their_line():
    draw = np.random.default_rng(0)
    cuts = [cut(TEXT, draw) for _ in range(2000)]
    to_the_end = [(p, m, s) for p, m, s in cuts if "\n" not in m and s[:1] in ("\n", "")]
    assert 0.47 < len(to_the_end) / len(cuts) < 0.55
    starts = np.array([len(p) for p, _, _ in to_the_end]) / len(TEXT)
    assert abs(starts.mean() - 0.5) < 0.03, "cursors are everywhere"
    middles = [len(m) / len(TEXT) for _, m, s in cuts if "\n" in m]
    assert abs(np.mean(middles) - 1 / 3) < 0.03, "two places at random are a third apart"


def test_a_line_ends_before_its_carriage_return():
    text = "ab = 1\r\ncd\r\n"
    draw = np.random.default_rng(1)
    ends = {(m, s) for p, m, s in (cut(text, draw) for _ in range(400)) if p == "ab"}
    assert (" = 1", "\r\ncd\r\n") in ends
    assert not any(m.endswith("\r") and s.startswith("\n") and len(m) == 5 for m, s in ends if (m, s) != (" = 1\r", s))


@settings(deadline=None)
@given(lengths=st.tuples(*[st.integers(0, 30)] * 3), order=orders, room=st.integers(0, 100))
def test_what_does_not_fit_goes_where_it_is_farthest_from_the_middle(lengths, order, room):
    tokenizer = TOKENIZERS["byte"]
    (before, between, after), middle = lengths, "-" * lengths[1]
    prefix = "".join(chr(ord("A") + i) for i in range(before))
    suffix = "".join(chr(ord("a") + i) for i in range(after))
    ids, parts = arrange(tokenizer, (prefix, middle, suffix), order)
    short = shorten(ids, parts, room)
    if len(middle) + 5 > room:
        assert short is None
        return
    kept = restore(tokenizer, *short).decode()
    assert len(short[0]) == min(room, len(ids))
    assert middle in kept
    assert kept in prefix + middle + suffix
    left, right = sum(c in prefix for c in kept), sum(c in suffix for c in kept)
    assert len(kept) == left + between + right
    assert abs(left - right) <= 1 or left == before or right == after
    assert left == before or left >= right - 1


def test_the_rates_are_what_they_say():
    tokenizer, draw = TOKENIZERS["byte"], np.random.default_rng(2)
    ids = np.array(tokenizer.document(TEXT[:200]))
    made = [Infilling(tokenizer, 0.3, 0.25)(ids, 150, draw) for _ in range(2000)]
    changed = [m for m in made if m is not None]
    assert abs(len(changed) / len(made) - 0.3) < 0.04
    first = [next(p for p in parts if p != CONTROL) for _, parts in changed]
    assert abs(first.count(SUFFIX) / len(changed) - 0.25) < 0.06
    assert all(len(i) == 150 for i, _ in changed)
    assert Infilling(tokenizer, 1.0, 0.5)(ids[: fim.SHORTEST - 1], 150, draw) is None, "too short to be worth it"


def test_a_text_cut_within_a_character_keeps_its_bytes():
    tokenizer, draw = TOKENIZERS["byte"], np.random.default_rng(3)
    data = ("é😀" * 20).encode()[1:-1]
    for _ in range(50):
        ids, parts = Infilling(tokenizer, 1.0, 0.5)(np.frombuffer(data, np.uint8), 500, draw)
        assert restore(tokenizer, ids, parts) == data


def test_a_tokenizer_without_the_control_tokens_is_refused():
    with pytest.raises(Error, match="no control tokens for fill-in-the-middle"):
        Infilling(CharTokenizer(""), 0.5, 0.5)
