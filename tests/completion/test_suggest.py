"""Suggestions: they go on from the very characters that are there, fill one line, and repeat nothing to their right."""

import random

import mlx.core as mx
import numpy as np
import pytest

from mlxgpt import models, weights
from mlxgpt.completion import sources, suggest
from mlxgpt.completion.index import Index
from mlxgpt.completion.lexer import Lexer
from mlxgpt.completion.postprocess import trim
from mlxgpt.completion.search import best_first
from mlxgpt.completion.suggest import MAX_TOKENS, Suggester, Suggestion
from mlxgpt.errors import UsageError
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


@pytest.mark.parametrize("using", ["model", "both"])
def test_the_characters_before_the_cursor_are_always_spelled(loaded, source, using):
    """What is decoded begins with the remainder, token by token, wherever in a token the cursor stands."""
    suggester = Suggester(*loaded, using=using)
    healed = 0
    for cut in cursors(source, 30):
        place = suggester.source(source[:cut], source[cut:])
        path = best_first(place.expand, lambda path: len(path) == 6, 6, 20, 0.0).path
        for n in range(1, len(path) + 1):
            spelled = loaded[1].decode(path[:n])
            assert spelled.startswith(place.remainder[: len(spelled)])
        assert (place.remainder + place.bytes_of(path)).startswith(loaded[1].decode(path))
        healed += bool(place.remainder)
    assert healed > 15


def test_healing_finds_what_the_whole_word_would_have_given(loaded):
    """After 're' of a word the model has only seen as a token, it still knows it."""
    model, tokenizer = loaded
    suggester = Suggester(model, tokenizer, using="model")
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
    decoder = kept.prefixes.of("").decoder
    computed = []
    real = decoder.prefill
    decoder.prefill = lambda ids: (computed.append(len(ids)), real(ids))[1]
    passes = []
    for prefix in prefixes:
        before = sum(computed)
        again, fresh = kept.suggest(prefix), Suggester(*loaded).suggest(prefix)
        passes.append(sum(computed) - before)
        assert again.completion == fresh.completion
        assert again.tokens == fresh.tokens
        assert again.mean_logprob == pytest.approx(fresh.mean_logprob, abs=1e-4)
        assert again.confidence == pytest.approx(fresh.confidence, abs=1e-4)
    assert passes[7] < 10  # the same again: of the prompt only the last token, whose logits are needed
    assert passes[1] < passes[0] / 2


def test_documents_keep_their_prefixes_apart_in_a_memory_budget(loaded, source):
    suggester = Suggester(*loaded)
    suggester.suggest(source[:2000], document="a")
    one = suggester.prefixes.of("a").nbytes
    assert one > 0
    suggester = Suggester(*loaded, memory=2 * one)
    for name in ("a", "b", "a", "c", "d"):
        suggester.suggest(source[:2000], document=name)
    held = suggester.prefixes
    assert len(held) <= 3  # two that fit, and the one in use
    assert held.of("d").computed
    assert not held.of("b").computed


