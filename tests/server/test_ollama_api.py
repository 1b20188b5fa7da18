"""Ollama's endpoints and Mistral's /v1/fim/completions, as their clients use them."""

import json
from datetime import datetime

import pytest
from live import Answer, opened
from paced import BYTES, network

from mlxgpt.completion.suggest import Suggester
from mlxgpt.generation import engine
from mlxgpt.generation.engine import Request

PREFIX, SUFFIX = "import math\n\n\ndef area(circle):\n    raise NotWr", "\n\n\nprint(area(3))\n"
CURSOR = {"model": "any", "prompt": PREFIX, "suffix": SUFFIX}


def lines(answer: Answer) -> list[dict]:
    """The objects of a stream of JSON lines."""
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.data.endswith(b"\n")
    return [json.loads(line) for line in answer.data.splitlines()]


def test_ollama_streams_unless_it_is_told_not_to(ngrams):
    *pieces, last = lines(ngrams.post("/api/generate", CURSOR | {"options": {"num_predict": 64, "stop": ["\n\n"]}}))
    assert "".join(piece["response"] for piece in pieces) == "itten(Exception):"
    assert all(piece["done"] is False for piece in pieces)
    assert (last["done"], last["done_reason"], last["response"]) == (True, "stop", "")
    whole = ngrams.post("/api/generate", CURSOR | {"stream": False}).json()
    assert whole["response"] == "itten(Exception):"
    assert whole["total_duration"] > 0
    assert datetime.fromisoformat(whole["created_at"]).tzinfo is not None
    templated = {"model": "", "prompt": f"<PRE> {PREFIX} <SUF>{SUFFIX} <MID>", "raw": True, "stream": False}
    assert ngrams.post("/api/generate", templated).json()["response"] == "itten(Exception):"
    nothing = ngrams.post("/api/generate", {"model": "", "prompt": "zzz_unheard_of", "stream": False}).json()
    assert (nothing["response"], nothing["reason"]) == ("", "nothing is known that could follow")


def test_ollama_continues_a_text_with_its_own_defaults(tiny):
    body = {"model": "tiny", "prompt": "def area(", "stream": False}
    alone = engine.collect(engine.generate(network(), BYTES, BYTES.begin("def area("), Request(20)))
    greedy = {"num_predict": 20, "temperature": 0, "repeat_penalty": 1.0}
    table = tiny.post("/api/generate", body | {"options": greedy}).json()
    assert (table["response"], table["done_reason"]) == (alone.text, alone.finish_reason)
    assert (table["prompt_eval_count"], table["eval_count"]) == (10, len(alone.choices))
    pieces = lines(tiny.post("/api/generate", body | {"options": greedy, "stream": True}))
    assert "".join(piece["response"] for piece in pieces) == alone.text
    given = {"num_predict": 30, "seed": 7}
    drawn = tiny.post("/api/generate", body | {"options": given}).json()["response"]
    defaults = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.0, "repeat_penalty": 1.1, "repeat_last_n": 64}
    assert tiny.post("/api/generate", body | {"options": given | defaults}).json()["response"] == drawn
    asked = {"prompt": "def area(", "n_predict": 30, "seed": 7} | defaults
    assert tiny.post("/completion", asked).json()["content"] == drawn


def test_what_ollamas_clients_ask_first(tiny):
    loaded = tiny.post("/api/generate", {"model": "tiny"}).json()
    assert (loaded["response"], loaded["done"], loaded["done_reason"]) == ("", True, "load")
    (model,) = tiny.get("/api/tags").json()["models"]
    assert model["name"] == model["model"] == "tiny"
    shown = tiny.post("/api/show", {"model": "tiny"}).json()
    assert shown["capabilities"] == ["completion", "insert"]
    assert shown["model_info"]["mlxgpt.context_length"] == 512
    assert tiny.get("/api/version").json().keys() == {"version"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "missing required field `model`"),
        ({"model": "", "prompt": "x", "system": "be kind"}, "system is not supported"),
        ({"model": "", "prompt": "x", "format": "json"}, "format is not supported"),
        ({"model": "", "prompt": "x", "images": ["aGk="]}, "images is not supported"),
        ({"model": "", "prompt": "x", "options": {"num_predict": -3}}, "`options.num_predict`"),
        ({"model": "", "prompt": "x" * 600}, "the model's context of 512"),
    ],
)
def test_what_ollama_is_refused(tiny, body, words):
    answer = tiny.post("/api/generate", body)
    assert answer.status == 400
    assert words in answer.error


