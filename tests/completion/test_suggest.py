"""Suggestions: they go on from the very characters that are there, fill one line, and repeat nothing to their right."""

import random

import mlx.core as mx
import numpy as np
import pytest

from mlxgpt import models, weights
from mlxgpt.completion import prompt as prompts
from mlxgpt.completion.suggest import MAX_TOKENS, Suggester, trim
from mlxgpt.tokenizer import CharTokenizer

BYTES = CharTokenizer("")


@pytest.fixture(scope="module")
def loaded(trained):
    return weights.load_with_tokenizer(trained)


@pytest.fixture(scope="module")
def suggester(loaded):
    return Suggester(*loaded)


@pytest.fixture(scope="module")
def source(code) -> bytes:
    return (code / "cmd.py").read_bytes()


def cursors(source: bytes, count: int) -> list[int]:
    return random.Random(1).sample(range(len(source)), count)


def test_a_suggestion_is_one_line_of_text_without_control_tokens(suggester, source):
    some = 0
    for cut in cursors(source, 60):
        answer = suggester.suggest(source[:cut])
        assert "\n" not in answer.completion
        assert "\r" not in answer.completion
        assert "<s>" not in answer.completion
        assert answer.completion == answer.completion.rstrip()
        assert 0 <= answer.tokens <= MAX_TOKENS
        assert np.isfinite(answer.mean_logprob)
        assert answer.mean_logprob <= 0
        assert answer.latency_ms > 0
        some += bool(answer.completion)
    assert some > 30


def test_the_characters_before_the_cursor_are_always_spelled(loaded, source, monkeypatch):
    """What is decoded begins with the remainder, token by token, wherever in a token the cursor stands."""
    model, tokenizer = loaded
    suggester = Suggester(model, tokenizer)
    taken = []
    real = suggester.decoder.step
    monkeypatch.setattr(suggester.decoder, "step", lambda token: (taken.append(token.item()), real(token))[1])
    healed = 0
    for cut in cursors(source, 60):
        taken.clear()
        prompt = prompts.build(tokenizer, source[:cut], 64)
        data, _ = suggester._decode_line(prompt, 40)
        assert (prompt.remainder + data).startswith(tokenizer.decode(taken))
        healed += bool(prompt.remainder)
    assert healed > 30


def test_healing_finds_what_the_whole_word_would_have_given(loaded):
    """After 're' of a word the model has only seen as a token, it still knows it."""
    model, tokenizer = loaded
    suggester = Suggester(model, tokenizer)
    line = b"import sys\n\nclass A:\n    def f(self):\n        "
    assert {b"self", b"return"} <= {token.strip() for token in tokenizer.token_bytes}
    assert suggester.suggest(line + b"retur").completion.startswith("n")
    assert suggester.suggest(line + b"sel").completion.startswith("f")


def test_a_reused_prefix_changes_nothing(loaded, source):
    """One suggester through edits, deletions and jumps, against a new one each time."""
    kept = Suggester(*loaded)
    at = 3000
    prefixes = [
        source[:at],
        source[: at + 1],
        source[: at + 7],
        source[: at - 40],
        source[: at + 7] + b"x",
        source[:100],
    ]
    prefixes += [source[:at], source[:at], b"", b"def "]
    computed = []
    real = kept.decoder.prefill
    kept.decoder.prefill = lambda ids: (computed.append(len(ids)), real(ids))[1]
    for prefix in prefixes:
        again, fresh = kept.suggest(prefix), Suggester(*loaded).suggest(prefix)
        assert again.completion == fresh.completion
        assert again.tokens == fresh.tokens
        assert again.mean_logprob == pytest.approx(fresh.mean_logprob, abs=1e-4)
    assert computed[7] == 1  # the same again: only the last token, whose logits are needed
    assert computed[1] < computed[0] / 2


