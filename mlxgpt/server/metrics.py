"""What the server counts, in Prometheus' text format. Nothing of a request's text is in it."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.15, 0.25, 0.4, 0.7, 1, 2, 5, 10, 30, 60)


class Metrics:
    """Counters and times of one server."""

    def __init__(self) -> None:
        disable_created_metrics()  # a second series for each, of when it began
        self.registry = CollectorRegistry()

        def made(kind, name: str, text: str, labels: tuple[str, ...] = (), **more):
            return kind(f"mlxgpt_{name}", text, labels, registry=self.registry, **more)

        self.requests = made(Counter, "requests", "Answers by path and status.", ("path", "status"))
        self.suggestions = made(Counter, "suggestions", "Suggestions by what became of them.", ("outcome",))
        self.texts = made(Counter, "texts", "Texts written, by why they ended.", ("reason",))
        self.prompt_tokens = made(Counter, "prompt_tokens", "Tokens of prompts.")
        self.cached_tokens = made(Counter, "cached_tokens", "Tokens of prompts that were computed before.")
        self.written_tokens = made(Counter, "written_tokens", "Tokens decoded.")
        self.seconds = made(
            Histogram, "answer_seconds", "From a request to its answer, by kind.", ("kind",), buckets=BUCKETS
        )
        self.waiting = made(Gauge, "waiting", "Requests that wait.")
        self.working = made(Gauge, "working", "Requests that are being worked on.")

    def exposition(self) -> tuple[bytes, str]:
        """The text and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
