"""The order of a repository: a file comes after those it imports, and near them (as in arXiv 2401.14196, section 2.2).

No language is parsed. A line that begins with a word such as `import`, `use` or `#include`, or that calls `@import`,
`require` or `import`, names files by their stems; of several files with one stem the nearest in the tree is meant.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlxgpt.data.corpus import Document

READ = 1 << 16  # bytes of a document that are searched: imports are at the top
MOST = 256  # lines of one file
LINE = re.compile(
    rb"""^[ \t]*(?:pub[ ]|export[ ])?(?:from|import|use|using|mod|include|require(?:_relative)?|\#[ \t]*include
        |\#[ \t]*import)\b(?P<rest>.*) | (?:@import|\brequire|\bimport)[ \t]*\([ \t]*["'](?P<call>[^"'\n]+)["']
        | ^[^\n]*\bfrom[ \t]+["'](?P<source>[^"'\n]+)["']""",
    re.MULTILINE | re.VERBOSE,
)
NAME = re.compile(rb"[\w@][\w./:\\-]*|[./]+[\w./-]+")
PACKAGES = {"__init__", "index", "mod", "lib", "main"}  # a folder's own file: the folder's name is meant
WORDS = {"import", "as", "from", "static", "crate", "self", "super", "pub", "type", "qualified"}


def in_order(documents: "Sequence[Document]") -> "list[Document]":
    """Training documents so that each comes after what it imports, the others behind them as they are.

    Depth first from the first document on, and a document's imports in the order in which it names them; where
    documents import each other in a circle, it is cut where it was entered. A function of the documents alone.
    """
    train = [document for document in documents if document.split == "train"]
    tree = Tree([str(document.path) for document in train])

    def imported_by(i: int) -> Iterator[int]:
        return iter(tree.imports(next(train[i].pieces(), "")[:READ].encode(), tree.paths[i]))

    placed: dict[int, None] = {}
    entered: set[int] = set()
    for first in range(len(train)):
        stack = [(first, imported_by(first))] if first not in entered else []
        entered.add(first)
        while stack:
            document, imported = stack[-1]
            following = next((i for i in imported if i not in entered), None)
            if following is None:
                placed[document] = None
                stack.pop()
            else:
                entered.add(following)
                stack.append((following, imported_by(following)))
    return [train[i] for i in placed] + [document for document in documents if document.split != "train"]


@dataclass
class Tree:
    """Files by their stems, to find those that a text imports."""

    paths: list[str]

    def __post_init__(self) -> None:
        self.folders = [os.path.dirname(path).split("/") for path in self.paths]
        self.stems: dict[str, list[int]] = {}
        for i, path in enumerate(self.paths):
            stem = os.path.basename(path).split(".")[0]
            self.stems.setdefault(stem, []).append(i)
            if stem in PACKAGES:
                self.stems.setdefault(self.folders[i][-1], []).append(i)

    def imports(self, text: bytes, path: str) -> list[int]:
        """The numbers of the files that the text of the file at `path` names, in that order."""
        found: dict[int, None] = {}
        for names in _lines(text[:READ]):
            split = [[part for part in re.split(r"[./:\\]+", name) if part] for name in names]
            hints = {part for parts in split for part in parts}
            for parts in split:
                for stem in parts[: -3 if len(parts) > 2 else None : -1]:  # "a/b.zig", "a.b": b and a
                    if (file := self._nearest(stem, hints - {stem}, path)) is not None:
                        found[file] = None
                        break
        return list(found)

    def _nearest(self, stem: str, hints: set[str], path: str) -> int | None:
        """Of the files with this stem the one whose folders are named beside it, then that nearest to `path`."""
        folders = os.path.dirname(path).split("/")

        def distance(i: int) -> tuple[int, int, str]:
            there = self.folders[i]
            shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(folders, there, strict=False)))
            return -len(hints & set(there[shared:])), len(folders) + len(there) - 2 * shared, self.paths[i]

        return min((i for i in self.stems.get(stem, []) if self.paths[i] != path), key=distance, default=None)


def _lines(text: bytes) -> Iterator[list[str]]:
    """What a text may be importing: the names on each line that does."""
    for match in islice(LINE.finditer(text), MOST):
        rest, *quoted = match.group("rest", "call", "source")
        names = [name.decode("utf-8", "replace") for name in (NAME.findall(rest) if rest else filter(None, quoted))]
        yield [name for name in names if name not in WORDS]
