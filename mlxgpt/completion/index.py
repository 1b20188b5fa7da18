"""The n-grams of a project's files: built in seconds, kept on disk, brought up to date for a saved file at once.

Files lie in segments. A changed file's old text stops counting where it is, and its new text becomes a segment of its
own; small segments are merged as they become as large as the next (O'Neil et al., "The log-structured merge-tree",
1996), so that there are few of them and each token is sorted again only a few times.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlxgpt import files
from mlxgpt.completion.lexer import Lexer
from mlxgpt.completion.ngram import BOUNDARY, Segment
from mlxgpt.errors import Error
from mlxgpt.tokenizer import Tokenizer

MOST_TOKENS = 16 << 20  # tokens indexed in all: 128 MB
FORMAT = 1


@dataclass
class _Part:
    """A segment and where in it each document's tokens are."""

    segment: Segment
    places: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(end - start for start, end in self.places.values())


class Index:
    """The n-grams of named documents, in the tokens of `tokenizer`; `left_out` of them found no room."""

    def __init__(self, tokenizer: Tokenizer, limit: int = MOST_TOKENS) -> None:
        self.tokenizer, self.limit = tokenizer, limit
        self.left_out = 0
        self._parts: list[_Part] = []
        self._hidden: str | None = None

    @property
    def segments(self) -> list[Segment]:
        """What to look n-grams up in."""
        return [part.segment for part in self._parts]

    @property
    def documents(self) -> set[str]:
        """Names of what is indexed."""
        return {name for part in self._parts for name in part.places}

    def texts(self) -> Iterator[tuple[str, bytes]]:
        """Name and text of each document, as its tokens spell it."""
        for part in self._parts:
            for name, (start, end) in part.places.items():
                yield name, self.tokenizer.decode(part.segment.tokens[start + 1 : end].tolist())

    def __len__(self) -> int:
        """Tokens that count, boundaries included."""
        return sum(map(len, self._parts))

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(segment.nbytes for segment in self.segments)

    def build(self, documents: Iterable[tuple[str, bytes]]) -> None:
        """Index these (name, text) in place of all that is there."""
        self._parts, self._hidden, self.left_out = [], None, 0
        self._append(self._read(name, data) for name, data in documents)

    def build_from_tokens(self, documents: Iterable[tuple[str, np.ndarray]]) -> None:
        """Index these (name, token ids) in place of all that is there."""
        self._parts, self._hidden, self.left_out = [], None, 0
        self._append((name, np.asarray(ids, np.int32)) for name, ids in documents)

    def update(self, name: str, data: bytes | None) -> None:
        """A document is new, has changed, or (None) is gone."""
        self.hide(None)
        for part in self._parts:
            if place := part.places.pop(name, None):
                part.segment.count(*place, alive=False)
        self._parts = [part for part in self._parts if part.places]
        if data is not None:
            self._append([self._read(name, data)])

    def hide(self, name: str | None) -> None:
        """Have this document not count until another is hidden (None: none is)."""
        if name != self._hidden:
            self._show(self._hidden, alive=True)
            self._show(name, alive=False)
            self._hidden = name

    def _show(self, name: str | None, alive: bool) -> None:
        for part in self._parts:
            if name is not None and name in part.places:
                part.segment.count(*part.places[name], alive=alive)

    def _read(self, name: str, data: bytes) -> tuple[str, np.ndarray]:
        read = self.tokenizer.learn if isinstance(self.tokenizer, Lexer) else self.tokenizer.document
        return name, np.array(read(data), np.int32)

    def _append(self, documents: Iterable[tuple[str, np.ndarray]]) -> None:
        """A new part of these documents, and of the parts before it that are not twice as large."""
        room = self.limit - len(self)
        new: list[tuple[str, np.ndarray]] = []
        for name, ids in documents:
            if len(ids) + 1 > room:
                self.left_out += 1
                continue
            room -= len(ids) + 1
            new.append((name, ids))
        size = sum(len(ids) + 1 for _, ids in new)
        while self._parts and len(self._parts[-1]) < 2 * size:
            part = self._parts.pop()
            size += len(part)
            new = [(name, part.segment.tokens[start + 1 : end]) for name, (start, end) in part.places.items()] + new
        if new:
            self._parts.append(_part(new))

    def save(self, path: Path, notes: dict) -> None:
        """Write the index to a file, whole or not at all, with `notes` (JSON) beside it. Raises Error."""
        self.hide(None)
        self._merge()
        arrays: dict[str, np.ndarray] = {}
        table: dict[str, Any] = {"format": FORMAT, "notes": notes, "left_out": self.left_out, "parts": []}
        for i, part in enumerate(self._parts):
            arrays[f"tokens{i}"], arrays[f"order{i}"] = part.segment.tokens, part.segment.order
            table["parts"].append(part.places)
        if isinstance(self.tokenizer, Lexer):
            words = self.tokenizer.token_bytes
            arrays["words"] = np.frombuffer(b"".join(words), np.uint8)
            arrays["lengths"] = np.array([len(word) for word in words], np.int32)
        else:
            table["tokenizer"] = self.tokenizer.fingerprint()
        arrays["table"] = np.frombuffer(json.dumps(table).encode(), np.uint8)

        def write(partial: Path) -> None:
            with open(partial, "wb") as file:
                np.savez(file, allow_pickle=False, **arrays)

        files.write(path, write)

    def _merge(self) -> None:
        """One part where there are dead positions or several parts: what is saved has neither."""
        if len(self._parts) > 1 or any(part.segment.alive is not None for part in self._parts):
            documents = [
                (name, part.segment.tokens[start + 1 : end])
                for part in self._parts
                for name, (start, end) in part.places.items()
            ]
            self._parts = [_part(documents)] if documents else []

    @classmethod
    def load(cls, path: Path, tokenizer: Tokenizer | None, limit: int = MOST_TOKENS) -> tuple["Index", dict]:
        """An index that `save` wrote, and its notes; with no tokenizer, one of a `Lexer`.

        Raises Error for a file that is missing, damaged, or made with another tokenizer. Nothing in it is executed.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                table = json.loads(arrays["table"].tobytes())
                if table["format"] != FORMAT:
                    raise ValueError("another format")
                if tokenizer is None:
                    tokenizer = Lexer(_cut(arrays["words"].tobytes(), arrays["lengths"]))
                elif table.get("tokenizer") != tokenizer.fingerprint():
                    raise ValueError("another tokenizer")
                index = cls(tokenizer, limit)
                index.left_out = int(table["left_out"])
                for i, places in enumerate(table["parts"]):
                    tokens, order = arrays[f"tokens{i}"], arrays[f"order{i}"]
                    if tokens.shape != order.shape or (len(order) and not 0 <= order.min() <= order.max() < len(order)):
                        raise ValueError("its arrays do not fit each other")
                    index._parts.append(
                        _Part(Segment(tokens, order), {n: (int(a), int(b)) for n, (a, b) in places.items()})
                    )
                return index, dict(table["notes"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError) as error:
            raise Error(f"{path} is no index of this version: {error}") from None
        except Exception as error:  # zipfile raises its own for a file that is cut off
            raise Error(f"{path} is damaged: {error}") from None


def _cut(data: bytes, lengths: np.ndarray) -> list[bytes]:
    ends = np.cumsum(lengths).tolist()
    return [data[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]


def _part(documents: list[tuple[str, np.ndarray]]) -> _Part:
    """A part of these documents, a boundary before each."""
    places, at = {}, 0
    for name, ids in documents:
        places[name] = (at, at + len(ids) + 1)
        at += len(ids) + 1
    boundary = np.array([BOUNDARY], np.int32)
    tokens = np.concatenate([piece for _, ids in documents for piece in (boundary, ids)])
    return _Part(Segment(tokens), places)
