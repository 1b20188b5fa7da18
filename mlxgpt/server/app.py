"""The ASGI application: its paths, who may ask, and what is answered where something goes wrong."""

import base64
import hashlib
import re

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mlxgpt.server import llama, ollama, openai, openapi
from mlxgpt.server.guard import Guard
from mlxgpt.server.reading import Gone
from mlxgpt.server.refusals import Refused, failed, json_response, refused, unknown
from mlxgpt.server.state import Open, Settings, State

CLOSED = 499  # nginx's status for a client that left: no one receives it


def application(open: Open, settings: Settings) -> Starlette:
    """The application that serves what `open` opens. Its `state.mlxgpt.service` is to be started and closed."""
    state = State(settings)
    state.open_with(open)
    routes = [
        Route("/", _page, methods=["GET"]),
        Route("/infill", llama.infill, methods=["POST"]),
        Route("/completion", llama.completion, methods=["POST"]),
        Route("/v1/completions", openai.completions, methods=["POST"]),
        Route("/v1/chat/completions", openai.chat, methods=["POST"]),
        Route("/v1/fim/completions", openai.fim, methods=["POST"]),
        Route("/api/generate", ollama.generate, methods=["POST"]),
        Route("/api/show", ollama.show, methods=["POST"]),
        Route("/api/tags", ollama.tags, methods=["GET"]),
        Route("/api/version", ollama.version, methods=["GET"]),
        Route("/v1/models", openai.models, methods=["GET"]),
        Route("/v1/models/{name:path}", openai.model, methods=["GET"]),
        Route("/health", llama.health, methods=["GET"]),
        Route("/v1/health", llama.health, methods=["GET"]),
        Route("/props", llama.props, methods=["GET"]),
        Route("/metrics", _metrics, methods=["GET"]),
        Route("/openapi.json", _openapi, methods=["GET"]),
    ]
    paths = {route.path for route in routes}
    guard = Middleware(Guard, host=settings.host, key=settings.key, metrics=state.metrics, paths=paths)
    handlers = {Refused: refused, Gone: _gone, HTTPException: unknown, Exception: failed}
    app = Starlette(routes=routes, middleware=[guard], exception_handlers=handlers)
    app.router.redirect_slashes = False
    app.state.mlxgpt = state
    return app


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=CLOSED)


async def _page(request: Request) -> Response:
    """GET /: a page to try completion on; it can load nothing from anywhere, and ask only this server."""
    page = request.app.state.mlxgpt.page

    def allowed(tag: bytes) -> str:
        inside = re.findall(b"<%s>(.*?)</%s>" % (tag, tag), page, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in inside)

    policy = (
        f"default-src 'none'; script-src {allowed(b'script')}; style-src {allowed(b'style')}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Response(page, headers={"Content-Security-Policy": policy}, media_type="text/html")


async def _metrics(request: Request) -> Response:
    """GET /metrics, for Prometheus."""
    state: State = request.app.state.mlxgpt
    load = state.service.load
    state.metrics.waiting.set(load.waiting)
    state.metrics.working.set(load.working)
    data, kind = state.metrics.exposition()
    return Response(data, headers={"Content-Type": kind})


async def _openapi(request: Request) -> Response:
    """GET /openapi.json."""
    return json_response(openapi.document())
