"""One suggestion for one cursor: what is known, the likeliest line, what of it is inserted, and whether it is shown."""

import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import numpy as np

from mlxgpt.completion import postprocess
from mlxgpt.completion import prompt as prompts
from mlxgpt.completion.context import Library
from mlxgpt.completion.gate import Evidence
from mlxgpt.completion.index import Index
from mlxgpt.completion.lexer import Lexer
from mlxgpt.completion.ngram import BOUNDARY, BUFFER_WEIGHT, Interpolation, Segment
from mlxgpt.completion.postprocess import LINE_END, text_of, trim
from mlxgpt.completion.prefixes import Cancelled, Prefixes
from mlxgpt.completion.search import Found, Path, best_first, others
from mlxgpt.completion.settings import Fim, Settings
from mlxgpt.completion.sources import Source
from mlxgpt.completion.spelling import Part, spelled_by, without
from mlxgpt.completion.views import Views
from mlxgpt.errors import UsageError
from mlxgpt.models import Model
from mlxgpt.tokenizer import Tokenizer

Using = Literal["model", "ngrams", "both"]
MAX_TOKENS = 64  # of a line
BLOCK_TOKENS = 256  # of several lines
WORDS = 16 << 20  # bytes that the words of texts which are there no more may take, beside as many as the others take
READ = 1 << 14  # bytes that are read between two looks at whether the request was cancelled
MOST_BUFFER = 1 << 18  # bytes of the open file that are indexed before the cursor's line, and as many after it
EXPANSIONS = 40  # paths followed before the best of them is finished greedily
# Against the likeliest line of all (0) a point less of exact match, and two points more of the characters completed.
PATIENCE = 0.3
SPARE = 3  # continuations looked at for each further suggestion: some say what was suggested already
MEMORY = 256 << 20  # bytes of model state kept for the documents in use
DOCUMENTS = 64  # whose last suggestion is remembered, for when it is typed along
SNIPPETS = 64  # texts from elsewhere whose n-grams are remembered: a client sends the same ones again and again


