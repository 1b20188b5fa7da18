"""Prefill, decode, stop: a model and its caches, one token at a time, and the text that comes of it."""

import codecs
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlxgpt.errors import Error
from mlxgpt.generation.sampling import Chooser, Sampling
from mlxgpt.models import Model
from mlxgpt.models.cache import KVCache, Slot
from mlxgpt.tokenizer import Tokenizer

PREFILL_CHUNK = 512  # tokens of a prompt computed at once: bounds memory, and a long prompt can be stopped


class Decoder:
    """A model with one sequence in its caches.

    `prefill` takes a prompt, `step` one token; both return the logits [1, V] that follow. The step is compiled for
    the caches' fixed shape and traced anew only when they grow.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.caches = [KVCache() for _ in model.layers]
        self._step = mx.compile(self._one_token)

    @property
    def position(self) -> int:
        """Tokens in the caches."""
        return self.caches[0].offset

    def _one_token(self, token: mx.array, position: mx.array, keys: list[mx.array], values: list[mx.array]):
        slots = [Slot(k, v, position) for k, v in zip(keys, values, strict=True)]
        logits = self.model(token[:, None], slots)[:, -1]
        return logits, [s.keys for s in slots], [s.values for s in slots]

    def prefill(self, tokens: Sequence[int]) -> mx.array:
        """Append a prompt of at least one token. Raises Error where it does not fit the model's context."""
        self._fit(len(tokens))
        if not tokens:
            raise Error("the prompt is empty: there is nothing to continue")
        for start in range(0, len(tokens), PREFILL_CHUNK):
            chunk = mx.array(list(tokens[start : start + PREFILL_CHUNK]))[None]
            features = self.model.features(chunk, self.caches)
            mx.eval([c.keys for c in self.caches], features)
        return self.model.logits(features[:, -1])

    def step(self, token: mx.array) -> mx.array:
        """Append one token, int32 [1], to a prefilled cache. Lazy: nothing is computed until the logits are."""
        self._fit(1)
        for cache in self.caches:
            cache.reserve(1)
        keys, values = [c.keys for c in self.caches], [c.values for c in self.caches]
        logits, keys, values = self._step(token, mx.array(self.position), keys, values)
        for cache, k, v in zip(self.caches, keys, values, strict=True):
            cache.keys, cache.values, cache.offset = k, v, cache.offset + 1
        return logits

    def trim(self, position: int) -> None:
        """Forget every token from `position` on."""
        for cache in self.caches:
            cache.trim(position)

    def _fit(self, count: int) -> None:
        context = self.model.config.context
        if self.position + count > context:
            raise Error(
                f"{self.position + count} tokens do not fit the model's context of {context}: shorten the prompt"
            )


class TextStream:
    """Token bytes -> text: whole characters only, and nothing from the first stop text on.

    What may be the beginning of a stop text is held back until it is known not to be.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._stops = [s for s in stops if s]
        self._held = ""
        self.stopped = False

    def add(self, data: bytes, last: bool = False) -> str:
        """The text that became certain with these bytes; `last` releases what was held back."""
        if self.stopped:
            return ""
        text = self._held + self._decode(data, last)
        found = min((at for s in self._stops if (at := text.find(s)) >= 0), default=-1)
        if found >= 0:
            self.stopped, self._held = True, ""
            return text[:found]
        held = 0 if last else max((_overlap(text, s) for s in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


@dataclass(frozen=True)
class Piece:
    """One decoded token, and the text that became certain with it; `finish_reason` is set on the last piece."""

    token: int | None
    logprob: float
    text: str
    finish_reason: str | None = None


def generate(
    model: Model,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    max_tokens: int,
    sampling: Sampling | None = None,
    stops: Sequence[str] = (),
    seed: int | None = None,
) -> Iterator[Piece]:
    """Continue `prompt` (token ids) by up to `max_tokens` tokens.

    Ends with finish_reason "stop" (the closing token, or a stop text, which is not returned) or "length" (max_tokens,
    or the context is full). The next token is computed while the last one is read.
    """
    sampling = sampling or Sampling()
    if seed is not None:
        mx.random.seed(seed)
    choose = Chooser(sampling, model.config.vocab_size)
    decoder, stream = Decoder(model), TextStream(stops)
    max_tokens = min(max_tokens, model.config.context - len(prompt) + 1)
    history = list(prompt)
    token, logprob = choose(decoder.prefill(prompt), history)
    mx.async_eval(token, logprob)
    for count in range(1, max_tokens + 1):
        ahead = None
        if count < max_tokens and not choose.needs_history:
            ahead = choose(decoder.step(token), history)
            mx.async_eval(*ahead)
        current, score = int(token.item()), float(logprob.item())  # type: ignore[arg-type]
        if current == tokenizer.eos_id:
            yield Piece(current, score, stream.add(b"", last=True), "stop")
            return
        history.append(current)
        text = stream.add(tokenizer.token_bytes[current] if current < tokenizer.vocab_size else b"")
        if stream.stopped:
            yield Piece(current, score, text, "stop")
            return
        if count == max_tokens:
            yield Piece(current, score, text + stream.add(b"", last=True), "length")
            return
        yield Piece(current, score, text)
        token, logprob = ahead if ahead is not None else choose(decoder.step(token), history)


@dataclass(frozen=True)
class Generation:
    """A finished answer; times in seconds."""

    text: str
    token_ids: list[int]
    finish_reason: str
    time_to_first_token: float
    tokens_per_second: float


def collect(pieces: Iterator[Piece], show=lambda text: None) -> Generation:
    """Run a generation to its end, passing each new text to `show`; tokens/s are those of decoding alone."""
    start = time.perf_counter()
    first = start
    texts: list[str] = []
    ids: list[int] = []
    reason = "length"
    for piece in pieces:
        if not ids:
            first = time.perf_counter()
        if piece.token is not None:
            ids.append(piece.token)
        texts.append(piece.text)
        reason = piece.finish_reason or reason
        show(piece.text)
    decoding = time.perf_counter() - first
    speed = (len(ids) - 1) / decoding if len(ids) > 1 and decoding > 0 else 0.0
    return Generation("".join(texts), ids, reason, first - start, speed)
