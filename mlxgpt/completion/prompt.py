"""The text before a cursor -> prompt tokens in a budget, and the characters that are still to be spelled again.

Token healing: a cursor rarely stands where the tokenizer would end a token. Training never showed the model what
follows `ret` when `return` is one token, so the last tokens are taken back, and decoding must first spell their
characters in whatever tokens it likes.
"""

from dataclasses import dataclass
from pathlib import Path

from mlxgpt.errors import Error, UsageError
from mlxgpt.tokenizer import Tokenizer

MOST_HEALED = 8  # tokens taken back at most
SUFFIX_SHARE = 4  # of a prompt with a suffix, this part at most is the suffix


@dataclass(frozen=True)
class Prompt:
    """Token ids to prefill, and the bytes (`remainder`) that the next tokens must begin with. `before` are the ids that
    lead up to the cursor in the file, where they are not the last of `ids`."""

    ids: list[int]
    remainder: bytes
    before: list[int] | None = None


@dataclass(frozen=True)
class View:
    """What of a file a prompt begins with, from byte `start` on, and the ids of other documents `ahead` of it."""

    start: int
    ahead: tuple[int, ...] = ()


def build(tokenizer: Tokenizer, prefix: bytes, budget: int, view: View | None = None) -> Prompt:
    """The prompt for what follows `prefix`: what `view` says, or its end in at most `budget` tokens, from the beginning
    of a line if it can.

    After the opening token alone the remainder begins with the tokenizer's dummy prefix: the first word is spelled with
    the space that it has in such a model's texts, and what has been spelled of the remainder is not shown.

    Raises Error for a tokenizer without an opening token and an empty prefix.
    """
    ahead = list(view.ahead) if view is not None else []
    if view is not None:
        text = prefix[view.start :]
        ids = tokenizer.begin(text) if text and (ahead or not view.start) else tokenizer.encode(text)
    else:
        window = _window(prefix, budget)
        ids = tokenizer.begin(prefix) if prefix and len(window) == len(prefix) else tokenizer.encode(window)
        if len(ids) > budget:
            ids = _from_line_start(tokenizer, tokenizer.encode(window), budget)
    count = _to_heal(tokenizer, ids)
    kept, healed = ids[: len(ids) - count], ids[len(ids) - count :]
    if kept:
        return Prompt([*ahead, *kept], tokenizer.decode(healed), kept if ahead else None)
    if tokenizer.bos_id is not None:
        kept = [tokenizer.bos_id]
        return Prompt([*ahead, *kept], tokenizer.dummy_prefix + tokenizer.decode(healed), kept if ahead else None)
    if ahead:
        return Prompt(ahead, tokenizer.decode(healed), [])
    if not healed:
        raise Error("there is nothing before the cursor, and this model's tokenizer has no opening token to begin with")
    return Prompt(healed[:1], tokenizer.decode(healed[1:]))


