"""Who may ask: no page of another site, by its own name or by one that was rebound; and with a key, who has it."""

import pytest
from live import opened

from mlxgpt.completion.suggest import Suggester
from mlxgpt.server.guard import Guard, is_loopback, names

ASKED = {
    "model": "",
    "prompt": "x",
    "options": {"num_predict": 1},
    "messages": [{"role": "user", "content": "x"}],
    "n_predict": 1,
    "max_tokens": 1,
}
ENDPOINTS = (
    "/infill", "/completion", "/v1/completions", "/v1/chat/completions", "/v1/fim/completions", "/api/generate",
    "/api/show",
)  # fmt: skip
PATHS = (*ENDPOINTS, "/api/tags", "/api/version", "/v1/models", "/props", "/metrics", "/openapi.json", "/health", "/")


def asked(served, path: str, **headers: str) -> int:
    method = "POST" if path in ENDPOINTS else "GET"
    body = ASKED if method == "POST" else None
    return served.ask(method, path, body, **headers).status


@pytest.mark.parametrize("path", PATHS)
def test_pages_of_other_sites_are_refused(tiny, path):
    own = f"127.0.0.1:{tiny.port}"
    for host in (
        "evil.example",
        f"evil.example:{tiny.port}",
        "127.0.0.1.evil.example",
        "8.8.8.8",
        "localhost.evil",
        "evil.example@127.0.0.1",
        "127.0.0.1/evil.example",
        "",
        "[",
    ):
        assert asked(tiny, path, Host=host) == 403
    for origin in (
        "http://evil.example",
        "null",
        f"http://localhost:{tiny.port + 1}",
        "http://127.0.0.1",
        "file://",
        "",
    ):
        assert asked(tiny, path, Origin=origin) == 403
    assert asked(tiny, path, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors") == 403
    assert asked(tiny, path, Sec_Fetch_Site="same-site") == 403
    for host in (own, f"localhost:{tiny.port}", f"LocalHost:{tiny.port}", "[::1]:80", "127.0.0.1"):
        assert asked(tiny, path, Host=host) == 200
        assert asked(tiny, path, Host=host, Origin=f"http://{host}", Sec_Fetch_Site="same-origin") == 200


def test_a_link_from_elsewhere_opens_the_page_alone(tiny):
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert asked(tiny, "/", **link) == 200
    assert asked(tiny, "/props", **link) == 403


def test_no_answer_lets_a_page_of_another_site_read_it(tiny):
    answer = tiny.ask("OPTIONS", "/infill", Origin="http://evil.example", Access_Control_Request_Method="POST")
    assert answer.status == 403
    for given in (answer, tiny.get("/props"), tiny.post("/infill", {})):
        assert not [name for name in given.headers if name.startswith("access-control")]
        assert given.headers["x-content-type-options"] == "nosniff"


def test_with_a_key_only_who_has_it_is_answered(serving):
    served = serving(lambda: opened(Suggester()), key="a key, ünïcode")
    right = "a key, ünïcode".encode().decode("latin-1")
    for path in PATHS:
        free = path in ("/", "/health")
        for headers in (
            {}, {"Authorization": "Bearer "}, {"Authorization": "Bearer other"}, {"Authorization": "Basic YQ=="},
            {"X_Api_Key": ""}, {"Authorization": f"Bearer {right}x"}, {"Authorization": right},
        ):  # fmt: skip
            assert asked(served, path, **headers) == (200 if free else 401)
        expected = 400 if path == "/v1/chat/completions" else 200  # the n-grams cannot chat
        assert asked(served, path, Authorization=f"Bearer {right}") == expected
        assert asked(served, path, Authorization=f"bearer {right}") == expected
        assert asked(served, path, X_Api_Key=right) == expected
    refused = served.get("/props")
    assert "API key is needed" in refused.error
    assert refused.headers["www-authenticate"] == "Bearer"
    assert "key, " not in refused.data.decode().replace("API key", "")


def test_without_a_key_any_token_will_do(tiny):
    assert asked(tiny, "/props", Authorization="Bearer ") == 200
    assert asked(tiny, "/props", Authorization="Bearer sk-none") == 200


def test_beyond_this_machine_it_is_asked_by_address_and_name():
    assert is_loopback("127.0.0.1")
    assert is_loopback("127.8.9.1")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.4", "example.org", "")))
    assert "box.example" in names("Box.Example")
    guard = Guard(None, "0.0.0.0", "k", None, ())
    assert guard._knows("192.168.1.4:8012")
    assert guard._knows("[fe80::1]:8012")
    assert not guard._knows("evil.example")
