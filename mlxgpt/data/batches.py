"""Batches as a pure function of (seed, step): nothing to save, nothing to replay when a run resumes."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from mlxgpt.config import DataConfig, TrainConfig
from mlxgpt.data import fim
from mlxgpt.data.fim import Infilling
from mlxgpt.errors import Error

if TYPE_CHECKING:
    from mlxgpt.data.shards import Shards


def shuffled(index: int, n: int, seed: int) -> int:
    """Where `index` goes in a pseudo-random permutation of range(n), in constant memory.

    A four-round Feistel network over the next even number of bits, walked until it lands below n (Black and Rogaway,
    "Ciphers with Arbitrary Finite Domains", 2002).
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for round_ in range(4):
            digest = hashlib.blake2b(f"{seed},{round_},{right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest) & mask)
        index = left << half | right
        if index < n:
            return index


class Stream:
    """A split's tokens, and the windows of `length` tokens and one more that rows are read from: each once an epoch.

    Every epoch cuts the tokens into windows at another offset and visits them in another order. `starts` are the
    places in `tokens`, int [n], at which documents begin; without them all is one document. `share` is how many of a
    batch's rows come from here.
    """

    def __init__(
        self, tokens: np.ndarray, length: int, seed: int, starts: np.ndarray | None = None,
        share: Fraction = Fraction(1),
    ) -> None:  # fmt: skip
        self.tokens, self.length, self.seed, self.share = tokens, length, seed, share
        self.starts = np.zeros(1, np.int64) if starts is None else starts
        self.windows = (len(tokens) - 1) // length - 1 if len(tokens) > 2 * length else (len(tokens) - 1) // length

    def start(self, index: int) -> int:
        """Where row number `index` begins to read."""
        epoch, within = divmod(index, self.windows)
        spare = len(self.tokens) - 1 - self.windows * self.length  # tokens that no window of an epoch covers
        offset = shuffled(epoch % (spare + 1), spare + 1, self.seed ^ 0x5EED)
        return offset + shuffled(within, self.windows, self.seed + (epoch << 32)) * self.length

    def document(self, place: int) -> int:
        """The number of the document that holds the token at `place`."""
        return int(np.searchsorted(self.starts, place, "right")) - 1

    def end(self, document: int) -> int:
        """Where a document ends."""
        return int(self.starts[document + 1]) if document + 1 < len(self.starts) else len(self.tokens)


@dataclass(frozen=True)
class Row:
    """What one row of a batch is made of, [length + 1] each: `tokens`; `pieces`, numbers that change where another
    document begins; `parts` of `fim.PARTS`. `documents` says for each piece which document of stream `stream` it is."""

    tokens: np.ndarray
    pieces: np.ndarray
    parts: np.ndarray
    documents: list[int]
    stream: int


class Batches:
    """Rows of `length` tokens and the tokens that follow them, from one corpus or several.

    `streams`: the corpus, and then others of which each gives its `share` of the rows, evenly spread. `infilling`
    rearranges documents, or what of them is within a row; a row is then read on until it is full. `isolated`: batches
    say which tokens are of one document. Raises Error for a corpus that is too small.
    """

    def __init__(
        self, streams: Sequence[Stream], batch_size: int, infilling: Infilling | None = None, isolated: bool = False
    ) -> None:  # fmt: skip
        self.streams, self.batch_size, self.infilling, self.isolated = streams, batch_size, infilling, isolated
        for i, stream in enumerate(streams):
            least = 1 if i else batch_size
            if stream.windows < least:
                which, sequences = ("to mix in ", "one sequence") if i else ("", f"one batch of {batch_size} sequences")
                raise Error(
                    f"the corpus {which}is too small: {len(stream.tokens):,} training tokens do not fill {sequences} "
                    f"of {stream.length}; add text, or lower train.batch_size or train.sequence_length"
                )

    def batch(self, step: int, sequences: int | None = None, length: int | None = None) -> tuple[np.ndarray, ...]:
        """Batch number `step`, from 0: inputs and targets, int32 [batch_size, length of a row] each.

        Where documents are isolated and a row has more than one, a third array of that kind numbers the inputs'.
        Given `sequences` and `length`, which divides a row's: the first rows alone, cut to that shape. The rows of a
        batch are the same whatever the shape of those before it was; what it leaves out waits for another epoch.
        """
        whole = self.streams[0].length
        length = length or whole
        count = self.batch_size if sequences is None else sequences * length // whole
        rows = [self.row(step * self.batch_size + i) for i in range(count)]
        block = np.stack([row.tokens for row in rows])
        pieces = np.stack([row.pieces for row in rows])[:, :-1].reshape(-1, length)
        apart = (pieces,) if self.isolated and (pieces != pieces[:, :1]).any() else ()
        return block[:, :-1].reshape(-1, length), block[:, 1:].reshape(-1, length), *apart

    def place(self, index: int) -> tuple[int, int]:
        """Which stream row number `index` comes from, and its number among that stream's rows.

        Of the first n rows a stream has n times its share, rounded down, but for what others before it took.
        """
        left = Fraction(1)
        for number, stream in reversed(list(enumerate(self.streams))):
            if number == 0:
                break
            share = stream.share / left
            before = math.floor(index * share)
            if math.floor((index + 1) * share) > before:
                return number, before
            index, left = index - before, left - stream.share
        return 0, index

    def row(self, index: int) -> Row:
        """Row number `index`, from 0, of all batches one after the other."""
        number, within = self.place(index)
        stream = self.streams[number]
        at, size = stream.start(within), stream.length + 1
        if self.infilling is None:
            return _plain(stream, at, number)
        draw = np.random.default_rng([stream.seed, number, within])
        ids: list[int] = []
        pieces: list[int] = []
        parts: list[int] = []
        documents: list[int] = []
        while len(ids) < size:
            room = size - len(ids)
            document = stream.document(at)
            end = min(stream.end(document), at + room)
            plain = stream.tokens[at:end]
            its, its_parts = self.infilling(plain, room, draw) or (plain.tolist(), [fim.TEXT] * len(plain))
            pieces += [len(documents)] * len(its)
            documents.append(document)
            ids, parts = ids + its, parts + its_parts
            at = end % len(stream.tokens)
        return Row(np.array(ids, np.int32), np.array(pieces, np.int32), np.array(parts, np.int8), documents, number)


def _plain(stream: Stream, at: int, number: int) -> Row:
    """The row that begins at `at`, as the corpus has it."""
    tokens = np.asarray(stream.tokens[at : at + stream.length + 1], np.int32)
    first = stream.document(at)
    documents = np.searchsorted(stream.starts, np.arange(at, at + len(tokens)), "right") - 1
    pieces, held = (documents - first).astype(np.int32), list(range(first, int(documents[-1]) + 1))
    return Row(tokens, pieces, np.zeros(len(tokens), np.int8), held, number)


def of_shards(shards: "Shards", data: DataConfig, train: TrainConfig) -> Batches:
    """The batches of a run: its corpus, and what is mixed in. Raises Error."""
    streams = [
        Stream(each.tokens("train"), train.sequence_length, train.seed + (i << 40), each.starts("train"), share)
        for i, (each, share) in enumerate([(shards, Fraction(1)), *shards.mixed])
    ]
    infilling = Infilling(shards.tokenizer, data.fim_rate, data.fim_spm) if data.fim_rate else None
    return Batches(streams, train.batch_size, infilling, data.isolate_documents)


def in_order(tokens: np.ndarray, batch_size: int, length: int):
    """The whole of `tokens` once, in order, for evaluation: yields inputs, targets and weights, [batch_size, length].

    int32, int32 and float32; weight 0 marks padding after the last token. Every token but the first is a target once.
    """
    n = len(tokens) - 1
    for first in range(0, n, batch_size * length):
        block = np.zeros((batch_size, length + 1), np.int32)
        weights = np.zeros((batch_size, length), np.float32)
        for row, start in enumerate(range(first, min(first + batch_size * length, n), length)):
            part = tokens[start : start + length + 1]
            block[row, : len(part)] = part
            weights[row, : len(part) - 1] = 1
        yield block[:, :-1], block[:, 1:], weights
