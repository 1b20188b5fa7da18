"""Server-sent events and JSON lines, and answers to clients that may leave."""

from collections.abc import AsyncIterator, Callable

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlxgpt.server.reading import Gone
from mlxgpt.server.refusals import Refused, error_table, report

DONE = b"data: [DONE]\n\n"


def event(table: object) -> bytes:
    """One event: `data: ` and JSON on one line."""
    return b"data: " + msgspec.json.encode(table) + b"\n\n"


def line(table: object) -> bytes:
    """JSON on a line of its own."""
    return msgspec.json.encode(table) + b"\n"


async def begun(events: AsyncIterator[bytes], written: Callable[[object], bytes] = event) -> "EventStream":
    """A response whose first event is there: what is refused until then has a status. The events are as `written`
    writes them, which is `event` or `line`. Raises Refused, Gone."""
    return EventStream(await anext(events), events, written)


class EventStream(Response):
    """Events as they come. A failure is the last of them."""

    def __init__(self, first: bytes, rest: AsyncIterator[bytes], written: Callable[[object], bytes]) -> None:
        self.first, self.rest, self._written = first, rest, written
        super().__init__(media_type="text/event-stream" if written is event else "application/x-ndjson")
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.first, "more_body": True})
        try:
            async for piece in self.rest:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except Gone:
            return
        except Refused as refusal:
            last = self._written(error_table(refusal.status, refusal.message))
        except Exception as error:
            report(error)
            last = self._written(error_table(500, "mlxgpt failed: its terminal says where"))
        else:
            last = b""
        await send({"type": "http.response.body", "body": last, "more_body": False})
