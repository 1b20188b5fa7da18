"""Ollama's endpoints that complete, as its docs/api.md describes them: /api/generate, and what is asked before it."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from hashlib import sha256
from importlib import metadata
from time import perf_counter_ns
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mlxgpt.server import planning
from mlxgpt.server.bodies import Generate, LlamaCompletion, Options, Show
from mlxgpt.server.exchange import Call, Delta, Exchange, Reply
from mlxgpt.server.reading import read
from mlxgpt.server.refusals import Refused, json_response
from mlxgpt.server.state import State
from mlxgpt.server.streams import begun, line


async def generate(request: Request) -> Response:
    """POST /api/generate: what follows `prompt`, or what is between it and `suffix`; streamed unless it says not to.

    No template is put around the prompt, as with Ollama's `raw`. Without a prompt it says that the model is there.
    """
    state: State = request.app.state.mlxgpt
    state.ready()
    body = await read(request, Generate)
    start = perf_counter_ns()
    if not body.prompt and not body.suffix:
        return json_response(_head(state, "") | {"done": True, "done_reason": "load"})
    calls = planning.llama_completion(state, _as_llama(body), body.suffix)
    if body.stream is not False:
        return await begun(_lines(request, calls, start), line)
    async with Exchange(request, calls) as exchange:
        (reply,) = await exchange.replies()
    return json_response(_head(state, reply.text) | _end(reply, start))


def _as_llama(body: Generate) -> LlamaCompletion:
    """The same question to llama.cpp, with the defaults of Ollama's docs/modelfile.md."""
    for name in ("system", "template", "images", "format"):
        if getattr(body, name):
            raise Refused(400, f"{name} is not supported: leave it away")
    options = body.options or Options()
    given = {name: value for name in Options.__struct_fields__ if (value := getattr(options, name)) is not None}
    most = given.pop("num_predict", -1)
    defaults = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.0, "repeat_penalty": 1.1, "repeat_last_n": 64}
    return LlamaCompletion(
        prompt=body.prompt or "", n_predict=max(-1, most), document=body.document, multiline=body.multiline,
        threshold=body.threshold, **defaults | given,
    )  # fmt: skip


async def _lines(request: Request, calls: list[Call], start: int) -> AsyncIterator[bytes]:
    state: State = request.app.state.mlxgpt
    async with Exchange(request, calls) as exchange:
        async for came in exchange.events():
            if isinstance(came, Delta):
                yield line(_head(state, came.text) | {"done": False})
            else:
                yield line(_head(state, "") | _end(came, start))


def _head(state: State, text: str) -> dict[str, Any]:
    return {"model": state.ready().name, "created_at": _time(datetime.now(UTC)), "response": text}


def _end(reply: Reply, start: int) -> dict[str, Any]:
    """What the last line has beside its head; times in nanoseconds."""
    return {
        "done": True, "done_reason": reply.finish, "total_duration": perf_counter_ns() - start, "load_duration": 0,
        "prompt_eval_count": reply.prompt_tokens, "prompt_eval_duration": round(1e6 * reply.prompt_ms),
        "eval_count": reply.written_tokens, "eval_duration": round(1e6 * reply.decode_ms),
        "reason": reply.reason, "confidence": reply.confidence,
    }  # fmt: skip


def _time(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


async def tags(request: Request) -> Response:
    """GET /api/tags: the one model that is served."""
    state: State = request.app.state.mlxgpt
    name = state.ready().name
    row = {
        "name": name, "model": name, "modified_at": _time(datetime.fromtimestamp(state.started, UTC)), "size": 0,
        "digest": sha256(name.encode()).hexdigest(), "details": _details(),
    }  # fmt: skip
    return json_response({"models": [row]})


async def show(request: Request) -> Response:
    """POST /api/show: what the model can do, whatever it is called."""
    state: State = request.app.state.mlxgpt
    served = state.ready()
    await read(request, Show)
    about = {"general.architecture": "mlxgpt", "mlxgpt.context_length": served.context}
    template = "{{ .Prompt }}"
    return json_response({
        "modelfile": "", "parameters": "", "template": template, "details": _details(), "model_info": about,
        "modified_at": _time(datetime.fromtimestamp(state.started, UTC)), "capabilities": ["completion", "insert"],
    })  # fmt: skip


def _details() -> dict[str, Any]:
    return {
        "parent_model": "", "format": "mlx", "family": "mlxgpt", "families": ["mlxgpt"], "parameter_size": "",
        "quantization_level": "",
    }  # fmt: skip


async def version(request: Request) -> Response:
    """GET /api/version: mlxgpt's own."""
    return json_response({"version": metadata.version("mlxgpt")})
