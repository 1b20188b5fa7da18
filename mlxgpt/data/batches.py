"""Batches as a pure function of (seed, step): nothing to save, nothing to replay when a run resumes."""

import hashlib

import numpy as np

from mlxgpt.errors import Error


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


class Batches:
    """Sequences of `length` tokens and the tokens that follow them, each of the corpus's windows once an epoch.

    Every epoch cuts the corpus into windows at another offset and visits them in another order.
    """

    def __init__(self, tokens: np.ndarray, batch_size: int, length: int, seed: int) -> None:
        self.tokens, self.batch_size, self.length, self.seed = tokens, batch_size, length, seed
        self.windows = (len(tokens) - 1) // length - 1 if len(tokens) > 2 * length else (len(tokens) - 1) // length
        if self.windows < batch_size:
            raise Error(
                f"the corpus is too small: {len(tokens):,} training tokens do not fill one batch of {batch_size} "
                f"sequences of {length}; add text, or lower train.batch_size or train.sequence_length"
            )

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch number `step`, from 0: inputs and targets, int32 [batch_size, length] each."""
        rows = [self._row(step * self.batch_size + i) for i in range(self.batch_size)]
        block = np.stack(rows).astype(np.int32)
        return block[:, :-1], block[:, 1:]

    def _row(self, index: int) -> np.ndarray:
        epoch, within = divmod(index, self.windows)
        spare = len(self.tokens) - 1 - self.windows * self.length  # tokens that no window of an epoch covers
        offset = shuffled(epoch % (spare + 1), spare + 1, self.seed ^ 0x5EED)
        start = offset + shuffled(within, self.windows, self.seed + (epoch << 32)) * self.length
        return self.tokens[start : start + self.length + 1]


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
