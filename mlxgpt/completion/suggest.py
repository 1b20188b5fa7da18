"""One suggestion for one cursor: prompt, decode to the end of the line, trim."""

import time
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlxgpt.completion import prompt as prompts
from mlxgpt.generation.engine import Decoder
from mlxgpt.models import Model
from mlxgpt.tokenizer import Tokenizer

MAX_TOKENS = 64


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

    def suggest(self, prefix: bytes, suffix: bytes = b"", max_tokens: int = MAX_TOKENS) -> Suggestion:
        """The rest of the line at a cursor between `prefix` and `suffix`. Greedy. Raises Error."""
        start = time.perf_counter()
        budget = max(1, self.model.config.context - max_tokens - prompts.MOST_HEALED)
        prompt = prompts.build(self.tokenizer, prefix, budget)
        data, logprobs = self._decode_line(prompt, min(max_tokens, self.model.config.context - len(prompt.ids)))
        line = data.split(b"\n", 1)[0].rstrip(b"\r")
        text = trim(line.decode("utf-8", "ignore"), suffix.decode("utf-8", "ignore"))
        mean = sum(logprobs) / len(logprobs) if logprobs else 0.0
        return Suggestion(text, len(logprobs), mean, 1000 * (time.perf_counter() - start))

    def _decode_line(self, prompt: prompts.Prompt, max_tokens: int) -> tuple[bytes, list[float]]:
        """Bytes after the cursor up to the first newline, and each token's log-probability."""
        logits = self._prefill(prompt.ids)
        remainder, out, logprobs = prompt.remainder, b"", []
        for _ in range(max_tokens):
            scores = np.array(logits[0].astype(mx.float32))[: self.tokenizer.vocab_size]
            if remainder:
                allowed = np.array(self.tokenizer.completions(remainder))
                scores = _only(scores, allowed)
            token = int(scores.argmax())
            best = scores[token]
            logprobs.append(float(-np.log(np.exp(scores - best).sum())))
            data = self.tokenizer.token_bytes[token]
            if token == self.tokenizer.eos_id:
                break
            taken = min(len(data), len(remainder))
            out, remainder = out + data[taken:], remainder[taken:]
            if b"\n" in out:
                break
            logits = self.decoder.step(mx.array([token]))
            self._computed.append(token)
        return out, logprobs

    def _prefill(self, ids: list[int]) -> mx.array:
        """Logits after `ids`, of which the tokens already in the caches are not computed again."""
        shared = 0
        for a, b in zip(self._computed, ids[:-1], strict=False):
            if a != b:
                break
            shared += 1
        self.decoder.trim(shared)
        logits = self.decoder.prefill(ids[shared:])
        self._computed = list(ids)
        return logits


def _only(scores: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    masked = np.full_like(scores, -np.inf)
    masked[allowed] = scores[allowed]
    return masked


def trim(completion: str, suffix: str) -> str:
    """`completion` without what the rest of the cursor's line already says: no doubled `)` or end of line."""
    rest = suffix.split("\n", 1)[0].strip()
    text = completion.rstrip()
    if not text.strip():
        return ""
    for size in range(min(len(rest), len(text)), 0, -1):
        if text.endswith(rest[:size]):
            return text[: len(text) - size]
    return text