def test_a_failed_request_spoils_nothing(loaded, source, monkeypatch):
    suggester = Suggester(*loaded)
    suggester.suggest(source[:3000])
    real = suggester.decoder.prefill
    monkeypatch.setattr(suggester.decoder, "prefill", lambda ids: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        suggester.suggest(source[:500])
    monkeypatch.setattr(suggester.decoder, "prefill", real)
    assert suggester.suggest(source[:3000]).completion == Suggester(*loaded).suggest(source[:3000]).completion


class Scripted:
    """A model and decoder that say one thing, whatever they are given; louder than it are ids that mean no text."""

    layers = ()

    def __init__(self, said: list[int], context: int = 64) -> None:
        self.said = said
        self.config = models.gpt2.Config(vocab_size=BYTES.vocab_size + 3, n_positions=context)

    def suggester(self) -> Suggester:
        suggester = Suggester(self, BYTES)  # type: ignore[arg-type]
        suggester.decoder = self  # type: ignore[assignment]
        return suggester

    def step(self, token=None) -> mx.array:
        scores = np.zeros((1, self.config.vocab_size), np.float32)
        scores[0, -3:] = 99  # ids that the tokenizer does not have
        scores[0, BYTES.bos_id] = 50
        if self.said:
            scores[0, self.said.pop(0)] = 20
        return mx.array(scores)

    prefill = step

    def rewind(self, position: int) -> int:
        return position


@pytest.mark.parametrize(
    ("said", "completion"),
    [
        (b"a + b\nmore", "a + b"),
        (b"a + b\r\nmore", "a + b"),
        (b"a\rb\n", "a"),
        (b"a  \t\n", "a"),
        (b"   \n", ""),
        (b"\n", ""),
        ("é→𝄞\n".encode(), "é→𝄞"),
        (b"ok\xff\xfe not this\n", "ok"),  # bytes that are not UTF-8 end it
        ("é".encode()[:1] + b"\n", ""),
        (b"x" * 100, "x" * MAX_TOKENS),
    ],
)
def test_what_the_model_says_becomes_one_line_of_text(said, completion):
    assert Scripted(list(said), context=256).suggester().suggest(b"y = ").completion == completion


def test_the_end_of_the_document_ends_the_line():
    answer = Scripted([*b"done", BYTES.eos_id, *b"more"]).suggester().suggest(b"")
    assert (answer.completion, answer.tokens) == ("done", 5)
    assert answer.mean_logprob == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("context", [1, 2, 8, 40, 64])
def test_a_short_context_keeps_half_for_what_is_before(context):
    """nanoGPT's models see 64 characters: a prompt of one of them would say nothing."""
    config = models.gpt2.Config(vocab_size=258, n_positions=context, n_embd=8, n_layer=1, n_head=1)
    model = models.build(config)
    suggester = Suggester(model, BYTES)
    seen = []
    real = suggester.decoder.prefill
    suggester.decoder.prefill = lambda ids: (seen.append(len(ids)), real(ids))[1]
    suggester.suggest(b"x" * 1000)
    assert seen == [max(1, context // 2)]
    assert suggester.decoder.position <= context


@pytest.mark.parametrize(
    ("before", "completion", "rest", "inserted"),
    [
        ("x = ", "f(y)", "", "f(y)"),
        ("x = ", "f(y)  ", "   ", "f(y)"),
        # what is right of the cursor closes the line, and the model, which does not see it, has closed it too
        ("foo(", "bar)", ")", "bar"),
        ("foo(", "bar):", "):", "bar"),
        ("foo(", "bar)", "):", "bar"),
        ("foo(", "bar)", " )", "bar"),
        ("if (a[", "i])", "]) {", "i"),
        ('print("', 'hello")', '")', "hello"),
        ("d = {'", "k': 1}", "': 1}", "k"),
        ("foo();", ";", ";", ""),
        ("f(a", ", b,", ", c)", ", b"),
        ('"""', 'doc"""', '"""', "doc"),
        # the same characters, which the line still needs
        ("print(", "foo(bar)", ")", "foo(bar)"),
        ("print(", "a[0]", "]", "a[0"),
        ('x = ["', 'a", "b"', '"]', 'a", "b'),
        ("f(g(", "x)", "))", "x)"),
        # the rest of the line again, whole
        ("x = ", "a + 1", " + 1", "a"),
        ("x = ", "a + 1", "+ 1", "a "),
        ("foo", ".bar()", ".bar()", ""),
        ("f(", "y, x)", "x)", "y, "),
        ("x = ", "foo(bar)", "bar)", "foo("),
        # only a part of it, or a part of a word: it is the completion's own
        ("x = ", "a +", " + 1", "a +"),
        ("y = ", "max", "x", "max"),
        ("y = ", "a1", "1", "a1"),
        ("y = ", "self", "f", "self"),
        ("a = ", "b", "banana", "b"),
        ("return ", "value", " # value", "value"),
        ("a", " ", ")", ""),
        ("a", "  )", ")", ""),
    ],
)
def test_what_the_line_already_says_is_not_said_twice(before, completion, rest, inserted):
    assert trim(completion, rest, before) == inserted


def test_the_rest_of_the_line_is_its_own():
    """Only the cursor's line counts as its rest, whichever way lines end."""
    for suffix, inserted in ((b")\n", "bar"), (b")\r\n", "bar"), (b"\n)", "bar)"), (b"\r\n)", "bar)"), (b"", "bar)")):
        model = Scripted(list(b"bar)\n"))
        assert model.suggester().suggest(b"x = (\nfoo(", suffix).completion == inserted
