"""The jobs of one HTTP request: submitted together, followed as they go, and given up once their client is gone."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import accumulate

from starlette.requests import Request

from mlxgpt.completion.jobs import CLOSING, GONE, Ask, Busy, Job, Write, Written
from mlxgpt.completion.suggest import Suggestion
from mlxgpt.errors import Error
from mlxgpt.generation.engine import Choice, Piece
from mlxgpt.server.reading import Gone
from mlxgpt.server.refusals import Refused
from mlxgpt.server.state import Served, State


@dataclass(frozen=True)
class Token:
    """A token and its log-probability, with the likeliest at its place; `id` is None for a part of a suggestion."""

    data: bytes
    logprob: float
    id: int | None = None
    top: Sequence[tuple[int, float]] = ()

    @property
    def text(self) -> str:
        """What it spells."""
        return self.data.decode("utf-8", "replace")


@dataclass(frozen=True)
class Delta:
    """More text of the answer `index`."""

    index: int
    text: str
    tokens: Sequence[Token]


@dataclass(frozen=True)
class Reply:
    """The answer `index`, whole. `finish` is OpenAI's "stop" or "length", `stop` llama.cpp's "eos", "word" or "limit";
    `reason` says why there is no text, or why it ended early."""

    index: int
    text: str
    tokens: Sequence[Token]
    finish: str
    stop: str
    stopped_by: str
    prompt_tokens: int
    cached_tokens: int
    written_tokens: int
    prompt_ms: float
    decode_ms: float
    reason: str | None = None
    confidence: float | None = None


@dataclass
class Call:
    """One answer that is wanted, or of a suggestion `several`: there, `stops` and lines indented less than `indent` end
    the text. Of a text, `lead` is taken off its beginning."""

    wanted: Ask | Write
    stops: Sequence[str] = ()
    indent: int = 0
    lead: str = ""
    _held: str = field(default="", init=False)

    @property
    def several(self) -> int:
        """How many answers it has, at most."""
        return self.wanted.several if isinstance(self.wanted, Ask) else 1

    def led(self, text: str, last: bool = False) -> str:
        """The next piece of text, less the lead."""
        if not self.lead:
            return text
        self._held += text
        if self.lead.startswith(self._held) and not last:
            return ""
        text, self.lead, self._held = self._held.removeprefix(self.lead), "", ""
        return text


class Exchange:
    """Answers to the calls of a request. `async with` submits them, and gives up what is not answered at its end.

    Answers are numbered through all calls; a call with fewer than it may have leaves its last numbers out.
    """

    def __init__(self, request: Request, calls: Sequence[Call]) -> None:
        self._request, self._calls = request, calls
        self._numbers = list(accumulate((call.several for call in calls), initial=0))
        self._state: State = request.app.state.mlxgpt
        self._queue: asyncio.Queue[tuple[int, Piece | Future] | None] = asyncio.Queue()
        self._jobs: list[Job] = []

    async def __aenter__(self) -> "Exchange":
        loop = asyncio.get_running_loop()

        def post(item: tuple[int, Piece | Future]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and who would hear it with it
                loop.call_soon_threadsafe(self._queue.put_nowait, item)

        try:
            for i, call in enumerate(self._calls):
                self._jobs.append(self._submit(i, call.wanted, post))
        except Busy as busy:
            self._cancel("the other answers to its request were refused")
            closing = str(busy) == CLOSING
            raise Refused(503 if closing else 429, str(busy), **{"Retry-After": "1"}) from None
        except Error as error:
            self._cancel(str(error))
            raise Refused(400, str(error)) from None
        self._watch = asyncio.create_task(self._until_gone())
        return self

    def _submit(self, i: int, wanted: Ask | Write, post: Callable[[tuple[int, Piece | Future]], None]) -> Job:
        service = self._state.service
        job: Job = service.suggest(wanted) if isinstance(wanted, Ask) else service.write(wanted, lambda p: post((i, p)))
        job.future.add_done_callback(lambda future: post((i, future)))
        return job

    async def __aexit__(self, *error: object) -> None:
        self._watch.cancel()
        self._cancel(GONE)

    def _cancel(self, reason: str) -> None:
        for job in self._jobs:
            if not job.future.done():
                job.cancel(reason)

    async def _until_gone(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._cancel(GONE)
        self._queue.put_nowait(None)

    async def events(self) -> AsyncIterator[Delta | Reply]:
        """What comes of the calls, as it comes; each ends with its Reply. Raises Refused, Gone."""
        open_calls = len(self._calls)
        told: list[list[str]] = [[] for _ in self._calls]
        while open_calls:
            item = await self._queue.get()
            if item is None:
                raise Gone
            i, came = item
            if isinstance(came, Piece):
                text = self._calls[i].led(came.text)
                told[i].append(text)
                yield Delta(self._numbers[i], text, [self._token(came.choice)])
                continue
            open_calls -= 1
            answer = self._result(came)
            if isinstance(answer, Suggestion):
                for reply in self._suggested(i, answer):
                    if reply.text:
                        yield Delta(reply.index, reply.text, reply.tokens)
                    yield reply
                continue
            rest = self._calls[i].led("", last=True)
            if rest:
                told[i].append(rest)
                yield Delta(self._numbers[i], rest, [])
            yield self._written(i, answer, "".join(told[i]))

    async def replies(self) -> list[Reply]:
        """All answers, in the order of the calls. Raises Refused, Gone."""
        found = [event async for event in self.events() if isinstance(event, Reply)]
        return sorted(found, key=lambda reply: reply.index)

    def _result(self, future: Future) -> Suggestion | Written:
        try:
            return future.result()
        except Busy as busy:
            raise Refused(503, str(busy)) from None
        except Error as error:
            raise Refused(400, str(error)) from None

    def _token(self, choice: Choice) -> Token:
        return Token(bytes_of(self._state.ready(), choice.token), choice.logprob, choice.token, choice.top)

    def _suggested(self, i: int, answer: Suggestion) -> list[Reply]:
        """The replies of a call: the likeliest, and those of the others that still differ where stops have cut them."""
        metrics = self._state.metrics
        first = self._reply(i, self._numbers[i], answer)
        metrics.seconds.labels("suggestion").observe(answer.latency_ms / 1000)
        cancelled = (first.reason or "").startswith("cancelled")
        metrics.suggestions.labels("shown" if first.text else "cancelled" if cancelled else "nothing").inc()
        self._count(answer.work.prompt_tokens, answer.work.cached_tokens, answer.tokens)
        found = {first.text: first}
        for other in answer.others if first.text else ():
            reply = self._reply(i, self._numbers[i] + len(found), other)
            if reply.text:
                found.setdefault(reply.text, reply)
        return list(found.values())

    def _reply(self, i: int, number: int, answer: Suggestion) -> Reply:
        call = self._calls[i]
        text, stopped_by = _cut(answer.completion, call.stops)
        text = _indented(text, call.indent)
        reason = answer.reason or (None if text else "a stop text comes first")
        late = text and isinstance(call.wanted, Ask) and answer.tokens >= call.wanted.max_tokens
        return Reply(
            number, text, _upto(answer.parts, len(text)), "length" if late else "stop",
            "word" if stopped_by else "limit" if late else "eos", stopped_by, answer.work.prompt_tokens,
            answer.work.cached_tokens, answer.tokens, answer.work.prompt_ms,
            max(0.0, answer.latency_ms - answer.work.prompt_ms), reason, answer.confidence,
        )  # fmt: skip

    def _written(self, i: int, answer: Written, text: str) -> Reply:
        self._state.metrics.seconds.labels("text").observe((answer.prompt_ms + answer.decode_ms) / 1000)
        self._state.metrics.texts.labels(answer.reason).inc()
        self._count(answer.prompt_tokens, answer.cached_tokens, len(answer.choices))
        stop = "limit" if answer.reason != "stop" else "word" if answer.stopped_by else "eos"
        reason = {"time": "the time limit has passed", "cancelled": f"cancelled: {self._jobs[i].reason}"}
        tokens = [self._token(choice) for choice in answer.choices]
        return Reply(
            self._numbers[i], text, tokens, "stop" if answer.reason == "stop" else "length", stop, answer.stopped_by,
            answer.prompt_tokens, answer.cached_tokens, len(answer.choices), answer.prompt_ms, answer.decode_ms,
            reason.get(answer.reason),
        )  # fmt: skip

    def _count(self, prompt: int, cached: int, written: int) -> None:
        self._state.metrics.prompt_tokens.inc(prompt)
        self._state.metrics.cached_tokens.inc(cached)
        self._state.metrics.written_tokens.inc(written)


def bytes_of(served: Served, token: int) -> bytes:
    """What a token spells: nothing, where the model has more tokens than its tokenizer."""
    known = served.tokenizer.token_bytes
    return known[token] if token < len(known) else b""


def _cut(text: str, stops: Sequence[str]) -> tuple[str, str]:
    """A text up to the stop that comes first in it, and that stop."""
    found = [(at, stop) for stop in stops if stop and (at := text.find(stop)) >= 0]
    if not found:
        return text, ""
    at, stop = min(found)
    return text[:at], stop


def _indented(text: str, indent: int) -> str:
    """A text up to the first new line that is indented less, as llama.cpp's n_indent."""
    first, *rest = text.split("\n")
    kept = [first]
    for line in rest:
        if line.strip() and len(line) - len(line.lstrip()) < indent:
            break
        kept.append(line)
    return "\n".join(kept).rstrip() if len(kept) <= len(rest) else text


def _upto(parts: Sequence[tuple[str, float]], length: int) -> list[Token]:
    """The parts of a suggestion in its first characters."""
    kept = []
    for text, logprob in parts:
        if length <= 0:
            break
        kept.append(Token(text[:length].encode(), logprob))
        length -= len(text)
    return kept
