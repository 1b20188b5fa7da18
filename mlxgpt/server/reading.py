"""A request's body: read within limits, and checked against what the endpoint takes."""

import asyncio
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from mlxgpt.server.refusals import Refused
from mlxgpt.server.state import Limits, State

DRAINED = 16  # times the limit: so much of a body that is too large is read, for its sender to hear why it is refused

Body = TypeVar("Body")


class Gone(Exception):
    """The client went away: there is no one to answer."""


async def read(request: Request, kind: type[Body]) -> Body:
    """The body as a `kind`. Raises Refused, Gone."""
    state: State = request.app.state.mlxgpt
    try:
        async with asyncio.timeout(state.settings.limits.body_seconds):
            data = await _bytes(request, state.settings.limits)
    except TimeoutError:
        raise Refused(408, "the body of the request did not come in time", Connection="close") from None
    except ClientDisconnect:
        raise Gone from None
    try:
        return msgspec.json.decode(data, type=kind, strict=False)  # 3.0 is an integer to JSON Schema
    except msgspec.ValidationError as error:
        raise Refused(400, str(error).replace("`$.", "`").replace("`$`", "the body")) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refused(400, f"the body is not JSON: {reason}") from None


async def _bytes(request: Request, limits: Limits) -> bytes:
    most = limits.body
    too_large = Refused(413, f"the body is larger than {most:,} bytes", Connection="close")
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > DRAINED * most:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size <= most:
            parts.append(part)
        elif size > DRAINED * most:
            break
    if size > most:
        raise too_large
    return b"".join(parts)
