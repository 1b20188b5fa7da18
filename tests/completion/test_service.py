"""The completion service: many ask at once, each gets its own answer, and what is not wanted ends within a token."""

import asyncio
import threading
import time
from concurrent.futures import wait

import pytest
from paced import BYTES, SECONDS, Paced
from paced import network as tiny

from mlxgpt.completion import project
from mlxgpt.completion import service as services
from mlxgpt.completion.index import Index
from mlxgpt.completion.jobs import GONE, SUPERSEDED, Ask, Busy, Write
from mlxgpt.completion.lexer import Lexer
from mlxgpt.completion.service import Load, Service
from mlxgpt.completion.suggest import Suggester
from mlxgpt.completion.unnamed import KEEP, Unnamed
from mlxgpt.completion.watch import Watcher
from mlxgpt.errors import Error
from mlxgpt.generation import engine
from mlxgpt.generation.continuous import Batch
from mlxgpt.generation.engine import Request
from mlxgpt.generation.sampling import Sampling

CONTEXT = 256  # tokens


@pytest.fixture
def serving():
    """Starts services, and closes them."""
    begun = []

    def start(suggester, **more) -> Service:
        service = Service(suggester if callable(suggester) else lambda: suggester, **more)
        service.start().result(SECONDS)
        begun.append((service, suggester))
        return service

    yield start
    for service, suggester in begun:
        if isinstance(suggester, Paced):
            suggester.steps.release(10_000)
        service.close()


def text(prompt: bytes, **request) -> Write:
    return Write(lambda tokenizer: tokenizer.begin(prompt), Request(**request))


def buffer(name: str) -> bytes:
    return f"{name} = 1\n{name[:-2]}".encode()


def test_answers_are_the_suggesters_own(serving):
    service, alone = serving(Suggester()), Suggester()
    for prefix, suffix in ((buffer("first_value"), b"\n"), (b"", b""), (b"x = compute(alpha)\ny = comp", b"\n")):
        mine, its = service.suggest(Ask(prefix, suffix)).future.result(SECONDS), alone.suggest(prefix, suffix)
        assert (mine.completion, mine.reason, mine.confidence) == (its.completion, its.reason, its.confidence)
        assert mine.completion or mine.reason
        assert "".join(text for text, _ in mine.parts) == mine.completion


