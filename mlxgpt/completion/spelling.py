"""Which token wrote which characters of a suggestion, and how likely each was."""

from collections.abc import Sequence

Part = tuple[str, float]  # a text, and the log-probability (nats) of the tokens that spell it


def spelled_by(pieces: Sequence[bytes], logprobs: Sequence[float], there: int, text: str) -> tuple[Part, ...]:
    """`text` in the parts that its tokens spell.

    pieces, logprobs: the bytes and log-probability of each token; their first `there` bytes stand before the cursor
    already, and what follows the text was taken off. Tokens that only together spell a character, or nothing new, are
    one part with those after them. A text that the tokens do not spell (its line ends were changed) is one part.
    """
    parts: list[Part] = []
    held, total, at = b"", 0.0, -there
    left = len(text.encode())
    for data, logprob in zip(pieces, logprobs, strict=True):
        held += data[max(0, -at) :] if at < 0 else data
        at, total = at + len(data), total + logprob
        try:
            new = held[:left].decode()
        except UnicodeDecodeError:
            continue
        if new:
            parts.append((new, total))
            left, held, total = left - len(new.encode()), b"", 0.0
        if not left:
            break
    if "".join(part for part, _ in parts) != text:
        return ((text, sum(logprobs)),)
    return tuple(parts)


def without(parts: Sequence[Part], count: int) -> tuple[Part, ...]:
    """The parts less their first `count` characters."""
    kept = []
    for text, logprob in parts:
        if count < len(text):
            kept.append((text[count:], logprob))
        count = max(0, count - len(text))
    return tuple(kept)