def test_a_failed_request_spoils_nothing(loaded, source, monkeypatch):
    suggester = Suggester(*loaded)
    suggester.suggest(source[:3000])
    decoder = suggester.prefixes.of("").decoder
    real = decoder.prefill
    monkeypatch.setattr(decoder, "prefill", lambda ids: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        suggester.suggest(source[:500])
    monkeypatch.setattr(decoder, "prefill", real)
    assert suggester.suggest(source[:3000]).completion == Suggester(*loaded).suggest(source[:3000]).completion


def test_a_request_is_cancelled_between_two_passes_and_spoils_nothing(loaded, source):
    suggester = Suggester(*loaded)
    for after in (0, 1, 3):
        asked = []

        def cancelled(after=after, asked=asked) -> bool:
            asked.append(None)
            return len(asked) > after

        answer = suggester.suggest(source[:2000], cancelled=cancelled)
        assert (answer.completion, answer.reason) == ("", "cancelled")
        assert len(asked) == after + 1
    assert suggester.suggest(source[:2000]).completion == Suggester(*loaded).suggest(source[:2000]).completion


def test_typing_along_a_suggestion_computes_nothing(loaded, source, monkeypatch):
    suggester = Suggester(*loaded)
    prefix, suffix = b"import os\n\n\nclass A:\n    def f(self):\n        os.pa", b"\nx = os.path.join(a, b)\n"
    first = suggester.suggest(prefix, suffix, document="a")
    assert len(first.completion) > 1
    monkeypatch.setattr(suggester, "source", lambda *a: 1 / 0)
    typed = suggester.suggest(prefix + first.completion[:1].encode(), suffix, document="a")
    assert (typed.completion, typed.confidence) == (first.completion[1:], first.confidence)
    again = suggester.suggest(prefix, suffix, document="a")
    assert again.completion == first.completion
    elsewhere = ((prefix + b"\0", suffix, "a"), (prefix, b"\ny", "a"), (prefix, suffix, "b"), (prefix, suffix, None))
    for before, after, document in elsewhere:
        with pytest.raises(ZeroDivisionError):
            suggester.suggest(before, after, document=document)


def test_a_hidden_suggestion_is_weighed_anew_as_it_is_typed():
    before, line = b"".join(b"%c = load(%d)\n" % (c, c) for c in b"abcdfgh") * 2, b"from area import compute_area"
    suggester, shown = Suggester(), []
    for end in range(len(line)):
        prefix = before + b"\n" + line + b"\n\n" + line[:end]
        answer = suggester.suggest(prefix, document="a", threshold=0.6)
        if answer.completion:
            assert answer.completion == line[end:].decode()
        else:
            assert answer.confidence == Suggester().suggest(prefix).confidence < 0.6
        shown.append(bool(answer.completion))
    assert not shown[0]
    assert shown == sorted(shown)  # once shown, it stays
    assert shown[-1]


def test_below_the_threshold_nothing_is_shown_and_it_is_said_why(loaded):
    suggester = Suggester(*loaded)
    prefix = b"import os\n\n\nclass A:\n    def f(self):\n        retur"
    shown = suggester.suggest(prefix)
    assert shown.completion
    assert shown.reason is None
    assert 0 < shown.confidence < 1
    hidden = suggester.suggest(prefix, threshold=1.0)
    assert (hidden.completion, hidden.hidden, hidden.confidence) == ("", shown.completion, shown.confidence)
    assert hidden.reason == f"confidence {shown.confidence:.2f} is below the threshold 1.00"
    assert suggester.suggest(prefix, threshold=shown.confidence).completion == shown.completion


def test_what_is_too_short_to_be_read_is_not_shown_and_it_is_said_why():
    """Unless it is the rest of what was shown, or no more was asked for."""
    known = b"def first(alpha, beta):\n    return alpha * beta\n\n\ndef second(alpha, be"
    suggester = Suggester()

    def asked(typed: bytes, least: int, **options: int) -> Suggestion:
        return suggester.suggest(known + typed, document="a.py", least=least, **options)

    assert asked(b"", 4).completion == "ta):"
    assert asked(b"ta)", 4).completion == ":"
    suggester.forget("a.py")
    short = asked(b"ta", 3)
    assert (short.completion, short.hidden) == ("", "):")
    assert short.reason == "a suggestion of fewer than 3 characters is quicker typed than read"
    assert asked(b"ta)", 3).hidden == ":"
    assert asked(b"ta", 2).completion == "):"
    assert asked(b"ta", 3, max_tokens=2).completion == ")"


def test_drafting_changes_nothing_but_the_passes(loaded, source, monkeypatch):
    """What the n-grams draft and the model checks in one pass is what it would have said token by token."""
    tokenizer = loaded[1]
    index = Index(tokenizer)
    index.build([("cmd.py", source)])
    answers, passes = [], []
    for guesses in (0, 4):
        monkeypatch.setattr(sources, "GUESSES", guesses)
        suggester = Suggester(*loaded, index)
        decoder = suggester.prefixes.of("").decoder
        count = []
        for name in ("step", "extend", "prefill"):
            real = getattr(decoder, name)
            monkeypatch.setattr(decoder, name, lambda *a, real=real, n=count: (n.append(None), real(*a))[1])
        answers.append([suggester.suggest(source[:cut]) for cut in cursors(source, 15)])
        passes.append(len(count))
    for alone, drafted in zip(*answers, strict=True):
        assert alone.completion == drafted.completion
        assert alone.mean_logprob == pytest.approx(drafted.mean_logprob, abs=1e-3)
    assert passes[1] < passes[0]


@pytest.mark.parametrize("using", ["ngrams", "both"])
def test_a_request_is_cancelled_while_a_long_file_is_read(loaded, source, monkeypatch, using):
    monkeypatch.setattr(suggest, "READ", 256)
    suggester, read = Suggester(*loaded, using=using) if using == "both" else Suggester(), []
    reads = "begin" if using == "both" else "learn"
    real = getattr(suggester.tokenizer, reads)
    monkeypatch.setattr(suggester.tokenizer, reads, lambda text: (read.append(text), real(text))[1])
    asked = []

    def cancelled() -> bool:
        asked.append(None)
        return len(asked) > 2

    assert suggester.suggest(source[:4000], source[4000:], cancelled=cancelled).reason == "cancelled"
    assert len(asked) == 3
    assert sum(map(len, read)) < 1000
    monkeypatch.setattr(suggester.tokenizer, reads, real)
    whole = suggester.suggest(source[:4000], source[4000:]).completion
    monkeypatch.setattr(suggest, "READ", 1 << 20)
    again = Suggester(*loaded, using=using) if using == "both" else Suggester()
    assert again.suggest(source[:4000], source[4000:]).completion == whole


def test_ngrams_alone_know_the_buffer_on_both_sides_of_the_line(source):
    suggester = Suggester()
    before = b"def first(alpha, beta):\n    return alpha * beta\n\n"
    after = b"\n\ndef third(gamma):\n    raise NotImplementedError('later')\n"
    assert suggester.suggest(before + b"def second(alpha, be", after).completion == "ta):"
    assert suggester.suggest(before + b"    raise NotImpl", after).completion == "ementedError('later')"
    nothing = suggester.suggest(before + b"    raise NotImpl", b"")
    assert (nothing.completion, nothing.reason) == ("", "nothing is known that could follow")
    nothing = suggester.suggest(b"", b"")
    assert (nothing.completion, nothing.reason) == ("", "the line seems complete")


def test_the_index_gives_way_to_the_open_file():
    """What the saved file says on the cursor's line must not be found there; what other files say, is."""
    saved = b"import os\nvalue = compute_everything(1)\n"
    index = Index(Lexer())
    index.build([("a.py", saved), ("b.py", b"total = other_function(2)\n")])
    suggester = Suggester(index=index)
    assert suggester.suggest(b"import os\nvalue = comp", b"\n", document="a.py").completion == ""
    assert suggester.suggest(b"import os\nvalue = comp", b"\n", document="b.py").completion == "ute_everything(1)"
    assert suggester.suggest(b"import os\nx = oth", b"\n", document="a.py").completion == "er_function(2)"


def test_what_using_needs_must_be_there():
    for using in ("model", "both"):
        with pytest.raises(UsageError, match=f"--using {using} needs a model"):
            Suggester(using=using)


def test_a_block_is_completed_to_its_end():
    suggester = Suggester()
    block = b"    def area(self):\n        if self.flat:\n            return 0\n        return self.w * self.h\n\n"
    buffer = b"class A:\n" + block + b"    def other(self):\n        pass\n\n\nclass B:\n"
    one = suggester.suggest(buffer + b"    def ar", b"\n\nend = 1\n")
    assert one.completion == "ea(self):"
    many = suggester.suggest(buffer + b"    def ar", b"\n\nend = 1\n", multiline=True)
    lines = ["ea(self):", "        if self.flat:", "            return 0", "        return self.w * self.h"]
    assert many.completion.splitlines() == lines


class Scripted:
    """A model and decoder that say one thing, whatever they are given; louder than it are ids that mean no text."""

    layers = caches = ()

    def __init__(self, said: list[int], context: int = 64) -> None:
        self.said = said
        self.config = models.gpt2.Config(vocab_size=BYTES.vocab_size + 3, n_positions=context)

    def suggester(self) -> Suggester:
        suggester = Suggester(self, BYTES, using="model")  # type: ignore[arg-type]
        suggester.prefixes.of("").decoder = self
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
    suggester = Suggester(model, BYTES, using="model")
    decoder = suggester.prefixes.of("").decoder
    seen = []
    real = decoder.prefill
    decoder.prefill = lambda ids: (seen.append(len(ids)), real(ids))[1]
    suggester.suggest(b"x" * 1000)
    assert seen[0] == max(1, context // 2)
    assert decoder.position <= context


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
