"""Servers that the tests share: of a tiny random model, of n-grams alone, and any other."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from live import CHAT, PROJECT, Serving, opened, soon
from paced import BYTES, SECONDS, Paced, network

from mlxgpt.completion.index import Index
from mlxgpt.completion.lexer import Lexer
from mlxgpt.completion.suggest import Suggester
from mlxgpt.server import run
from mlxgpt.server.app import application
from mlxgpt.server.state import Open, Settings, State

Serve = Callable[..., Serving]


def _servers() -> Iterator[Serve]:
    running: list[tuple[uvicorn.Server, threading.Thread, Any]] = []

    def start(open: Open | Suggester, wait: bool = True, **settings: Any) -> Serving:
        listening = run.bind("127.0.0.1", 0)
        app = application(open if callable(open) else lambda: opened(open), Settings(**settings))
        state: State = app.state.mlxgpt
        server = run.Server(app)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        running.append((server, thread, open))
        future = state.service.start()
        assert soon(lambda: server.started)
        if wait:
            future.result(SECONDS)
        return Serving(listening.getsockname()[1], state)

    yield start
    for server, thread, open in running:
        if isinstance(open, Paced):
            open.steps.release(1_000_000)
        server.should_exit = True
        thread.join(SECONDS)
        assert not thread.is_alive()


@pytest.fixture
def serving() -> Iterator[Serve]:
    """Starts servers: of a suggester, or of what opens one, and with the fields of `Settings`."""
    yield from _servers()


@pytest.fixture(scope="module")
def tiny() -> Iterator[Serving]:
    """A server of the tiny model, with a chat template."""
    for start in _servers():
        yield start(lambda: opened(Suggester(network(), BYTES), CHAT))


@pytest.fixture(scope="module")
def ngrams() -> Iterator[Serving]:
    """A server without a model, that knows a project."""
    index = Index(Lexer())
    index.build([("/project/area.py", PROJECT)])
    for start in _servers():
        yield start(Suggester(index=index), root="/project")
