"""`mlxgpt doctor --server`: every known client is asked for, and what one could not use is said."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mlxgpt.completion.suggest import Suggester
from mlxgpt.errors import UsageError
from mlxgpt.server import clients
from mlxgpt.server.clients import CLIENTS, Answer, Unreadable
from mlxgpt.server.replay import replay

Reply = tuple[int, str, bytes]


@contextmanager
def answering(reply: Callable[[str, dict], Reply]) -> Iterator[str]:
    """The address of a server that answers each path and body as `reply` says."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, kind, text = reply(self.path, json.loads(data or b"{}"))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST

        def log_message(self, *given: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_every_client_shows_something(ngrams, tiny, cli):
    for served in (ngrams, tiny):
        assert served.post("/infill", {"input_prefix": "x"}).status == 200
        outcomes = replay(served.url)
        assert [outcome.client for outcome in outcomes] == [client.name for client in CLIENTS]
        for outcome in outcomes:
            assert outcome.works, outcome
            assert outcome.shown or outcome.reason
    done = cli("doctor", "--server", ngrams.url, "--json")
    table = json.loads(done.out.splitlines()[-1])
    rows = {row["client"]: row for row in table["clients"]}
    assert done.status == 0
    assert {row["shown"][0] for row in rows.values()} == {"al = first + second"}
    assert len(rows["llama.vscode"]["shown"]) == 3
    text = cli("doctor", "--server", f"{ngrams.url}/").out
    assert text.count("'al = first + second'") == len(CLIENTS)
    assert " and 2 more\n" in text


def test_why_nothing_is_shown(serving, cli):
    hidden = replay(serving(Suggester(), threshold=1.0).url)
    assert all(outcome.works and not outcome.shown for outcome in hidden)
    assert all("below the threshold 1.00" in str(outcome.reason) for outcome in hidden)
    locked = serving(Suggester(), key="secret").url
    refused = cli("doctor", "--server", locked)
    assert refused.status == 1
    assert refused.error == f"{len(CLIENTS)} of {len(CLIENTS)} clients could not use what {locked} answers"
    assert refused.out.count("status 401, an API key is needed") == len(CLIENTS)
    assert cli("doctor", "--server", locked, "--api-key", "secret").status == 0


def test_what_cannot_be_asked_is_one_line(serving, cli):
    with answering(lambda path, body: (503, "application/json", b'{"error": {"message": "loading"}}')) as url:
        assert cli("doctor", "--server", url).error == f"{url} is not ready: loading; try again in a moment"
    gone = cli("doctor", "--server", url)  # it has ended
    assert gone.status == 1
    assert gone.error == f"{url} does not answer (connection refused): start `mlxgpt serve`, or name another --server"
    for wrong in ("localhost:8012", "ftp://a", "http://", "http://a:99999", "http://[", ""):
        assert cli("doctor", "--server", wrong).status == 2
        with pytest.raises(UsageError, match="is no address"):
            replay(wrong)


def test_an_answer_that_no_client_can_use(cli):
    with answering(lambda path, body: (200, "application/json", b'{ "content" : "x" }\n')) as url:
        outcomes = {outcome.client: outcome for outcome in replay(url)}
    assert "no space after the colon" in str(outcomes["llama.vim"].reason)
    assert outcomes["llama.vscode"].shown == ["x"]
    assert not any(o.works for name, o in outcomes.items() if name != "llama.vscode")
    assert "it waits for events, and got application/json" in str(outcomes["minuet"].reason)
    assert "id is missing" in str(outcomes["Zed"].reason)


def events(*tables: object) -> bytes:
    """Server-sent events."""
    return b"".join(b"data: %s\n\n" % (t if isinstance(t, bytes) else json.dumps(t).encode()) for t in tables)


PIECE = b'{"response":"a","created_at":"t","done":false}\n'
TEXT = {"choices": [{"text": "a", "index": 0}]}
WHOLE = {
    "id": "1", "object": "text_completion", "created": 1, "model": "m",
    "choices": [{"text": "a", "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}  # fmt: skip


@pytest.mark.parametrize(
    ("read", "data", "wrong"),
    [
        (clients.vim, b'{"content":"a"}', None),
        (clients.vim, b'[{"content":"a"}]', "one JSON object"),
        (clients.vim, b'{\n"content":"a"}', "one JSON object"),
        (clients.llama, b'[{"content":"a"},{"content":"b"}]', None),
        (clients.llama, b"[]", "empty"),
        (clients.llama, b"<html>", "no JSON"),
        (clients.llama_events, events({"content": "a", "stop": False}, {"content": "", "stop": True}), None),
        (clients.llama_events, events({"content": "a", "stop": False}), "stop"),
        (clients.llama_events, b"", "no event"),
        (clients.openai, json.dumps(WHOLE).encode(), None),
        (clients.openai, json.dumps(WHOLE | {"usage": {}}).encode(), "usage.prompt_tokens"),
        (clients.openai, json.dumps(WHOLE | {"choices": []}).encode(), "choices is empty"),
        (clients.openai_events, events(TEXT, b"[DONE]"), None),
        (clients.openai_events, events(TEXT), "[DONE]"),
        (clients.message, b'{"choices":[{"message":{"content":"a"}}]}', None),
        (clients.message, b'{"choices":[]}', "choices.0.message.content"),
        (clients.message_events, events({"choices": [{"delta": {"content": "a"}}]}, b"[DONE]"), None),
        (clients.message_events, events({"choices": [{"delta": {}}]}, b"[DONE]"), "choices.0.delta.content"),
        (clients.ollama, PIECE + b'{"response":"","created_at":"t","done":true}', None),
        (clients.ollama, PIECE, "done"),
        (clients.ollama, b'{"response":"a","done":true}', "created_at"),
    ],
)  # fmt: skip
def test_each_reads_its_own_protocol(read, data, wrong):
    answer = Answer(200, "text/event-stream", data)
    if wrong is None:
        assert read(answer).texts[0] == "a"
    else:
        with pytest.raises(Unreadable) as caught:
            read(answer)
        assert wrong in str(caught.value)
