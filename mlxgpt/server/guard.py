"""Who may ask: the Host and Origin that a browser sends, and the API key.

A page of another site can have its visitor's browser send requests to 127.0.0.1, and after DNS rebinding read what is
answered. Such requests carry that site's name, as Origin or as Host.
"""

import hmac
import ipaddress
import re
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlxgpt.server.metrics import Metrics
from mlxgpt.server.refusals import Refused

OPEN = frozenset({"/", "/health", "/v1/health"})  # need no key: they tell nothing, or ask for it
HOST = re.compile(r"[^@/?#\\]+")  # a name or an address and a port, of all that a URL may have
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that is bound to `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def names(host: str) -> frozenset[str]:
    """The names by which a server bound to `host` is asked: what it is bound to, and this machine's own."""
    own = () if is_loopback(host) else (socket.gethostname(), f"{socket.gethostname()}.local")
    return frozenset(name.lower() for name in (*LOOPBACK, host.strip("[]"), *own))


class Guard:
    """ASGI middleware that refuses what must not be answered, and counts what was."""

    def __init__(self, app: ASGIApp, host: str, key: str, metrics: Metrics, paths: Iterable[str]) -> None:
        self._app, self._key, self._metrics, self._paths = app, key.encode(), metrics, frozenset(paths)
        self._names, self._any_address = names(host), not is_loopback(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path = scope["path"] if scope["path"] in self._paths else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(path, str(message["status"])).inc()
                message["headers"] += [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
            await send(message)

        try:
            self._check(scope["path"], Headers(scope=scope))
        except Refused as refusal:
            return await refusal.response()(scope, receive, counted)
        await self._app(scope, receive, counted)

    def _check(self, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if not self._knows(host):
            raise Refused(403, f"this server is not called {host!r}: ask it by the name or address it listens on")
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            raise Refused(403, f"the web page of {origin!r} may not ask this server")
        site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode")
        if site not in ("none", "same-origin") and not (path == "/" and mode == "navigate"):
            raise Refused(403, "a web page of another site may not ask this server")
        if self._key and path not in OPEN and not self._has_key(headers):
            raise Refused(401, "an API key is needed: send it as `Authorization: Bearer KEY`", **CHALLENGE)

    def _knows(self, host: str) -> bool:
        if not HOST.fullmatch(host):
            return False
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._any_address  # no site's name is an address

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return hmac.compare_digest(given.encode("latin-1", "replace"), self._key)


CHALLENGE = {"WWW-Authenticate": "Bearer"}
