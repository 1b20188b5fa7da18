"""What editors' plugins ask a completion server, and what each needs of the answer to show it: as data.

Bodies and readings are those of the clients' own sources: llama.vim and llama.vscode (ggml-org), minuet-ai.nvim's
openai_fim_compatible, Zed's open_ai_compatible_api and ollama, Continue's LlamaCpp.ts and Mistral.ts, Tabby's
http-api-bindings, twinny's provider-options.ts, the openai package. Options that a client leaves to its user have the
client's defaults.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

PREFIX = "def add(first, second):\n    total = first + second\n    return tot"
SUFFIX = "\n\n\nprint(add(1, 2))\n"
QWEN = f"<|fim_prefix|>{PREFIX}<|fim_suffix|>{SUFFIX}<|fim_middle|>"
CODE_LLAMA = f"<PRE> {PREFIX} <SUF>{SUFFIX} <MID>"
CODESTRAL = f"[SUFFIX]{SUFFIX}[PREFIX]{PREFIX}"
LINES, _, LINE = PREFIX.rpartition("\n")
MARKS = ["<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
MINUET = f"# language: python\n# indentation: use 4 spaces for a tab\n{PREFIX}"
VIM_FIELDS = ["content", "timings/prompt_n", "timings/prompt_ms", "timings/predicted_n", "timings/predicted_ms",
              "truncated", "tokens_cached"]  # fmt: skip


class Unreadable(Exception):
    """An answer that its client could not use, and why."""


@dataclass(frozen=True)
class Answer:
    """An answer as it came."""

    status: int
    media_type: str
    data: bytes


@dataclass(frozen=True)
class Shown:
    """The texts that a client would show, the first of them first, and why there is none, where the server says so."""

    texts: list[str]
    reason: str | None = None


@dataclass(frozen=True)
class Client:
    """A client: the body it sends to `path`, and how it reads the answer, which raises Unreadable. `first` are the
    requests that must succeed before: a method, a path, a body."""

    name: str
    path: str
    body: dict[str, Any]
    read: Callable[[Answer], Shown] = field(repr=False)
    first: tuple[tuple[str, str, dict[str, Any] | None], ...] = ()


def vim(answer: Answer) -> Shown:
    """llama.vim looks for the bytes `"content":"` in the first line before it parses it."""
    line = answer.data.decode("utf-8", "replace")
    if not re.match(r"\s*{", line) or not re.search(r'"content"\s*:"', line) or "\n" in line.strip():
        raise Unreadable('it wants one JSON object on one line, with no space after the colon of "content"')
    return llama(answer)


def llama(answer: Answer) -> Shown:
    """llama.cpp's answer, or an array of them."""
    tables = _json(answer.data)
    tables = tables if isinstance(tables, list) else [tables]
    if not tables:
        raise Unreadable("the array is empty")
    return Shown([_at(table, "content", kind=str) for table in tables], _reason(tables[0]))


def llama_events(answer: Answer) -> Shown:
    """llama.cpp's events: `content` in each, and a last one with `stop`."""
    events = _events(answer)
    if not _at(events[-1], "stop", kind=bool) or any(_at(event, "stop", kind=bool) for event in events[:-1]):
        raise Unreadable('the last event, and no other, must have "stop": true')
    return Shown(["".join(_at(event, "content", kind=str) for event in events)], _reason(events[-1]))


def openai(answer: Answer) -> Shown:
    """OpenAI's answer: `choices[].text`, with all that its typed clients read."""
    table = _json(answer.data)
    for name, kind in (("id", str), ("object", str), ("created", int), ("model", str)):
        _at(table, name, kind=kind)
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        _at(table, "usage", name, kind=int)
    choices = _at(table, "choices", kind=list)
    if not choices:
        raise Unreadable("choices is empty")
    for choice in choices:
        _at(choice, "finish_reason", kind=str)
    return Shown([_at(choice, "text", kind=str) for choice in choices], _reason(table))


def openai_events(answer: Answer) -> Shown:
    """OpenAI's events: `choices[0].text` in each, and `[DONE]`."""
    events = _events(answer, done=True)
    return Shown(["".join(_at(event, "choices", 0, "text", kind=str) for event in events)], _reason(events[-1]))


def message_events(answer: Answer) -> Shown:
    """Mistral's events: `choices[0].delta.content` in each, and `[DONE]`."""
    events = _events(answer, done=True)
    texts = (_at(event, "choices", 0, "delta", "content", kind=str) for event in events)
    return Shown(["".join(texts)], _reason(events[-1]))


def message(answer: Answer) -> Shown:
    """Mistral's answer: `choices[0].message.content`."""
    table = _json(answer.data)
    return Shown([_at(table, "choices", 0, "message", "content", kind=str)], _reason(table))


def ollama(answer: Answer) -> Shown:
    """Ollama's answer, as one object or a line a piece: `response`, `created_at`, and a last one with `done`."""
    lines = [_json(line) for line in answer.data.splitlines() if line]
    if not lines or not _at(lines[-1], "done", kind=bool):
        raise Unreadable('the last line must have "done": true')
    for line in lines:
        _at(line, "created_at", kind=str)
    return Shown(["".join(_at(line, "response", kind=str) for line in lines)], _reason(lines[-1]))


