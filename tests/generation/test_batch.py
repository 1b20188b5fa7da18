"""Several prompts at once: each answer is the one it would get alone."""

import dataclasses
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from mlxgpt.errors import Error
from mlxgpt.generation import batch, engine
from mlxgpt.generation.engine import Decoder, Generation, Request, collect
from mlxgpt.generation.sampling import Sampling
from mlxgpt.tokenizer import CharTokenizer

LETTERS = CharTokenizer("abcdefghijklmnopq", byte_fallback=False)
CLOSING = SimpleNamespace(
    vocab_size=17, token_bytes=LETTERS.token_bytes, eos_id=3, bos_id=None, hidden_after=LETTERS.hidden_after
)


def prompts(*lengths: int) -> list[list[int]]:
    return [np.random.default_rng(n).integers(0, 17, n).tolist() for n in lengths]


def assert_each_as_alone(model, given, request, tokenizer=LETTERS, kv_bits=None) -> list[Generation]:
    answers = batch.generate(model, tokenizer, given, request, kv_bits)
    assert len(answers) == len(given)
    for prompt, answer in zip(given, answers, strict=True):
        alone = collect(engine.generate(model, tokenizer, prompt, request, Decoder(model, kv_bits)))
        assert (answer.token_ids, answer.text, answer.finish_reason) == (
            alone.token_ids, alone.text, alone.finish_reason
        )  # fmt: skip
        for mine, its in zip(answer.choices, alone.choices, strict=True):
            assert mine.logprob == pytest.approx(its.logprob, abs=1e-3)
            assert [t for t, _ in mine.top] == [t for t, _ in its.top]
        assert answer.time_to_first_token > 0
    return answers


REQUESTS = {
    "greedy": Request(20, logprobs=2),
    "drawn": Request(20, Sampling(1.0, top_k=9), seed=7),
    "penalties": Request(12, Sampling(0.8, repetition_penalty=1.4, presence_penalty=0.1), seed=2),
    "XTC": Request(12, Sampling(1.0, xtc_probability=0.5, xtc_threshold=0.05), seed=3),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_an_answer_is_the_one_it_gets_alone(tiny, name, small_steps):
    """Rows of different lengths, of which the window's caches have come around in some and not in others."""
    answers = assert_each_as_alone(tiny, prompts(3, 31, 1, 12), REQUESTS[name])
    assert len({tuple(a.token_ids) for a in answers}) == 4


@pytest.mark.parametrize("bits", [8, 4])
def test_the_same_with_quantized_caches(tiny, bits, small_steps):
    assert_each_as_alone(tiny, prompts(2, 25, 7), Request(15), kv_bits=bits)


def test_rows_end_when_they_end(tiny, small_steps):
    """By the closing token, by a stop text, by the context, by the limit; with more prompts than rows."""
    given = prompts(5, 88, 2, 90, 11, 7, 3, 4, 6, 8)
    answers = assert_each_as_alone(tiny, given, Request(24, Sampling(1.5), stops=["ab", "q"], seed=1), CLOSING)
    assert {a.finish_reason for a in answers} == {"stop", "length"}
    assert len({len(a.choices) for a in answers}) > 3
    assert len(answers[3].choices) == 1


def test_a_finished_row_makes_no_cache_grow(tiny, small_steps, monkeypatch):
    """The longest row ends at once: the others' steps find room in what is there."""
    positions = []
    step = batch.Rows.step
    monkeypatch.setattr(batch.Rows, "step", lambda self, t: positions.append(list(self.positions)) or step(self, t))
    batch.generate(tiny, LETTERS, prompts(90, 4), Request(20))
    assert positions == [[89, 4 + i] for i in range(19)]


def test_nothing_asked_nothing_answered(tiny):
    assert batch.generate(tiny, LETTERS, [], Request(5)) == []
    (answer,) = batch.generate(tiny, LETTERS, prompts(4), Request(0))
    assert (answer.text, answer.choices, answer.finish_reason) == ("", [], "length")


def test_a_prompt_that_does_not_fit_is_refused(tiny):
    with pytest.raises(Error, match=r"^91 tokens do not fit the model's context of 90: shorten the prompt$"):
        batch.generate(tiny, LETTERS, prompts(4, 91), Request(5))
    with pytest.raises(Error, match=r"^the prompt is empty"):
        batch.generate(tiny, LETTERS, [[1], []], Request(5))


def test_a_step_of_rows_reads_the_weights_once_and_copies_no_cache(tiny):
    """The peak of a step is not two of the caches."""
    decoders = [Decoder(tiny) for _ in range(4)]
    for decoder, prompt in zip(decoders, prompts(3, 9, 5, 7), strict=True):
        decoder.prefill(prompt)
        for cache in decoder.caches:
            cache.reserve(4000)
    rows = batch.Rows(decoders)
    del decoders, decoder, cache
    mx.eval(rows.step([1, 2, 3, 4]))
    held = sum(b.nbytes for layer in rows._buffers for b in layer)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for _ in range(3):
        mx.eval(rows.step([1, 2, 3, 4]))
    assert mx.get_peak_memory() - before < held / 2


def test_the_request_is_not_changed(tiny):
    request = Request(5, stops=["x"])
    batch.generate(tiny, LETTERS, prompts(89), request)
    assert request == dataclasses.replace(request, max_tokens=5)


def test_rolling_rows_stop_growing_at_their_window_and_slack(windowed, small_steps):
    decoders = [Decoder(windowed) for _ in range(2)]
    for decoder, prompt in zip(decoders, prompts(3, 5), strict=True):
        decoder.prefill(prompt)
    rows, capacities = batch.Rows(decoders), set()
    for _ in range(30):
        rows.step([1, 2])
        capacities |= {b.shape[2] for layer in rows._buffers for b in layer}
    assert capacities == {8, 5 + 9}
