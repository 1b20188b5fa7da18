"""Prefill, decode, stop: the cache changes no token, text comes in whole characters and ends where it should."""

import dataclasses
import gc
from collections.abc import Sequence
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxgpt import models
from mlxgpt.errors import Error
from mlxgpt.generation import engine
from mlxgpt.generation.engine import Decoder, Request, TextStream, collect, generate
from mlxgpt.generation.sampling import Sampling
from mlxgpt.models import cache, gpt2, mistral
from mlxgpt.tokenizer import CharTokenizer

LETTERS = CharTokenizer("abcdefghijklmnopq", byte_fallback=False)  # 17 tokens, none of which ends a text
BYTES = CharTokenizer("")  # a token a byte, then <s> 256 and </s> 257
GPT2 = gpt2.Config(vocab_size=17, n_positions=300, n_embd=16, n_layer=2, n_head=2)
MISTRAL = mistral.Config(
    vocab_size=17, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=6, max_position_embeddings=300,
)  # fmt: skip
CONFIGS = {
    "gpt2": GPT2,
    "mistral": MISTRAL,
    "mistral, window": dataclasses.replace(MISTRAL, sliding_window=5, tie_word_embeddings=True),
}


def build(config: models.Config) -> models.Model:
    mx.random.seed(5)
    return models.build(config).apply(lambda p: p + 0.5 * mx.random.normal(p.shape)).eval()


@pytest.fixture(params=CONFIGS)
def model(request) -> models.Model:
    return build(CONFIGS[request.param])


@pytest.fixture
def small_steps(monkeypatch):
    """Caches that grow, and prompts that are cut, every few tokens."""
    monkeypatch.setattr(cache, "STEP", 4)
    monkeypatch.setattr(cache, "SLACK", 9)
    monkeypatch.setattr(engine, "PREFILL_CHUNK", 3)


def text(T: int) -> list[int]:
    return mx.random.randint(0, 17, (T,), key=mx.random.key(T)).tolist()


def assert_decodes_as_the_full_forward(decoder: Decoder, ids: Sequence[int], prompt: int) -> None:
    """Prefill `prompt` ids and step through the rest, which the decoder does not have yet."""
    start = decoder.position
    logits = [decoder.prefill(ids[start : start + prompt])]
    logits += [decoder.step(mx.array([token])) for token in ids[start + prompt :]]
    full = decoder.model(mx.array(ids)[None])[0, start + prompt - 1 :]
    np.testing.assert_allclose(np.array(mx.concatenate(logits)), np.array(full), rtol=1e-4, atol=1e-4)
    assert decoder.position == len(ids)


@pytest.mark.parametrize("prompt", [1, 3, 7, 21])
def test_every_cached_step_gives_the_logits_of_the_full_forward(model, prompt, small_steps):
    assert_decodes_as_the_full_forward(Decoder(model), text(21), prompt)


def test_the_same_where_a_cache_of_full_size_grows(model):
    decoder = Decoder(model)
    assert_decodes_as_the_full_forward(decoder, text(cache.STEP + 3), cache.STEP - 2)
    assert decoder.caches[0].capacity == 2 * cache.STEP


def test_half_precision_decodes_as_its_full_forward(model, small_steps):
    model.set_dtype(mx.bfloat16)
    decoder = Decoder(model)
    logits = mx.concatenate([decoder.prefill(text(12)[:5])] + [decoder.step(mx.array([t])) for t in text(12)[5:]])
    full = model(mx.array(text(12))[None])[0, 4:]
    assert logits.dtype == decoder.caches[0].buffers[0].dtype == mx.bfloat16
    error = mx.linalg.norm((logits - full).astype(mx.float32)) / mx.linalg.norm(full.astype(mx.float32))
    assert error.item() < 0.05


@pytest.mark.parametrize("kept", [0, 1, 6, 10])
def test_a_trimmed_decoder_goes_on_as_a_fresh_one(model, kept, small_steps):
    decoder = Decoder(model)
    decoder.prefill(text(9))
    decoder.step(mx.array([1]))
    decoder.trim(kept)
    assert decoder.position == kept
    ids = [*text(9), 1][:kept] + text(8)
    assert_decodes_as_the_full_forward(decoder, ids, 4)


def test_a_step_writes_into_the_caches_instead_of_copying_them():
    """Decoding as `generate` does it, one step ahead, needs no second buffer beside the caches'."""
    model = build(dataclasses.replace(MISTRAL, max_position_embeddings=5000, num_key_value_heads=4, head_dim=32))
    mx.eval(model.parameters())
    gc.collect()
    before = mx.get_active_memory()
    decoder = Decoder(model)
    decoder.prefill([1, 2, 3])
    for store in decoder.caches:
        store.reserve(4096)
    logits = decoder.step(mx.array([4]))
    mx.eval(logits)
    buffers = [b.nbytes for store in decoder.caches for b in store.buffers]
    assert buffers == [4 * 4352 * 32 * 4] * 4
    mx.reset_peak_memory()
    for _ in range(5):
        token = logits.argmax(-1)
        logits = decoder.step(token)
        mx.async_eval(logits)
        token.item()
    mx.eval(logits)
    assert mx.get_peak_memory() - before < sum(buffers) + buffers[0] / 2


