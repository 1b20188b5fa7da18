"""OpenAI's endpoints: /v1/completions, /v1/chat/completions, /v1/models; and Mistral's /v1/fim/completions."""

import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from time import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mlxgpt.completion.jobs import Write
from mlxgpt.server import planning
from mlxgpt.server.bodies import ChatCompletion, Fim, Message, OpenAI, TextCompletion
from mlxgpt.server.exchange import Call, Delta, Exchange, Reply, Token, bytes_of
from mlxgpt.server.reading import read
from mlxgpt.server.refusals import Refused, json_response
from mlxgpt.server.state import Served, State
from mlxgpt.server.streams import DONE, begun, event
from mlxgpt.tokenizer import Tokenizer


async def models(request: Request) -> Response:
    """GET /v1/models: the one that is served."""
    return json_response({"object": "list", "data": [_model(request.app.state.mlxgpt)]})


async def model(request: Request) -> Response:
    """GET /v1/models/NAME."""
    found = _model(request.app.state.mlxgpt)
    if request.path_params["name"] != found["id"]:
        raise Refused(404, f"there is no such model here: {found['id']} is served")
    return json_response(found)


def _model(state: State) -> dict[str, Any]:
    served = state.ready()
    about = {"n_ctx": served.context, "using": served.using, "chat": served.template is not None}
    return {"id": served.name, "object": "model", "created": state.started, "owned_by": "mlxgpt", "meta": about}


async def completions(request: Request) -> Response:
    """POST /v1/completions: with a `suffix`, or a template for one, what is in the middle; else what follows."""
    state: State = request.app.state.mlxgpt
    state.ready()
    body = await read(request, TextCompletion)
    calls = planning.text_completion(state, body)
    echoed = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    return await _answer(request, body, calls, _Text(request, body, [e for e in echoed for _ in range(body.n or 1)]))


async def chat(request: Request) -> Response:
    """POST /v1/chat/completions: the next message of a conversation, for a model with a chat template."""
    state: State = request.app.state.mlxgpt
    state.ready()
    body = await read(request, ChatCompletion)
    return await _answer(request, body, _chat_calls(state, body), _Chat(request, bool(body.logprobs)))


async def fim(request: Request) -> Response:
    """POST /v1/fim/completions: what is between `prompt` and `suffix`, as the message of a chat."""
    state: State = request.app.state.mlxgpt
    state.ready()
    body = await read(request, Fim)
    return await _answer(request, body, planning.fim(state, body), _Fim(request, False))


def _chat_calls(state: State, body: ChatCompletion) -> list[Call]:
    served = state.ready()
    template = served.template
    if template is None:
        raise Refused(400, served.no_template)
    if body.response_format and body.response_format != {"type": "text"}:
        raise Refused(400, "response_format is not supported but for text: leave it away")
    messages = [_message(message) for message in body.messages]
    planning.require_context(state, sum(len(message["content"].encode()) for message in messages))
    most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    request = planning.text_request(state, body, most)
    request = replace(request, logprobs=body.top_logprobs or 0)
    calls = []
    for i in range(body.n or 1):
        call = Call(Write(lambda tokenizer: [], replace(request, seed=request.seed + i & 0xFFFFFFFF)))

        def encode(tokenizer: Tokenizer, call: Call = call) -> Sequence[int]:
            ids = template.encode(messages, tokenizer)
            call.lead = "" if tokenizer.hidden_after(ids) else template.lead(messages)
            return ids

        call.wanted = Write(encode, call.wanted.request, state.settings.limits.write_seconds)  # type: ignore[union-attr]
        calls.append(call)
    return calls


def _message(message: Message) -> dict[str, str]:
    role = {"developer": "system"}.get(message.role, message.role)
    if role not in ("system", "user", "assistant"):
        raise Refused(400, f"a message's role is system, user or assistant, not {message.role!r}")
    if isinstance(message.content, list):
        if any(part.type != "text" or part.text is None for part in message.content):
            raise Refused(400, "a message's parts must be of the type text: nothing else can be read")
        return {"role": role, "content": "".join(part.text or "" for part in message.content)}
    return {"role": role, "content": message.content or ""}


