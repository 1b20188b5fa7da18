"""Several prompts at once: each is prefilled by itself, then all are decoded side by side, a row each.

Decoding reads the weights once a step, however many rows there are.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count

import mlx.core as mx

from mlxgpt.generation.engine import (
    Choice,
    Decoder,
    Generation,
    Piece,
    Request,
    chooser,
    collect,
    compiled_step,
    pick,
    read,
    text_of,
    within_context,
)
from mlxgpt.models import Model
from mlxgpt.models.cache import STEP, grown
from mlxgpt.tokenizer import Tokenizer

ROWS = 8  # prompts decoded side by side at most


def _joined(rows: Sequence[mx.array]) -> mx.array:
    """The rows as one array that is nobody else's: a layer in C++ writes into its cache's memory."""
    return mx.concatenate(list(rows), axis=0) if len(rows) > 1 else rows[0] + mx.array(0, rows[0].dtype)


class Rows:
    """Prefilled decoders merged into one: buffers [B, ...] a layer, and a position a row."""

    def __init__(self, decoders: Sequence[Decoder]) -> None:
        first = decoders[0]
        self._step = compiled_step(first.model, first.kv_bits)
        self.positions = [d.position for d in decoders]
        self._limit = first.caches[0].limit
        longest = max(d.caches[0].capacity for d in decoders)
        for decoder in decoders:
            for cache in decoder.caches:
                cache.reserve(longest - cache.offset)
        self._buffers = [
            [_joined(row) for row in zip(*(d.caches[i].buffers for d in decoders), strict=True)]
            for i in range(len(first.caches))
        ]

    def add(self, decoder: Decoder) -> None:
        """Another row, the last: what a prefilled decoder holds, which stays its own."""
        joining = [cache.buffers for cache in decoder.caches]
        capacity = max(self.capacity, decoder.caches[0].capacity)
        self._buffers = [
            [mx.concatenate([_with_capacity(b, capacity) for b in pair], axis=0) for pair in zip(*layer, strict=True)]
            for layer in zip(self._buffers, joining, strict=True)
        ]
        self.positions.append(decoder.position)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone, in this order."""
        which = mx.array(list(rows), mx.int32)
        self._buffers = [[mx.take(b, which, axis=0) for b in layer] for layer in self._buffers]
        self.positions = [self.positions[i] for i in rows]

    @property
    def capacity(self) -> int:
        """Positions that each row has room for."""
        return self._buffers[0][0].shape[2]

    def step(self, tokens: list[int]) -> mx.array:
        """Append one token to each row; returns the logits [B, V] after them. Lazy."""
        capacity = self.capacity
        if max(self.positions) >= capacity and capacity != self._limit:
            self._buffers = [[grown(b, min(STEP, (self._limit or 1 << 62) - capacity)) for b in layer]
                             for layer in self._buffers]  # fmt: skip
        logits, self._buffers = self._step(mx.array(tokens), mx.array(self.positions), self._buffers)
        self.positions = [p + 1 for p in self.positions]
        return logits


def _with_capacity(buffer: mx.array, capacity: int) -> mx.array:
    room = capacity - buffer.shape[2]
    return grown(buffer, room) if room > 0 else buffer


def generate(
    model: Model, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], request: Request, kv_bits: int | None = None
) -> list[Generation]:
    """Continue every prompt; each answer is the one it would get alone. Times are those of its group of rows."""
    answers: list[Generation] = []
    for start in range(0, len(prompts), ROWS):
        answers += _group(model, tokenizer, prompts[start : start + ROWS], request, kv_bits)
    return answers


def _group(
    model: Model, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], request: Request, kv_bits: int | None
) -> list[Generation]:
    began = time.perf_counter()
    requests = [within_context(model, prompt, request) for prompt in prompts]
    choose = chooser(model, tokenizer, request)
    histories = [list(prompt) for prompt in prompts]
    decoders = [Decoder(model, kv_bits) for _ in prompts]
    logits = mx.concatenate([d.prefill(p) for d, p in zip(decoders, prompts, strict=True)])
    rows = Rows(decoders)
    latest: list[Choice] = [Choice(0, 0.0)] * len(prompts)
    texts = [text_of(_always(latest, i), tokenizer, r, prompts[i]) for i, r in enumerate(requests)]
    pieces: list[list[Piece]] = [[] for _ in prompts]
    open_rows = [i for i, r in enumerate(requests) if r.max_tokens > 0]
    first = 0.0
    for step in count():
        picks = []
        for i in open_rows:
            logprobs = choose.logprobs(logits[i : i + 1], histories[i])
            picks.append(pick(choose.draw(logprobs, step), logprobs, request.logprobs))
        mx.eval(picks)
        for i, picked in zip(open_rows, picks, strict=True):
            latest[i] = read(picked)
            histories[i].append(latest[i].token)
            pieces[i].append(next(texts[i]))
        first = first or time.perf_counter() - began
        open_rows = [i for i in open_rows if pieces[i][-1].finish_reason is None]
        if not open_rows:
            break
        for i in set(range(len(prompts))) - set(open_rows):
            rows.positions[i] -= 1  # a finished row stays where it is, and no one reads what it writes there
        logits = rows.step([history[-1] for history in histories])
    decoding = max(1e-9, time.perf_counter() - began - first)
    speed = sum(max(0, len(p) - 1) for p in pieces) / decoding
    return [replace(collect(iter(p)), time_to_first_token=first, tokens_per_second=speed) for p in pieces]


def _always(latest: list[Choice], row: int) -> Iterator[Choice]:
    """A row's latest choice, whenever one is asked for."""
    while True:
        yield latest[row]
