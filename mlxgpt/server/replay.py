"""The bodies of known clients, sent to a server that runs: what each would show, and why where it shows nothing."""

import http.client
import json
import time
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from mlxgpt.errors import Error, UsageError
from mlxgpt.server.clients import CLIENTS, Answer, Client, Unreadable

SECONDS = 60.0  # that are waited for an answer: the first one may have kernels compiled


@dataclass(frozen=True)
class Outcome:
    """What came of a client's request. `works` is whether it could read the answer; `reason` says why `shown` is empty;
    `milliseconds` is the time to the whole answer."""

    client: str
    path: str
    works: bool
    status: int
    shown: list[str]
    reason: str | None
    milliseconds: float

    def as_json(self) -> dict[str, Any]:
        """All of it, for --json."""
        return asdict(self)

    def as_row(self) -> str:
        """A line that says it."""
        said = repr(self.shown[0]) if self.shown else ("nothing: " if self.works else "fails: ") + str(self.reason)
        more = f" and {len(self.shown) - 1} more" if len(self.shown) > 1 else ""
        return f"{self.client:20} {self.path:21} {self.milliseconds:6.0f} ms  {said}{more}"


def replay(url: str, key: str = "") -> list[Outcome]:
    """Ask the server at `url` what every known client asks it. Raises UsageError, and Error where it does not answer or
    is not ready."""
    server = _Server(url, key)
    health = server.ask("GET", "/health", None)
    if health.status == 503:
        raise Error(f"{url} is not ready: {_why(health)}; try again in a moment")
    return [_outcome(server, client) for client in CLIENTS]


def _outcome(server: "_Server", client: Client) -> Outcome:
    start, shown, reason, works = time.perf_counter(), [], None, False
    steps = (*client.first, ("POST", client.path, client.body))
    for method, path, body in steps:
        start = time.perf_counter()
        answer = server.ask(method, path, body)
        if answer.status != 200:
            reason = f"{method} {path}: status {answer.status}, {_why(answer)}"
            break
    else:
        try:
            found = client.read(answer)
            shown, works = [text for text in found.texts if text], True
            reason = None if shown else found.reason or _explained(server, client) or "the server does not say why"
        except Unreadable as error:
            reason = str(error)
    return Outcome(client.name, client.path, works, answer.status, shown, reason, 1000 * (time.perf_counter() - start))


def _explained(server: "_Server", client: Client) -> str | None:
    """Why a client is shown nothing that asks for the fields of the answer by name, and not for the reason."""
    if "response_fields" not in client.body:
        return None
    body = {name: value for name, value in client.body.items() if name != "response_fields"}
    return client.read(server.ask("POST", client.path, body)).reason


def _why(answer: Answer) -> str:
    """What a refusal says."""
    try:
        error = json.loads(answer.data)["error"]
        return " ".join(str(error["message"] if isinstance(error, dict) else error).split())
    except (ValueError, LookupError, TypeError):
        return "with no reason that could be read"


class _Server:
    """A server that is asked; one connection a request, as clients that spawn curl have it."""

    def __init__(self, url: str, key: str) -> None:
        self._url, self._parts = url, _parts(url)
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}

    def ask(self, method: str, path: str, body: dict[str, Any] | None) -> Answer:
        """The answer to a request. Raises Error where there is none."""
        parts = self._parts
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(str(parts.hostname), parts.port, timeout=SECONDS)
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, parts.path.rstrip("/") + path, data, self._headers)
            got = connection.getresponse()
            return Answer(got.status, got.headers.get_content_type(), got.read())
        except TimeoutError:
            raise Error(f"{self._url} did not answer {method} {path} within {SECONDS:g} s") from None
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise Error(
                f"{self._url} does not answer ({reason}): start `mlxgpt serve`, or name another --server"
            ) from None
        except http.client.HTTPException as error:
            raise Error(f"{self._url} is no HTTP server: {type(error).__name__} at {method} {path}") from None
        finally:
            connection.close()


def _parts(url: str) -> SplitResult:
    """The parts of an address. Raises UsageError."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    except ValueError:
        pass
    raise UsageError(f"--server {url!r} is no address: it is like http://127.0.0.1:8012")
