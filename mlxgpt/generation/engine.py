"""Prefill, decode, stop: a model and its caches, one token at a time, and the text that comes of it."""

import codecs
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

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
    the caches' fixed shape and traced anew only when they grow. `kv_bits` 8 or 4 keeps the caches quantized.
    """

    def __init__(self, model: Model, kv_bits: int | None = None) -> None:
        self.model, self.kv_bits = model, kv_bits
        window = getattr(model.config, "sliding_window", None)
        self.caches = [KVCache(window, kv_bits) for _ in model.layers]
        self._step = compiled_step(model, kv_bits)

    @property
    def position(self) -> int:
        """Tokens in the caches."""
        return self.caches[0].offset

    def prefill(self, tokens: Sequence[int], progress: Callable[[int], None] = lambda done: None) -> mx.array:
        """Append a prompt of at least one token, in chunks; `progress` hears how many are done after each, and may
        raise to stop. Raises Error where the prompt does not fit the model's context."""
        self.fit(len(tokens))
        if not tokens:
            raise Error("the prompt is empty: there is nothing to continue")
        for start in range(0, len(tokens), PREFILL_CHUNK):
            chunk = mx.array(list(tokens[start : start + PREFILL_CHUNK]))[None]
            features = self.model.features(chunk, self.caches)
            mx.eval([c.buffers for c in self.caches], features)
            progress(min(start + PREFILL_CHUNK, len(tokens)))
        return self.model.logits(features[:, -1])

    def extend(self, tokens: Sequence[int]) -> mx.array:
        """Append a few tokens at once; returns the logits [T, V] after each of them. Lazy."""
        self.fit(len(tokens))
        return self.model(mx.array(list(tokens))[None], self.caches)[0]

    def step(self, token: mx.array) -> mx.array:
        """Append one token, int32 [1], to a prefilled cache. Lazy: nothing is computed until the logits are."""
        self.fit(1)
        for cache in self.caches:
            cache.reserve(1)
        logits, buffers = self._step(token, mx.array([self.position]), [c.buffers for c in self.caches])
        for cache, updated in zip(self.caches, buffers, strict=True):
            cache.buffers, cache.offset = updated, cache.offset + 1
        return logits

    def trim(self, position: int) -> None:
        """Forget every token from `position` on; a rolling cache goes back only as far as `oldest`."""
        for cache in self.caches:
            cache.trim(position)

    def oldest(self) -> int:
        """The smallest position that `trim` takes."""
        return max(cache.oldest() for cache in self.caches)

    def rewind(self, position: int) -> int:
        """`trim` to `position`, or to 0 where a rolling cache has overwritten what that needs; returns which."""
        if position >= self.oldest():
            self.trim(position)
        else:
            for cache in self.caches:
                cache.clear()
        return self.position

    def fit(self, count: int) -> None:
        """Raise Error unless `count` more tokens fit the model's context."""
        context = self.model.config.context
        if self.position + count > context:
            raise Error(
                f"{self.position + count} tokens do not fit the model's context of {context}: shorten the prompt"
            )


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens two sequences share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def compiled_step(model: Model, kv_bits: int | None) -> Callable:
    """A compiled function (tokens [B], positions [B], a list of buffers a layer) -> (logits [B, V], the buffers)."""

    def one_token(tokens: mx.array, positions: mx.array, buffers: list[list[mx.array]]):
        slots = [Slot(b, positions, kv_bits) for b in buffers]
        logits = model(tokens[:, None], slots)[:, -1]
        return logits, [s.buffers for s in slots]

    return mx.compile(one_token)


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
class Choice:
    """A chosen token with its log-probability, and the likeliest tokens at its place with theirs."""

    token: int
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Piece:
    """One decoded token, and the text that became certain with it; `finish_reason` is set on the last piece."""

    choice: Choice
    text: str
    finish_reason: str | None = None


@dataclass(frozen=True)
class Request:
    """What to write after a prompt: how much, how chosen, where to stop. `logprobs` likeliest tokens are told."""

    max_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    stops: Sequence[str] = ()
    seed: int = 0
    logprobs: int = 0
    closing: Collection[int] = ()  # token ids that end a text like the tokenizer's closing token
    progress: Callable[[int, int], None] = lambda done, total: None  # hears how much of a prompt is computed
    cancelled: Callable[[], bool] = lambda: False  # asked after each chunk of a prompt and after each token


class Cancelled(Exception):
    """A request was cancelled before its prompt was computed."""


def chooser(model: Model, tokenizer: Tokenizer, request: Request) -> Chooser:
    """The chooser of a request; XTC never takes the closing token or a newline away."""
    protected = [*([] if tokenizer.eos_id is None else [tokenizer.eos_id]), *request.closing]
    newline = [i for i, data in enumerate(tokenizer.token_bytes) if data == b"\n"]
    xtc = request.sampling.xtc_probability > 0
    return Chooser(request.sampling, model.config.vocab_size, request.seed, protected + newline if xtc else ())


Pick = tuple[mx.array, ...]  # a choice not yet read: ids and their log-probabilities, [1] each, then [top] each


def pick(token: mx.array, logprobs: mx.array, top: int) -> Pick:
    """The choice of token [1] from its row of log-probabilities [1, V], with the `top` likeliest. Lazy."""
    rows = [token, mx.argsort(-logprobs[0])[:top]] if top else [token]
    return tuple(x for ids in rows for x in (ids, logprobs[0, ids]))


