"""A prompt's caches on disk: reused where they fit, refused where they do not."""

import dataclasses
import json
import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlxgpt import models
from mlxgpt.errors import Error
from mlxgpt.generation import prompt_cache
from mlxgpt.generation.engine import Decoder, Request, collect, generate
from mlxgpt.models import cache
from mlxgpt.tokenizer import CharTokenizer

LETTERS = CharTokenizer("abcdefghijklmnopq", byte_fallback=False)
PROMPT = np.random.default_rng(1).integers(0, 17, 40).tolist()


def saved(path: Path, model, prompt=PROMPT, kv_bits=None) -> Path:
    decoder = Decoder(model, kv_bits)
    decoder.prefill(prompt)
    prompt_cache.save(path, decoder, prompt)
    return path


@pytest.fixture(params=["cache.safetensors", "a cache", "x.bin"])
def path(request, tmp_path) -> Path:
    """Any name will do."""
    return tmp_path / request.param


@pytest.mark.parametrize("kv_bits", [None, 8])
def test_a_reused_prefix_gives_the_tokens_of_a_fresh_run(tiny, kv_bits, tmp_path):
    path = saved(tmp_path / "cache", tiny, kv_bits=kv_bits)
    different = [*PROMPT[:25], (PROMPT[25] + 1) % 17, 4, 5]
    cases = [
        ([*PROMPT, 1, 2, 3], 40), (PROMPT, 39), (PROMPT[:20], 19), (different, 25), ([(PROMPT[0] + 1) % 17], 0),
        (PROMPT[:1], 0),
    ]  # fmt: skip
    for prompt, shared in cases:
        decoder = Decoder(tiny, kv_bits)
        assert prompt_cache.load(path, decoder, prompt) == decoder.position == shared
        fresh = collect(generate(tiny, LETTERS, prompt, Request(12), Decoder(tiny, kv_bits)))
        assert collect(generate(tiny, LETTERS, prompt, Request(12), decoder)).token_ids == fresh.token_ids


def test_any_file_name_will_do_and_a_missing_file_shares_nothing(tiny, path):
    decoder = Decoder(tiny)
    assert prompt_cache.load(path, decoder, PROMPT) == 0
    saved(path, tiny)
    assert prompt_cache.load(path, decoder, PROMPT) == 39
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert prompt_cache.load(path, Decoder(tiny), []) == 0


def test_a_conversation_is_saved_as_far_as_the_caches_hold_it(tiny, tmp_path):
    """Decoding may have gone a step beyond the answer, or not reached its last token."""
    for count, stop in ((12, ()), (12, (5,))):
        decoder = Decoder(tiny)
        pieces = generate(tiny, LETTERS, PROMPT, Request(count), decoder)
        said = [next(pieces).choice.token for _ in range(stop[0] if stop else count)]
        prompt_cache.save(tmp_path / "cache", decoder, PROMPT + said)
        again = Decoder(tiny)
        held = prompt_cache.load(tmp_path / "cache", again, [*PROMPT, *said, 1, 2])
        assert held == (40 + 5 if stop else 40 + 11)
        logits = again.prefill([*PROMPT, *said, 1, 2][held:])
        full = tiny(mx.array([[*PROMPT, *said, 1, 2]]))[:, -1]
        np.testing.assert_allclose(np.array(logits), np.array(full), rtol=1e-3, atol=1e-3)


def test_a_rolling_cache_that_cannot_go_back_starts_anew(windowed, small_steps, tmp_path):
    path = saved(tmp_path / "cache", windowed)
    for prompt, shared in ((PROMPT[:33], 32), (PROMPT[:32], 31), (PROMPT[:31], 0), ([*PROMPT, 2], 40)):
        decoder = Decoder(windowed)
        assert prompt_cache.load(path, decoder, prompt) == shared
        logits = decoder.prefill(prompt[shared:])
        full = windowed(mx.array(prompt)[None])[:, -1]
        np.testing.assert_allclose(np.array(logits), np.array(full), rtol=1e-3, atol=1e-3)