def build_infilling(
    tokenizer: Tokenizer, prefix: bytes, suffix: bytes, budget: int, order: str, view: View | None = None
) -> Prompt:
    """The prompt for what stands between `prefix` and `suffix`, of a model that was trained to fill in the middle, at
    most `budget` tokens where there is no `view`: up to a quarter for the suffix, as many whole lines of it as fit, the
    rest for the prefix.

    `order` is "spm", where the suffix comes first, so that while a user types the prompt only grows at its end, or
    "psm" (arXiv 2207.14255; see `data.fim`). The tokenizer must have the control tokens.
    """
    fim = tokenizer.fim
    assert fim is not None
    ahead = view.ahead if view is not None else ()
    opening = [tokenizer.bos_id] if tokenizer.bos_id is not None and tokenizer.opens else []
    behind = _to_line_end(tokenizer, suffix, budget // SUFFIX_SHARE)
    if view is not None:
        ids = tokenizer.encode(prefix[view.start :])
    else:
        room = max(1, budget - len(opening) - 3 - len(behind))
        ids = _from_line_start(tokenizer, tokenizer.encode(prefix[-8 * room - 64 :]), room)
    count = _to_heal(tokenizer, ids)
    before, remainder = ids[: len(ids) - count], tokenizer.decode(ids[len(ids) - count :])
    shown = [fim.prefix, fim.suffix, *behind, fim.middle, *before]
    if order != "spm":
        shown = [fim.prefix, *before, fim.suffix, *behind, fim.middle]
    return Prompt([*ahead, *opening, *shown], remainder, [*opening, *before])


def suffix_room(tokenizer: Tokenizer, suffix: bytes, budget: int) -> int:
    """Tokens that `build_infilling` uses for the suffix and the control tokens."""
    return 4 + len(_to_line_end(tokenizer, suffix, budget // SUFFIX_SHARE))


def fit(tokenizer: Tokenizer, prefix: bytes, room: int) -> tuple[int, int]:
    """Where the prefix's last lines begin that fit `room` tokens, in bytes, and how many tokens they are."""
    ids = _from_line_start(tokenizer, tokenizer.encode(_window(prefix, room)), room)
    return len(prefix) - sum(len(tokenizer.token_bytes[i]) for i in ids), len(ids)


def _window(prefix: bytes, budget: int) -> bytes:
    """The end of the prefix, longer than `budget` tokens: what cannot fit need not be tokenized."""
    window = prefix[-8 * budget - 64 :]
    if len(window) < len(prefix):
        window = window[window.find(b"\n", 0, len(window) // 2) + 1 :]
    return window


def _to_line_end(tokenizer: Tokenizer, suffix: bytes, budget: int) -> list[int]:
    """The first of the suffix's ids, `budget` at most: of what does not fit, up to the end of a line if they can."""
    window = suffix[: 8 * budget + 64]
    ids = tokenizer.encode(window)
    if len(ids) <= budget and len(window) == len(suffix):
        return ids
    ids = ids[:budget]
    for i in range(len(ids) - 1, len(ids) // 2, -1):
        if b"\n" in tokenizer.token_bytes[ids[i]]:
            return ids[: i + 1]
    return ids


def _from_line_start(tokenizer: Tokenizer, ids: list[int], budget: int) -> list[int]:
    """The last `budget` ids, less the partial line they begin with where another line follows."""
    if len(ids) <= budget:
        return ids
    ids = ids[-budget:]
    for i, token in enumerate(ids[: budget // 2]):
        if b"\n" in tokenizer.token_bytes[token]:
            return ids[i + 1 :]
    return ids


def _is_word(byte: int) -> bool:
    return byte >= 0x80 or chr(byte).isalnum() or byte == ord("_")


def _to_heal(tokenizer: Tokenizer, ids: list[int]) -> int:
    """How many of the last tokens to take back: the last, and on through a word and the spaces before it.

    A token that no other begins or extends (a newline, for our BPE) is final and stays.
    """
    count = 0
    while count < min(MOST_HEALED, len(ids)):
        data = tokenizer.token_bytes[ids[-1 - count]]
        if not data or (b"\n" in data and count):
            break
        if count == 0:
            if len(tokenizer.completions(data)) == 1:
                break
        else:
            after = tokenizer.token_bytes[ids[-count]]
            within_word = _is_word(data[-1]) and _is_word(after[0])
            spaces = not data.strip(b" \t") and after[:1] not in b"\n\r"
            if not within_word and not spaces:
                break
        count += 1
    return count


def split_at(file: Path, line: int, column: int) -> tuple[bytes, bytes]:
    """A file's bytes before and after the cursor at `line` and `column`, both from 1, the column in characters.

    Raises UsageError where the file or the place in it does not exist.
    """
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    if line > len(lines):
        raise UsageError(f"--line {line} is beyond the end of {file}, which has {len(lines)} lines")
    text = lines[line - 1].decode("utf-8", "surrogateescape")
    visible = text.removesuffix("\r")
    if column > len(visible) + 1:
        raise UsageError(
            f"--column {column} is beyond the end of line {line} of {file}: 1 to {len(visible) + 1} is in it"
        )
    before = b"".join(part + b"\n" for part in lines[: line - 1])
    prefix = before + text[: column - 1].encode("utf-8", "surrogateescape")
    rest = text[column - 1 :].encode("utf-8", "surrogateescape")
    return prefix, b"\n".join([rest, *lines[line:]])
