"""What every endpoint needs: the service, what it serves, the limits, the counters."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import time

from mlxgpt.chat.template import ChatTemplate
from mlxgpt.completion.service import Service
from mlxgpt.completion.suggest import Suggester
from mlxgpt.server.metrics import Metrics
from mlxgpt.server.refusals import Refused
from mlxgpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Limits:
    """How much a request may ask for."""

    body: int = 4 << 20  # bytes
    body_seconds: float = 20.0  # in which a request's body must have come
    queue: int = 64  # requests that wait
    suggest_seconds: float = 10.0
    write_seconds: float = 300.0
    write_tokens: int = 8192  # of one text
    texts: int = 16  # answers to one request


@dataclass(frozen=True)
class Settings:
    """How the server was started. `threshold` or `false_show` decide what is shown, as for `mlxgpt complete`."""

    host: str = "127.0.0.1"
    key: str = ""
    root: str = ""  # the project's folder, for the names of documents that are relative to it
    multiline: bool = False
    threshold: float = 0.0
    false_show: float | None = None
    limits: Limits = Limits()


@dataclass(frozen=True)
class Served:
    """What is served: its name and folder, the ids that close an answer, and its chat template or why it has none."""

    name: str
    tokenizer: Tokenizer
    context: int  # tokens; 0 for n-grams alone
    using: str
    closing: frozenset[int] = frozenset()
    template: ChatTemplate | None = None
    no_template: str = ""

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token."""
        return max(map(len, self.tokenizer.token_bytes), default=0)


Open = Callable[[], tuple[Suggester, Served]]


@dataclass
class State:
    """One server's. `threshold` is known once the model is."""

    settings: Settings
    service: Service = field(init=False)
    metrics: Metrics = field(default_factory=Metrics)
    served: Served | None = None
    threshold: float = 0.0
    started: int = field(default_factory=lambda: int(time()))
    page: bytes = field(repr=False, default_factory=lambda: (Path(__file__).parent / "page.html").read_bytes())

    def open_with(self, open: Open) -> None:
        """Make the service that has its suggester from `open`."""

        def opened() -> Suggester:
            suggester, served = open()
            self.threshold = suggester.gate.least(self.settings.threshold, self.settings.false_show)
            self.served = served
            return suggester

        self.service = Service(opened, self.settings.limits.queue)

    def ready(self) -> Served:
        """What is served. Raises Refused while it is loading."""
        if self.served is None or not self.service.ready:
            raise Refused(503, "the model is loading", **{"Retry-After": "1"})
        return self.served
