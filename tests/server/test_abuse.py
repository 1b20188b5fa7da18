"""Whatever is sent, the server answers that, or why not: never a 500, never a traceback, and it stays in order."""

import json
import random
import socket
import threading

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live import Serving, opened, soon
from paced import BYTES, SECONDS, Paced, network
from schemathesis.specs.openapi.checks import positive_data_acceptance

from mlxgpt.completion.suggest import Suggester
from mlxgpt.server import app, openapi, run
from mlxgpt.server.state import Limits

ENDPOINTS = (
    "/infill", "/completion", "/v1/completions", "/v1/chat/completions", "/v1/fim/completions", "/api/generate"
)  # fmt: skip
REFUSED = {400, 403, 404, 405, 408, 411, 413, 414, 429, 431, 501, 503}
FEW_TOKENS = {"n_predict": 2, "max_tokens": 2, "max_completion_tokens": 2, "options": {"num_predict": 2}}
FEW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)


def in_order(served: Serving) -> None:
    """It is idle, and still says what it said."""
    assert served.idle()
    answer = served.post("/completion", {"prompt": "still", "n_predict": 4, "temperature": 0}).json()
    assert answer["stop"] is True
    assert served.post("/infill", {"input_prefix": "value = 1\nval"}).status == 200


def raw(served: Serving, data: bytes, half_close: bool = False) -> bytes:
    """What comes back for these bytes, until the server closes or has answered."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=SECONDS) as connection:
        connection.sendall(data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        got = b""
        try:
            while b"\r\n\r\n" not in got and (part := connection.recv(65536)):
                got += part
        except ConnectionResetError:
            pass
        return got


def head(path: str, length: object, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {length}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


# From the OpenAPI document: what it says may be sent, is answered as it says.


def test_the_document_names_every_path_and_body(tiny):
    document = tiny.get("/openapi.json").json()
    routes = {route.path.replace(":path", "") for route in app.application(opened, run.Settings()).routes}
    assert set(document["paths"]) == routes - {"/v1/health"}
    assert document == json.loads(json.dumps(openapi.document()))
    assert {"Infill", "LlamaCompletion", "TextCompletion", "ChatCompletion", "Fim", "Generate"} <= document[
        "components"
    ]["schemas"].keys()


@pytest.mark.parametrize("using", ["tiny", "ngrams"])
def test_what_the_document_allows_is_answered_as_it_says(using, request):
    """schemathesis makes bodies from the document, and checks what is answered against it."""
    served: Serving = request.getfixturevalue(using)
    schema = schemathesis.openapi.from_dict(openapi.document())
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == len(openapi.document()["paths"])
    for operation in operations:
        check_operation(operation, served)
    assert served.idle()


def check_operation(operation, served: Serving) -> None:
    """Refused with a reason it may be: not all that rules an answer out can be said in a schema."""

    @settings(FEW, max_examples=12)
    @given(case=operation.as_strategy())
    def check(case):
        if isinstance(case.body, dict):
            case.body |= FEW_TOKENS
        response = case.call(base_url=served.url, timeout=SECONDS)
        assert response.status_code == 200 or response.status_code in REFUSED, response.text
        case.validate_response(response, excluded_checks=[positive_data_acceptance])

    check()


# What no document allows.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = sorted(
    {name for schema in openapi.document()["components"]["schemas"].values() for name in schema["properties"]}
)


@pytest.mark.parametrize("path", ENDPOINTS)
def test_values_of_any_kind_in_any_field(tiny, path):
    @FEW
    @given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=8) | JSON)
    def check(body):
        if isinstance(body, dict):
            body |= FEW_TOKENS
        answer = tiny.post(path, json.dumps(body).encode())
        assert answer.status in {200, 400}, answer
        assert answer.status == 200 or answer.error

    check()
    in_order(tiny)


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b'{"prompt": "\xff"}', b'{"prompt": "\xc3"}', b"\0",
        b'{"prompt": "\\ud800"}', b'{"input_prefix": "\\udfff\\ud800"}', b'{"prompt": 1e999}', b'{"stream": "yes"}',
        b"[" * 200_000, b'{"time":' * 50_000, b'{"n_predict": ' + b"9" * 10_000 + b"}", b'{"seed": NaN}',
        b'{"prompt": "x", "prompt": 3}', b"prompt=x&n_predict=1", b'{"prompt": "x"} trailing',
    ],
    ids=lambda body: repr(body[:20]),
)  # fmt: skip
def test_what_is_no_body_is_400(tiny, path, body):
    answer = tiny.post(path, body)
    assert answer.status == (200 if path == "/infill" and b"prefix" not in body and answer.status == 200 else 400), (
        answer
    )
    if answer.status == 400:
        assert "Traceback" not in answer.error
        assert len(answer.error) < 300


def test_texts_of_any_characters(tiny, ngrams):
    @FEW
    @given(st.text(), st.text(), st.lists(st.text(max_size=3), max_size=3))
    def check(prefix, suffix, stops):
        for served in (tiny, ngrams):
            body = {"input_prefix": prefix, "input_suffix": suffix, "stop": stops, "n_predict": 4}
            assert served.post("/infill", body).status == 200
            given = {"prompt": prefix, "suffix": suffix, "max_tokens": 3, "stop": stops, "logprobs": 1, "echo": True}
            assert served.post("/v1/completions", given).status == 200
            del given["suffix"]
            text = "".join(e["choices"][0]["text"] for e in served.post(
                "/v1/completions", given | {"stream": True, "seed": 3}).events()[:-1])  # fmt: skip
            assert text.startswith(prefix)

    check()
    in_order(tiny)


def test_a_body_that_is_too_large_is_413(serving):
    served = serving(lambda: opened(Suggester(network(), BYTES)), limits=Limits(body=1000))
    body = json.dumps({"prompt": "x" * 2000}).encode()
    assert (served.post("/completion", body).status, served.post("/completion", body).error) == (
        413, "the body is larger than 1,000 bytes"
    )  # fmt: skip
    chunked = b"7d0\r\n" + b"x" * 2000 + b"\r\n0\r\n\r\n"
    endless = b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n"
    start = b"POST /infill HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert b" 413 " in raw(served, start + chunked)
    assert b" 413 " in raw(served, start + endless)  # which is not awaited to its end
    assert b" 413 " in raw(served, head("/infill", 10**18))
    assert b" 413 " in raw(served, head("/infill", 10**12, "Expect: 100-continue"))
    in_order(served)


def test_bodies_that_come_slowly_or_not_at_all_hold_no_one_up(serving):
    served = serving(lambda: opened(Suggester(network(), BYTES)), limits=Limits(body_seconds=0.3))
    waiting = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(20)]
    for i, connection in enumerate(waiting):
        connection.sendall(head("/infill", 1000) + b"{" * i)
    in_order(served)
    for connection in waiting:
        connection.settimeout(SECONDS)
        assert b" 408 " in connection.recv(65536)
        connection.close()


def test_a_head_that_does_not_come_is_given_up(serving, monkeypatch):
    monkeypatch.setattr(run, "HEAD_SECONDS", 0.3)
    served = serving(lambda: opened(Suggester()))
    with socket.create_connection(("127.0.0.1", served.port), timeout=SECONDS) as silent:
        assert silent.recv(100) == b""
    with socket.create_connection(("127.0.0.1", served.port), timeout=SECONDS) as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"HTTP/1.1 200" in slow.recv(65536)
        slow.sendall(b"GET /hea")
        while part := slow.recv(65536):
            assert part == b'{"status":"ok"}'  # where it came on its own


def test_clients_that_close_halfway_leave_nothing(serving):
    """While they send a head, a body, or wait; the server's state says that none of them is worked for."""
    paced = Paced()
    served = serving(paced)
    body = json.dumps({"input_prefix": "a = 1\na"}).encode()
    whole = head("/infill", len(body)) + body
    for data in (b"", b"POST /inf", head("/infill", len(body)), whole[:-3]):
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(SECONDS)
            connection.recv(100)
    assert served.state.service.load.working == 0
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(whole)
        assert soon(lambda: served.state.service.load.working == 1)
        connection.shutdown(socket.SHUT_WR)  # as curl does not, and netcat does
        assert soon(lambda: served.state.service._running is None or bool(served.state.service._running.reason))
    paced.steps.release(1000)
    assert served.idle()


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n", b"\0\0\0\0\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"G\xffT / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"POST /infill HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /infill HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        b"POST /infill HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /%ff%fe%00/../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
    ],
    ids=lambda data: repr(data[:30]),
)  # fmt: skip
def test_what_is_no_request_is_refused_or_closed(tiny, data):
    got = raw(tiny, data, half_close=True)
    assert b"Traceback" not in got
    if got:
        status = int(got.split()[1])
        assert status != 400 or b"\r\ncontent-type: application/json\r\n" in got.lower()
        assert status == 200 or status in REFUSED
    assert tiny.get("/health").status == 200


