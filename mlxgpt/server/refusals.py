"""What is answered where a request is refused: one JSON object that says why, and never a traceback."""

import sys
import traceback

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 408: "timeout_error", 413: "invalid_request_error", 429: "rate_limit_error",
    500: "server_error", 503: "unavailable_error",
}  # fmt: skip


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers

    def response(self) -> Response:
        """The answer: {"error": {"message", "type", "code"}}."""
        return json_response(error_table(self.status, self.message), self.status, self.headers)


def error_table(status: int, message: str) -> dict:
    """The JSON object of an error."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "code": status}}


def json_response(table: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON on one line and without spaces: llama.vim looks for `"content":"`."""
    return Response(msgspec.json.encode(table), status, headers, "application/json")


async def refused(request: Request, error: Exception) -> Response:
    """The answer to a request that raised Refused."""
    assert isinstance(error, Refused)
    return error.response()


async def unknown(request: Request, error: Exception) -> Response:
    """The answer where there is no such path or method."""
    assert isinstance(error, HTTPException)
    reasons = {
        404: "there is no such path; /openapi.json lists those there are", 405: "this path takes another method"
    }  # fmt: skip
    message = reasons.get(error.status_code, error.detail)
    return json_response(error_table(error.status_code, message), error.status_code, dict(error.headers or {}))


async def failed(request: Request, error: Exception) -> Response:
    """The answer where we are at fault; what happened goes to stderr, in lines of code and no data."""
    report(error)
    return json_response(error_table(500, "mlxgpt failed: its terminal says where"), 500)


def report(error: BaseException) -> None:
    """Where an error came from, to stderr: its message could quote a prompt, and is left out."""
    places = "".join(traceback.format_tb(error.__traceback__))
    print(f"mlxgpt: {type(error).__name__} while a request was answered\n{places}", end="", file=sys.stderr)
