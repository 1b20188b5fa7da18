"""One suggestion for one cursor: prompt, decode to the end of the line, trim."""

import re
import time
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlxgpt.completion import prompt as prompts
from mlxgpt.generation.engine import Decoder, common_length
from mlxgpt.models import Model
from mlxgpt.tokenizer import Tokenizer

MAX_TOKENS = 64
LINE_END = re.compile(rb"[\r\n]")
OPENING = {")": "(", "]": "[", "}": "{"}
QUOTES = "\"'`"
CLOSERS = frozenset({*OPENING, *QUOTES, ";", ",", ":", ">"})


@dataclass(frozen=True)
class Suggestion:
    """What to insert at the cursor, "" for nothing; `mean_logprob` is over its tokens, given the characters that
    were there (nats); `latency_ms` runs from the request to the answer."""

    completion: str
    tokens: int
    mean_logprob: float
    latency_ms: float


class Suggester:
    """Completes lines with one model; the tokens that consecutive prompts share are computed once."""

    def __init__(self, model: Model, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.decoder = Decoder(model)
        self._computed: list[int] = []  # the tokens in the decoder's caches
        # Ids that may be suggested: text, and the token that ends a document.
        self._speakable = np.array([i for i, b in enumerate(tokenizer.token_bytes) if b or i == tokenizer.eos_id])

    def suggest(self, prefix: bytes, suffix: bytes = b"", max_tokens: int = MAX_TOKENS) -> Suggestion:
        """The rest of the line at a cursor between `prefix` and `suffix`. Greedy. Raises Error."""
        start = time.perf_counter()
        context = self.model.config.context
        budget = max(1, context // 2, context - max_tokens - prompts.MOST_HEALED)
        prompt = prompts.build(self.tokenizer, prefix, budget)
        data, logprobs = self._decode_line(prompt, min(max_tokens, context - len(prompt.ids)))
        before, after = prefix.rsplit(b"\n", 1)[-1], LINE_END.split(suffix, 1)[0]
        text = trim(_text(LINE_END.split(data, 1)[0]), _text(after), before.decode("utf-8", "replace"))
        mean = sum(logprobs) / len(logprobs) if logprobs else 0.0
        return Suggestion(text, len(logprobs), mean, 1000 * (time.perf_counter() - start))

    def _decode_line(self, prompt: prompts.Prompt, max_tokens: int) -> tuple[bytes, list[float]]:
        """Bytes after the cursor up to the end of the line, and each token's log-probability."""
        logits = self._prefill(prompt.ids)
        remainder, out, logprobs = prompt.remainder, b"", []
        for _ in range(max_tokens):
            allowed = np.array(self.tokenizer.completions(remainder)) if remainder else self._speakable
            scores = np.array(logits[0].astype(mx.float32))[allowed]
            best = int(scores.argmax())
            token = int(allowed[best])
            logprobs.append(float(-np.log(np.exp(scores - scores[best]).sum())))
            if token == self.tokenizer.eos_id:
                break
            data = self.tokenizer.token_bytes[token]
            taken = min(len(data), len(remainder))
            out, remainder = out + data[taken:], remainder[taken:]
            if LINE_END.search(out):
                break
            logits = self.decoder.step(mx.array([token]))
            self._computed.append(token)
        return out, logprobs

    def _prefill(self, ids: list[int]) -> mx.array:
        """Logits after `ids`, of which the tokens already in the caches are not computed again."""
        shared = self.decoder.rewind(common_length(self._computed, ids[:-1]))
        self._computed = list(ids[:shared])  # true as well where the prefill fails
        logits = self.decoder.prefill(ids[shared:])
        self._computed = list(ids)
        return logits


def _text(data: bytes) -> str:
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