def read(picked: Pick) -> Choice:
    """A choice, once it is computed."""
    tokens, logprobs, *best = (x.tolist() for x in picked)
    return Choice(tokens[0], logprobs[0], list(zip(*best, strict=True)))  # type: ignore[index, arg-type]


def decode(
    decoder: Decoder, logits: mx.array, choose: Chooser, history: list[int], request: Request
) -> Iterator[Choice]:
    """Choices one after the other, `request.max_tokens` at most, each appended to `history`.

    The next token is computed while the last one is read, unless penalties must know it first.
    """

    def following(logits: mx.array, step: int) -> Pick:
        picked: Pick | None = None if request.logprobs else choose.choose(logits, history, step)
        if picked is None:
            logprobs = choose.logprobs(logits, history)
            picked = pick(choose.draw(logprobs, step), logprobs, request.logprobs)
        mx.async_eval(*picked)
        return picked

    picked = following(logits, 0)
    for step in range(1, request.max_tokens + 1):
        more, ahead = step < request.max_tokens, None
        if more and not choose.needs_history:
            ahead = following(decoder.step(picked[0]), step)
        choice = read(picked)
        history.append(choice.token)
        yield choice
        if more:
            picked = ahead or following(decoder.step(picked[0]), step)


def text_of(
    choices: Iterator[Choice], tokenizer: Tokenizer, request: Request, prompt: Sequence[int]
) -> Iterator[Piece]:
    """Choices -> pieces of text, ending at a closing token or a stop text ("stop"), after max_tokens ("length"), or
    once the request is cancelled ("cancelled").

    Every byte that the model wrote is shown, leading spaces too, but for the tokenizer's dummy prefix where the text
    begins here: where `prompt` ends in a control token.
    """
    stream, hidden = TextStream(request.stops), tokenizer.hidden_after(prompt)
    for count, choice in enumerate(choices, 1):
        if choice.token == tokenizer.eos_id or choice.token in request.closing:
            yield Piece(choice, stream.add(b"", last=True), "stop")
            return
        data = tokenizer.token_bytes[choice.token] if choice.token < tokenizer.vocab_size else b""
        if data:
            data, hidden = data.removeprefix(hidden), b""
        text = stream.add(data)
        if stream.stopped:
            yield Piece(choice, text, "stop")
            return
        if count == request.max_tokens:
            yield Piece(choice, text + stream.add(b"", last=True), "length")
            return
        if request.cancelled():
            yield Piece(choice, text + stream.add(b"", last=True), "cancelled")
            return
        yield Piece(choice, text)


def within_context(model: Model, prompt: Sequence[int], request: Request) -> Request:
    """`request` with no more tokens than the model's context has room for after the prompt."""
    return replace(request, max_tokens=min(request.max_tokens, model.config.context - len(prompt) + 1))


def prefill(decoder: Decoder, prompt: Sequence[int], request: Request) -> mx.array:
    """Compute what `decoder` does not hold of `prompt`, telling `request.progress` the tokens done, of all; returns the
    logits [1, V] after it. Raises Cancelled, with the chunks computed so far in the caches, and Error."""
    held = decoder.position
    request.progress(held, len(prompt))

    def tell(done: int) -> None:
        request.progress(held + done, len(prompt))
        if request.cancelled():
            raise Cancelled

    return decoder.prefill(prompt[held:], tell)


def generate(
    model: Model, tokenizer: Tokenizer, prompt: Sequence[int], request: Request, decoder: Decoder | None = None
) -> Iterator[Piece]:
    """Continue `prompt` (token ids). Ends with finish_reason "stop" (a closing token, or a stop text, which is not
    returned), "length" (max_tokens, or the context is full) or "cancelled".

    A `decoder` that holds the prompt's beginning already computes only the rest of it. Raises Cancelled where there
    was no first token yet.
    """
    request = within_context(model, prompt, request)
    decoder = decoder or Decoder(model)
    logits = prefill(decoder, prompt, request)
    yield from text_of(
        decode(decoder, logits, chooser(model, tokenizer, request), list(prompt), request), tokenizer, request, prompt
    )


@dataclass(frozen=True)
class Generation:
    """A finished answer; times in seconds."""

    text: str
    choices: list[Choice]
    finish_reason: str
    time_to_first_token: float
    tokens_per_second: float

    @property
    def token_ids(self) -> list[int]:
        """The chosen tokens."""
        return [c.token for c in self.choices]


def collect(pieces: Iterator[Piece], show: Callable[[str], object] = lambda text: None) -> Generation:
    """Run a generation to its end, passing each new text to `show`; tokens/s are those of decoding alone.

    One that was Cancelled before its first token is an empty one with that finish_reason.
    """
    start = first = time.perf_counter()
    texts: list[str] = []
    choices: list[Choice] = []
    reason = "length"
    try:
        for piece in pieces:
            if not choices:
                first = time.perf_counter()
            choices.append(piece.choice)
            texts.append(piece.text)
            reason = piece.finish_reason or reason
            show(piece.text)
    except Cancelled:
        reason = "cancelled"
    decoding = time.perf_counter() - first
    speed = (len(choices) - 1) / decoding if len(choices) > 1 and decoding > 0 else 0.0
    return Generation("".join(texts), choices, reason, first - start, speed)
