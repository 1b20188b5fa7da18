"""The server's OpenAPI document: the bodies from what they are checked against, the answers from what is written."""

from importlib.metadata import version
from typing import Any

import msgspec

from mlxgpt.server.bodies import ChatCompletion, Fim, Generate, Infill, LlamaCompletion, Show, TextCompletion
from mlxgpt.server.refusals import TYPES

NUMBER, INTEGER, TEXT, BOOLEAN = ({"type": kind} for kind in ("number", "integer", "string", "boolean"))
REFUSED = (400, 401, 403, 408, 413, 429, 503)
REF = "#/components/schemas/{name}"


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "properties": required | optional, "required": list(required)}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


ERROR = _object({"error": _object({"message": TEXT, "type": {"enum": sorted(set(TYPES.values()))}, "code": INTEGER})})
# All of it may be left out by response_fields.
LLAMA = {"type": "object", "properties": {
    "content": TEXT, "stop": BOOLEAN, "stop_type": {"enum": ["eos", "word", "limit"]},
    "stopping_word": TEXT, "truncated": {"type": "boolean"}, "tokens_cached": INTEGER, "tokens_evaluated": INTEGER,
    "tokens_predicted": INTEGER, "tokens": _list(INTEGER), "timings": {"type": "object"},
    "generation_settings": {"type": "object"}, "reason": _or_null(TEXT), "confidence": _or_null(NUMBER),
}}  # fmt: skip
USAGE = _object({"prompt_tokens": INTEGER, "completion_tokens": INTEGER, "total_tokens": INTEGER})
FINISH = {"enum": ["stop", "length"]}


def _openai(kind: str, **choice: Any) -> dict[str, Any]:
    row = _object({"index": INTEGER, "finish_reason": FINISH} | choice)
    return _object(
        {
            "id": TEXT,
            "object": {"const": kind},
            "created": INTEGER,
            "model": TEXT,
            "choices": _list(row),
            "usage": USAGE,
        }
    )


MODEL = _object({"id": TEXT, "object": {"const": "model"}, "created": INTEGER, "owned_by": TEXT})
CHAT = _openai("chat.completion", message=_object({"role": TEXT, "content": TEXT}))
BODIES = {"/infill": Infill, "/completion": LlamaCompletion, "/v1/completions": TextCompletion,
          "/v1/chat/completions": ChatCompletion, "/v1/fim/completions": Fim, "/api/generate": Generate,
          "/api/show": Show}  # fmt: skip
ANSWERS: dict[str, dict[str, Any]] = {
    "/infill": {"anyOf": [LLAMA, _list(LLAMA)]},
    "/completion": {"anyOf": [LLAMA, _list(LLAMA)]},
    "/v1/completions": _openai("text_completion", text=TEXT),
    "/v1/chat/completions": CHAT,
    "/v1/fim/completions": CHAT,
    "/api/generate": _object(
        {"model": TEXT, "created_at": TEXT, "response": TEXT, "done": BOOLEAN},
        done_reason=TEXT,
        total_duration=INTEGER,
        prompt_eval_count=INTEGER,
        eval_count=INTEGER,
        reason=_or_null(TEXT),
        confidence=_or_null(NUMBER),
    ),
    "/api/show": _object(
        {"details": {"type": "object"}, "model_info": {"type": "object"}, "capabilities": _list(TEXT)}
    ),
    "/api/tags": _object({"models": _list(_object({"name": TEXT, "model": TEXT, "modified_at": TEXT}))}),
    "/api/version": _object({"version": TEXT}),
    "/v1/models": _object({"object": {"const": "list"}, "data": _list(MODEL)}),
    "/v1/models/{name}": MODEL,
    "/health": _object({"status": {"const": "ok"}}),
    "/props": _object({"total_slots": INTEGER, "model_path": TEXT, "default_generation_settings": {"type": "object"}}),
}
EVENTS = "text/event-stream"
STREAMED = dict.fromkeys(BODIES.keys() - {"/api/generate", "/api/show"}, EVENTS) | {
    "/api/generate": "application/x-ndjson"
}
OTHERS = {"/metrics": "text/plain", "/": "text/html", "/openapi.json": "application/json"}


def document() -> dict[str, Any]:
    """The document."""
    _, schemas = msgspec.json.schema_components(BODIES.values(), ref_template=REF)
    paths: dict[str, Any] = {}
    for path, answer in ANSWERS.items():
        content = {"application/json": {"schema": answer}}
        if path in STREAMED:  # an event is no string, and a schema of one says little
            content[STREAMED[path]] = {}
        paths[path] = _operation(path, content)
    for path, kind in OTHERS.items():
        paths[path] = _operation(path, {kind: {"schema": {} if kind == "application/json" else TEXT}})
    paths["/v1/models/{name}"]["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": TEXT}]
    return {
        "openapi": "3.1.0", "info": {"title": "mlxgpt", "version": version("mlxgpt")}, "paths": paths,
        "components": {
            "schemas": dict(schemas) | {"Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }  # fmt: skip


def _operation(path: str, content: dict[str, Any]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": REF.format(name="Error")}}}
    codes = (*REFUSED, 404) if "{" in path else REFUSED
    responses: dict[str, Any] = {str(code): {"description": "refused", "content": error} for code in codes}
    operation: dict[str, Any] = {"responses": {"200": {"description": "the answer", "content": content}} | responses}
    if path not in BODIES:
        return {"get": operation}
    schema = {"$ref": REF.format(name=BODIES[path].__name__)}
    operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {"post": operation}