def test_what_a_trim_had_overwritten_is_not_believed_after_loading(windowed, small_steps, tmp_path):
    """The ring has come around, and the trim went back to before it had: the file must remember that."""
    decoder = Decoder(windowed)
    decoder.prefill(PROMPT[: 5 + cache.SLACK + 4])
    prompt_cache.save(tmp_path / "cache", decoder, PROMPT[: 5 + cache.SLACK - 1])
    again = Decoder(windowed)
    assert prompt_cache.load(tmp_path / "cache", again, PROMPT[:4]) == 0
    assert again.caches[0].capacity == 0


def changed(model: models.Model) -> models.Model:
    other = models.build(model.config)
    other.update(model.parameters())
    parts = dict(other.named_modules())
    name = next(n for n in parts if n.endswith("layers.1") or n.endswith("h.1"))
    norm = next(m for m in parts[name].children().values() if "weight" in m)
    norm.weight = norm.weight + 0.01
    return other.eval()


def test_a_cache_of_something_else_is_refused_and_left_alone(tiny, tmp_path):
    path = saved(tmp_path / "cache", tiny)
    before = path.read_bytes()
    context = "n_positions" if isinstance(tiny.config, models.gpt2.Config) else "max_position_embeddings"
    longer = models.build(dataclasses.replace(tiny.config, **{context: 91}))
    half = models.build(tiny.config)
    half.update(tiny.parameters())
    half.set_dtype(mx.bfloat16)
    for decoder in (Decoder(changed(tiny)), Decoder(tiny, 8), Decoder(longer), Decoder(half)):
        with pytest.raises(Error, match="is the prompt cache of another model or of other --kv-bits: name another"):
            prompt_cache.load(path, decoder, PROMPT)
        assert decoder.position == 0
    assert path.read_bytes() == before


def test_what_is_no_cache_or_a_broken_one_is_refused_and_left_alone(tiny, tmp_path):
    whole = saved(tmp_path / "cache", tiny).read_bytes()
    mx.save_safetensors(str(tmp_path / "weights.safetensors"), {"a": mx.zeros(3)})
    arrays, about = mx.load(str(tmp_path / "cache"), format="safetensors", return_metadata=True)

    def with_(arrays=arrays, **entries: str) -> bytes:
        mx.save_safetensors(str(tmp_path / "made.safetensors"), arrays, about | entries)
        return (tmp_path / "made.safetensors").read_bytes()

    fewer = {name: a for name, a in arrays.items() if name != "layer.1.1"}
    broken = {
        "another format": (tmp_path / "weights.safetensors").read_bytes(), "empty": b"", "text": b"once upon a time",
        "short": whole[:-1], "half": whole[: len(whole) // 2], "header": whole[:50],
        "long": whole + b"\0", "tokens": with_(tokens="[1, 2"), "no list": with_(tokens="7"),
        "names": with_(tokens='["a"]'), "deep": with_(tokens="[" * 100_000),
        "flat": with_(arrays | {"layer.0.0": mx.zeros(3)}),
        "type": with_({name: a.astype(mx.float16) for name, a in arrays.items()}),
        "layer": with_(fewer), "short layer": with_(arrays | {"layer.1.1": arrays["layer.1.1"][:, :, :7]}),
        "rows": with_(arrays | {"layer.0.0": mx.concatenate([arrays["layer.0.0"]] * 2)}),
        "far": with_(tokens=json.dumps([1] * 5000)), "written": with_(written="much"),
    }  # fmt: skip
    for name, content in broken.items():
        path = tmp_path / "broken"
        path.write_bytes(content)
        decoder = Decoder(tiny)
        with pytest.raises(Error, match=f"^{re.escape(str(path))}[^\n]+$"):
            print(name, prompt_cache.load(path, decoder, PROMPT))
        assert decoder.position == 0
        assert path.read_bytes() == content
    with pytest.raises(Error, match="cannot be read"):
        prompt_cache.load(tmp_path, Decoder(tiny), PROMPT)


def test_a_cache_is_written_whole_or_not_at_all(tiny, tmp_path, monkeypatch):
    path = saved(tmp_path / "cache", tiny, PROMPT[:5])
    before = path.read_bytes()

    def fail(file, arrays, about):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mx, "save_safetensors", fail)
    with pytest.raises(Error, match=r"could not be written .*; what was there before is whole"):
        saved(path, tiny)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(Error, match="could not be written"):
        saved(tmp_path / "nowhere" / "cache", tiny)
