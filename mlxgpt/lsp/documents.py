"""A text open in an editor, and its positions, which the protocol counts in units of the encoding agreed on.

Lines end in CR LF, LF or CR and in nothing else, and a position past a line's end is its end (LSP 3.18, "Text
Documents"). pygls's own documents break lines as `str.splitlines` does, at form feeds too, which Python files have.
"""

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property

BREAK = re.compile(r"\r\n|\n|\r")


def units(text: str, encoding: str) -> int:
    """How long `text` is in an encoding: "utf-8", "utf-16" or "utf-32"."""
    if encoding == "utf-32" or text.isascii():
        return len(text)
    if encoding == "utf-8":
        return len(text.encode("utf-8", "surrogatepass"))
    return len(text) + sum(char > "\uffff" for char in text)


@dataclass(frozen=True)
class Document:
    """A text and the language its editor calls it. Offsets are in characters; lines and columns count from 0."""

    text: str
    language: str = ""
    version: int = field(default=0, compare=False)

    @cached_property
    def _lines(self) -> list[tuple[int, int]]:
        """Where each line begins, and where it ends before its break."""
        breaks = [match.span() for match in BREAK.finditer(self.text)]
        starts = [0, *(end for _, end in breaks)]
        return list(zip(starts, [*(start for start, _ in breaks), len(self.text)], strict=True))

    def offset(self, line: int, column: int, encoding: str) -> int:
        """The characters before a position; within a character, those before it."""
        if line >= len(self._lines):
            return len(self.text)
        start, end = self._lines[line]
        text = self.text[start:end]
        if encoding == "utf-32" or text.isascii():
            return start + min(column, len(text))
        for index, char in enumerate(text):
            column -= units(char, encoding)
            if column < 0:
                return start + index
        return end

    def position(self, offset: int, encoding: str) -> tuple[int, int]:
        """The line and column before which there are `offset` characters."""
        line = bisect_right(self._lines, offset, key=lambda span: span[0]) - 1
        start, end = self._lines[line]
        return line, units(self.text[start : min(offset, end)], encoding)

    def changed(self, start: int, end: int, text: str, version: int) -> "Document":
        """This document with `text` in the place of what is between two offsets."""
        start, end = min(start, end), max(start, end)
        return Document(self.text[:start] + text + self.text[end:], self.language, version)
