"""llama.cpp's endpoints: /infill, /completion, /props, /health."""

from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mlxgpt.generation.batch import ROWS
from mlxgpt.server import planning
from mlxgpt.server.bodies import Infill, Llama, LlamaCompletion
from mlxgpt.server.exchange import Call, Delta, Exchange, Reply, Token, bytes_of
from mlxgpt.server.reading import read
from mlxgpt.server.refusals import json_response
from mlxgpt.server.state import State
from mlxgpt.server.streams import begun, event


async def infill(request: Request) -> Response:
    """POST /infill: a suggestion between `input_prefix` + `prompt` and `input_suffix`; an array of several."""
    state: State = request.app.state.mlxgpt
    state.ready()
    body = await read(request, Infill)
    return await _answer(request, body, planning.infill(state, body))


async def completion(request: Request) -> Response:
    """POST /completion: what follows `prompt`, or, where it is a template, what is in the middle."""
    state: State = request.app.state.mlxgpt
    state.ready()
    body = await read(request, LlamaCompletion)
    return await _answer(request, body, planning.llama_completion(state, body))


async def health(request: Request) -> Response:
    """GET /health: 200 once the model is there, 503 before."""
    request.app.state.mlxgpt.ready()
    return json_response({"status": "ok"})


async def props(request: Request) -> Response:
    """GET /props: what is served, and its defaults."""
    state: State = request.app.state.mlxgpt
    served = state.ready()
    return json_response({
        "default_generation_settings": {"n_ctx": served.context, "params": _settings(state, Llama())},
        "total_slots": ROWS, "model_alias": served.name, "model_path": served.name, "using": served.using,
        "threshold": state.threshold, "multiline": state.settings.multiline,
        "chat_template": served.template.text if served.template else "", "build_info": f"mlxgpt {version('mlxgpt')}",
    })  # fmt: skip


async def _answer(request: Request, body: Llama, calls: list[Call]) -> Response:
    if body.stream:
        return await begun(_events(request, body, calls))
    async with Exchange(request, calls) as exchange:
        replies = await exchange.replies()
    tables = [_chosen(_table(request, body, reply, reply.text), body.response_fields) for reply in replies]
    return json_response(tables[0] if sum(call.several for call in calls) == 1 else tables)


async def _events(request: Request, body: Llama, calls: list[Call]) -> AsyncIterator[bytes]:
    async with Exchange(request, calls) as exchange:
        async for came in exchange.events():
            if isinstance(came, Delta):
                ids = [token.id for token in came.tokens if token.id is not None]
                table: dict[str, Any] = {"index": came.index, "content": came.text, "tokens": ids, "stop": False}
                if body.n_probs:
                    table["completion_probabilities"] = _probabilities(request, came.tokens)
                yield event(table)
            else:
                yield event(_chosen(_table(request, body, came, ""), body.response_fields))


def _table(request: Request, body: Llama, reply: Reply, content: str) -> dict[str, Any]:
    """A whole answer; streamed, its text has been told already."""
    state: State = request.app.state.mlxgpt
    served = state.ready()
    computed = reply.prompt_tokens - reply.cached_tokens
    table = {
        "index": reply.index, "content": content,
        "tokens": [token.id for token in reply.tokens if token.id is not None] if content else [],
        "stop": True, "model": served.name, "tokens_predicted": reply.written_tokens,
        "tokens_evaluated": reply.prompt_tokens, "generation_settings": _settings(state, body),
        "has_new_line": "\n" in reply.text, "truncated": False, "stop_type": reply.stop,
        "stopping_word": reply.stopped_by, "tokens_cached": reply.prompt_tokens + reply.written_tokens,
        "timings": {
            "cache_n": reply.cached_tokens,
            **_timings("prompt", computed, reply.prompt_ms),
            **_timings("predicted", reply.written_tokens, reply.decode_ms),
        },
        "reason": reply.reason, "confidence": reply.confidence,
    }  # fmt: skip
    if body.n_probs and content:
        table["completion_probabilities"] = _probabilities(request, reply.tokens)
    return table


def _timings(kind: str, count: int, ms: float) -> dict[str, float]:
    return {
        f"{kind}_n": count, f"{kind}_ms": round(ms, 3), f"{kind}_per_token_ms": round(ms / count, 3) if count else 0.0,
        f"{kind}_per_second": round(1000 * count / ms, 3) if ms > 0 else 0.0,
    }  # fmt: skip


def _probabilities(request: Request, tokens: Any) -> list[dict[str, Any]]:
    """The tokens with their log-probabilities, as llama.cpp's `n_probs` gives them."""
    served = request.app.state.mlxgpt.ready()

    def row(token: Token) -> dict[str, Any]:
        return {"id": token.id, "token": token.text, "bytes": list(token.data), "logprob": token.logprob}

    return [
        row(token) | {"top_logprobs": [row(Token(bytes_of(served, i), logprob, i)) for i, logprob in token.top]}
        for token in tokens
    ]


def _settings(state: State, body: Llama) -> dict[str, Any]:
    """`generation_settings`: what holds for this request."""
    sampling, served = planning.llama_sampling(body), state.ready()
    return {
        "n_ctx": served.context, "n_predict": -1 if body.n_predict is None else body.n_predict,
        "temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p,
        "min_p": sampling.min_p, "repeat_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty, "frequency_penalty": sampling.frequency_penalty,
        "seed": -1 if body.seed is None else body.seed, "stop": planning.stops_of(body), "stream": bool(body.stream),
        "n_probs": body.n_probs or 0,
    }  # fmt: skip


def _chosen(table: dict[str, Any], fields: list[str] | None) -> dict[str, Any]:
    """Those of the fields that are named, a/b/c for nested ones, under just that name; all where none is."""
    if fields is None:
        return table
    found = {}
    for name in fields:
        value: Any = table
        for part in name.split("/"):
            if not isinstance(value, dict) or part not in value:
                break
            value = value[part]
        else:
            found[name] = value
    return found
