"""What may come next at a cursor, and how likely: the model's word and the n-grams', one distribution a path."""

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlxgpt.completion.mixture import Mixture
from mlxgpt.completion.ngram import Interpolation, Prediction
from mlxgpt.completion.prefixes import Prefix
from mlxgpt.completion.search import Path
from mlxgpt.tokenizer import Tokenizer

BRANCHES = 5  # likeliest tokens that are followed from a path
GUESSES = 4  # tokens that the n-grams draft for the model to check in one pass
SURE = 0.6  # a token less likely than this is not worth drafting


@dataclass(frozen=True)
class Token:
    """A token that may follow: its log-probability (nats), and whether it is the one the n-grams would choose."""

    id: int
    logprob: float
    agreed: bool


class Source:
    """The distribution after a prompt and any continuation of it, each computed once.

    `ids` is the prompt, `remainder` the bytes that a continuation must first spell. Without a `prefix` (the model and
    its caches) the n-grams speak alone, without `ngrams` the model; `before` is what they go by, where the prompt does
    not end with it. The n-grams also draft: where they are sure of the
    next tokens, the model computes several in one pass, which changes nothing but the time.
    """

    def __init__(
        self, tokenizer: Tokenizer, ids: list[int], remainder: bytes, prefix: Prefix | None,
        ngrams: Interpolation | None, mixture: Mixture, speakable: np.ndarray, context: int = 1 << 30,
        check: Callable[[], None] = lambda: None, before: list[int] | None = None,
    ) -> None:  # fmt: skip
        self.tokenizer, self.ids, self.remainder = tokenizer, ids, remainder
        self.before = ids if before is None else before
        self.prefix, self.ngrams, self.mixture, self.context = prefix, ngrams, mixture, context
        self.check, self._speakable = check, speakable
        self._logits: dict[Path, np.ndarray] = {}
        self._predictions: dict[Path, Prediction] = {}
        self.tokens: dict[Path, Token] = {}  # what was found out about the last token of each path

    def bytes_of(self, path: Path) -> bytes:
        """What a path spells, what is there before the cursor taken off."""
        return self._spelled(path)[len(self.remainder) :]

    def _spelled(self, path: Path) -> bytes:
        return b"".join([self.tokenizer.token_bytes[i] for i in path])

    def expand(self, path: Path) -> list[tuple[int, float]]:
        """The likeliest next tokens and their log-probabilities. Raises what `check` raises."""
        self.check()
        prediction = self.predict(path)
        if self.prefix is None:
            pairs = list(zip(prediction.ids, prediction.probabilities, strict=True))[:BRANCHES]
        else:
            blended = self.mixture.blend(self.probabilities(path), prediction)
            best = (
                np.argpartition(-blended, BRANCHES)[:BRANCHES] if len(blended) > BRANCHES else np.arange(len(blended))
            )
            pairs = sorted(((int(i), float(blended[i])) for i in best), key=lambda pair: -pair[1])
        children = []
        for token, p in pairs:
            if p > 0 and token >= 0:
                found = Token(token, float(np.log(p)), token == prediction.best)
                self.tokens[(*path, token)] = found
                children.append((token, found.logprob))
        return children

    def _allowed(self, path: Path) -> list[int] | None:
        left = self.remainder[len(self._spelled(path)) :]
        return self.tokenizer.completions(left) if left else None

    def predict(self, path: Path) -> Prediction:
        """What the n-grams say comes after a path."""
        if path not in self._predictions:
            allowed = self._allowed(path)
            self._predictions[path] = (
                self.ngrams.predict([*self.before, *path], None if allowed is None else set(allowed))
                if self.ngrams is not None
                else Prediction([], [], 0, 0.0)
            )
        return self._predictions[path]

    def probabilities(self, path: Path) -> np.ndarray:
        """What the model says comes after a path: float64 [V], 0 for what cannot be said there."""
        if path not in self._logits:
            self._compute(path)
        scores = self._logits[path].astype(np.float64)
        allowed = self._allowed(path)
        masked = np.full(len(scores), -np.inf)
        which = self._speakable if allowed is None else np.array(allowed, np.int64)
        masked[which] = scores[which]
        p = np.exp(masked - masked.max())
        return p / p.sum()

    def _compute(self, path: Path) -> None:
        assert self.prefix is not None
        draft: list[int] = []
        room = self.context - len(self.ids) - len(path)
        while len(draft) < min(GUESSES, room):
            guess = self.predict((*path, *draft))
            if guess.top < SURE or guess.ids[0] < 0 or b"\n" in self.tokenizer.token_bytes[guess.ids[0]]:
                break
            draft.append(guess.ids[0])
        rows = self.prefix.logits([*self.ids, *path, *draft], 1 + len(draft), self.check)
        values = np.array(rows.astype(mx.float32))
        for i in range(len(values)):
            self._logits[(*path, *draft[:i])] = values[i]
