"""/v1 as the `openai` package uses it, and as minuet and Zed do."""

import openai
import pytest
from live import Serving
from paced import BYTES, network

from mlxgpt.completion.jobs import Ask
from mlxgpt.generation import engine
from mlxgpt.generation.engine import Decoder, Request
from mlxgpt.server.exchange import Call

PREFIX, SUFFIX = "import math\n\n\ndef area(circle):\n    raise NotWr", "\n\n\nprint(area(3))\n"


def client(served: Serving) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=60)


def test_models(tiny):
    (model,) = client(tiny).models.list().data
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "mlxgpt")
    assert client(tiny).models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError, match="no such model"):
        client(tiny).models.retrieve("org/other")


def test_a_completion_is_what_the_model_says(tiny):
    alone = engine.collect(engine.generate(network(), BYTES, BYTES.begin("def area("), Request(20)))
    done = client(tiny).completions.create(model="tiny", prompt="def area(", max_tokens=20, temperature=0, logprobs=2)
    (choice,) = done.choices
    assert (choice.text, choice.finish_reason) == (alone.text, alone.finish_reason)
    assert choice.logprobs.token_logprobs == pytest.approx([c.logprob for c in alone.choices], abs=1e-3)
    assert len(choice.logprobs.tokens) == len(choice.logprobs.text_offset) == len(alone.choices)
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (10, len(alone.choices))
    assert done.id.startswith("cmpl-")


@pytest.mark.parametrize("options", [{}, {"n": 2}, {"echo": True}, {"stop": "e"}, {"logprobs": 1}], ids=str)
def test_a_streamed_completion_is_the_same(tiny, options):
    asked = {"model": "", "prompt": "def area(", "max_tokens": 25, "seed": 7} | options
    whole = client(tiny).completions.create(**asked)
    texts, ends = [""] * len(whole.choices), {}
    for chunk in client(tiny).completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            ends[choice.index] = choice.finish_reason
        usage = chunk.usage
    assert texts == [choice.text for choice in whole.choices]
    assert ends == {choice.index: choice.finish_reason for choice in whole.choices}
    assert (usage.completion_tokens, usage.prompt_tokens) == (
        whole.usage.completion_tokens, whole.usage.prompt_tokens
    )  # fmt: skip
    assert len(set(texts)) == len(texts)  # another draw each


def test_several_prompts(tiny):
    done = client(tiny).completions.create(model="", prompt=["a", "b"], n=2, max_tokens=3, temperature=0)
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    alone = [client(tiny).completions.create(model="", prompt=p, max_tokens=3, temperature=0) for p in ("a", "b")]
    texts = [one.choices[0].text for one in alone]
    assert [choice.text for choice in done.choices] == [texts[0], texts[0], texts[1], texts[1]]


def test_minuet_is_answered(ngrams):
    """A prompt with a suffix, streamed as it asks for it."""
    asked = {"model": "x", "prompt": PREFIX, "suffix": SUFFIX, "max_tokens": 56, "top_p": 0.9, "stop": ["\n\n"]}
    done = client(ngrams).completions.create(**asked)
    assert (done.choices[0].text, done.choices[0].finish_reason) == ("itten(Exception):", "stop")
    chunks = list(client(ngrams).completions.create(**asked, stream=True))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "itten(Exception):"
    raw = ngrams.post("/v1/completions", asked | {"stream": True})
    assert raw.data.endswith(b"data: [DONE]\n\n")
    assert raw.events()[-1] == "[DONE]"


def test_zed_is_answered(ngrams):
    """A templated prompt, and just the fields that it reads."""
    prompt = f"<|fim_prefix|>{PREFIX}<|fim_suffix|>{SUFFIX}<|fim_middle|>"
    body = {"model": "qwen", "prompt": prompt, "max_tokens": 256, "temperature": 0.2, "stop": ["<|endoftext|>"]}
    table = ngrams.post("/v1/completions", body, Authorization="Bearer ").json()
    assert table.keys() >= {"id", "object", "created", "model", "choices", "usage"}
    assert (table["object"], table["choices"][0]["text"]) == ("text_completion", "itten(Exception):")
    assert table["choices"][0]["finish_reason"] == "stop"
    nothing = ngrams.post("/v1/completions", {"prompt": "zzz_unheard_of", "suffix": ""}).json()
    assert nothing["choices"][0]["text"] == ""
    assert nothing["mlxgpt"][0]["reason"] == "nothing is known that could follow"