class _Text:
    """How /v1/completions writes its answers."""

    kind = "cmpl"

    def __init__(self, request: Request, body: TextCompletion, prompts: list[str]) -> None:
        self.object = self.chunk = "text_completion"
        self._served: Served = request.app.state.mlxgpt.ready()
        self._top, self._echo, self._prompts = body.logprobs, bool(body.echo), prompts

    def opening(self, index: int) -> list[dict[str, Any]]:
        """What is streamed before the first text."""
        return [self.delta(Delta(index, self._prompts[index], []))] if self._echo else []

    def delta(self, delta: Delta) -> dict[str, Any]:
        """A choice of a chunk."""
        return self._choice(delta.index, delta.text, delta.tokens, None)

    def closing(self, reply: Reply) -> dict[str, Any]:
        """The last chunk's choice."""
        return self._choice(reply.index, "", [], reply.finish)

    def whole(self, reply: Reply) -> dict[str, Any]:
        """A choice, not streamed."""
        text = self._prompts[reply.index] + reply.text if self._echo else reply.text
        return self._choice(reply.index, text, reply.tokens, reply.finish)

    def _choice(self, index: int, text: str, tokens: Sequence[Token], finish: str | None) -> dict[str, Any]:
        table = None
        if self._top is not None:
            at, offsets = 0, []
            for token in tokens:
                offsets.append(at)
                at += len(token.text)
            table = {
                "tokens": [token.text for token in tokens], "token_logprobs": [token.logprob for token in tokens],
                "top_logprobs": [
                    {bytes_of(self._served, i).decode("utf-8", "replace"): p for i, p in t.top} for t in tokens
                ],
                "text_offset": offsets,
            }  # fmt: skip
        return {"index": index, "text": text, "logprobs": table, "finish_reason": finish}


class _Chat:
    """How /v1/chat/completions writes its answers."""

    kind, object, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, request: Request, logprobs: bool) -> None:
        self._served: Served = request.app.state.mlxgpt.ready()
        self._logprobs = logprobs

    def opening(self, index: int) -> list[dict[str, Any]]:
        """What is streamed before the first text."""
        return [self._choice(index, "delta", {"role": "assistant", "content": ""}, [], None)]

    def delta(self, delta: Delta) -> dict[str, Any]:
        """A choice of a chunk."""
        return self._choice(delta.index, "delta", {"content": delta.text}, delta.tokens, None)

    def closing(self, reply: Reply) -> dict[str, Any]:
        """The last chunk's choice."""
        return self._choice(reply.index, "delta", {}, [], reply.finish)

    def whole(self, reply: Reply) -> dict[str, Any]:
        """A choice, not streamed."""
        message = {"role": "assistant", "content": reply.text, "refusal": None}
        return self._choice(reply.index, "message", message, reply.tokens, reply.finish)

    def _choice(
        self, index: int, name: str, message: dict[str, Any], tokens: Sequence[Token], finish: str | None
    ) -> dict[str, Any]:
        def row(token: Token) -> dict[str, Any]:
            return {"token": token.text, "logprob": token.logprob, "bytes": list(token.data)}

        table = {
            "content": [
                row(t) | {"top_logprobs": [row(Token(bytes_of(self._served, i), p, i)) for i, p in t.top]}
                for t in tokens
            ]
        }
        return {"index": index, name: message, "logprobs": table if self._logprobs else None, "finish_reason": finish}


class _Fim(_Chat):
    """How /v1/fim/completions writes its answers: as Mistral's, with a `content` in the last chunk too, which clients
    add up without a look."""

    kind = "cmpl"

    def closing(self, reply: Reply) -> dict[str, Any]:
        """The last chunk's choice."""
        return self._choice(reply.index, "delta", {"content": ""}, [], reply.finish)


async def _answer(request: Request, body: OpenAI, calls: list[Call], form: "_Text | _Chat") -> Response:
    served: Served = request.app.state.mlxgpt.ready()
    head = {"id": f"{form.kind}-{secrets.token_hex(12)}", "created": int(time()), "model": served.name}
    if body.stream:
        return await begun(_events(request, body, calls, form, head | {"object": form.chunk}))
    async with Exchange(request, calls) as exchange:
        replies = await exchange.replies()
    choices = [form.whole(reply) for reply in replies]
    about = {"mlxgpt": [{"reason": r.reason, "confidence": r.confidence} for r in replies]}
    return json_response(head | {"object": form.object, "choices": choices, "usage": _usage(replies)} | about)


async def _events(
    request: Request, body: OpenAI, calls: list[Call], form: "_Text | _Chat", head: dict[str, Any]
) -> AsyncIterator[bytes]:
    replies: list[Reply] = []
    opened: set[int] = set()
    async with Exchange(request, calls) as exchange:
        async for came in exchange.events():
            if came.index not in opened:
                opened.add(came.index)
                for choice in form.opening(came.index):
                    yield event(head | {"choices": [choice]})
            if isinstance(came, Delta):
                yield event(head | {"choices": [form.delta(came)]})
                continue
            replies.append(came)
            about = {"mlxgpt": [{"reason": came.reason, "confidence": came.confidence}]}
            yield event(head | {"choices": [form.closing(came)]} | about)
    if body.stream_options is not None and body.stream_options.include_usage:
        yield event(head | {"choices": [], "usage": _usage(replies)})
    yield DONE


def _usage(replies: Sequence[Reply]) -> dict[str, Any]:
    prompt, written = sum(r.prompt_tokens for r in replies), sum(r.written_tokens for r in replies)
    cached = {"cached_tokens": sum(r.cached_tokens for r in replies)}
    return {
        "prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written,
        "prompt_tokens_details": cached,
    }  # fmt: skip
