"""From decoded bytes to what is inserted: whole characters, one line or one block, nothing that is there already."""

import re

LINE_END = re.compile(rb"[\r\n]")
OPENING = {")": "(", "]": "[", "}": "{"}
QUOTES = "\"'`"
CLOSERS = frozenset({*OPENING, *QUOTES, ";", ",", ":", ">"})
MOST_LINES = 16


def text_of(data: bytes) -> str:
    """The text that `data` begins with: all of it, or what comes before the first byte that is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        return data[: error.start].decode("utf-8")


def trim(completion: str, rest: str, before: str = "") -> str:
    """`completion` less its end where the cursor's line goes on with just that.

    `before` and `rest` are the line left and right of the cursor. A model that does not see `rest` writes it again:
    `foo(|)` is completed with `bar)`. An end is dropped when it is all of `rest` and not the end of a longer word,
    or when `rest` begins with it and it consists of closing brackets, quotes and separators. It stays when the line
    needs it beside `rest`: `print(|)` completed with `f(x)`.
    """
    text, rest = completion.rstrip(), rest.rstrip()
    for whole in dict.fromkeys((rest, rest.lstrip())):
        for size in range(min(len(whole), len(text)), 0, -1):
            end, kept = whole[:size], text[: len(text) - size]
            if not text.endswith(end):
                continue
            splits_word = bool(kept) and _is_word(kept[-1]) and _is_word(end[0])
            repeats = (size == len(whole) and not splits_word) or CLOSERS.issuperset(end)
            if repeats and not _needs(before + text, end):
                return kept if kept.strip() else ""
    return text


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _needs(line: str, end: str) -> bool:
    """Whether `line` leaves a bracket or quote open that a second `end` after it would close."""
    return any(
        line.count(OPENING[c]) > line.count(c) and end.count(c) > end.count(OPENING[c])
        if c in OPENING
        else line.count(c) % 2 == 1 and end.count(c) % 2 == 1
        for c in (*OPENING, *QUOTES)
    )


def indentation(line: bytes) -> int:
    """Columns of white space that a line begins with, a tab counting as four."""
    return len((line[: len(line) - len(line.lstrip(b" \t"))]).replace(b"\t", b"    "))


def depth(text: bytes) -> int:
    """How many more brackets `text` opens than it closes, counted as characters."""
    return sum(text.count(o) - text.count(c) for o, c in ((b"(", b")"), (b"[", b"]"), (b"{", b"}")))


def goes_on(before: bytes, lines: list[bytes]) -> bool:
    """Whether the block that begins on the cursor's line goes on after these lines of it.

    `before` is the cursor's line left of it, and `lines` what was suggested, the first the rest of that line. It goes
    on while brackets are open, after a line that opens a block, and while lines are indented more than the cursor's
    line; from a line that is blank so far, while they are indented as much as it.
    """
    if len(lines) >= MOST_LINES:
        return False
    whole = before + lines[0]
    base, last = indentation(whole), lines[-1] if len(lines) > 1 else whole
    if depth(b"\n".join([whole, *lines[1:]])) > 0 or last.rstrip().endswith((b":", b"{", b"(", b"[")):
        return True
    if not last.strip():
        return False
    return indentation(last) > base if before.strip() else indentation(last) >= base


def block(before: bytes, text: bytes, after: bytes) -> bytes:
    """The lines of `text` that belong to the block of the cursor's line, less those that `after` begins with.

    A line that is indented less ends the block, and is kept only where it closes a bracket that the block opened.
    """
    first, *rest = text.replace(b"\r\n", b"\n").split(b"\n")
    kept, base = [first], indentation(before + first)
    for line in rest:
        if not goes_on(before, kept):
            break
        outside = line.strip() and indentation(line) <= base and before.strip()
        closes = line.strip()[:1] in (b")", b"]", b"}") and depth(b"\n".join([before + kept[0], *kept[1:]])) > 0
        if (outside or indentation(line) < base) and line.strip() and not closes:
            break
        kept.append(line)
    following = [line.strip() for line in after.split(b"\n")[1:] if line.strip()]
    while len(kept) > 1 and (not kept[-1].strip() or kept[-1].strip() in following[:1]):
        kept.pop()
    return b"\n".join(kept)