def test_each_client_gets_its_own_text(serving):
    """Threads with a text of their own each, suggestions and written texts at once."""
    network = tiny(CONTEXT)
    service = serving(lambda: Suggester(network, BYTES, None, "both"), queue=1000)
    wrong = []

    def client(i: int) -> None:
        own = [service.suggest(Ask(buffer(f"name_of_{i}_{k}_x"), document=f"{i}")) for k in range(1)]
        jobs = [service.write(text(f"client {i}, {k}".encode(), max_tokens=12)) for k in range(3)]
        for k, job in enumerate(jobs):
            prompt = BYTES.begin(f"client {i}, {k}")
            with lock:
                alone = engine.collect(engine.generate(network, BYTES, prompt, Request(12)))
            if job.future.result(SECONDS).text != alone.text:
                wrong.append((i, k))
        answer = own[0].future.result(SECONDS)
        others = [f"{j}" for j in range(6) if j != i]
        if any(f"name_of_{j}" in answer.completion for j in others):
            wrong.append((i, answer))

    lock = threading.Lock()
    threads = [threading.Thread(target=client, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert service.load == Load(0, 0)


def test_a_newer_request_ends_the_older_within_one_token(serving):
    suggester = Paced()
    service = serving(suggester)
    older = service.suggest(Ask(buffer("older_value"), document="a"))
    suggester.steps.release(2)
    while suggester.taken < 2:
        time.sleep(0.001)
    newer = service.suggest(Ask(buffer("newer_value"), document="a"))
    suggester.steps.release(1)
    answer = older.future.result(SECONDS)
    assert (answer.completion, answer.reason) == ("", f"cancelled: {SUPERSEDED}")
    assert suggester.taken == 3
    suggester.steps.release(1000)
    assert newer.future.result(SECONDS).completion == "ue = 1"


def test_requests_without_a_name_end_no_other(serving):
    suggester = Paced()
    service = serving(suggester)
    jobs = [service.suggest(Ask(buffer("same_value"))) for _ in range(3)]
    suggester.steps.release(1000)
    assert [job.future.result(SECONDS).completion for job in jobs] == ["ue = 1"] * 3


def test_a_newer_request_waits_where_the_older_did(serving):
    """So that who asks often does not lose its turn to others, nor takes theirs."""
    suggester = Paced()
    service = serving(suggester)
    service.suggest(Ask(b"working"))
    assert suggester.began.acquire(timeout=SECONDS)
    jobs = [service.suggest(Ask(name.encode(), document=name)) for name in ("a", "b", "c")]
    newer = service.suggest(Ask(b"a, newer", document="a"))
    assert jobs[0].future.result(0).reason == f"cancelled: {SUPERSEDED}"  # at once: it had not begun
    assert service.load == Load(3, 1)
    suggester.steps.release(1000)
    wait([newer.future, jobs[1].future, jobs[2].future], SECONDS)
    assert suggester.order == [b"working", b"a, newer", b"b", b"c"]


def test_what_is_cancelled_is_answered_at_once_or_within_a_token(serving):
    suggester = Paced()
    service = serving(suggester)
    working, waiting = service.suggest(Ask(b"one")), service.suggest(Ask(b"two"))
    assert suggester.began.acquire(timeout=SECONDS)
    waiting.cancel(GONE)
    assert waiting.future.result(0).reason == f"cancelled: {GONE}"
    working.cancel(GONE)
    assert not working.future.done()
    suggester.steps.release(1)
    assert working.future.result(SECONDS).reason == f"cancelled: {GONE}"
    working.cancel("again")  # changes nothing
    assert working.future.result().reason == f"cancelled: {GONE}"


def test_a_full_queue_refuses_and_says_so(serving):
    suggester = Paced()
    service = serving(suggester, queue=2)
    service.suggest(Ask(b"working"))
    assert suggester.began.acquire(timeout=SECONDS)
    jobs = [service.suggest(Ask(b"1", document="1")), service.suggest(Ask(b"2"))]
    with pytest.raises(Busy, match=r"^2 requests are waiting: try again"):
        service.suggest(Ask(b"3"))
    newer = service.suggest(Ask(b"1, newer", document="1"))  # takes a place, and leaves one
    suggester.steps.release(1000)
    wait([newer.future, jobs[1].future], SECONDS)
    service.suggest(Ask(b"3")).future.result(SECONDS)


def test_time_passes_while_waiting_too(serving):
    suggester = Paced()
    service = serving(suggester)
    working = service.suggest(Ask(b"working", seconds=0.0))
    waiting = service.suggest(Ask(b"waiting", seconds=0.0))
    suggester.steps.release(100)
    for job in (working, waiting):
        assert job.future.result(SECONDS).reason == "cancelled: the time limit of 0 s passed"


def test_no_tokens_compute_the_prompt_alone(serving):
    network = tiny(CONTEXT)
    service = serving(lambda: Suggester(network, BYTES, None, "model"))
    prefix = b"def compute(alpha, beta):\n    return alpha * beta\n\ncompute(al"
    warmed = service.suggest(Ask(prefix, max_tokens=0)).future.result(SECONDS)
    assert (warmed.completion, warmed.tokens) == ("", 0)
    assert warmed.reason == "no tokens were asked for: the text before the cursor is computed"
    assert warmed.work.prompt_tokens > 0
    asked = service.suggest(Ask(prefix)).future.result(SECONDS)
    assert asked.work.cached_tokens == asked.work.prompt_tokens - 1


def test_buffers_without_a_name_are_known_by_their_text():
    known = Unnamed()
    first, second = known.name(b"import os\n" * 9), known.name(b"class A:\n" * 9)
    assert first != second
    assert known.name(b"import os\n" * 9 + b"x") == first
    assert known.name(b"import os\n" * 8 + b"y = 1") == first
    assert known.name(b"class A:\n" * 7) == second
    assert known.name(b"cl") == second
    assert known.name(b"") not in (first, second)
    others = [known.name(bytes([i]) * 5) for i in range(KEEP)]
    assert len({first, second, *others}) == KEEP + 2
    assert known.name(b"import os\n" * 9) not in (first, second)  # forgotten by now


def test_texts_join_and_leave_and_are_what_they_are_alone(serving):
    network = tiny(CONTEXT)
    service = serving(lambda: Suggester(network, BYTES))
    requests = [{"max_tokens": 5 + 7 * i, "sampling": Sampling(1.0 if i % 2 else 0.0), "seed": i} for i in range(10)]
    shown: dict[int, str] = {}
    jobs = []
    for i, request in enumerate(requests):
        show = lambda piece, i=i: shown.__setitem__(i, shown.get(i, "") + piece.text)  # noqa: E731
        jobs.append(service.write(text(b"prompt %d" % i, **request), show))
    for i, job in enumerate(jobs):
        written = job.future.result(SECONDS)
        alone = engine.collect(engine.generate(network, BYTES, BYTES.begin(b"prompt %d" % i), Request(**requests[i])))
        assert written.text == alone.text == shown[i]
        assert (written.reason, written.prompt_tokens) == (alone.finish_reason, len(BYTES.begin(b"prompt %d" % i)))
        assert len(written.choices) == len(alone.choices)


def test_a_text_ends_where_it_is_to(serving):
    network = tiny(CONTEXT)
    service = serving(lambda: Suggester(network, BYTES))
    whole = service.write(text(b"x", max_tokens=40)).future.result(SECONDS)
    assert whole.reason == "length"
    stop = whole.text[5:7]
    stopped = service.write(text(b"x", max_tokens=40, stops=["\0\0", stop])).future.result(SECONDS)
    assert (stopped.reason, stopped.stopped_by) == ("stop", stop)
    assert stopped.text == whole.text[: whole.text.index(stop)]
    token = whole.choices[3].token
    closed = service.write(text(b"x", max_tokens=40, closing={token})).future.result(SECONDS)
    assert (closed.reason, closed.stopped_by) == ("stop", "")
    late = service.write(Write(lambda t: t.begin(b"x"), Request(200), seconds=0.0)).future.result(SECONDS)
    assert (late.reason, late.text) == ("time", "")
    for seed in range(100):  # until one is drawn with a line's end in it
        drawn = Request(200, Sampling(5.0), seed=seed)
        free = service.write(Write(lambda t: t.begin(b"x"), drawn)).future.result(SECONDS)
        if "\n" in free.text[:-1]:
            break
    ended = service.write(Write(lambda t: t.begin(b"x"), drawn, line_seconds=0.0)).future.result(SECONDS)
    assert (ended.reason, ended.text) == ("length", free.text[: free.text.index("\n") + 1])
    nothing = service.write(text(b"x", max_tokens=0)).future.result(SECONDS)
    assert (nothing.text, nothing.reason, nothing.prompt_tokens) == ("", "length", 2)


def test_a_text_that_is_cancelled_frees_its_place(serving, monkeypatch):
    """Steps are given one by one; what it had written till then is its answer."""
    steps, real = threading.Semaphore(0), Batch.step
    monkeypatch.setattr(Batch, "step", lambda self: steps.acquire(timeout=SECONDS) and real(self))
    network = tiny(CONTEXT)
    service = serving(lambda: Suggester(network, BYTES))
    heard = threading.Semaphore(0)
    job = service.write(text(b"x", max_tokens=200), lambda piece: heard.release())
    steps.release(3)
    for _ in range(3):
        assert heard.acquire(timeout=SECONDS)
    assert service.load == Load(0, 1)
    job.cancel(GONE)
    steps.release(1)
    written = job.future.result(SECONDS)
    assert written.reason == "cancelled"
    assert 3 <= len(written.choices) <= 4
    steps.release(1000)
    assert service.write(text(b"y", max_tokens=3)).future.result(SECONDS).reason == "length"
    assert service.load == Load(0, 0)


def test_more_texts_than_rows_wait_their_turn(serving):
    network = tiny(CONTEXT)
    service = serving(lambda: Suggester(network, BYTES))
    jobs = [service.write(text(b"p%d" % i, max_tokens=4)) for i in range(20)]
    assert [len(job.future.result(SECONDS).choices) for job in jobs] == [4] * 20


def test_what_fails_fails_alone(serving, monkeypatch):
    network = tiny(CONTEXT)
    service = serving(lambda: Suggester(network, BYTES))
    long = service.write(Write(lambda tokenizer: [1] * 257))
    with pytest.raises(Error, match="257 tokens do not fit the model's context of 256"):
        long.future.result(SECONDS)
    with pytest.raises(ZeroDivisionError):
        service.write(Write(lambda tokenizer: 1 / 0)).future.result(SECONDS)  # type: ignore[arg-type, return-value]
    with pytest.raises(ZeroDivisionError):
        service.write(text(b"x"), lambda piece: 1 / 0).future.result(SECONDS)
    with pytest.raises(ZeroDivisionError):
        service.call(lambda suggester: 1 / 0).result(SECONDS)
    real = Suggester.suggest
    monkeypatch.setattr(Suggester, "suggest", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        service.suggest(Ask(b"x")).future.result(SECONDS)
    monkeypatch.setattr(Suggester, "suggest", real)
    stepping = Batch.step
    monkeypatch.setattr(Batch, "step", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        service.write(text(b"x")).future.result(SECONDS)
    monkeypatch.setattr(Batch, "step", stepping)
    assert service.write(text(b"x", max_tokens=2)).future.result(SECONDS).reason == "length"
    assert service.suggest(Ask(b"x")).future.result(SECONDS).reason != "cancelled"
    assert service.load == Load(0, 0)


def test_without_a_model_no_text_is_written(serving):
    service = serving(Suggester())
    with pytest.raises(Error, match="no model is loaded"):
        service.write(text(b"x"))
    early = Service(Suggester)
    job = early.write(text(b"x"))
    early.start()
    with pytest.raises(Error, match="no model is loaded"):
        job.future.result(SECONDS)
    early.close()


def test_what_cannot_be_opened_says_so_and_takes_nothing(serving):
    service = Service(lambda: 1 / 0)
    waiting = service.suggest(Ask(b"x"))
    with pytest.raises(ZeroDivisionError):
        service.start().result(SECONDS)
    assert waiting.future.result(SECONDS).reason == "cancelled: the service ends"
    assert not service.ready
    for ask in (lambda: service.suggest(Ask(b"x")), lambda: service.call(lambda s: None)):
        with pytest.raises(Busy, match="the service ends"):
            ask()


def test_closing_answers_everyone(serving):
    suggester = Paced()
    service = serving(suggester)
    jobs = [service.suggest(Ask(b"%d" % i)) for i in range(3)]
    assert suggester.began.acquire(timeout=SECONDS)
    suggester.steps.release(1000)
    service.close()
    for job in jobs:
        assert job.future.done()
    assert not service.ready
    with pytest.raises(Busy):
        service.suggest(Ask(b"x"))


def test_closing_does_not_wait_for_what_is_still_opened(monkeypatch):
    monkeypatch.setattr(services, "CLOSING_SECONDS", 0.0)
    wanted = threading.Event()
    service = Service(lambda: wanted.wait(SECONDS) and Suggester())
    future = service.start()
    service.close()
    assert not future.done()
    wanted.set()
    future.result(SECONDS)
    assert not service.ready


def test_it_is_asked_from_an_event_loop(serving):
    service = serving(Suggester())

    async def ask(i: int) -> str:
        return (await asyncio.wrap_future(service.suggest(Ask(buffer(f"name{i}_value"))).future)).completion

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*map(ask, range(5)))

    assert asyncio.run(all_of_them()) == ["ue = 1"] * 5


def test_other_places_texts_are_known(serving):
    service = serving(Suggester())
    place = Ask(b"x = 1\nremember_th", b"\n")
    assert service.suggest(place).future.result(SECONDS).completion == ""
    extra = [b"remember_this_name = compute(7)\n"] * 2
    told = service.suggest(Ask(place.prefix, place.suffix, extra=extra)).future.result(SECONDS)
    assert told.completion == "is_name = compute(7)"
    assert service.suggest(place).future.result(SECONDS).completion == ""


def test_saved_files_are_known_once_they_are_looked_at(serving, tmp_path):
    def written(name: str, content: str) -> None:
        (tmp_path / name).write_text(content * 3)

    written("a.py", "first_name_of_all = compute_something(1, 2)\n")
    seen = project.state(tmp_path)
    index = Index(Lexer())
    index.build([(name, text) for name, text in project.changes(tmp_path, {})[1] if text is not None])
    service = serving(Suggester(index=index))
    watcher = Watcher(service, tmp_path, seen)

    def suggested(prefix: bytes) -> str:
        service.call(lambda suggester: None).result(SECONDS)  # what was called for before is done
        return service.suggest(Ask(prefix, b"\n")).future.result(SECONDS).completion

    assert suggested(b"first_na") == "me_of_all = compute_something(1, 2)"
    assert suggested(b"second_na") == ""
    assert watcher.look() == 0
    written("b.py", "second_name_of_all = compute_something(3, 4)\n")
    written("a.py", "first_name_is_other = compute_something_else(5)\n")
    assert watcher.look() == 2
    assert suggested(b"second_na") == "me_of_all = compute_something(3, 4)"
    assert suggested(b"first_na") == "me_is_other = compute_something_else(5)"
    (tmp_path / "b.py").unlink()
    assert watcher.look() == 1
    assert suggested(b"second_na") == ""
    assert watcher.look() == 0


def test_a_watcher_looks_until_it_is_closed(serving, tmp_path):
    (tmp_path / "a.py").write_text("nothing_much = 1\n" * 5)
    service = serving(Suggester(index=Index(Lexer())))
    watcher = Watcher(service, tmp_path, project.state(tmp_path), every=0.01)
    watcher.start()
    (tmp_path / "b.py").write_text("something_new_here = 2\n" * 5)
    until = time.monotonic() + SECONDS
    while service.call(lambda suggester: len(suggester.index.documents)).result(SECONDS) == 0:
        assert time.monotonic() < until
    watcher.close()
    assert service.call(lambda suggester: suggester.index.documents).result(SECONDS) == {str(tmp_path / "b.py")}
