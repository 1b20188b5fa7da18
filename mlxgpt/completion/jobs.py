"""What a completion service is asked for, what it answers, and one request on its way."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from mlxgpt.completion.suggest import MAX_TOKENS
from mlxgpt.errors import Error
from mlxgpt.generation.engine import Choice, Piece, Request
from mlxgpt.tokenizer import Tokenizer

GONE = "the client went away"
SUPERSEDED = "a newer request for the same document came"
CLOSING = "the service ends"
WORTH = 3  # characters: to show fewer, unasked, distracts more than it helps
LATE = "the time limit of {:g} s passed"

Answer = TypeVar("Answer")


class Busy(Error):
    """So much is waiting that nothing more is taken; the request may be made again later."""


@dataclass(frozen=True)
class Ask:
    """A suggestion that is wanted at the cursor between `prefix` and `suffix`, as `Suggester.suggest` makes it.

    A `document` is a name for the buffer, a file's absolute path if it is one: a newer request with the same name ends
    this one, and in its project's index its text gives way to the buffer. Without a name nothing is ended, and the
    computed state of the buffer that is most alike is used. Nothing is shown after `seconds`; after `block_seconds` a
    block ends with the line it has come to. `several` suggestions are looked for, each with another text. None is shown
    that is whole with fewer than `least` characters.
    """

    prefix: bytes
    suffix: bytes = b""
    document: str | None = None
    multiline: bool = False
    max_tokens: int = MAX_TOKENS
    threshold: float = 0.0
    extra: Sequence[bytes] = ()
    seconds: float = 10.0
    block_seconds: float | None = None
    several: int = 1
    least: int = WORTH


@dataclass(frozen=True)
class Write:
    """A text that is wanted after a prompt: `encode` makes token ids with the model's tokenizer, and may raise Error.

    It ends where it is after `seconds`, and `line_seconds` after its first token if a line has ended by then.
    """

    encode: Callable[[Tokenizer], Sequence[int]]
    request: Request = field(default_factory=Request)
    seconds: float = 300.0
    line_seconds: float | None = None


@dataclass(frozen=True)
class Written:
    """A finished text: `reason` is "stop", "length", "time" or "cancelled"; `stopped_by` is the stop text it ended at,
    and `cached_tokens` of the prompt's were computed before. Times in milliseconds."""

    text: str
    choices: Sequence[Choice]
    reason: str
    stopped_by: str
    prompt_tokens: int
    cached_tokens: int
    prompt_ms: float
    decode_ms: float


class Job(Generic[Answer]):
    """One request: `future` is done when it is answered, refused (Error) or given up.

    The future is a concurrent.futures.Future: `result(timeout)` in a thread, `asyncio.wrap_future` in a loop.
    """

    def __init__(self, seconds: float, given_up: Callable[["Job"], None]) -> None:
        self.future: Future[Answer] = Future()
        self.submitted = time.perf_counter()
        self.reason = ""  # why it is given up
        self._deadline, self._late = self.submitted + seconds, LATE.format(seconds)
        self._given_up = given_up

    def cancel(self, reason: str = "cancelled") -> None:
        """Give the request up, from any thread: at once where it waits, else within one token. Its future then has an
        answer with what there is."""
        if not self.reason:
            self.reason = reason
            self._given_up(self)

    def over(self) -> bool:
        """Whether it was given up, or its time has passed."""
        if not self.reason and time.perf_counter() > self._deadline:
            self.reason = self._late
        return bool(self.reason)

    @property
    def late(self) -> bool:
        """Whether it was its time that passed."""
        return self.reason == self._late

    def elapsed_ms(self) -> float:
        """Milliseconds since it was submitted."""
        return 1000 * (time.perf_counter() - self.submitted)


class Writing(Job[Written]):
    """A text on its way: what came of it so far. Each piece is told to `show`, on the service's thread."""

    def __init__(self, wanted: Write, show: Callable[[Piece], object], given_up: Callable[[Job], None]) -> None:
        super().__init__(wanted.seconds, given_up)
        self.wanted = wanted
        self._show = show
        self._pieces: list[Piece] = []
        self._started = self._first = 0.0
        self._ended_line = False

    def begin(self) -> None:
        """Its prompt's computing begins."""
        self._started = time.perf_counter()

    def computed(self) -> None:
        """Its prompt is computed."""
        self._first = time.perf_counter()

    def add(self, piece: Piece) -> bool:
        """Take the next piece; whether the text ends with it."""
        self._pieces.append(piece)
        self._ended_line |= "\n" in piece.text
        self._show(piece)
        limit = self.wanted.line_seconds
        return piece.finish_reason is not None or (
            limit is not None and self._ended_line and time.perf_counter() - self._first > limit
        )

    def written(self, tokenizer: Tokenizer | None, prompt_tokens: int = 0, cached_tokens: int = 0) -> Written:
        """The answer as it is now."""
        now = time.perf_counter()
        reason = self._pieces[-1].finish_reason if self._pieces else None
        if reason in (None, "cancelled"):
            reason = "length" if not self.reason else "time" if self.late else "cancelled"
        return Written(
            "".join(p.text for p in self._pieces), [p.choice for p in self._pieces], str(reason),
            self._stopped_by(tokenizer) if reason == "stop" else "", prompt_tokens, cached_tokens,
            1000 * ((self._first or now) - (self._started or now)), 1000 * (now - self._first if self._first else 0.0),
        )  # fmt: skip

    def _stopped_by(self, tokenizer: Tokenizer | None) -> str:
        """The stop text that comes first in what was written; "" where a closing token ended it."""
        assert tokenizer is not None
        request, last = self.wanted.request, self._pieces[-1].choice.token
        if last == tokenizer.eos_id or last in request.closing:
            return ""
        spelled = [tokenizer.token_bytes[i] for p in self._pieces if (i := p.choice.token) < tokenizer.vocab_size]
        said = b"".join(spelled).decode("utf-8", "replace")
        found = [(at, stop) for stop in request.stops if stop and (at := said.find(stop)) >= 0]
        return min(found)[1] if found else ""
