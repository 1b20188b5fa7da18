"""Continuous batching: requests join and leave between two tokens, and each reads what it would alone.

After Yu et al., "Orca: a distributed serving system for transformer-based generative models" (OSDI 2022): what is
scheduled is one step, not one request. Between two tokens of all the others a piece of a new prompt is computed.
"""

from collections.abc import Iterator, Sequence

import mlx.core as mx

from mlxgpt.generation.batch import ROWS, Rows
from mlxgpt.generation.engine import (
    Choice,
    Decoder,
    Piece,
    Request,
    chooser,
    common_length,
    pick,
    read,
    text_of,
    within_context,
)
from mlxgpt.models import Model
from mlxgpt.tokenizer import Tokenizer

PIECE = 128  # tokens of a prompt that are computed between two tokens of the others
MEMORY = 256 << 20  # bytes of prompts' caches that are kept for prompts that begin alike


class Member:
    """A request in a batch: `prompt` (token ids) of which `cached` tokens needed no computing, and its `history`, the
    prompt and the tokens chosen since."""

    def __init__(self, model: Model, tokenizer: Tokenizer, prompt: Sequence[int], request: Request) -> None:
        self.prompt, self.history = list(prompt), list(prompt)
        self.request = within_context(model, prompt, request)
        self.choose = chooser(model, tokenizer, self.request)
        self.cached = 0
        self.decoder: Decoder | None = None
        self._latest = Choice(0, 0.0)
        self._pieces = text_of(self._choices(), tokenizer, self.request, self.prompt)

    def _choices(self) -> Iterator[Choice]:
        while True:
            yield self._latest

    def take(self, choice: Choice) -> Piece:
        """The piece of text that comes of the next token."""
        self._latest = choice
        self.history.append(choice.token)
        return next(self._pieces)

    @property
    def step(self) -> int:
        """How many tokens were chosen."""
        return len(self.history) - len(self.prompt)


class Batch:
    """Requests for one model, decoded side by side, `rows` at most. Not safe to share between threads."""

    def __init__(
        self, model: Model, tokenizer: Tokenizer, kv_bits: int | None = None, rows: int = ROWS, memory: int = MEMORY
    ) -> None:
        self.model, self.tokenizer, self.kv_bits, self.most = model, tokenizer, kv_bits, rows
        self._prompts = _Prompts(memory)
        self._joining: list[Member] = []  # whose prompts are not computed yet
        self._decoding: list[Member] = []
        self._rows: Rows | None = None

    def __len__(self) -> int:
        return len(self._joining) + len(self._decoding)

    @property
    def full(self) -> bool:
        """Whether there is no room for another request."""
        return len(self) >= self.most

    def join(self, prompt: Sequence[int], request: Request) -> Member:
        """Take a request in. Raises Error for a prompt that is empty or does not fit the model's context."""
        decoder = Decoder(self.model, self.kv_bits)
        decoder.fit(len(prompt))
        if not prompt:
            decoder.prefill(prompt)  # which says what is wrong
        member = Member(self.model, self.tokenizer, prompt, request)
        self._joining.append(member)
        return member

    def leave(self, member: Member) -> None:
        """Let a request go, at once; one that has ended has left already."""
        if member in self._joining:
            self._joining.remove(member)
            if member.decoder is not None:
                self._prompts.give(member.prompt[: member.decoder.position], member.decoder)
        elif member in self._decoding:
            self._keep([i for i, other in enumerate(self._decoding) if other is not member])

    def step(self) -> list[tuple[Member, Piece | None]]:
        """One token for each request, and a piece of the prompt of the one that waits longest.

        Returns what came of it. None stands for a prompt that is computed now, and comes before its first piece; a
        request for no tokens ends with it. The others end with a piece that has a finish_reason.
        """
        told: list[tuple[Member, Piece | None]] = []
        if self._rows is not None:
            logits = self._rows.step([member.history[-1] for member in self._decoding])
            told += self._choose(self._decoding, logits)
            going_on = [i for i, (_, piece) in enumerate(told) if piece is not None and piece.finish_reason is None]
            self._keep(going_on)
        if self._joining:
            told += self._prefill(self._joining[0])
        return told

    def _choose(self, members: list[Member], logits: mx.array) -> list[tuple[Member, Piece | None]]:
        """The next piece of each member, from its row of logits [B, V]."""
        picks = []
        for i, member in enumerate(members):
            logprobs = member.choose.logprobs(logits[i : i + 1], member.history)
            picks.append(pick(member.choose.draw(logprobs, member.step), logprobs, member.request.logprobs))
        mx.eval(picks)
        return [(member, member.take(read(picked))) for member, picked in zip(members, picks, strict=True)]

    def _prefill(self, member: Member) -> list[tuple[Member, Piece | None]]:
        if member.decoder is None:
            member.decoder = self._prompts.take(member.prompt) or Decoder(self.model, self.kv_bits)
            member.cached = member.decoder.position
        at = member.decoder.position
        logits = member.decoder.prefill(member.prompt[at : at + PIECE])
        if member.decoder.position < len(member.prompt):
            mx.eval(logits)
            return []
        self._joining.remove(member)
        told: list[tuple[Member, Piece | None]] = [(member, None)]
        if member.request.max_tokens > 0:
            told += self._choose([member], logits)
            piece = told[-1][1]
            if piece is not None and piece.finish_reason is None:
                self._add(member, member.decoder)
        self._prompts.give(member.prompt, member.decoder)
        member.decoder = None
        return told

    def _add(self, member: Member, decoder: Decoder) -> None:
        if self._rows is None:
            self._rows = Rows([decoder])
        else:
            self._rows.add(decoder)
        self._decoding.append(member)

    def _keep(self, rows: list[int]) -> None:
        if self._rows is not None and len(rows) < len(self._decoding):
            self._decoding = [self._decoding[i] for i in rows]
            if rows:
                self._rows.keep(rows)
            else:
                self._rows = None


class _Prompts:
    """Decoders of the last prompts, which the next one may begin with, in `memory` bytes; the oldest go first."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self._held: list[tuple[list[int], Decoder]] = []

    def take(self, prompt: Sequence[int]) -> Decoder | None:
        """A decoder that holds the beginning of `prompt`, but not all of it, and nothing else; it is no longer held.

        None where no prompt shares at least half of itself: another may still want it.
        """
        shared = [common_length(ids, prompt) for ids, _ in self._held]
        best = max(range(len(shared)), key=shared.__getitem__, default=None)
        if best is None or 2 * shared[best] < len(self._held[best][0]):
            return None
        decoder = self._held.pop(best)[1]
        decoder.rewind(min(shared[best], len(prompt) - 1))
        return decoder

    def give(self, prompt: list[int], decoder: Decoder) -> None:
        """Hold a decoder of this prompt."""
        self._held.append((prompt, decoder))
        while sum(_nbytes(d) for _, d in self._held) > self.memory:
            self._held.pop(0)


def _nbytes(decoder: Decoder) -> int:
    return sum(buffer.nbytes for cache in decoder.caches for buffer in cache.buffers)
