"""One suggestion for one cursor: what is known, the likeliest line, what of it is inserted, and whether it is shown."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlxgpt.completion import postprocess
from mlxgpt.completion import prompt as prompts
from mlxgpt.completion.gate import Evidence
from mlxgpt.completion.index import Index
from mlxgpt.completion.lexer import Lexer
from mlxgpt.completion.ngram import BOUNDARY, BUFFER_WEIGHT, Interpolation, Segment
from mlxgpt.completion.postprocess import LINE_END, text_of, trim
from mlxgpt.completion.prefixes import Cancelled, Prefixes
from mlxgpt.completion.search import Path, best_first
from mlxgpt.completion.settings import Settings
from mlxgpt.completion.sources import Source
from mlxgpt.errors import UsageError
from mlxgpt.models import Model
from mlxgpt.tokenizer import Tokenizer

Using = Literal["model", "ngrams", "both"]
MAX_TOKENS = 64  # of a line
MOST_BUFFER = 1 << 18  # bytes of the open file that are indexed before the cursor's line, and as many after it
EXPANSIONS = 40  # paths followed before the best of them is finished greedily
# Against the likeliest line of all (0) a point less of exact match, and two points more of the characters completed.
PATIENCE = 0.3
MEMORY = 256 << 20  # bytes of model state kept for the documents in use


@dataclass(frozen=True)
class Suggestion:
    """What to insert at the cursor, "" for nothing, and then `reason` says why.

    `mean_logprob` (nats) is over its `tokens`, given the characters that were there; `confidence` is how likely it is
    to be what the user would have typed; `latency_ms` runs from the request to the answer. `hidden` is what would have
    been inserted, had its confidence reached the threshold.
    """

    completion: str
    tokens: int
    mean_logprob: float
    latency_ms: float
    confidence: float = 0.0
    reason: str | None = None
    hidden: str = ""
    evidence: Evidence | None = None


@dataclass(frozen=True)
class Last:
    """What was suggested last for a document, and where."""

    prefix: bytes
    suffix: bytes
    multiline: bool
    suggestion: Suggestion


def chosen(using: Using | None, has_model: bool) -> Using:
    """What suggests: `using`, or by default all there is. Raises UsageError where it needs a model and has none."""
    if not has_model and using not in (None, "ngrams"):
        raise UsageError(f"--using {using} needs a model: give --model, or --using ngrams")
    return using or ("both" if has_model else "ngrams")


class Suggester:
    """Completes lines with a model, with n-grams of the open file and of an indexed project, or with both.

    `index` must have been made with `tokenizer`. Without a tokenizer the index's own is used, or a `Lexer`. Not safe
    to share between threads. Raises UsageError where what `using` needs is not there.
    """

    def __init__(
        self, model: Model | None = None, tokenizer: Tokenizer | None = None, index: Index | None = None,
        using: Using | None = None, settings: Settings | None = None, memory: int = MEMORY,
    ) -> None:  # fmt: skip
        self.using = chosen(using, model is not None)
        self.model = None if self.using == "ngrams" else model
        self.tokenizer = tokenizer or (index.tokenizer if index else Lexer())
        self.index = index
        self.settings = settings or Settings()
        self.gate = self.settings.gate(self.using)
        self.prefixes = None if self.model is None else Prefixes(self.model, memory)
        self._buffer: tuple[bytes, bytes, Segment] | None = None
        self._last: dict[str, Last] = {}
        table = self.tokenizer.token_bytes
        # Ids that may be suggested: text, and the token that ends a document.
        self._speakable = np.array([i for i, b in enumerate(table) if b or i == self.tokenizer.eos_id])

    def suggest(
        self, prefix: bytes, suffix: bytes = b"", max_tokens: int = MAX_TOKENS, *, document: str | None = None,
        multiline: bool = False, threshold: float = 0.0, cancelled: Callable[[], bool] = lambda: False,
    ) -> Suggestion:  # fmt: skip
        """The rest of the line, or with `multiline` of the block, at a cursor between `prefix` and `suffix`.

        `document` names the buffer: its state is kept apart, what was suggested for it is not computed again while it
        is typed, and its text in the project's index gives way to the buffer. `cancelled` is asked before every pass
        of the model. Below `threshold` in confidence nothing is shown. Raises Error.
        """
        start = time.perf_counter()

        def nothing(reason: str) -> Suggestion:
            return Suggestion("", 0, 0.0, 1000 * (time.perf_counter() - start), reason=reason)

        def check() -> None:
            if cancelled():
                raise Cancelled

        if document is not None and (typed := self._typed_along(document, prefix, suffix, multiline)) is not None:
            return self._gated(typed, threshold, start)
        try:
            source = self.source(prefix, suffix, document, check)
            found = self._lines(source, prefix, suffix, max_tokens, multiline)
        except Cancelled:
            return nothing("cancelled")
        answer = self._answer(source, found, prefix, suffix, multiline)
        if document is not None:
            self._last[document] = Last(prefix, suffix, multiline, answer)
        return self._gated(answer, threshold, start)

    def _gated(self, answer: Suggestion, threshold: float, start: float) -> Suggestion:
        """The answer, or nothing where its confidence is too low; timed."""
        shown, reason, hidden = answer.completion, answer.reason, answer.completion
        if shown and answer.confidence < threshold:
            shown, reason = "", f"confidence {answer.confidence:.2f} is below the threshold {threshold:.2f}"
        latency = 1000 * (time.perf_counter() - start)
        return Suggestion(
            shown, answer.tokens, answer.mean_logprob, latency, answer.confidence, reason, hidden, answer.evidence
        )

    def _typed_along(self, document: str, prefix: bytes, suffix: bytes, multiline: bool) -> Suggestion | None:
        """What is left of the last suggestion, where the user has typed the beginning of it since."""
        last = self._last.get(document)
        if last is None or not last.suggestion.completion or (last.suffix, last.multiline) != (suffix, multiline):
            return None
        whole = last.prefix + last.suggestion.completion.encode()
        if not (len(last.prefix) <= len(prefix) < len(whole) and whole.startswith(prefix)):
            return None
        rest = text_of(whole[len(prefix) :])
        old = last.suggestion
        if not rest.strip():
            return None
        return Suggestion(rest, old.tokens, old.mean_logprob, 0.0, old.confidence, evidence=old.evidence)

    def source(
        self, prefix: bytes, suffix: bytes, document: str | None = None, check: Callable[[], None] = lambda: None
    ) -> Source:
        """What is known about the place between `prefix` and `suffix`. Raises Error."""
        ngrams = None if self.using == "model" else self._ngrams(prefix, suffix, document)
        if isinstance(self.tokenizer, Lexer):
            ids, remainder = self.tokenizer.split(prefix)
            context = 1 << 30
        else:
            context = self.model.config.context if self.model is not None else 1 << 10
            budget = max(1, context // 2, context - MAX_TOKENS - prompts.MOST_HEALED)
            built = prompts.build(self.tokenizer, prefix, budget)
            ids, remainder = built.ids, built.remainder
        state = None if self.prefixes is None else self.prefixes.of(document or "")
        mixture = self.settings.mixture
        return Source(self.tokenizer, ids, remainder, state, ngrams, mixture, self._speakable, context, check)

    def _ngrams(self, prefix: bytes, suffix: bytes, document: str | None) -> Interpolation:
        """The n-grams of the buffer but for the cursor's line, and of the project but for this document."""
        before = prefix[: prefix.rfind(b"\n") + 1][-MOST_BUFFER:]
        after = suffix[suffix.find(b"\n") + 1 :][:MOST_BUFFER] if b"\n" in suffix else b""
        if self._buffer is None or self._buffer[:2] != (before, after):
            read = self.tokenizer.learn if isinstance(self.tokenizer, Lexer) else self.tokenizer.document
            closing = -1 if self.tokenizer.eos_id is not None else None
            opening = 0 if self.tokenizer.bos_id is None else 1
            ids = [BOUNDARY, *read(before)[:closing], BOUNDARY, *read(after)[opening:]]
            self._buffer = before, after, Segment(np.array(ids, np.int32))
        segments = [(self._buffer[2], BUFFER_WEIGHT)]
        if self.index is not None:
            self.index.hide(document)
            segments += [(segment, 1.0) for segment in self.index.segments]
        return Interpolation(segments)

    def _lines(self, source: Source, prefix: bytes, suffix: bytes, max_tokens: int, multiline: bool) -> "_Decoded":
        """The likeliest line, and with `multiline` the lines after it while the block goes on."""
        most = min(max_tokens, source.context - len(source.ids))
        if source.prefix is not None:
            source.probabilities(())  # the prompt is computed even where there is no room to go on
        before = prefix[prefix.rfind(b"\n") + 1 :]
        path: Path = ()
        margin = 0.0
        while True:
            done = path

            def expand(further: Path, done: Path = done) -> list[tuple[int, float]]:
                return source.expand(done + further)

            def ends(further: Path, done: Path = done) -> bool:
                token = further[-1]
                spelled = source.bytes_of(done + further)
                return token == self.tokenizer.eos_id or bool(LINE_END.search(spelled, len(source.bytes_of(done))))

            found = best_first(expand, ends, most, EXPANSIONS, PATIENCE)
            path, most = done + found.path, most - len(found.path)
            margin = found.margin if not done else margin
            lines = re.split(rb"\r?\n", source.bytes_of(path))[:-1]
            over = not found.ended or path[-1] == self.tokenizer.eos_id
            if not multiline or over or most <= 0 or not postprocess.goes_on(before, lines):
                return _Decoded(path, margin)

    def _answer(self, source: Source, found: "_Decoded", prefix: bytes, suffix: bytes, multiline: bool) -> Suggestion:
        """What is inserted of what was decoded, and the evidence for it."""
        data = source.bytes_of(found.path)
        before, after = prefix[prefix.rfind(b"\n") + 1 :], LINE_END.split(suffix, maxsplit=1)[0]
        data = postprocess.block(before, data, suffix) if multiline else LINE_END.split(data, maxsplit=1)[0]
        text = trim(text_of(data), text_of(after), before.decode("utf-8", "replace"))
        tokens = [source.tokens[found.path[: i + 1]] for i in range(len(found.path))]
        logprobs = [token.logprob for token in tokens]
        evidence = Evidence(
            sum(logprobs), min(logprobs, default=0.0), found.margin,
            sum(t.agreed for t in tokens) / max(1, len(tokens)), len(tokens), len(text), bool(source.remainder.strip()),
        )  # fmt: skip
        mean = evidence.logprob / max(1, len(tokens))
        confidence = self.gate.confidence(evidence) if text else 0.0
        return Suggestion(
            text, len(tokens), mean, 0.0, confidence, None if text else _why_nothing(data, tokens), evidence=evidence
        )


@dataclass(frozen=True)
class _Decoded:
    path: Path
    margin: float


def _why_nothing(data: bytes, tokens: Sequence) -> str:
    if not tokens:
        return "nothing is known that could follow"
    if data.strip():
        return "the rest of the line is there already"
    return "the line seems complete"
