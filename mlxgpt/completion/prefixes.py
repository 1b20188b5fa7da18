"""Model state for the documents in use: what one prompt shares with an earlier one is computed once."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import mlx.core as mx

from mlxgpt.generation.engine import Decoder, common_length
from mlxgpt.models import Model

PIECE = 128  # tokens of a prompt computed between two looks at whether the request was cancelled


class Cancelled(Exception):
    """The request is no longer wanted."""


class Prefix:
    """One document's decoder, and the token ids in its caches."""

    def __init__(self, model: Model) -> None:
        self.decoder = Decoder(model)
        self.computed: list[int] = []
        self.reused = 0  # of the last prompt's tokens, those that were in the caches

    @property
    def nbytes(self) -> int:
        """Bytes of its caches."""
        return sum(buffer.nbytes for cache in self.decoder.caches for buffer in cache.buffers)

    def logits(self, ids: Sequence[int], rows: int = 1, check: Callable[[], None] = lambda: None) -> mx.array:
        """Logits [rows, V] after each of the last `rows` of `ids`; tokens in the caches are not computed again.

        `check` is called between pieces of a long prompt, and may raise."""
        wanted = list(ids)
        shared = self.decoder.rewind(min(common_length(self.computed, wanted), len(wanted) - rows))
        self.reused = shared
        self.computed = wanted[:shared]  # true as well where what follows fails
        last = len(wanted) - (rows if rows > 1 else min(PIECE, len(wanted) - shared))
        for start in range(shared, last, PIECE):
            check()
            self.decoder.prefill(wanted[start : min(start + PIECE, last)])
            self.computed = wanted[: min(start + PIECE, last)]
        check()
        fresh = wanted[len(self.computed) :]
        if rows > 1:
            logits = self.decoder.extend(fresh)
        elif shared and len(fresh) == 1:
            logits = self.decoder.step(mx.array(fresh))
        else:
            logits = self.decoder.prefill(fresh)
        self.computed = wanted
        return logits


class Prefixes:
    """The documents' prefixes, those used longest ago dropped when their caches outgrow `memory` bytes."""

    def __init__(self, model: Model, memory: int) -> None:
        self.model, self.memory = model, memory
        self._held: OrderedDict[str, Prefix] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def of(self, document: str) -> Prefix:
        """The prefix of a document, a new one where it has none; now the most recently used."""
        prefix = self._held.pop(document, None) or Prefix(self.model)
        total = prefix.nbytes + sum(p.nbytes for p in self._held.values())
        while self._held and total > self.memory:
            total -= self._held.popitem(last=False)[1].nbytes
        self._held[document] = prefix
        return prefix