def test_paths_of_any_kind_open_no_file(tiny):
    paths = ["/..", "/../pyproject.toml", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/page.html", "/v1/models/../x"]
    for path in paths:
        assert tiny.get(path).status == 404
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        assert tiny.ask(method, "/infill").status == 405


def test_an_error_of_ours_is_told_without_what_was_asked(serving, monkeypatch, capfd):
    served = serving(lambda: opened(Suggester(network(), BYTES)))

    def broken(self, prefix, *more, **options):
        raise ValueError(f"cannot handle {prefix!r}")

    monkeypatch.setattr(Suggester, "suggest", broken)
    for stream in (False, True):
        answer = served.post("/infill", {"input_prefix": "my secret", "stream": stream})
        assert (answer.status, answer.error) == (500, "mlxgpt failed: its terminal says where")
    said = capfd.readouterr().err
    assert "ValueError while a request was answered" in said
    assert "in broken" in said
    assert "secret" not in said
    monkeypatch.undo()
    in_order(served)


def test_no_client_reads_what_is_anothers(serving):
    """Many at once on all endpoints, each with a word of its own that only its own answer may have."""
    served = serving(lambda: opened(Suggester()))
    wrong: list[object] = []

    def client(i: int) -> None:
        draw = random.Random(i)
        word = f"word_{'abcdefgh'[i]}_{i * 7919}"
        for k in range(25):
            name = f"{word}_{k}"
            text, cut = f"{name}_x = {name}_f(1)\n", draw.randrange(len(word), len(name))
            place = {"input_prefix": text + name[:cut], "input_suffix": "\n", "document": draw.choice([None, f"{i}"])}
            sent = [
                ("/infill", place, lambda t: t["content"]),
                ("/v1/completions", {"prompt": text + name[:cut], "suffix": "\n"}, lambda t: t["choices"][0]["text"]),
                ("/completion", {"prompt": f"<PRE> {text}{name[:cut]} <SUF>\n <MID>"}, lambda t: t["content"]),
            ]
            path, body, read = draw.choice(sent)
            got = read(served.post(path, body).json())
            if name[:cut] + got != text.rstrip():
                wrong.append((i, k, path, got))

    threads = [threading.Thread(target=client, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert served.idle()


def test_prompts_are_not_logged(serving, capfd):
    served = serving(lambda: opened(Suggester(network(), BYTES)))
    for path, body in (
        ("/infill", {"input_prefix": "my secret"}), ("/completion", {"prompt": "my secret", "n_predict": 2}),
        ("/completion", {"prompt": "my secret" * 9999}), ("/infill", {"input_prefix": ["my secret"]}),
    ):  # fmt: skip
        served.post(path, body)
    raw(served, b"GET /?secret=my HTTP/1.1\r\nHost: evil\r\n\r\n")
    assert "secret" not in "".join(capfd.readouterr())
