"""Completion for many at once: one suggester and one batch of texts on one thread, asked from any thread or loop.

    service = Service(open_suggester)             # `open` is called on the service's own thread
    service.start().result()                      # raises what `open` raises
    job = service.suggest(Ask(prefix, suffix, document="a.py"))
    job.future.result()                           # a Suggestion, whose `reason` says why where it is empty
    await asyncio.wrap_future(job.future)         # the same in an event loop
    job.cancel("the editor was closed")           # within one token
    service.write(Write(encode, Request(...)), show=print).future.result()    # a Written; `show` hears each Piece
    service.close()

MLX's streams belong to a thread, and a `Suggester` is not safe to share: so all work is done on one thread, in turns of
one suggestion and one step of the batch. A newer request for a document takes the place of an older one, in the queue
too, so that no document waits for another that asks more often. What is refused raises Busy at once.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from mlxgpt import ending
from mlxgpt.completion.jobs import CLOSING, SUPERSEDED, Ask, Busy, Job, Write, Writing
from mlxgpt.completion.suggest import Suggester, Suggestion
from mlxgpt.completion.unnamed import Unnamed
from mlxgpt.errors import Error
from mlxgpt.generation.continuous import Batch, Member
from mlxgpt.generation.engine import Piece

QUEUE = 64  # requests that wait at most
CLOSING_SECONDS = 1.0  # that are waited for a suggester to be there, when it is wanted no more
CALLING = 0.02  # seconds that calls may hold a suggestion up
Result = TypeVar("Result")


class Suggesting(Job[Suggestion]):
    """A suggestion on its way."""

    def __init__(self, wanted: Ask, given_up: Callable[[Job], None]) -> None:
        super().__init__(wanted.seconds, given_up)
        self.wanted = wanted

    def nothing(self) -> Suggestion:
        """The answer where it is given up."""
        return Suggestion("", 0, 0.0, self.elapsed_ms(), reason=f"cancelled: {self.reason}")


@dataclass(frozen=True)
class Load:
    """How much is waiting, and how much is being worked on."""

    waiting: int
    working: int


class Service:
    """See the module. All methods may be called from any thread; after `close` nothing is taken any more."""

    def __init__(self, open: Callable[[], Suggester], queue: int = QUEUE) -> None:
        self._open, self._queue = open, queue
        self._changed = threading.Condition(threading.RLock())
        self._asked: OrderedDict[object, Suggesting] = OrderedDict()  # by document: one waits at most
        self._wanted: deque[Writing] = deque()
        self._calls: deque[tuple[Callable[[Suggester], Any], Future]] = deque()
        self._running: Suggesting | None = None
        self._members: dict[Writing, Member] = {}
        self._batch: Batch | None = None
        self._unnamed = Unnamed()
        self._opened: Future[None] = Future()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="completion", daemon=True)

    # What others see.

    def start(self) -> Future[None]:
        """Begin to work; the future is done when the suggester is there, and raises what `open` raised."""
        ending.at_once()
        self._thread.start()
        return self._opened

    @property
    def ready(self) -> bool:
        """Whether the suggester is there, and works."""
        return self._opened.done() and not self._closing and self._opened.exception() is None

    @property
    def load(self) -> Load:
        """How much there is to do now."""
        with self._changed:
            working = len(self._members) + (self._running is not None)
            return Load(len(self._asked) + len(self._wanted), working)

    def suggest(self, wanted: Ask) -> Suggesting:
        """Have a suggestion made. Raises Busy."""
        job = Suggesting(wanted, self._given_up)
        key: object = job if wanted.document is None else wanted.document
        with self._changed:
            older = self._asked.get(key)
            if older is None:
                self._require_room()
            self._asked[key] = job  # in the older one's place
            running = self._running
            self._changed.notify()
        if older is not None:
            older.cancel(SUPERSEDED)
        if running is not None and wanted.document is not None and running.wanted.document == wanted.document:
            running.cancel(SUPERSEDED)
        return job

    def write(self, wanted: Write, show: Callable[[Piece], object] = lambda piece: None) -> Writing:
        """Have a text written; `show` hears each piece on the service's thread. Raises Busy, and Error where there is
        no model that could."""
        if self.ready and self._batch is None:
            raise Error("no model is loaded that could write a text: start with --model")
        job = Writing(wanted, show, self._given_up)
        with self._changed:
            self._require_room()
            self._wanted.append(job)
            self._changed.notify()
        return job

    def call(self, function: Callable[[Suggester], Result]) -> "Future[Result]":
        """Have a short function called with the suggester, between two pieces of work."""
        future: Future[Result] = Future()
        with self._changed:
            if self._closing:
                raise Busy(CLOSING)
            self._calls.append((function, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Give up all that is waiting or being worked on, and end the thread; one that still opens its suggester is not
        waited for."""
        with self._changed:
            self._closing = True
            jobs: list[Job] = [*self._asked.values(), *self._wanted, *self._members]
            jobs += [self._running] if self._running else []
            self._changed.notify()
        for job in jobs:
            job.cancel(CLOSING)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(CLOSING_SECONDS if not self._opened.done() else None)

    # On the threads of those who ask.

    def _require_room(self) -> None:
        if self._closing:
            raise Busy(CLOSING)
        if len(self._asked) + len(self._wanted) >= self._queue:
            raise Busy(f"{self._queue} requests are waiting: try again in a moment")

    def _given_up(self, job: Job) -> None:
        """A job was cancelled: where it still waits, it is answered here."""
        with self._changed:
            if isinstance(job, Suggesting):
                waiting = [key for key, other in self._asked.items() if other is job]
                for key in waiting:
                    del self._asked[key]
                # one that was superseded has its place taken already, and runs nowhere
                answered = bool(waiting) or (job is not self._running and not job.future.done())
            else:
                answered = job in self._wanted
                if answered:
                    self._wanted.remove(job)  # type: ignore[arg-type]
            self._changed.notify()
        if answered and isinstance(job, Suggesting):
            _answer(job.future, job.nothing())
        elif answered and isinstance(job, Writing):
            _answer(job.future, job.written(None))

    # On the service's own thread.

    def _work(self) -> None:
        try:
            suggester = self._open()
            if suggester.model is not None:
                self._batch = Batch(suggester.model, suggester.tokenizer)
        except BaseException as error:
            with self._changed:
                self._closing = True
            self._opened.set_exception(error)
            self.close()
            return
        self._opened.set_result(None)
        while True:
            with self._changed:
                while not (self._closing or self._asked or self._wanted or self._calls or self._members):
                    self._changed.wait()
                if self._closing:
                    break
                asked = self._running = self._asked.popitem(last=False)[1] if self._asked else None
            self._make_calls(suggester)
            if asked is not None:
                self._suggest(suggester, asked)
            if self._batch is not None:
                self._take_in(self._batch)
                self._step(self._batch)
            else:
                self._refuse()
        for job in list(self._members):
            job.cancel(CLOSING)
            self._end(job)
        for _, future in self._calls:
            future.cancel()

    def _make_calls(self, suggester: Suggester) -> None:
        """The calls that wait, in turn; some are left for later where they take long."""
        until = time.perf_counter() + CALLING
        while time.perf_counter() < until:
            with self._changed:
                if not self._calls:
                    return
                function, future = self._calls.popleft()
            try:
                _answer(future, function(suggester))
            except Exception as error:
                _fail(future, error)

    def _suggest(self, suggester: Suggester, job: Suggesting) -> None:
        """Make a suggestion; a failed one leaves the suggester as it was."""
        ask = job.wanted
        try:
            if job.over():
                return _answer(job.future, job.nothing())
            name = self._unnamed.name(ask.prefix) if ask.document is None else ask.document
            until = None if ask.block_seconds is None else job.elapsed_ms() + 1000 * ask.block_seconds
            answer = suggester.suggest(
                ask.prefix, ask.suffix, ask.max_tokens, document=name, multiline=ask.multiline,
                threshold=ask.threshold, cancelled=job.over, extra=ask.extra, several=ask.several, least=ask.least,
                enough=lambda: until is not None and job.elapsed_ms() > until,
            )  # fmt: skip
            if job.over() and answer.reason == "cancelled":
                answer = job.nothing()
            elif not ask.max_tokens:
                answer = replace(answer, reason="no tokens were asked for: the text before the cursor is computed")
            _answer(job.future, replace(answer, latency_ms=job.elapsed_ms()))
        except Exception as error:
            _fail(job.future, error)
        finally:
            with self._changed:
                self._running = None

    def _take_in(self, batch: Batch) -> None:
        """Have waiting texts join the batch while there is room."""
        while not batch.full:
            with self._changed:
                if not self._wanted:
                    return
                job = self._wanted.popleft()
            try:
                job.begin()
                request = replace(job.wanted.request, cancelled=job.over)
                member = batch.join(job.wanted.encode(batch.tokenizer), request)
            except Exception as error:
                _fail(job.future, error)
                continue
            with self._changed:
                self._members[job] = member

    def _step(self, batch: Batch) -> None:
        """One step of the batch, and who is done with it."""
        for job in [job for job in self._members if job.over()]:
            self._end(job)
        with self._changed:
            late = [job for job in self._wanted if job.over()]
        for job in late:
            self._given_up(job)
        jobs = {member: job for job, member in self._members.items()}
        try:
            told = batch.step()
        except Exception as error:  # whatever it was, no row can be trusted any more
            self._batch = Batch(batch.model, batch.tokenizer)
            for job in jobs.values():
                self._forget(job)
                _fail(job.future, error)
            return
        for member, piece in told:
            job = jobs[member]
            try:
                if piece is None:
                    job.computed()
                    ended = not member.request.max_tokens
                else:
                    ended = job.add(piece)
            except Exception as error:  # in `show`
                batch.leave(member)
                self._forget(job)
                _fail(job.future, error)
                continue
            if ended:
                self._end(job)

    def _end(self, job: Writing) -> None:
        """Answer a text that is a member of the batch, and let it go."""
        member, batch = self._members[job], self._batch
        assert batch is not None
        batch.leave(member)
        self._forget(job)
        _answer(job.future, job.written(batch.tokenizer, len(member.prompt), member.cached))

    def _forget(self, job: Writing) -> None:
        with self._changed:
            self._members.pop(job, None)

    def _refuse(self) -> None:
        """Texts that were wanted before it was known that there is no model for them."""
        with self._changed:
            jobs = list(self._wanted)
            self._wanted.clear()
        for job in jobs:
            _fail(job.future, Error("no model is loaded that could write a text: start with --model"))


def _answer(future: Future, answer: Any) -> None:
    """Set a future's result, unless it has one or was cancelled itself."""
    try:
        future.set_result(answer)
    except Exception:  # InvalidStateError: it was answered meanwhile by who cancelled it
        return


def _fail(future: Future, error: Exception) -> None:
    try:
        future.set_exception(error)
    except Exception:
        return
