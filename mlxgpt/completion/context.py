"""What a model is shown before the file that is edited: spans edited lately, what the file imports, what is like the
lines at the cursor. Each is a document as training packs them, the most useful one last, next to the file."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mlxgpt.completion.bm25 import Bm25
from mlxgpt.completion.index import Index
from mlxgpt.completion.lexer import Lexer
from mlxgpt.data.imports import Tree
from mlxgpt.tokenizer import Tokenizer

AROUND = 20  # lines before the cursor that say what is looked for (as many as in arXiv 2303.12570)
IMPORTED = 3  # chunks of files that are imported
ALIKE = 6  # chunks of any file
SMALLEST = 16  # tokens of room that are worth filling
MOST_BYTES = 64 << 20  # of a project's text that is held


@dataclass(frozen=True)
class Shown:
    """Token ids of other documents, and the names of those that are the project's."""

    ids: tuple[int, ...] = ()
    names: frozenset[str] = frozenset()


class Library:
    """A project's texts, by path, and how to find in them. The first `MOST_BYTES` of them are held."""

    def __init__(self, documents: Iterable[tuple[str, bytes]] = ()) -> None:
        self._texts: dict[str, bytes] = {}
        self._room = MOST_BYTES
        for name, data in documents:
            self._keep(name, data)
        self._bm25 = Bm25(self._texts.items())
        self._tree: Tree | None = None

    @classmethod
    def of_index(cls, index: Index) -> "Library":
        """The texts that an index was made of; none of an index for a `Lexer`, which spells no text exactly."""
        return cls([] if isinstance(index.tokenizer, Lexer) else index.texts())

    def __len__(self) -> int:
        """Documents held."""
        return len(self._texts)

    def __contains__(self, name: str) -> bool:
        return name in self._texts

    def update(self, name: str, data: bytes | None) -> None:
        """A document is new, has changed, or (None) is gone."""
        self._room += len(self._texts.pop(name, b""))
        if data is not None:
            self._keep(name, data)
        self._bm25.update(name, self._texts.get(name))
        self._tree = None

    def _keep(self, name: str, data: bytes) -> None:
        if len(data) <= self._room:
            self._texts[name] = data
            self._room -= len(data)

    def find(self, prefix: bytes, path: str) -> Iterator[tuple[str, bytes]]:
        """Name and text of chunks, the most useful first, for a cursor at the end of `prefix` in the file at `path`."""
        if self._tree is None:
            self._tree = Tree(list(self._texts))
        query = b"\n".join(prefix.rsplit(b"\n", AROUND)[-AROUND:])
        imported = {self._tree.paths[i] for i in self._tree.imports(prefix, path)}
        found = self._bm25.search(query, IMPORTED, imported, path) if imported else []
        yield from dict.fromkeys([*found, *self._bm25.search(query, ALIKE, None, path)])


def fill(
    tokenizer: Tokenizer, room: int, prefix: bytes, path: str, recent: Sequence[bytes] = (),
    library: Library | None = None,
) -> Shown:  # fmt: skip
    """What to show in `room` tokens: whole lines of `recent`, of which the first is the newest, and of the library's
    chunks. What is in the file already is left out."""
    pieces: list[list[int]] = []
    names: set[str] = set()
    found = library.find(prefix, path) if library is not None else iter(())
    for name, text in [*(("", text) for text in recent), *found]:
        if room < SMALLEST:
            break
        if not text.strip() or text.strip() in prefix:
            continue
        ids = _document(tokenizer, text, room)
        if ids:
            pieces.append(ids)
            names.add(name)
            room -= len(ids)
    return Shown(tuple(i for ids in reversed(pieces) for i in ids), frozenset(names - {""}))


def _document(tokenizer: Tokenizer, text: bytes, room: int) -> list[int]:
    """A text as a document, less the last lines that do not fit; empty where not one does."""
    text = text[: 16 * room]
    while text:
        ids = tokenizer.document(text)
        if len(ids) <= room:
            return ids
        # About as many bytes as fit, up to the end of a line before them.
        text = text[: text.rfind(b"\n", 0, max(0, min(len(text) * room // len(ids), len(text) - 1))) + 1]
    return []
