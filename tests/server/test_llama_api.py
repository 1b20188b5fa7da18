"""/infill, /completion, /health, /props and /metrics, with the bodies that known clients send."""

import http.client
import json
import threading

import pytest
from live import opened, soon
from paced import BYTES, SECONDS, Paced, network

from mlxgpt.completion.jobs import GONE, SUPERSEDED
from mlxgpt.completion.suggest import Suggester
from mlxgpt.generation.continuous import Batch
from mlxgpt.server.state import Limits

PREFIX, SUFFIX = "import math\n\n\ndef area(circle):\n    raise NotWr", "\n\n\nprint(area(3))\n"
VIM_FIELDS = [
    "content", "timings/prompt_n", "timings/prompt_ms", "timings/prompt_per_token_ms", "timings/prompt_per_second",
    "timings/predicted_n", "timings/predicted_ms", "timings/predicted_per_token_ms", "timings/predicted_per_second",
    "truncated", "tokens_cached",
]  # fmt: skip
LLAMA_VIM = {
    "id_slot": 0, "input_prefix": PREFIX[: PREFIX.rindex("\n") + 1], "input_suffix": SUFFIX,
    "input_extra": [{"text": "def helper(alpha):\n    return alpha\n", "time": [12, 345], "filename": "helper.py"}],
    "prompt": "    raise NotWr", "n_predict": 128, "stop": [], "n_indent": 4, "top_k": 40, "top_p": 0.9,
    "stream": False, "samplers": ["top_k", "top_p", "infill"], "cache_prompt": True,
    "t_max_prompt_ms": 500, "t_max_predict_ms": 1000,
    "response_fields": VIM_FIELDS, "model": "",
}  # fmt: skip
LLAMA_VSCODE = {
    "input_prefix": PREFIX[: PREFIX.rindex("\n") + 1], "input_suffix": SUFFIX, "input_extra": [],
    "prompt": "    raise NotWr", "n_predict": 500, "top_k": 40, "top_p": 0.99, "stream": False, "n_cmpl": 3,
    "samplers": ["top_k", "top_p", "infill"], "cache_prompt": True, "t_max_prompt_ms": 2000, "t_max_predict_ms": 2500,
}  # fmt: skip
ONE = LLAMA_VSCODE | {"n_cmpl": 1}


def test_llama_vim_is_answered(ngrams):
    answer = ngrams.post("/infill", LLAMA_VIM, Authorization="Bearer ")
    assert answer.json().keys() == set(VIM_FIELDS)
    assert answer.json()["content"] == "itten(Exception):"
    assert b'"content":"itten(Exception):"' in answer.data  # it looks for just these bytes
    warmed = ngrams.post("/infill", LLAMA_VIM | {"n_predict": 0, "samplers": [], "response_fields": [""]})
    assert warmed.data == b"{}"


def test_llama_vscode_is_answered(ngrams):
    table, *others = ngrams.post("/infill", LLAMA_VSCODE).json()
    assert table["content"] == "itten(Exception):"
    assert [other["index"] for other in others] == [1, 2][: len(others)]
    assert table["generation_settings"].keys() >= {"n_ctx", "n_predict"}
    assert table["timings"].keys() >= {
        "prompt_n", "prompt_ms", "prompt_per_second", "predicted_n", "predicted_ms", "predicted_per_second"
    }  # fmt: skip
    assert (table["stop"], table["stop_type"], table["truncated"]) == (True, "eos", False)
    assert ngrams.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    "prompt",
    [
        f"<|fim_prefix|>{PREFIX}<|fim_suffix|>{SUFFIX}<|fim_middle|>",
        f"<PRE> {PREFIX} <SUF>{SUFFIX} <MID>",
        f"[SUFFIX]{SUFFIX}[PREFIX]{PREFIX}",
    ],
)
def test_continue_and_tabby_are_answered(ngrams, prompt):
    """/completion with a template, streamed and not."""
    body = {"prompt": prompt, "n_predict": 64, "temperature": 0.01, "stop": ["\n\n", "<|endoftext|>"], "seed": 42}
    assert ngrams.post("/completion", body).json()["content"] == "itten(Exception):"
    events = ngrams.post("/completion", body | {"stream": True, "cache_prompt": True}).events()
    assert "".join(event["content"] for event in events) == "itten(Exception):"
    assert [event["stop"] for event in events] == [False, True]
    assert events[-1]["stop_type"] == "eos"


