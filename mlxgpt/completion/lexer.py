"""Text -> words, numbers, spaces and signs, for n-grams that no model's tokenizer is needed for."""

import re
from bisect import bisect_left, insort
from collections.abc import Iterable

import numpy as np

from mlxgpt.completion.ngram import UNKNOWN
from mlxgpt.tokenizer import Tokenizer

TOKEN = re.compile(rb"[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*|[0-9]+|[^\S\r\n]+|\r?\n|.", re.DOTALL)
OPEN = re.compile(rb"[A-Za-z0-9_\x80-\xff]|[^\S\r\n]")  # the last byte of a token that typing may lengthen
WORD = 200  # bytes of memory that a word takes beside its own
FIXED = 3  # ids that stand for what opens a document, closes it, and ends a line


class Lexer(Tokenizer):
    """A tokenizer whose vocabulary is what it has met: `learn` adds to it, `encode` gives UNKNOWN for what is new, and
    `keep` forgets what is used no more."""

    def __init__(self, vocabulary: list[bytes] | None = None) -> None:
        self.token_bytes = [b"", b"", b"\n"] if vocabulary is None else vocabulary
        self.bos_id, self.eos_id = 0, 1
        self._id_of = {data: i for i, data in enumerate(self.token_bytes) if data}
        self._sorted: list[bytes] = sorted(self._id_of)
        self._new: list[bytes] = []  # not sorted in yet
        self._free: list[int] = []  # ids of what was forgotten
        self.nbytes = sum(WORD + len(data) for data in self._id_of)  # of memory, about

    def learn(self, data: bytes) -> list[int]:
        """Ids of the tokens of `data`, new ones among them, between those that open and close a document."""
        known = self._id_of
        ids = [0]
        for token in TOKEN.findall(data):
            i = known.get(token)
            if i is None:
                i = known[token] = self._place(token)
                self._new.append(token)
                self.nbytes += WORD + len(token)
            ids.append(i)
        return [*ids, 1]

    def _place(self, token: bytes) -> int:
        if self._free:
            i = self._free.pop()
            self.token_bytes[i] = token
            return i
        self.token_bytes.append(token)
        return len(self.token_bytes) - 1

    def keep(self, used: Iterable[np.ndarray]) -> None:
        """Forget what is in none of these int32 arrays of ids: its ids may soon stand for other words."""
        kept = np.zeros(len(self.token_bytes), bool)
        kept[:FIXED] = True
        for ids in used:
            kept[ids[ids >= 0]] = True
        self._free = np.flatnonzero(~kept).tolist()
        for i in self._free:
            self.token_bytes[i] = b""
        self._id_of = {data: i for i, data in enumerate(self.token_bytes) if data}
        self._sorted = sorted(self._id_of)
        self._new.clear()
        self.nbytes = sum(WORD + len(data) for data in self._id_of)

    def encode(self, data: str | bytes) -> list[int]:
        """Ids of the tokens of `data`, UNKNOWN for one that was never learned."""
        data = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
        return [self._id_of.get(token, UNKNOWN) for token in TOKEN.findall(data)]

    def completions(self, prefix: bytes) -> list[int]:
        """Ids of the tokens that begin with `prefix`."""
        if len(self._new) > 64:
            self._sorted = sorted(self._id_of)
        else:
            for token in self._new:
                insort(self._sorted, token)
        self._new.clear()
        low, high = bisect_left(self._sorted, prefix), bisect_left(self._sorted, prefix + b"\xff" * 64)
        return [self._id_of[token] for token in self._sorted[low:high]]

    def split(self, prefix: bytes) -> tuple[list[int], bytes]:
        """The ids of a text before a cursor, and the token it stands in or after which may still grow."""
        window = prefix[-4096:]
        tokens = TOKEN.findall(window)
        opening = [0] if len(window) == len(prefix) else []
        remainder = tokens.pop() if tokens and OPEN.match(tokens[-1][-1:]) else b""
        return opening + [self._id_of.get(token, UNKNOWN) for token in tokens], remainder
