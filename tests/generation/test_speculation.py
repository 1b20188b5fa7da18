"""Speculative decoding: what is written is what plain decoding writes."""

import dataclasses
from collections import Counter
from itertools import product
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from mlxgpt.errors import Error, UsageError
from mlxgpt.generation import engine, speculation
from mlxgpt.generation.engine import Decoder, Piece, Request, collect
from mlxgpt.generation.sampling import Chooser, Sampling
from mlxgpt.generation.speculation import Draft, Lookup, Tally
from mlxgpt.tokenizer import CharTokenizer

LETTERS = CharTokenizer("abcdefghijklmnopq", byte_fallback=False)
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 3, 1, 4, 1]


def same(mine: list[Piece], its: list[Piece]) -> None:
    """Token for token, text for text, and the same log-probabilities beside them."""
    assert [(p.choice.token, p.text, p.finish_reason) for p in mine] == [
        (p.choice.token, p.text, p.finish_reason) for p in its
    ]
    for a, b in zip(mine, its, strict=True):
        assert a.choice.logprob == pytest.approx(b.choice.logprob, abs=1e-3)
        assert [t for t, _ in a.choice.top] == [t for t, _ in b.choice.top]


@pytest.fixture(params=["lookup", "itself", "another"])
def draft(request, tiny, small_draft):
    return {"lookup": None, "itself": tiny, "another": small_draft}[request.param]


REQUESTS = [
    Request(24, logprobs=3),
    Request(24, Sampling(repetition_penalty=1.5, frequency_penalty=0.3, presence_penalty=0.2)),
    *(Request(count) for count in (0, 1, 2, 8)),
    Request(1000),  # to the end of the context
]


def test_greedy_is_plain_greedy(tiny, draft, small_steps):
    for request in REQUESTS:
        plain = list(engine.generate(tiny, LETTERS, PROMPT, request))
        same(list(speculation.generate(tiny, LETTERS, PROMPT, request, Tally(), draft)), plain)
    assert len(plain) == 90 - len(PROMPT) + 1


@pytest.mark.parametrize("bits", [8, 4])
def test_greedy_is_plain_greedy_with_a_quantized_cache(tiny, bits, small_steps):
    mine, its = Decoder(tiny, bits), Decoder(tiny, bits)
    plain = list(engine.generate(tiny, LETTERS, PROMPT, Request(25), its))
    same(list(speculation.generate(tiny, LETTERS, PROMPT, Request(25), Tally(), tiny, mine)), plain)


def test_stops_and_the_closing_token_end_it_where_plain_decoding_ends(tiny, draft, small_steps):
    """At every place of an answer, so among accepted guesses too; the caches are left with what was written."""
    answer = collect(engine.generate(tiny, LETTERS, PROMPT, Request(30)))
    for place in (0, 4, 9):
        token = answer.token_ids[place]
        closing = SimpleNamespace(
            vocab_size=17, token_bytes=LETTERS.token_bytes, eos_id=token, decode=LETTERS.decode, bos_id=None,
            hidden_after=LETTERS.hidden_after,
        )  # fmt: skip
        stop = Request(30, stops=[answer.text[place : place + 3]])
        for tokenizer, request in ((closing, Request(30)), (LETTERS, stop)):
            plain = list(engine.generate(tiny, tokenizer, PROMPT, request))
            assert plain[-1].finish_reason == "stop"
            decoder = Decoder(tiny)
            mine = list(speculation.generate(tiny, tokenizer, PROMPT, request, Tally(), draft, decoder))
            same(mine, plain)
            written = PROMPT + [p.choice.token for p in mine]
            decoder.rewind(len(written) - 1)
            logits = decoder.prefill(written[decoder.position :])
            full = tiny(mx.array(written)[None])[:, -1]
            np.testing.assert_allclose(np.array(logits), np.array(full), rtol=1e-3, atol=1e-3)


def test_a_model_agrees_with_itself(tiny, small_steps):
    tally = Tally()
    list(speculation.generate(tiny, LETTERS, PROMPT, Request(40), tally, tiny))
    assert (tally.guessed, tally.accepted, tally.rate) == (5 * 6 + 3, 33, 1.0)  # 1 + 5 × 7 + 4 = 40 tokens
    assert Tally().rate == 0


class Markov:
    """A decoder of a model that looks at the last token alone: a table of logits [V, V]."""

    def __init__(self, table: np.ndarray) -> None:
        self.model, self.position = SimpleNamespace(config=SimpleNamespace(context=100)), 0
        self.table = mx.array(table.astype(np.float32))

    def extend(self, tokens: list[int]) -> mx.array:
        self.position += len(tokens)
        return self.table[mx.array(tokens)]

    def prefill(self, tokens: list[int]) -> mx.array:
        return self.extend(tokens)[-1:]

    def step(self, token: mx.array) -> mx.array:
        return self.extend(token.tolist())

    def trim(self, position: int) -> None:
        assert 0 <= position <= self.position
        self.position = position

    def rewind(self, position: int) -> int:
        self.trim(position)
        return position