def test_prompts_that_cannot_be():
    decoder = Decoder(build(dataclasses.replace(GPT2, n_positions=8)))
    with pytest.raises(Error, match=r"^the prompt is empty: there is nothing to continue$"):
        decoder.prefill([])
    too_long = "9 tokens do not fit the model's context of 8: shorten the prompt"
    with pytest.raises(Error, match=f"^{too_long}$"):
        decoder.prefill(text(9))
    with pytest.raises(Error, match=f"^{too_long}$"):
        list(generate(decoder.model, LETTERS, text(9), Request(1)))
    with pytest.raises(Error, match="the prompt is empty"):
        list(generate(decoder.model, LETTERS, [], Request(1)))
    decoder.prefill(text(8))
    with pytest.raises(Error, match=f"^{too_long}$"):
        decoder.step(mx.array([1]))


def greedy_by_full_forwards(model: models.Model, prompt: Sequence[int], count: int) -> tuple[list[int], list[float]]:
    ids, logprobs = list(prompt), []
    for _ in range(count):
        logits = model(mx.array(ids)[None])[0, -1]
        ids.append(logits.argmax().item())
        logprobs.append((logits[ids[-1]] - mx.logsumexp(logits)).item())
    return ids[len(prompt) :], logprobs


def test_greedy_with_the_cache_is_greedy_by_full_forwards(model, small_steps):
    pieces = list(generate(model, LETTERS, text(7), Request(40)))
    ids, logprobs = greedy_by_full_forwards(model, text(7), 40)
    assert [p.choice.token for p in pieces] == ids
    assert len(set(ids)) > 4  # not one token over and over
    np.testing.assert_allclose([p.choice.logprob for p in pieces], logprobs, rtol=1e-3, atol=1e-4)
    assert "".join(p.text for p in pieces) == LETTERS.decode(ids).decode()
    assert [p.finish_reason for p in pieces] == [None] * 39 + ["length"]


def test_a_penalty_sees_every_token_before(model, small_steps):
    """The repetition penalty needs the last token to be known: greedy decoding by full forwards and by hand."""
    ids = text(7)
    for _ in range(20):
        logits = np.array(model(mx.array(ids)[None])[0, -1])
        seen = list(set(ids[-20:]))
        logits[seen] = np.where(logits[seen] < 0, logits[seen] * 3, logits[seen] / 3)
        ids.append(int(logits.argmax()))
    out = collect(generate(model, LETTERS, text(7), Request(20, Sampling(repetition_penalty=3.0))))
    assert out.token_ids == ids[7:]
    assert out.token_ids != collect(generate(model, LETTERS, text(7), Request(20))).token_ids


def test_a_seed_gives_the_same_text_and_another_seed_another(model):
    def sample(seed: int) -> list[int]:
        return collect(generate(model, LETTERS, text(5), Request(30, Sampling(temperature=1.5), seed=seed))).token_ids

    assert sample(0) == sample(0) != sample(1) == sample(1)
    assert sample(-1) == sample(-1) != sample(0)


def test_the_context_is_filled_to_its_last_position():
    model = build(dataclasses.replace(GPT2, n_positions=10))
    ids, _ = greedy_by_full_forwards(model, text(6), 5)  # the fifth follows position 10 and needs none itself
    out = collect(generate(model, LETTERS, text(6), Request(100)))
    assert (out.token_ids, out.finish_reason) == (ids, "length")
    out = collect(generate(model, LETTERS, text(10), Request(100)))
    assert (len(out.token_ids), out.finish_reason) == (1, "length")


class Scripted:
    """A model that says one thing, whatever it is told."""

    def __init__(self, prompt: Sequence[int], says: Sequence[int], vocab_size: int = 258) -> None:
        self.config = SimpleNamespace(vocab_size=vocab_size, context=1000)
        self.layers = [None]
        after = [0] * (len(prompt) - 1) + list(says) + [0] * 8  # the token after each position
        self.table = mx.array(np.eye(vocab_size, dtype=np.float32)[after] * 50)

    def features(self, tokens: mx.array, caches) -> mx.array:
        positions = caches[0].offset + mx.arange(tokens.shape[1])
        nothing = mx.zeros((1, 1, tokens.shape[1], 2))
        caches[0].attend(nothing, nothing, nothing, 1.0)
        return positions[None, :, None]

    def logits(self, x: mx.array) -> mx.array:
        return self.table[mx.minimum(x[..., 0], len(self.table) - 1)]  # MLX reads what lies behind an array

    def __call__(self, tokens: mx.array, caches) -> mx.array:
        return self.logits(self.features(tokens, caches))


