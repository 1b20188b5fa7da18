"""Speculative decoding (Leviathan et al., arXiv 2211.17192): a cheap guess of several tokens, one pass to check them.

What is written is what plain decoding writes: the same tokens when greedy, the same distribution when drawn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np

from mlxgpt.config import require
from mlxgpt.errors import Error
from mlxgpt.generation.engine import (
    Choice,
    Decoder,
    Piece,
    Request,
    chooser,
    common_length,
    pick,
    prefill,
    read,
    text_of,
    within_context,
)
from mlxgpt.generation.sampling import Chooser
from mlxgpt.models import Model
from mlxgpt.tokenizer import Tokenizer

GUESSES = 6  # tokens guessed at a time
LONGEST = 4  # tokens of the longest n-gram that is looked up


Guess = tuple[int, np.ndarray | None]  # a token, and the distribution [V] it was drawn from; None: it was certain


@dataclass
class Tally:
    """How many tokens were guessed, and how many of them were right."""

    guessed: int = 0
    accepted: int = 0

    @property
    def rate(self) -> float:
        """The share of guesses that were right; 0 where nothing was guessed."""
        return self.accepted / self.guessed if self.guessed else 0.0


class Guesser(Protocol):
    """Guesses what comes after `history`: up to `count` tokens, for the places from `step` on."""

    def guess(self, history: list[int], count: int, step: int) -> list[Guess]:
        """The guesses, the nearest first; none where there is nothing to go by."""
        ...


class Lookup:
    """Guesses that what followed the last few tokens before, in the prompt or since, follows them again."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> where its latest occurrence but the last one ended
        self._seen = 0

    def guess(self, history: list[int], count: int, step: int) -> list[Guess]:
        """The continuation of the latest earlier occurrence of the longest n-gram that history ends with."""
        for end in range(self._seen + 1, len(history)):
            for n in range(1, min(LONGEST, end) + 1):
                self._after[tuple(history[end - n : end])] = end
        self._seen = max(self._seen, len(history) - 1)
        for n in range(min(LONGEST, len(history) - 1), 0, -1):
            at = self._after.get(tuple(history[-n:]))
            if at is not None:
                return [(token, None) for token in history[at : at + count]]
        return []


class Draft:
    """Guesses with a smaller model of the same vocabulary, drawing as the request draws."""

    def __init__(self, model: Model, choose: Chooser) -> None:
        self._decoder, self._choose = Decoder(model), choose
        self._held: list[int] = []  # the tokens in its caches

    def guess(self, history: list[int], count: int, step: int) -> list[Guess]:
        """`count` tokens one after the other, fewer where the draft's own context ends."""
        count = min(count, self._decoder.model.config.context - len(history) + 1)
        if count < 1:
            return []
        shared = self._decoder.rewind(min(common_length(self._held, history), len(history) - 1))
        logits = self._decoder.prefill(history[shared:])
        self._held = list(history)
        guesses: list[Guess] = []
        for i in range(count):
            logprobs = self._choose.logprobs(logits, self._held)
            token = self._choose.draw(logprobs, step + i)
            guesses.append((int(token.item()), np.array(self._choose.distribution(logprobs, step + i)[0])))  # type: ignore[arg-type]
            if i + 1 < count:
                logits = self._decoder.step(token)
                self._held.append(guesses[-1][0])
        return guesses


def decode(
    decoder: Decoder,
    logits: mx.array,
    choose: Chooser,
    history: list[int],
    request: Request,
    guesser: Guesser,
    tally: Tally,
) -> Iterator[Choice]:  # fmt: skip
    """`engine.decode`, with guesses checked several at once."""
    draws = np.random.default_rng(choose.seed % (1 << 64))
    if request.max_tokens > 0:
        logprobs = choose.logprobs(logits, history)
        choice = read(pick(choose.draw(logprobs, 0), logprobs, request.logprobs))
        history.append(choice.token)
        yield choice
    step = 1
    while step < request.max_tokens:
        room = decoder.model.config.context - decoder.position - 1
        guesses = guesser.guess(history, min(GUESSES, request.max_tokens - step - 1, room), step)
        fed = [history[-1], *(token for token, _ in guesses)]
        rows = decoder.extend(fed) if guesses else decoder.step(mx.array(fed))
        tally.guessed += len(guesses)
        start = decoder.position - len(guesses)
        for i in range(len(guesses) + 1):
            logprobs = choose.logprobs(rows[i : i + 1], history)
            token, right = _verdict(choose, logprobs, guesses[i] if i < len(guesses) else None, step, draws)
            choice = read(pick(mx.array([token]), logprobs, request.logprobs))
            history.append(token)
            tally.accepted += right
            step += 1
            yield choice
            if not right:
                break
        decoder.trim(start + i)


def _verdict(
    choose: Chooser,
    logprobs: mx.array,
    guess: Guess | None,
    step: int,
    draws: np.random.Generator,
) -> tuple[int, bool]:
    """The token at one place, and whether it is the guess: accepted with probability min(1, p/q), else drawn from the
    rest of p, max(0, p - q) normalised."""
    if guess is None:
        return int(choose.draw(logprobs, step).item()), False  # type: ignore[arg-type]
    token, q = guess
    p = np.array(choose.distribution(logprobs, step)[0], np.float64)
    chance = p[token] if q is None else p[token] / max(q[token], 1e-30)
    if draws.random() < chance:
        return token, True
    if q is None:
        rest = p.copy()
        rest[token] = 0
    else:
        rest = np.maximum(p - q, 0)
    total = rest.sum()
    return (int(draws.choice(len(rest), p=rest / total)), False) if total > 0 else (int(p.argmax()), False)


def generate(
    model: Model, tokenizer: Tokenizer, prompt: Sequence[int], request: Request, tally: Tally,
    draft: Model | None = None, decoder: Decoder | None = None,
) -> Iterator[Piece]:  # fmt: skip
    """`engine.generate` with guesses: of the `draft` model, or without one looked up in the text so far.

    Raises UsageError for XTC, whose draws have no one distribution to keep to, and Error for a draft model of
    another vocabulary.
    """
    require(request.sampling.xtc_probability == 0, "XTC cannot be used with --draft or --lookup")
    if draft is not None and draft.config.vocab_size != model.config.vocab_size:
        raise Error(
            f"the draft model has {draft.config.vocab_size} tokens and the model {model.config.vocab_size}: they need "
            "one tokenizer"
        )
    request = within_context(model, prompt, request)
    decoder = decoder or Decoder(model)
    choose = chooser(model, tokenizer, request)
    guesser = Lookup() if draft is None else Draft(draft, choose)
    logits = prefill(decoder, prompt, request)
    choices = decode(decoder, logits, choose, list(prompt), request, guesser, tally)
    yield from text_of(choices, tokenizer, request, prompt)
