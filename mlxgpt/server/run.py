"""`mlxgpt serve`, whole: a socket, the application, the model on its own thread, and an end that leaves nothing."""

import asyncio
import errno
import socket
import sys
from concurrent.futures import Future
from pathlib import Path

import h11
import msgspec
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from mlxgpt import answer, hub, layouts
from mlxgpt.chat import template
from mlxgpt.completion.opening import Names
from mlxgpt.completion.suggest import Suggester
from mlxgpt.completion.watch import Watched
from mlxgpt.errors import Error, UsageError
from mlxgpt.server.app import application
from mlxgpt.server.guard import is_loopback
from mlxgpt.server.refusals import error_table
from mlxgpt.server.state import Served, Settings, State

HEAD_SECONDS = 20.0  # in which the head of a request must have come
GRACE = 2  # seconds that answers have to end when the server does


def serve(source: Names, settings: Settings, port: int) -> None:
    """Serve until Ctrl-C. Raises Error, UsageError, also where the model cannot be loaded."""
    if not settings.host.strip("[]"):
        raise UsageError("--host is empty: 127.0.0.1 is this machine alone, 0.0.0.0 all its addresses")
    if not is_loopback(settings.host) and not settings.key:
        raise UsageError(f"--host {settings.host} lets other machines ask: give --api-key, or MLXGPT_API_KEY")
    watched = Watched(source)
    listening = bind(settings.host, port)
    address = f"http://{_bracketed(settings.host)}:{listening.getsockname()[1]}"
    _say(f"listening on {address}, loading {source.model or 'the n-grams'}")

    def open() -> tuple[Suggester, Served]:
        suggester = watched.open()
        return suggester, describe(source, suggester)

    app = application(open, settings)
    state: State = app.state.mlxgpt
    server = Server(app)
    opened = state.service.start()

    def ready(future: Future) -> None:
        if future.exception() is not None:
            server.should_exit = True
            return
        _say(f"ready: {address}")
        watched.start(state.service)

    opened.add_done_callback(ready)
    try:
        server.run([listening])
    except KeyboardInterrupt:
        _say("stopped")
    finally:
        watched.close()
        state.service.close()
        listening.close()
    if opened.done() and (error := opened.exception()) is not None:
        raise error


def describe(source: Names, suggester: Suggester) -> Served:
    """What the endpoints tell of what is served, and what chat needs of the model's folder."""
    if suggester.model is None or source.model is None:
        no = "the n-grams cannot chat: start with the --model of an instruct model"
        return Served("ngrams", suggester.tokenizer, 0, suggester.using, no_template=no)
    folder = hub.resolve(source.model, check=layouts.describe)
    name = folder.resolve().name if Path(source.model).exists() else source.model
    try:
        found, no = template.load(folder), ""
    except Error as error:
        found, no = None, f"{name} has no chat template that can be used: {_reason(error, folder)}"
    context, closing = suggester.model.config.context, answer.closing_ids(folder)
    return Served(name, suggester.tokenizer, context, suggester.using, closing, found, no)


def _reason(error: Error, folder: Path) -> str:
    """An error's words, for a client: without what a command's user could do, nor where things lie."""
    return str(error).split(";")[0].replace(f"{folder}/", "").replace(str(folder), "its folder")


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises Error where the port is taken or the host is none of this machine's."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise UsageError(f"--host {host}: {error.strerror or error}") from None
    family, kind, protocol, _, address = sorted(found, key=lambda f: f[0] != socket.AF_INET)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise Error(f"port {port} of {host} is in use: stop what listens there, or choose another --port") from None
        raise Error(f"cannot listen on port {port} of {host}: {error.strerror}") from None
    return listening


class Server(uvicorn.Server):
    """uvicorn's, which ends what is being answered before it waits for it."""

    def __init__(self, app: Starlette) -> None:
        config = uvicorn.Config(
            app, http=Protocol, loop="asyncio", ws="none", lifespan="off", log_config=None, log_level="critical",
            access_log=False, server_header=False, timeout_graceful_shutdown=GRACE,
        )  # fmt: skip
        super().__init__(config)
        self._state: State = app.state.mlxgpt

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Give all jobs up, then close the connections."""
        await asyncio.to_thread(self._state.service.close)
        await super().shutdown(sockets)


class Protocol(H11Protocol):
    """uvicorn's, which also closes a connection on which the head of a request does not come in time."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The time begins."""
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        """The time ends with the head of a request, and begins with the first byte of the next."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._arm()
        else:
            self._disarm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for."""
        self._disarm()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is refused in JSON too."""
        data = msgspec.json.encode(error_table(400, "this is no valid HTTP request"))
        headers = [("content-type", "application/json"), ("content-length", str(len(data))), ("connection", "close")]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=data), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _bracketed(host: str) -> str:
    return f"[{host.strip('[]')}]" if ":" in host else host


def _say(text: str) -> None:
    print(f"mlxgpt: {text}", file=sys.stderr, flush=True)