def say(data: bytes | list[int], max_tokens: int = 500, stops: Sequence[str] = (), tokenizer=BYTES):
    ids = tokenizer.encode(data) if isinstance(data, bytes) else data
    scripted = Scripted([1, 2, 3], ids, max(258, max(ids) + 1))
    return list(generate(scripted, tokenizer, [1, 2, 3], Request(max_tokens, stops=stops)))  # type: ignore[arg-type]


def joined(pieces) -> tuple[str, str | None]:
    return "".join(p.text for p in pieces), pieces[-1].finish_reason


def test_the_closing_token_ends_a_text():
    pieces = say([*b"done", BYTES.eos_id, *b"more"])
    assert joined(pieces) == ("done", "stop")
    assert [p.choice.token for p in pieces] == [*b"done", BYTES.eos_id]


def test_max_tokens_end_a_text():
    pieces = say(b"abcdef", max_tokens=4)
    assert joined(pieces) == ("abcd", "length")
    assert [p.text for p in pieces] == ["a", "b", "c", "d"]
    assert say(b"abcdef", max_tokens=0) == []


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        (["\n"], ("if x:", "stop")),
        (["lse"], ("if x:\n    pass\ne", "stop")),  # several tokens
        (["pass\nelse:"], ("if x:\n    ", "stop")),
        (["zzz", "x:", "pass"], ("if ", "stop")),  # the first that comes
        (["pass\nelif"], ("if x:\n    pass\nelse:\n", "length")),  # began, and was not it
        (["\n!"], ("if x:\n    pass\nelse:\n", "length")),  # may be beginning at the end: released
        (["", "\nelse:\n\n\n"], ("if x:\n    pass\nelse:\n", "length")),  # an empty one stops nothing
    ],
)
def test_stop_texts(stops, expected):
    code = b"if x:\n    pass\nelse:\n"
    pieces = say(code, max_tokens=len(code), stops=stops)
    assert joined(pieces) == expected
    if expected[1] == "stop":
        stop = next(s for s in stops if code.decode().startswith(expected[0] + s))
        assert len(pieces) == len((expected[0] + stop).encode())


def test_what_may_be_a_stop_is_held_back_and_released_by_the_closing_token():
    pieces = say([*b"a<e", BYTES.eos_id], stops=["<end>"])
    assert [p.text for p in pieces] == ["a", "", "", "<e"]
    assert pieces[-1].finish_reason == "stop"


def test_no_piece_ever_holds_part_of_a_character():
    words = "naïve → 変数 🙂!"
    pieces = say(words.encode())[: len(words.encode())]
    assert [p.text for p in pieces if p.text] == list(words)


def test_bytes_that_are_no_text_become_replacement_characters():
    data = b"a\xff\xe5\xa4b\xf0\x9f\x99"
    pieces = say(data, max_tokens=len(data))
    assert joined(pieces) == (data.decode(errors="replace"), "length")
    assert "".join(p.text for p in pieces[:-1]) == "a��b"


def test_tokens_beyond_the_tokenizer_s_are_no_text():
    """A model's vocabulary may be padded."""
    assert joined(say([*b"a", 300, *b"b"], max_tokens=3)) == ("ab", "length")


pieces_of_bytes = st.lists(st.binary(max_size=5) | st.text("aé🙂\n", max_size=3).map(str.encode), max_size=12)


@given(pieces_of_bytes, st.lists(st.text("aé🙂\n", min_size=1, max_size=4), max_size=3))
@settings(max_examples=300, deadline=None)
def test_a_stream_is_the_text_up_to_a_stop_however_it_is_cut(chunks, stops):
    stream, whole = TextStream(stops), b"".join(chunks).decode(errors="replace")
    out = ""
    for chunk in chunks:
        out += stream.add(chunk)
        assert whole.startswith(out)
        assert not any(stop in out for stop in stops)
    out += stream.add(b"", last=True)
    assert not any(stop in out for stop in stops)
    if stream.stopped:
        assert any(whole.startswith(out + stop) for stop in stops)
        assert stream.add(b"more", last=True) == ""
    else:
        assert out == whole


def test_collecting_a_generation():
    shown: list[str] = []
    pieces = say([*"aé".encode(), BYTES.eos_id])
    out = collect(iter(pieces), shown.append)
    assert (out.text, out.finish_reason) == ("aé", "stop")
    assert out.token_ids == [*"aé".encode(), BYTES.eos_id]
    assert shown == ["a", "", "é", ""]
    assert 0 <= out.time_to_first_token < 1
    assert out.tokens_per_second > 0
    assert collect(iter(pieces[:1])).tokens_per_second == 0