def _events(answer: Answer, done: bool = False) -> list[Any]:
    """The JSON of server-sent events, of which `[DONE]` ends those of OpenAI's protocol."""
    if answer.media_type != "text/event-stream":
        raise Unreadable(f"it waits for events, and got {answer.media_type or 'no content type'}")
    lines = [line[5:].strip() for line in answer.data.decode("utf-8", "replace").splitlines() if line[:5] == "data:"]
    if done and lines[-1:] != ["[DONE]"]:
        raise Unreadable("the last event must be [DONE]")
    events = [_json(line.encode()) for line in lines if line != "[DONE]"]
    if not events:
        raise Unreadable("there was no event")
    return events


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        raise Unreadable(f"this is no JSON: {data[:60].decode('utf-8', 'replace')!r}") from None


def _at(table: Any, *path: str | int, kind: type) -> Any:
    """What lies at a path of keys in JSON, which must be of a kind."""
    value = table
    for key in path:
        try:
            value = value[key]
        except (LookupError, TypeError):
            value = None
    if not isinstance(value, kind):
        raise Unreadable(f"{'.'.join(map(str, path))} is missing, or no {kind.__name__}")
    return value


def _reason(table: Any) -> str | None:
    """Why there is no text, as `mlxgpt serve` says it."""
    about = table.get("mlxgpt") if isinstance(table, dict) else None
    found = about[0] if isinstance(about, list) and about else table
    return found.get("reason") if isinstance(found, dict) else None


_INFILL = {"input_prefix": f"{LINES}\n", "input_suffix": SUFFIX, "input_extra": [], "prompt": LINE, "stream": False,
           "samplers": ["top_k", "top_p", "infill"], "cache_prompt": True, "top_k": 40}  # fmt: skip
_VIM = _INFILL | {"id_slot": 0, "n_predict": 128, "stop": [], "n_indent": 4, "top_p": 0.9, "t_max_prompt_ms": 500,
                  "t_max_predict_ms": 1000, "response_fields": VIM_FIELDS, "model": ""}  # fmt: skip
_WARM = _VIM | {"n_predict": 0, "samplers": [], "t_max_predict_ms": 1, "response_fields": [""]}
# llama.vscode names the model of its agent, whatever the server's.
_CHUNKS = [{"text": "import math\n\nprint(math.pi)\n", "time": 1_700_000_000_000, "filename": "/project/pi.py"}]
_CODE = _INFILL | {"id_slot": 0, "n_predict": 128, "n_cmpl": 3, "n_indent": 4, "top_p": 0.99, "t_max_prompt_ms": 500,
                   "t_max_predict_ms": 500, "model": "google/gemini-2.5-flash", "input_extra": _CHUNKS}  # fmt: skip
_CODE_WARM = {"id_slot": 0, "input_prefix": "", "input_suffix": "", "input_extra": _CHUNKS, "prompt": "",
              "n_predict": 0, "samplers": [], "cache_prompt": True, "t_max_prompt_ms": 500,
              "t_max_predict_ms": 1}  # fmt: skip
_OPENAI = {"model": "mlxgpt", "prompt": PREFIX, "suffix": SUFFIX, "max_tokens": 64}

CLIENTS = (
    Client("llama.vim", "/infill", _VIM, vim, (("POST", "/infill", _WARM),)),
    Client("llama.vscode", "/infill", _CODE, llama, (("GET", "/health", None), ("POST", "/infill", _CODE_WARM))),
    Client("minuet", "/v1/completions", {"model": "mlxgpt", "prompt": MINUET, "suffix": SUFFIX, "stream": True},
           openai_events),
    Client("Zed", "/v1/completions", {"model": "mlxgpt", "prompt": QWEN, "max_tokens": 64, "stop": MARKS}, openai),
    Client("Zed, Ollama", "/api/generate", {
        "model": "qwen2.5-coder", "prompt": QWEN, "raw": True, "stream": False,
        "options": {"num_predict": 64, "temperature": 0.2, "stop": MARKS},
    }, ollama, (("GET", "/api/tags", None), ("POST", "/api/show", {"model": "qwen2.5-coder"}))),
    Client("Continue, llama.cpp", "/completion", {
        "prompt": CODESTRAL, "stream": True, "n_predict": 4096, "stop": ["[PREFIX]", "[SUFFIX]", "/src/", "\n\n"],
        "temperature": 0.01,
    }, llama_events),
    Client("Continue, Mistral", "/v1/fim/completions", {
        "model": "codestral-latest", "prompt": PREFIX, "suffix": SUFFIX, "max_tokens": 4096, "temperature": 0.01,
        "stop": ["[PREFIX]", "[SUFFIX]", "\n\n"], "stream": True,
    }, message_events),
    Client("Tabby, llama.cpp", "/completion", {
        "seed": 42, "prompt": CODE_LLAMA, "n_predict": 64, "temperature": 0.1, "stream": True, "penalty_last_n": 0,
        "presence_penalty": 0.0,
    }, llama_events),
    Client("Tabby, OpenAI", "/v1/completions", _OPENAI | {"temperature": 0.1, "stream": True, "presence_penalty": 0.0},
           openai_events),
    Client("twinny, Ollama", "/api/generate", {
        "model": "mlxgpt", "prompt": CODE_LLAMA, "stream": True, "keep_alive": "5m",
        "options": {"temperature": 0.2, "num_predict": 512},
    }, ollama),
    Client("Codestral's clients", "/v1/fim/completions", _OPENAI | {"temperature": 0}, message),
    Client("openai package", "/v1/completions", _OPENAI | {"n": 2}, openai, (("GET", "/v1/models", None),)),
)  # fmt: skip