def test_nothing_is_explained(ngrams):
    table = ngrams.post("/infill", {"input_prefix": "zzz_unheard_of", "input_suffix": ""}).json()
    assert (table["content"], table["reason"]) == ("", "nothing is known that could follow")
    hidden = ngrams.post("/infill", ONE | {"threshold": 1.0}).json()
    assert hidden["content"] == ""
    assert "below the threshold 1.00" in hidden["reason"]
    assert "a stop text comes first" in ngrams.post("/infill", ONE | {"stop": ["itten"]}).json()["reason"]
    cut = ngrams.post("/infill", ONE | {"stop": ["(", ":"]}).json()
    assert (cut["content"], cut["stop_type"], cut["stopping_word"]) == ("itten", "word", "(")
    empty = ngrams.post("/infill", {"input_prefix": None}).json()
    assert empty["content"] or empty["reason"]


def test_each_part_has_its_probability(ngrams):
    table = ngrams.post("/infill", ONE | {"n_probs": 1}).json()
    assert "".join(token["token"] for token in table["completion_probabilities"]) == table["content"]
    assert all(token["logprob"] <= 0 for token in table["completion_probabilities"])
    assert 0 < table["confidence"] < 1


def test_a_block_and_its_indentation(ngrams):
    place = {"input_prefix": "x = 1\n\n\ndef compute_a", "input_suffix": "\n\n\ny = 2\n"}
    assert ngrams.post("/infill", place).json()["content"] == "rea(width, height):"
    block = ngrams.post("/infill", place | {"multiline": True}).json()
    assert block["content"] == "rea(width, height):\n    return width * height"
    assert block["has_new_line"]
    deep = ngrams.post("/infill", place | {"multiline": True, "n_indent": 8}).json()
    assert deep["content"] == "rea(width, height):"
    short = ngrams.post("/infill", place | {"multiline": True, "t_max_predict_ms": 1}).json()
    assert block["content"].startswith(short["content"])


def test_the_saved_file_gives_way_to_its_buffer(ngrams):
    place = {"input_prefix": "def compute_a", "input_suffix": "\n"}
    assert ngrams.post("/infill", place | {"document": "other.py"}).json()["content"] == "rea(width, height):"
    for name in ("area.py", "./x/../area.py", "/project/area.py"):
        assert ngrams.post("/infill", place | {"document": name}).json()["content"] == ""


def test_streaming_equals_not_streaming(tiny):
    """Greedy, drawn, stopped, and several at once."""
    for options in ({"temperature": 0}, {"seed": 5}, {"seed": 6, "stop": ["e", "a"]}, {"seed": 1, "n_cmpl": 3}):
        body = {"prompt": "def area(", "n_predict": 30, "n_probs": 2} | options
        whole = tiny.post("/completion", body).json()
        whole = whole if isinstance(whole, list) else [whole]
        texts, tokens, ends = [""] * len(whole), [[] for _ in whole], {}
        for event in tiny.post("/completion", body | {"stream": True}).events():
            texts[event["index"]] += event["content"]
            tokens[event["index"]] += event["tokens"]
            if event["stop"]:
                ends[event["index"]] = event
        for i, table in enumerate(whole):
            assert (table["content"], table["tokens"]) == (texts[i], tokens[i])
            assert (table["stop_type"], table["stopping_word"], table["tokens_predicted"]) == (
                ends[i]["stop_type"], ends[i]["stopping_word"], ends[i]["tokens_predicted"]
            )  # fmt: skip
            assert all(len(row["top_logprobs"]) == 2 for row in table["completion_probabilities"])


def test_answers_at_once_are_those_one_by_one(tiny):
    """Drawn ones too: each row of the batch has its own seed."""
    bodies = [{"prompt": f"number {i}", "n_predict": 10 + 3 * i, "seed": i, "temperature": i % 2} for i in range(12)]
    alone = [tiny.post("/completion", body).json()["content"] for body in bodies]
    together: dict[int, str] = {}

    def ask(i: int) -> None:
        together[i] = tiny.post("/completion", bodies[i]).json()["content"]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(len(bodies))] == alone
    assert tiny.idle()


def test_what_was_computed_is_used_again(tiny):
    body = {"input_prefix": "class Shape:\n    def area(self):\n        return self.wid", "n_predict": 8}
    tiny.post("/infill", body)
    again = tiny.post("/infill", body | {"input_prefix": body["input_prefix"] + "t"}).json()["timings"]
    assert again["cache_n"] > 40 > 10 > again["prompt_n"]
    prompt = {"prompt": "a text that is long enough to be worth it", "n_predict": 2}
    tiny.post("/completion", prompt)
    assert tiny.post("/completion", prompt).json()["timings"]["prompt_n"] == 1