def test_mistrals_fim(ngrams):
    table = ngrams.post("/v1/fim/completions", CURSOR | {"max_tokens": 64, "random_seed": 1, "min_tokens": 0}).json()
    (choice,) = table["choices"]
    assert (choice["message"]["role"], choice["message"]["content"]) == ("assistant", "itten(Exception):")
    assert (table["object"], choice["finish_reason"]) == ("chat.completion", "stop")
    assert table["usage"]["total_tokens"] >= table["usage"]["completion_tokens"] > 0
    *events, done = ngrams.post("/v1/fim/completions", CURSOR | {"stream": True}).events()
    assert done == "[DONE]"
    # each has it, the last too: Continue adds them up unseen
    assert "".join(event["choices"][0]["delta"]["content"] for event in events) == "itten(Exception):"
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * (len(events) - 1) + ["stop"]
    before = ngrams.post("/v1/fim/completions", {"model": "", "prompt": PREFIX}).json()
    assert before["choices"][0]["message"]["content"] == "itten(Exception):"
    assert "prompt" in ngrams.post("/v1/fim/completions", {"suffix": "x"}).error


KNOWN = "width = 1\nheight = 2\narea = width * height\nring = width * radius\nside = width + 1\n"


def test_several_suggestions_differ_and_the_first_is_the_likeliest(ngrams):
    place = {"input_prefix": KNOWN + "other = width", "input_suffix": "\n"}
    alone = ngrams.post("/infill", place).json()
    several = ngrams.post("/infill", place | {"n_cmpl": 3}).json()
    texts = [table["content"] for table in several]
    assert texts[0] == alone["content"]
    assert len(texts) == len(set(texts)) == 3
    assert {" * height", " * radius", " + 1"} >= set(texts)
    assert [table["index"] for table in several] == [0, 1, 2]
    assert all(table["stop"] and 0 < table["confidence"] <= 1 for table in several)
    streamed: dict[int, str] = {}
    for event in ngrams.post("/infill", place | {"n_cmpl": 3, "stream": True}).events():
        streamed[event["index"]] = streamed.get(event["index"], "") + event["content"]
    assert [streamed[i] for i in range(3)] == texts
    cut = ngrams.post("/infill", place | {"n_cmpl": 3, "stop": ["h", "r"]}).json()
    assert [table["content"] for table in cut] == list(dict.fromkeys(t.split("h")[0].split("r")[0] for t in texts))
    assert ngrams.post("/infill", {"input_prefix": "zzz_unheard_of", "n_cmpl": 3}).json()[0]["content"] == ""


def test_n_of_openai_is_as_many_suggestions(ngrams, tiny):
    asked = {"prompt": KNOWN + "other = width", "suffix": "\n", "n": 2}
    choices = ngrams.post("/v1/completions", asked).json()["choices"]
    assert len({choice["text"] for choice in choices}) == 2
    both = ngrams.post("/v1/completions", asked | {"prompt": [asked["prompt"], KNOWN + "x = wi"], "echo": True}).json()
    assert [choice["index"] for choice in both["choices"]] == [0, 1, 2, 3]
    assert [choice["text"].startswith(KNOWN + "other = width") for choice in both["choices"]] == [True] * 2 + [
        False
    ] * 2
    shown = 0
    for prompt in ("def f(", "value = 1\nval", "class A:\n    x"):
        modelled = tiny.post("/v1/completions", {"prompt": prompt, "suffix": "\n", "n": 3, "max_tokens": 8}).json()
        texts = [choice["text"] for choice in modelled["choices"]]
        shown += bool(texts[0])
        assert len(texts) == len(set(texts)) == (3 if texts[0] else 1)
    assert shown


def test_several_are_kept_while_they_are_typed_along():
    suggester = Suggester()
    prefix = (KNOWN + "other = width").encode()
    first = suggester.suggest(prefix, document="a", several=3)
    rest = [other.completion for other in first.others if other.completion.startswith(first.completion[:2])]
    typed = suggester.suggest(prefix + first.completion[:2].encode(), document="a", several=3)
    assert typed.completion == first.completion[2:]
    assert [other.completion for other in typed.others] == [text[2:] for text in rest]
    assert [len(suggester.suggest(prefix, several=n).others) for n in (1, 2, 3)] == [0, 1, 2]
    assert suggester.suggest(prefix, several=3, threshold=1.0).others == ()


def test_a_key_guards_them_too(serving):
    served = serving(lambda: opened(Suggester()), key="k")
    for path in ("/api/tags", "/api/version"):
        assert (served.get(path).status, served.get(path, Authorization="Bearer k").status) == (401, 200)
