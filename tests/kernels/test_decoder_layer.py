"""A decoder's layer as one node: its plain form's numbers in every format of weights, and the cache that it writes."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlxgpt.kernels import compiled, decoder_layer
from mlxgpt.kernels.decoder_layer import Weights

from mlxgpt.generation.engine import Decoder
from mlxgpt.models import build, config_from_table

OP = "decoder_layer"  # for `form`
FORMATS = ["float32", "bfloat16", (4, 32), (4, 64), (4, 128), (8, 32), (8, 64), (8, 128)]
# (C, H, Hkv, D, inner, S, T, position, window): one token; several, grouped; a ring that comes around; odd sizes
SHAPES = [(128, 2, 1, 64, 384, 256, 1, 10, None), (128, 8, 2, 32, 256, 256, 5, 200, None),
          (128, 4, 4, 32, 128, 40, 3, 77, 30), (256, 4, 2, 64, 384, 64, 8, 20, 7)]  # fmt: skip
ODD = [(33, 3, 1, 10, 37, 16, 1, 0, None), (35, 5, 5, 2, 1, 16, 8, 3, 4)]


def case(shape, kind, own_norms: bool):
    C, H, kv, D, inner, S, T, position, window = shape
    keys = iter(mx.random.split(mx.random.key(0), 32))

    def draw(*sizes, scale=0.1):
        return mx.random.normal(sizes, key=next(keys)) * scale

    def weights(rows: int, columns: int) -> Weights:
        w = draw(rows, columns)
        if isinstance(kind, str):
            return Weights(w.astype(getattr(mx, kind)))
        return Weights(*mx.quantize(w, kind[1], kind[0]), kind[1], kind[0])

    sizes = [(H * D, C), (kv * D, C), (kv * D, C), (C, H * D), (inner, C), (inner, C), (C, inner)]
    norms = [1 + draw(C), 1 + draw(C), *([1 + draw(D), 1 + draw(D)] if own_norms else [])]
    x, k, v = draw(1, T, C, scale=1), draw(1, kv, S, D, scale=1), draw(1, kv, S, D, scale=1)
    rest = (mx.array([position]), norms, [weights(*s) for s in sizes], D, 1e4, D**-0.5, window, 1e-5)
    mx.eval(x, k, v)
    return x, k, v, rest


@pytest.mark.parametrize("own_norms", [False, True])
@pytest.mark.parametrize("kind", FORMATS, ids=str)
def test_it_is_what_plain_mlx_makes_of_it(form, kind, own_norms):
    for shape in SHAPES + (ODD if kind == "float32" else []):
        x, k, v, rest = case(shape, kind, own_norms)
        expected = decoder_layer.reference(x, k, v, *rest)
        mx.eval(expected)
        made = decoder_layer.decoder_layer(x, k, v, *rest)
        for mine, plain in zip(made, expected, strict=True):
            near = 2e-4 * float(mx.abs(plain).max())  # of what a group's largest number leaves of the others
            np.testing.assert_allclose(np.array(mine), np.array(plain), rtol=0, atol=near, err_msg=str(shape))


def test_the_new_keys_lie_in_the_caches_own_memory(form):
    if form == "reference":
        pytest.skip("plain MLX copies what somebody else holds")
    x, k, v, rest = case(SHAPES[0], "float32", False)
    made = decoder_layer.decoder_layer(x, k, v, *rest)
    mx.eval(made)
    np.testing.assert_array_equal(np.array(made[1]), np.array(k))
    with pytest.raises(RuntimeError, match="rows in memory"):
        mx.eval(decoder_layer.decoder_layer(x, k.swapaxes(2, 3).swapaxes(2, 3)[:, :, ::2], v[:, :, ::2], *rest))


@pytest.mark.parametrize("kind", ["mistral", "qwen3"])
@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize("bits", [None, 4, 8])
def test_a_model_decodes_the_same_with_it_and_without(bits, window, kind, monkeypatch):
    if compiled.load(OP) is None:
        pytest.skip("nothing is compiled on this machine: a GPU, macOS, or no compiler")
    table = {"type": kind, "vocab_size": 50, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
             "sliding_window": window}  # fmt: skip
    model = build(config_from_table(table))
    mx.random.seed(0)
    model.init_weights()
    model.eval()
    if bits:
        nn.quantize(model, 32, bits)
    ids = np.random.default_rng(0).integers(0, 50, 60).tolist()

    def logits() -> np.ndarray:
        decoder = Decoder(model)
        rows = [decoder.prefill(ids[:20])]
        rows += [decoder.step(mx.array([t])) for t in ids[20:40]]
        rows.append(decoder.extend(ids[40:45]))
        decoder.trim(42)
        rows.append(decoder.extend(ids[42:50]))
        return np.array(mx.concatenate(rows))

    at_once = logits()
    monkeypatch.setattr(compiled, "load", lambda op, load=compiled.load: None if op == OP else load(op))
    apart = logits()
    np.testing.assert_allclose(at_once, apart, rtol=0, atol=1e-3 * np.abs(apart).max())