def test_a_rolling_decoder_equals_the_full_forward_at_every_position(windowed, small_steps):
    """Prompts, steps and several tokens at once, until the caches have come around twice."""
    ids = np.random.default_rng(3).integers(0, 17, 60).tolist()
    full = np.array(windowed(mx.array(ids)[None])[0])
    for prompt in (4, 5, 6, 14, 30):  # window - 1, window, window + 1; and beyond
        decoder = Decoder(windowed)
        np.testing.assert_allclose(np.array(decoder.prefill(ids[:prompt])[0]), full[prompt - 1], rtol=1e-3, atol=1e-3)
        for turn in range(100):
            at = decoder.position
            if at == len(ids):
                break
            if turn % 3 < 2:
                logits = decoder.step(mx.array([ids[at]]))
            else:
                logits = decoder.extend(ids[at : at + 4])
            after = full[at : decoder.position]
            np.testing.assert_allclose(np.array(logits), after, rtol=1e-3, atol=1e-3)
        assert decoder.caches[0].capacity == 5 + cache.SLACK


def test_a_rolling_decoder_rewinds_or_starts_anew(windowed, small_steps):
    ids = np.random.default_rng(3).integers(0, 17, 40).tolist()
    decoder = Decoder(windowed)
    decoder.prefill(ids)
    assert decoder.rewind(33) == decoder.position == 33
    assert decoder.oldest() == 31
    assert_decodes_as_the_full_forward(decoder, [*ids[:33], 1, 2, 3, 4, 5], 2)
    assert decoder.rewind(10) == decoder.position == 0
    assert_decodes_as_the_full_forward(decoder, ids[:20], 5)


def test_a_quantized_decoder_steps_as_it_extends(tiny, small_steps):
    ids = np.random.default_rng(3).integers(0, 17, 40).tolist()
    for bits, near in ((8, 0.1), (4, 1.5)):
        stepping, extending = Decoder(tiny, bits), Decoder(tiny, bits)
        steps = [stepping.prefill(ids[:20])] + [stepping.step(mx.array([t])) for t in ids[20:]]
        extending.prefill(ids[:20])
        at_once = mx.concatenate([steps[0], *(extending.extend(ids[i : i + 4]) for i in range(20, 40, 4))])
        # what differs in the last digit may be rounded to the next of 2^bits numbers
        np.testing.assert_allclose(np.array(mx.concatenate(steps)), np.array(at_once), rtol=1e-3, atol=1e-2)
        exact = tiny(mx.array(ids)[None])[0, 19:]
        error = mx.abs(at_once - exact).mean().item() / exact.std().item()
        assert 0 < error < near / 5


class StopNow(Exception):
    pass


def test_prefilling_tells_how_far_it_is_and_can_be_stopped(model, small_steps):
    ids, heard = text(20), []
    Decoder(model).prefill(ids, heard.append)
    assert heard == [3, 6, 9, 12, 15, 18, 20]
    decoder = Decoder(model)

    def stop(done: int) -> None:
        if done == 9:
            raise StopNow

    with pytest.raises(StopNow):
        decoder.prefill(ids, stop)
    assert decoder.position == 9
    decoder.trim(7)
    assert_decodes_as_the_full_forward(decoder, [*ids[:7], *ids[2:12]], 4)


def test_the_likeliest_tokens_come_sorted_with_their_log_probabilities(model, small_steps):
    for sampling in (Sampling(), Sampling(1.5, top_k=4)):
        ids = text(7)
        for piece in generate(model, LETTERS, ids, Request(12, sampling, logprobs=5)):
            logits = np.array(model(mx.array(ids)[None])[0, -1], np.float64)
            logprobs = logits - np.log(np.exp(logits).sum())
            assert [t for t, _ in piece.choice.top] == np.argsort(-logprobs)[:5].tolist()
            np.testing.assert_allclose([p for _, p in piece.choice.top], -np.sort(-logprobs)[:5], rtol=1e-3, atol=1e-3)
            assert piece.choice.logprob == pytest.approx(logprobs[piece.choice.token], rel=1e-3, abs=1e-3)
            ids = [*ids, piece.choice.token]
    assert len(next(generate(model, LETTERS, ids, Request(1, logprobs=100))).choice.top) == 17
    assert next(generate(model, LETTERS, ids, Request(1))).choice.top == []


def test_a_decoder_that_holds_a_beginning_computes_the_rest(model, small_steps):
    decoder = Decoder(model)
    decoder.prefill(text(9)[:6])
    mine = collect(generate(model, LETTERS, text(9), Request(10), decoder))
    assert mine.token_ids == collect(generate(model, LETTERS, text(9), Request(10))).token_ids