def cycle(*following: int) -> np.ndarray:
    """Certainty: `following[i]` comes after i."""
    return np.eye(len(following))[list(following)] * 50


def written(table, draft, prompt, count, sampling=None, seed=0) -> tuple[list[int], Tally]:
    decoder, tally, history = Markov(table), Tally(), list(prompt)
    choose = Chooser(sampling or Sampling(), len(table), seed)
    guesser = Lookup() if draft is None else Draft(draft, choose)
    choices = speculation.decode(
        decoder,
        decoder.prefill(prompt),
        choose,
        history,
        Request(count),
        guesser,
        tally,  # type: ignore[arg-type]
    )
    tokens = [c.token for c in choices]
    assert history == prompt + tokens
    return tokens, tally


def test_the_tally_counts_guesses_and_right_ones(monkeypatch):
    monkeypatch.setattr(speculation, "Decoder", Markov)
    tokens, tally = written(cycle(1, 2, 3, 0), cycle(1, 2, 0, 0), [3], 8)
    assert tokens == [0, 1, 2, 3, 0, 1, 2, 3]
    # after 0: 1 2 and a wrong 0, which leaves three unread; after 3: 0 1 2, all that there is room for
    assert tally == Tally(guessed=6 + 3, accepted=2 + 3)
    # its own 0 1 2 3 once around; then every guess is right
    assert written(cycle(1, 2, 3, 0), None, [3], 16)[1] == Tally(guessed=9, accepted=9)


def test_lookup_finds_what_followed_the_longest_recent_match():
    lookup = Lookup()
    history = [7, 1, 2, 8, 9, 3, 2, 5, 1, 2]
    assert lookup.guess(history, 3, 0) == [(8, None), (9, None), (3, None)]  # after "1 2", not after the later "2"
    assert lookup.guess([*history, 8], 9, 0) == [(t, None) for t in [9, 3, 2, 5, 1, 2, 8]]
    assert lookup.guess([*history, 8, 6], 3, 0) == []
    assert lookup.guess([*history, 8, 6, 2], 1, 0) == [(8, None)]
    assert Lookup().guess([4], 3, 0) == []


RANDOM = np.random.default_rng(4)
TABLE, OTHER = RANDOM.normal(size=(2, 3, 3)) * 1.2
LENGTH, RUNS = 4, 1000


def probabilities(row: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Computed apart from what is tested."""
    kept = np.sort(row)[-(sampling.top_k or len(row)) :][0]
    powers = np.where(row >= kept, np.exp(row / sampling.temperature), 0)
    return powers / powers.sum()


@pytest.mark.parametrize("draft", [None, OTHER], ids=["lookup", "draft"])
@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.7, top_k=2)], ids=["plain", "top-k"])
def test_drawn_sequences_have_the_distribution_of_plain_drawing(draft, sampling, monkeypatch):
    """Chi-square over every sequence of four tokens. The draft reuses the seeds of the places it guesses: here most
    places are guessed more than once, since its guesses are often wrong."""
    monkeypatch.setattr(speculation, "Decoder", Markov)
    prompt = [0, 1, 2, 1, 0, 2]
    counts, accepted, guessed = Counter(), 0, 0
    for seed in range(RUNS):
        tokens, tally = written(TABLE, draft, prompt, LENGTH, sampling, seed)
        counts[tuple(tokens)] += 1
        accepted, guessed = accepted + tally.accepted, guessed + tally.guessed
    assert 0.2 < accepted / guessed < 0.8
    steps = np.array([probabilities(row, sampling) for row in TABLE])
    statistic, cells, rest = 0.0, 0, np.zeros(2)
    for sequence in product(range(3), repeat=LENGTH):
        chance = np.prod([steps[a, b] for a, b in zip((prompt[-1], *sequence), sequence, strict=False)])
        seen, expected = counts[sequence], RUNS * chance
        assert expected > 0 or seen == 0
        if expected >= 5:
            statistic += (seen - expected) ** 2 / expected
            cells += 1
        else:
            rest += seen, expected
    if rest[1] > 0:
        statistic += (rest[0] - rest[1]) ** 2 / rest[1]
        cells += 1
    freedom = cells - 1
    assert freedom >= 7
    assert statistic < freedom + 3.5 * (2 * freedom) ** 0.5


def test_what_cannot_keep_its_promise_is_refused(tiny):
    with pytest.raises(UsageError, match=r"^XTC cannot be used with --draft or --lookup$"):
        next(speculation.generate(tiny, LETTERS, PROMPT, Request(sampling=Sampling(1, xtc_probability=0.5)), Tally()))
    other = SimpleNamespace(config=dataclasses.replace(tiny.config, vocab_size=18))
    with pytest.raises(Error, match=r"^the draft model has 18 tokens and the model 17: they need one tokenizer$"):
        next(speculation.generate(tiny, LETTERS, PROMPT, Request(), Tally(), other))  # type: ignore[arg-type]