def test_a_newer_request_ends_the_older(serving):
    """Within one step of it, over HTTP as well; what it is answered says why."""
    paced = Paced()
    served, answers = serving(paced), {}

    def ask(name: str) -> None:
        answers[name] = served.post("/infill", {"input_prefix": f"{name}_value = 1\n{name}_va", "document": "a.py"})

    older = threading.Thread(target=ask, args=("older",))
    older.start()
    paced.steps.release(2)
    assert soon(lambda: paced.taken == 2)
    newer = threading.Thread(target=ask, args=("newer",))
    newer.start()
    assert soon(lambda: served.state.service.load.waiting == 1)
    paced.steps.release(1)
    older.join(SECONDS)
    assert paced.taken == 3
    assert (answers["older"].json()["content"], answers["older"].json()["reason"]) == ("", f"cancelled: {SUPERSEDED}")
    paced.steps.release(1000)
    newer.join(SECONDS)
    assert answers["newer"].json()["content"] == "lue = 1"


def opened_connection(served, path: str, body: dict) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=SECONDS)
    connection.request("POST", path, json.dumps(body))
    return connection


def test_a_client_that_leaves_frees_its_place(serving, monkeypatch):
    """A suggestion at work, one that waits, and a text that is streamed."""
    paced = Paced()
    served = serving(paced)
    working = opened_connection(served, "/infill", {"input_prefix": "a = 1\na"})
    assert soon(lambda: served.state.service.load.working == 1)
    waiting = opened_connection(served, "/infill", {"input_prefix": "b = 1\nb"})
    assert soon(lambda: served.state.service.load.waiting == 1)
    waiting.close()
    assert soon(lambda: served.state.service.load.waiting == 0)
    working.close()
    assert soon(lambda: served.state.service._running.reason == GONE)
    before = paced.taken
    paced.steps.release(1)
    assert soon(lambda: served.state.service.load.working == 0)
    assert paced.taken == before + 1

    steps, real = threading.Semaphore(0), Batch.step
    monkeypatch.setattr(Batch, "step", lambda self: steps.acquire(timeout=SECONDS) and real(self))
    written = serving(lambda: opened(Suggester(network(), BYTES)))
    for stream in (True, False):
        client = opened_connection(written, "/completion", {"prompt": "x", "n_predict": 400, "stream": stream})
        steps.release(4)
        assert soon(lambda: written.state.service.load.working == 1)
        if stream:
            client.getresponse().read(20)
        client.close()
        assert soon(lambda: written.state.service._members == {} or bool(steps.release(1)))
    steps.release(100_000)


def test_a_full_queue_is_429(serving):
    paced = Paced()
    served = serving(paced, limits=Limits(queue=1))
    held = [opened_connection(served, "/infill", {"input_prefix": "a = 1\na"})]
    assert soon(lambda: served.state.service.load.working == 1)
    held.append(opened_connection(served, "/infill", {"input_prefix": "b = 1\nb"}))
    assert soon(lambda: served.state.service.load.waiting == 1)
    for stream in (False, True):
        refused = served.post("/infill", {"input_prefix": "c", "stream": stream})
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert refused.error == "1 requests are waiting: try again in a moment"
    paced.steps.release(100_000)
    assert [connection.getresponse().status for connection in held] == [200, 200]
    assert served.post("/infill", {"input_prefix": "c"}).status == 200


def test_while_it_loads_it_says_so(serving):
    loaded = threading.Event()
    served = serving(lambda: loaded.wait(SECONDS) and opened(Suggester()), wait=False)
    for answer in (served.get("/health"), served.post("/infill", {}), served.get("/props"), served.get("/v1/models")):
        assert (answer.status, answer.error) == (503, "the model is loading")
    assert served.get("/").status == 200
    loaded.set()
    assert soon(lambda: served.get("/health").status == 200)


def test_props_and_metrics(tiny):
    props = tiny.get("/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 512
    assert (props["total_slots"], props["model_path"]) == (8, "tiny")

    def counted() -> dict[str, float]:
        text = tiny.get("/metrics")
        assert text.headers["content-type"].startswith("text/plain")
        rows = [line.rsplit(" ", 1) for line in text.data.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in rows}

    before = counted()
    tiny.post("/completion", {"prompt": "secret words", "n_predict": 7, "temperature": 0})
    tiny.post("/infill", {"input_prefix": "secret words"})
    tiny.get("/no/such/path")
    after = counted()
    assert "secret" not in tiny.get("/metrics").data.decode()
    ok = 'mlxgpt_requests_total{path="/completion",status="200"}'
    assert after[ok] == before.get(ok, 0) + 1
    assert after["mlxgpt_written_tokens_total"] >= before["mlxgpt_written_tokens_total"] + 1
    assert after['mlxgpt_requests_total{path="other",status="404"}'] >= 1
    seconds = 'mlxgpt_answer_seconds_count{kind="suggestion"}'
    assert after[seconds] == before.get(seconds, 0) + 1
    assert (after["mlxgpt_waiting"], after["mlxgpt_working"]) == (0, 0)
