"""Fill-in-the-middle: a text cut in three and put together so that its middle comes last (arXiv 2207.14255).

The cuts are anywhere between characters. Half of the middles go from a cursor to the end of its line, which is what a
completion has to find; the others lie between two places of the text. A text becomes one of

    SPM  <s> <|fim_prefix|> <|fim_suffix|> suffix <|fim_middle|> prefix middle </s>
    PSM  <s> <|fim_prefix|> prefix <|fim_suffix|> suffix <|fim_middle|> middle </s>

In SPM, prefix and middle are tokenized as one text: a cursor within a word leaves no trace there, as it leaves none in
a prompt whose last tokens are taken back (`completion.prompt`). Typing changes nothing that is before the prefix.
"""

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlxgpt.errors import Error
from mlxgpt.tokenizer import Fim, Tokenizer

PARTS = ("text", "control", "prefix", "suffix", "middle")
TEXT, CONTROL, PREFIX, SUFFIX, MIDDLE = range(len(PARTS))
SHORTEST = 24  # tokens of a text that is worth cutting: in a shorter one control tokens would be a large part
LINE_END = re.compile(r"\r?\n|\Z")

Order = Literal["spm", "psm"]


def cut(text: str, draw: np.random.Generator) -> tuple[str, str, str]:
    """Prefix, middle and suffix of a text, each of which may be empty."""
    if draw.random() < 0.5:
        start = int(draw.integers(len(text) + 1))
        match = LINE_END.search(text, start)
        assert match is not None  # \Z matches
        end = match.start()
    else:
        start, end = sorted(draw.integers(len(text) + 1, size=2).tolist())
    return text[:start], text[start:end], text[end:]


def arrange(tokenizer: Tokenizer, text: tuple[str, str, str], order: Order) -> tuple[list[int], list[int]]:
    """Token ids of prefix, middle and suffix in their `order`, and which of `PARTS` each id belongs to.

    In SPM a token that spans the cursor is of the middle. Raises Error for a tokenizer without the control tokens.
    """
    prefix, middle, suffix = text
    before, after, between = tokens_of(tokenizer)
    opening = [tokenizer.bos_id] if tokenizer.bos_id is not None and tokenizer.opens else []
    assert tokenizer.eos_id is not None  # `tokens_of` has seen to it
    behind = tokenizer.encode(suffix)
    if order == "spm":
        joint = tokenizer.encode(prefix + middle)
        ends = np.cumsum([len(tokenizer.token_bytes[i]) for i in joint])
        count = int(np.searchsorted(ends, len(prefix.encode("utf-8", "surrogateescape")), "right"))
        pieces = [([*opening, before, after], CONTROL), (behind, SUFFIX), ([between], CONTROL),
                  (joint[:count], PREFIX), (joint[count:], MIDDLE)]  # fmt: skip
    else:
        pieces = [([*opening, before], CONTROL), (tokenizer.encode(prefix), PREFIX), ([after], CONTROL),
                  (behind, SUFFIX), ([between], CONTROL), (tokenizer.encode(middle), MIDDLE)]  # fmt: skip
    pieces.append(([tokenizer.eos_id], CONTROL))
    return [i for ids, _ in pieces for i in ids], [part for ids, part in pieces for _ in ids]


def tokens_of(tokenizer: Tokenizer) -> Fim:
    """The control tokens to arrange with. Raises Error for a tokenizer that lacks them, or one that ends a text."""
    if tokenizer.fim is None or tokenizer.eos_id is None:
        raise Error("this tokenizer has no control tokens for fill-in-the-middle")
    return tokenizer.fim


def restore(tokenizer: Tokenizer, ids: list[int], parts: list[int]) -> bytes:
    """The text that `arrange` was given: prefix, middle and suffix in the order in which they are read."""
    return b"".join(
        tokenizer.decode([i for i, its in zip(ids, parts, strict=True) if its == part])
        for part in (PREFIX, MIDDLE, SUFFIX)
    )


def shorten(ids: list[int], parts: list[int], room: int) -> tuple[list[int], list[int]] | None:
    """At most `room` ids: what is farthest from the middle goes, the prefix's beginning and the suffix's end, from the
    longer of the two first. None where that is not enough."""
    count = {part: parts.count(part) for part in (PREFIX, SUFFIX)}
    excess = len(ids) - room
    if excess > sum(count.values()):
        return None
    keep = dict(count)
    for _ in range(excess):
        keep[max(keep, key=keep.__getitem__)] -= 1
    first = {PREFIX: count[PREFIX] - keep[PREFIX], SUFFIX: 0}  # of each part, the ids that stay: from here on
    last = {PREFIX: count[PREFIX], SUFFIX: keep[SUFFIX]}  # and up to here
    seen = {PREFIX: 0, SUFFIX: 0}
    kept: list[tuple[int, int]] = []
    for i, part in zip(ids, parts, strict=True):
        if part in seen:
            seen[part] += 1
            if not first[part] < seen[part] <= last[part]:
                continue
        kept.append((i, part))
    return [i for i, _ in kept], [part for _, part in kept]


@dataclass(frozen=True)
class Infilling:
    """Turns a share `rate` of texts into fill-in-the-middle, of those a share `spm` in SPM, the rest in PSM.

    What comes out is a function of the ids and of `draw`'s state. Raises Error as `tokens_of` does.
    """

    tokenizer: Tokenizer
    rate: float
    spm: float

    def __post_init__(self) -> None:
        tokens_of(self.tokenizer)

    def __call__(
        self, ids: np.ndarray, room: int, draw: np.random.Generator
    ) -> tuple[list[int], list[int]] | None:  # fmt: skip
        """A document's ids, or a part of them, [n], in at most `room` ids, and the part each is of; None where they
        stay as they are."""
        if draw.random() >= self.rate or len(ids) < SHORTEST:
            return None
        order: Order = "spm" if draw.random() < self.spm else "psm"
        text = self.tokenizer.decode(ids.tolist()).decode("utf-8", "surrogateescape")
        return shorten(*arrange(self.tokenizer, cut(text, draw), order), room)
