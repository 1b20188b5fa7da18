"""A server on a real socket as the tests see it, and what it is opened with."""

import http.client
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from paced import SECONDS

from mlxgpt.chat.template import ChatTemplate
from mlxgpt.completion.suggest import Suggester
from mlxgpt.server.state import Served, State

CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
PROJECT = b"def compute_area(width, height):\n    return width * height\n\n\nclass NotWritten(Exception):\n    pass\n"


@dataclass
class Answer:
    """An answer as it came."""

    status: int
    headers: dict[str, str]
    data: bytes

    def json(self) -> Any:
        """Its body, which must be JSON on one line."""
        assert self.headers["content-type"] == "application/json", self
        assert b"\n" not in self.data
        return json.loads(self.data)

    @property
    def error(self) -> str:
        """What it was refused for."""
        error = self.json()["error"]
        assert error.keys() == {"message", "type", "code"}
        assert error["code"] == self.status >= 400
        return error["message"]

    def events(self) -> list[Any]:
        """Its server-sent events."""
        assert self.headers["content-type"].startswith("text/event-stream"), self
        lines = [line for line in self.data.decode().split("\n\n") if line]
        assert all(line.startswith("data: ") and "\n" not in line for line in lines)
        return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


@dataclass
class Serving:
    """A server that runs."""

    port: int
    state: State
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request on a connection of its own; a body that is no bytes is sent as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request(method, path, data, self.headers | {k.replace("_", "-"): v for k, v in headers.items()})
            got = connection.getresponse()
            return Answer(got.status, {k.lower(): v for k, v in got.getheaders()}, got.read())
        finally:
            connection.close()

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        """A POST."""
        return self.ask("POST", path, body, **headers)

    def get(self, path: str, **headers: str) -> Answer:
        """A GET."""
        return self.ask("GET", path, **headers)

    def idle(self) -> bool:
        """Wait until there is nothing to do; False where that takes too long."""
        return soon(lambda: (self.state.service.load.waiting, self.state.service.load.working) == (0, 0))


def soon(true: Callable[[], bool]) -> bool:
    """Whether something becomes true."""
    until = time.monotonic() + SECONDS
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.002)
    return True


def opened(suggester: Suggester, template: str | None = None) -> tuple[Suggester, Served]:
    """What a server is opened with."""
    context = suggester.model.config.context if suggester.model is not None else 0
    if template is None:
        return suggester, Served("tiny", suggester.tokenizer, context, suggester.using, no_template="tiny cannot chat")
    return suggester, Served(
        "tiny", suggester.tokenizer, context, suggester.using, frozenset(), ChatTemplate(template, {}, "a test")
    )  # fmt: skip