@dataclass(frozen=True)
class Work:
    """What a suggestion took: tokens of its prompt, how many of them were computed before, and milliseconds for the
    rest of them."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    prompt_ms: float = 0.0


@dataclass(frozen=True)
class Suggestion:
    """What to insert at the cursor, "" for nothing, and then `reason` says why.

    `mean_logprob` (nats) is over its `tokens`, given the characters that were there; `confidence` is how likely it is
    to be what the user would have typed; `latency_ms` runs from the request to the answer. `hidden` is what would have
    been inserted, had its confidence reached the threshold. `parts` are the texts that its tokens spell, of which
    `hidden` consists, with their log-probabilities. `others` are further suggestions, where several were asked for.
    """

    completion: str
    tokens: int
    mean_logprob: float
    latency_ms: float
    confidence: float = 0.0
    reason: str | None = None
    hidden: str = ""
    evidence: Evidence | None = None
    parts: tuple[Part, ...] = ()
    work: Work = Work()
    others: tuple["Suggestion", ...] = ()


@dataclass(frozen=True)
class Last:
    """What was suggested last for a document, where, and what it depends on beside the place."""

    prefix: bytes
    suffix: bytes
    asked: tuple
    suggestion: Suggestion


def chosen(using: Using | None, has_model: bool) -> Using:
    """What suggests: `using`, or by default all there is. Raises UsageError where it needs a model and has none."""
    if not has_model and using not in (None, "ngrams"):
        raise UsageError(f"--using {using} needs a model: give --model, or --using ngrams")
    return using or ("both" if has_model else "ngrams")


class Suggester:
    """Completes lines with a model, with n-grams of the open file and of an indexed project, or with both.

    `index` must have been made with `tokenizer`. Without a tokenizer the index's own is used, or a `Lexer`. In the room
    that a file leaves in its context the model is shown texts of `library`. Not safe to share between threads. Raises
    UsageError where what `using` needs is not there.
    """

    def __init__(
        self, model: Model | None = None, tokenizer: Tokenizer | None = None, index: Index | None = None,
        using: Using | None = None, settings: Settings | None = None, memory: int = MEMORY,
        library: Library | None = None,
    ) -> None:  # fmt: skip
        self.using = chosen(using, model is not None)
        self.model = None if self.using == "ngrams" else model
        self.tokenizer = tokenizer or (index.tokenizer if index else Lexer())
        self.index = index
        self.settings = settings or Settings()
        self.gate = self.settings.gate(self.using)
        self.fim = self._infills()
        self.prefixes = None if self.model is None else Prefixes(self.model, memory)
        self.views = Views(self.tokenizer, self.fim, None if self.model is None else library)
        self._buffer: tuple[bytes, bytes, Segment] | None = None
        self._last: OrderedDict[str, Last] = OrderedDict()
        self._snippets: OrderedDict[bytes, Segment] = OrderedDict()
        self._words = 0  # bytes that the words of a `Lexer` took when it last forgot some
        table = self.tokenizer.token_bytes
        # Ids that may be suggested: text, and the token that ends a document.
        self._speakable = np.array([i for i, b in enumerate(table) if b or i == self.tokenizer.eos_id])

    def suggest(
        self, prefix: bytes, suffix: bytes = b"", max_tokens: int = MAX_TOKENS, *, document: str | None = None,
        multiline: bool = False, threshold: float = 0.0, cancelled: Callable[[], bool] = lambda: False,
        enough: Callable[[], bool] = lambda: False, extra: Sequence[bytes] = (), several: int = 1, least: int = 1,
    ) -> Suggestion:  # fmt: skip
        """The rest of the line, or with `multiline` of the block, at a cursor between `prefix` and `suffix`.

        `document` names the buffer: its state is kept apart, what is shown for it is not computed again while it
        is typed, and its text in the project's index gives way to the buffer. `cancelled` is asked before every pass
        of the model, `enough` after each line of a block, which it can end there. The n-grams also know the texts of
        `extra`, edited lately elsewhere, the newest first, and the model is shown them where the file leaves room.
        Nothing is shown below `threshold` in confidence, nor a suggestion that is whole with fewer than `least`
        characters. Beside the likeliest suggestion `several` - 1 others are looked for, each with another text; there
        may be fewer. Raises Error.
        """
        start = time.perf_counter()

        def nothing(reason: str) -> Suggestion:
            return Suggestion("", 0, 0.0, 1000 * (time.perf_counter() - start), reason=reason)

        def check() -> None:
            if cancelled():
                raise Cancelled

        asked = multiline, max_tokens, tuple(extra), several
        typed = None if document is None else self._typed_along(document, prefix, suffix, asked)
        # One that is hidden is weighed anew: what was typed of it since speaks for it.
        if document is not None and typed is not None and typed.confidence >= threshold:
            return self._gated(typed, threshold, start, least, self._last[document].suggestion.completion)
        try:
            source = self.source(prefix, suffix, document, check, extra)
            found = self._lines(source, prefix, max_tokens, lambda: multiline and not enough(), several)
            answers: dict[str, Suggestion] = {}  # by their text
            for decoded in found:
                made = self._answer(source, decoded, prefix, suffix, multiline)
                if answers and not made.completion:
                    continue
                answers.setdefault(made.completion, made)
                if len(answers) == several or not made.completion:
                    break
        except Cancelled:
            return nothing("cancelled")
        answer, *more = answers.values()
        answer = replace(answer, others=tuple(more))
        if document is not None:
            _remember(self._last, document, Last(prefix, suffix, asked, answer), DOCUMENTS)
        return self._gated(answer, threshold, start, least if answer.tokens < max_tokens else 1)

    def update(self, name: str, data: bytes | None) -> None:
        """A document of the project is new, has changed, or (None) is gone: what was suggested may be so no more."""
        if self.index is not None:
            self.index.update(name, data)
        self.views.update(name, data)
        self._last.clear()

    def knows(self, name: str) -> bool:
        """Whether a document of this name is in the project's text."""
        library = self.views.library
        return (self.index is not None and name in self.index.documents) or (library is not None and name in library)

    def forget(self, document: str) -> None:
        """What was suggested and shown for a document: the next suggestion is as for a new one."""
        self._last.pop(document, None)
        self.views.forget(document)

    def _infills(self) -> Fim:
        """How the model fills in the middle: a model that nothing is said of does, as most, where there are tokens."""
        if self.model is None or self.tokenizer.fim is None:
            return ""
        return "psm" if self.settings.fim is None else self.settings.fim

    def _gated(self, answer: Suggestion, threshold: float, start: float, least: int, whole: str = "") -> Suggestion:
        """The answer, or nothing where its confidence is too low, or it is short and so was the `whole`; timed."""
        shown, reason, hidden = answer.completion, answer.reason, answer.completion
        if shown and len((whole or shown).strip()) < least:
            shown, reason = "", f"a suggestion of fewer than {least} characters is quicker typed than read"
        elif shown and answer.confidence < threshold:
            shown, reason = "", f"confidence {answer.confidence:.2f} is below the threshold {threshold:.2f}"
        latency = 1000 * (time.perf_counter() - start)
        more = (self._gated(other, threshold, start, 1) for other in answer.others)
        others = tuple(other for other in more if other.completion) if shown else ()
        return replace(answer, completion=shown, latency_ms=latency, reason=reason, hidden=hidden, others=others)

    def _typed_along(self, document: str, prefix: bytes, suffix: bytes, asked: tuple) -> Suggestion | None:
        """What is left of the last suggestion, where the user has typed the beginning of it since."""
        last = self._last.get(document)
        if last is None or not last.suggestion.completion or (last.suffix, last.asked) != (suffix, asked):
            return None
        whole = last.prefix + last.suggestion.completion.encode()
        if not (len(last.prefix) <= len(prefix) < len(whole) and whole.startswith(prefix)):
            return None
        typed = prefix[len(last.prefix) :]
        first, *more = (_rest(old, typed) for old in (last.suggestion, *last.suggestion.others))
        return replace(first, others=tuple(o for o in more if o.completion)) if first.completion.strip() else None

    def source(
        self, prefix: bytes, suffix: bytes, document: str | None = None, check: Callable[[], None] = lambda: None,
        extra: Sequence[bytes] = (),
    ) -> Source:  # fmt: skip
        """What is known about the place between `prefix` and `suffix`. Raises Error."""
        ngrams = None if self.using == "model" else self._ngrams(prefix, suffix, document, extra, check)
        if isinstance(self.tokenizer, Lexer):
            ids, remainder = self.tokenizer.split(prefix)
            context, before = 1 << 30, None
        else:
            context = self.model.config.context if self.model is not None else 1 << 10
            budget = max(1, context // 2, context - MAX_TOKENS - prompts.MOST_HEALED)
            built = self.views.prompt(prefix, suffix, budget, document, extra)
            ids, remainder, before = built.ids, built.remainder, built.before
        state = None if self.prefixes is None else self.prefixes.of(document or "")
        mixture = self.settings.mixture
        return Source(self.tokenizer, ids, remainder, state, ngrams, mixture, self._speakable, context, check, before)

    def _ngrams(
        self, prefix: bytes, suffix: bytes, document: str | None, extra: Sequence[bytes], check: Callable[[], None]
    ) -> Interpolation:
        """The n-grams of the buffer but for the cursor's line, of `extra`, and of the project but for this document."""
        self._forget_words()
        before = prefix[: prefix.rfind(b"\n") + 1][-MOST_BUFFER:]
        after = suffix[suffix.find(b"\n") + 1 :][:MOST_BUFFER] if b"\n" in suffix else b""
        if self._buffer is None or self._buffer[:2] != (before, after):
            closing = -1 if self.tokenizer.eos_id is not None else None
            opening = 0 if self.tokenizer.bos_id is None else 1
            ids = [BOUNDARY, *self._read(before, check)[:closing], BOUNDARY, *self._read(after, check)[opening:]]
            check()
            self._buffer = before, after, Segment(np.array(ids, np.int32))
        segments = [(self._buffer[2], BUFFER_WEIGHT)]
        for text in dict.fromkeys(extra):
            found = self._snippets.get(text)
            if found is None:
                found = Segment(np.array([BOUNDARY, *self._read(text, check)], np.int32))
            _remember(self._snippets, text, found, SNIPPETS)
            segments.append((found, 1.0))
        if self.index is not None:
            self.index.hide(document)
            segments += [(segment, 1.0) for segment in self.index.segments]
        return Interpolation(segments)

    def _forget_words(self) -> None:
        """Have a `Lexer` forget words that no text has any more: those of every text that a client ever sent would be
        as many as there is memory."""
        if isinstance(self.tokenizer, Lexer) and self.tokenizer.nbytes > 2 * self._words + WORDS:
            segments = [*self._snippets.values(), *(self.index.segments if self.index else ())]
            segments += [self._buffer[2]] if self._buffer else []
            self.tokenizer.keep(segment.tokens for segment in segments)
            self._words = self.tokenizer.nbytes

    def _read(self, text: bytes, check: Callable[[], None]) -> list[int]:
        """A document's ids, for the n-grams; `check` is called between pieces of a long one, and may raise."""
        ids: list[int] = []
        for piece in _pieces(text):
            check()
            if isinstance(self.tokenizer, Lexer):
                ids += self.tokenizer.learn(piece)[1 if ids else 0 : -1]
            else:
                ids += self.tokenizer.encode(piece) if ids else self.tokenizer.begin(piece)
        return ids if self.tokenizer.eos_id is None else [*ids, self.tokenizer.eos_id]

    def _lines(
        self, source: Source, prefix: bytes, max_tokens: int, further: Callable[[], bool], several: int
    ) -> Iterator["_Decoded"]:
        """The likeliest line, and the lines after it while the block goes on and `further` ones are wanted; then the
        same of other lines, as many as may be needed for `several` that differ."""
        most = min(max_tokens, source.context - len(source.ids))
        work = Work()
        if source.prefix is not None:
            start = time.perf_counter()
            source.probabilities(())  # the prompt is computed even where there is no room to go on
            work = Work(len(source.ids), source.prefix.reused, 1000 * (time.perf_counter() - start))
        first = self._search(source, (), most)
        yield self._block(source, prefix, first, most, further, work)
        if several > 1:
            expand, ends = self._line_after(source, ())
            for other in islice(others(expand, ends, most, first), SPARE * (several - 1)):
                yield self._block(source, prefix, other, most, further, Work())

    def _line_after(
        self, source: Source, done: Path
    ) -> tuple[Callable[[Path], list[tuple[int, float]]], Callable[[Path], bool]]:
        """What may follow a path after `done`, and whether a path ends the line that it begins there."""

        def expand(further: Path) -> list[tuple[int, float]]:
            return source.expand(done + further)

        def ends(further: Path) -> bool:
            spelled = source.bytes_of(done + further)
            return further[-1] == self.tokenizer.eos_id or bool(LINE_END.search(spelled, len(source.bytes_of(done))))

        return expand, ends

    def _search(self, source: Source, done: Path, most: int) -> Found:
        """The likeliest line after `done`."""
        return best_first(*self._line_after(source, done), most, EXPANSIONS, PATIENCE)

    def _block(
        self, source: Source, prefix: bytes, found: Found, most: int, further: Callable[[], bool], work: Work
    ) -> "_Decoded":
        """A line, and those after it while the block goes on and `further` ones are wanted."""
        before = prefix[prefix.rfind(b"\n") + 1 :]
        path, margin = found.path, found.margin
        while True:
            most -= len(found.path)
            lines = re.split(rb"\r?\n", source.bytes_of(path))[:-1]
            over = not found.ended or path[-1] == self.tokenizer.eos_id
            if over or most <= 0 or not further() or not postprocess.goes_on(before, lines):
                return _Decoded(path, margin, work)
            found = self._search(source, path, most)
            path += found.path

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
        parts = spelled_by([self.tokenizer.token_bytes[i] for i in found.path], logprobs, len(source.remainder), text)
        reason = None if text else _why_nothing(data, tokens)
        return Suggestion(
            text, len(tokens), mean, 0.0, confidence, reason, evidence=evidence, parts=parts, work=found.work
        )


@dataclass(frozen=True)
class _Decoded:
    path: Path
    margin: float
    work: Work


def _pieces(text: bytes) -> Iterator[bytes]:
    """A text in pieces of about `READ` bytes, each but the last to the end of a line."""
    start = 0
    while len(text) - start > READ and (end := text.find(b"\n", start + READ) + 1):
        yield text[start:end]
        start = end
    yield text[start:]


def _rest(old: Suggestion, typed: bytes) -> Suggestion:
    """What is left of a suggestion after what was `typed` since: nothing, where it begins otherwise."""
    data = old.completion.encode()
    rest = text_of(data[len(typed) :]) if data.startswith(typed) else ""
    parts = without(old.parts, len(old.completion) - len(rest))
    return Suggestion(rest, old.tokens, old.mean_logprob, 0.0, old.confidence, evidence=old.evidence, parts=parts)


def _remember(table: OrderedDict, name: object, value: object, most: int) -> None:
    """Put a value into a table of `most` at most, which forgets those it was given longest ago."""
    table.pop(name, None)
    table[name] = value
    while len(table) > most:
        table.popitem(last=False)


def _why_nothing(data: bytes, tokens: Sequence) -> str:
    if not tokens:
        return "nothing is known that could follow"
    if data.strip():
        return "the rest of the line is there already"
    return "the line seems complete"