def test_without_a_model_a_prompt_is_completed_by_the_ngrams(ngrams):
    done = client(ngrams).completions.create(model="", prompt=PREFIX, max_tokens=64)
    assert done.choices[0].text == "itten(Exception):"


def test_chat(tiny):
    messages = [{"role": "system", "content": "short"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    rendered = "system: short\nuser: hi\nassistant:"
    asked = {"model": "tiny", "messages": messages, "max_tokens": 20, "temperature": 0}
    done = client(tiny).chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    alone = engine.collect(engine.generate(network(), BYTES, BYTES.encode(rendered), Request(20), Decoder(network())))
    choice = done.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", alone.text)
    assert (choice.finish_reason, done.usage.prompt_tokens) == (alone.finish_reason, len(rendered))
    assert [len(row.top_logprobs) for row in choice.logprobs.content] == [2] * len(alone.choices)
    parts = list(client(tiny).chat.completions.create(**asked, stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == alone.text
    assert parts[0].choices[0].delta.role == "assistant"
    assert parts[-1].choices[0].finish_reason == alone.finish_reason
    drawn = {"temperature": 1.0, "seed": 3, "n": 2}
    several = client(tiny).chat.completions.create(**asked | drawn)
    assert several.choices[0].message.content != several.choices[1].message.content
    again = client(tiny).chat.completions.create(**asked | drawn)
    assert [c.message for c in again.choices] == [c.message for c in several.choices]


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        (["  a", " b"], ["a", " b", ""]),
        ([" ", " ", "", "a"], ["", "", "", "a", ""]),
        ([" a"], [" a", ""]),
        (["a", "  "], ["a", "  ", ""]),
        ([" "], ["", " "]),
        ([], [""]),
    ],
)
def test_the_templates_own_white_space_is_taken_off(pieces, shown):
    """In how many pieces soever a model that was so trained says it first."""
    call = Call(Ask(b""), lead="  ")
    assert [call.led(piece) for piece in pieces] + [call.led("", last=True)] == shown


def test_a_model_that_cannot_chat_says_so(ngrams):
    with pytest.raises(openai.BadRequestError, match="tiny cannot chat"):
        client(ngrams).chat.completions.create(model="", messages=[{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("completions", {}, "missing required field `prompt`"),
        ("completions", {"prompt": 3}, "`prompt`"),
        ("completions", {"prompt": [1, 2]}, "`prompt[0]`"),
        ("completions", {"prompt": []}, "`prompt`"),
        ("completions", {"prompt": "x", "max_tokens": -1}, "`max_tokens`"),
        ("completions", {"prompt": "x", "temperature": "hot"}, "`temperature`"),
        ("completions", {"prompt": "x", "n": 9}, "`n`"),
        ("completions", {"prompt": ["x"] * 16, "n": 8}, "16 answers, not 128"),
        ("completions", {"prompt": "x", "logit_bias": {"1": 5}}, "logit_bias is not supported"),
        ("completions", {"prompt": "x", "best_of": 3}, "best_of is not supported"),
        ("completions", {"prompt": "x" * 600}, "the model's context of 512"),
        ("completions", {"prompt": "x" * 100_000}, "the model's context of 512"),
        ("completions", {"prompt": ""}, None),
        ("chat/completions", {"messages": []}, "`messages`"),
        ("chat/completions", {"messages": [{"role": "user"}], "tools": [{}]}, "tools is not supported"),
        ("chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, "role is system, user or assistant"),
        (
            "chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "must be of the type text",
        ),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_object"}},
            "response_format is not supported",
        ),
        ("chat/completions", {"messages": [{"role": "user", "content": "x" * 505}]}, "the model's context of 512"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_is_refused_with_its_reason(tiny, path, body, words, stream):
    answer = tiny.post(f"/v1/{path}", body | {"stream": stream})
    if words is None:
        assert answer.status == 200
    else:
        assert answer.status == 400
        assert words in answer.error
