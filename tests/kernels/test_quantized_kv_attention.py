"""quantized_kv_attention: the caches use it on a GPU and decode the same; its forms agree; what is wrong is named."""

import mlx.core as mx
import numpy as np
import pytest
from metal_model.simulated import simulated_metal
from mlxgpt.kernels import dispatch
from mlxgpt.kernels.quantized_kv_attention import quantized_kv_attention, reference

from mlxgpt.generation.engine import Decoder
from mlxgpt.models import cache, mistral


def packed(shape: tuple[int, ...], bits: int, group: int, seed: int = 0) -> list[mx.array]:
    x = mx.array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))
    return list(mx.quantize(x, group_size=group, bits=bits))


def ring(B: int, Hkv: int, capacity: int, D: int, bits: int = 8, group: int = 32) -> list[mx.array]:
    return packed((B, Hkv, capacity, D), bits, group) + packed((B, Hkv, capacity, D), bits, group, 1)


@pytest.mark.parametrize(("bits", "group"), [(8, 32), (4, 32), (4, 64), (8, 128)])
def test_both_forms_agree_over_what_mlx_quantizes(bits, group):
    q = mx.array(np.random.default_rng(2).standard_normal((2, 4, 3, 128)).astype(np.float32))
    position = mx.array([40, 9])
    stored = ring(2, 2, 23, 128, bits, group)
    wanted = reference(q, stored, position, 0.1, bits, 11)
    assert mx.array_equal(quantized_kv_attention(q, stored, position, 0.1, bits, 11), wanted)
    with simulated_metal():
        out = quantized_kv_attention(q, stored, position, 0.1, bits, 11, form="kernel")
        apart = q.swapaxes(1, 2).reshape(2, 3, 4, 128).swapaxes(1, 2)
        loose = [mx.concatenate([x, x], axis=2)[:, :, :23] for x in stored]
        again = quantized_kv_attention(apart, loose, position, 0.1, bits, 11, form="kernel")
        nothing = quantized_kv_attention(q[:0], [x[:0] for x in stored], position[:0], 0.1, bits, form="kernel")
    np.testing.assert_allclose(np.array(out), np.array(wanted), atol=2e-5)
    np.testing.assert_allclose(np.array(again), np.array(wanted), atol=2e-5)
    assert nothing.shape == (0, 4, 3, 128)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_decoder_with_a_rolling_cache_is_the_same(bits, monkeypatch):
    """Past the point where the ring comes around: by single tokens, by several at once, and after a trim."""
    monkeypatch.setattr(cache, "SLACK", 8)
    mx.random.seed(1)
    config = mistral.Config(24, 64, 32, 2, 2, 1, max_position_embeddings=64, sliding_window=6)
    model = mistral.Model(config)
    model.init_weights()
    tokens = [int(t) for t in np.random.default_rng(0).integers(0, 24, 40)]

    def logits() -> tuple[list[mx.array], int]:
        decoder = Decoder(model, kv_bits=bits)
        rows = [decoder.prefill(tokens[:8])]
        rows += [decoder.step(mx.array([t])) for t in tokens[8:20]]
        rows += [decoder.extend(tokens[20:25]), decoder.extend(tokens[25:28])]
        decoder.trim(26)
        rows += [decoder.step(mx.array([t])) for t in tokens[26:30]]
        mx.eval(rows)
        return rows, decoder.caches[0].capacity

    wanted, capacity = logits()
    assert capacity == 14
    with simulated_metal() as simulation:
        found, _ = logits()
    launched = [x for x in simulation.launches if x.kernel.name.startswith("quantized_kv_attention")]
    assert len(launched) == 2 * (1 + 12 + 2 + 4)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), atol=1e-4)


def test_a_head_it_cannot_take_is_said_once_and_computed_all_the_same(capsys, monkeypatch):
    dispatch._say_once.cache_clear()
    q = mx.ones((1, 1, 1, 160))
    stored = ring(1, 1, 4, 160)
    with simulated_metal() as simulation:
        first = quantized_kv_attention(q, stored, mx.array([3]), 1.0, 8)
        quantized_kv_attention(q, stored, mx.array([3]), 1.0, 8)
        with pytest.raises(dispatch.Unsupported, match="q has heads of 160, and the kernel takes 32, 64, 96, 128"):
            quantized_kv_attention(q, stored, mx.array([3]), 1.0, 8, form="kernel")
    assert simulation.launches == []
    assert mx.array_equal(first, reference(q, stored, mx.array([3]), 1.0, 8))
    assert capsys.readouterr().err.count("heads of 160") == 1


Q, RING, POSITION = mx.zeros((1, 2, 1, 32)), ring(1, 1, 4, 32), mx.array([0])


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"q": Q.astype(mx.int32)}, TypeError, "q must be float32, float16 or bfloat16, not .*int32"),
        ({"q": Q[0]}, ValueError, r"q must be \[B, H, T, D\] with T from 1 to 8, not \[2, 1, 32\]"),
        ({"q": mx.zeros((1, 2, 9, 32))}, ValueError, r"q must be .* T from 1 to 8, not \[1, 2, 9, 32\]"),
        ({"q": mx.zeros((1, 2, 5, 32))}, ValueError, "q has 5 positions and ring room for 4"),
        ({"q": mx.zeros((1, 2, 1, 64))}, ValueError, r"k_words must be \[1, 1, 4, 16\] .* not \[1, 1, 4, 8\]"),
        ({"ring": RING[:3]}, ValueError, "ring must be words, scales and biases of keys and of values, .*"),
        ({"ring": ring(1, 3, 4, 32)}, ValueError, "q has 2 heads, which is no multiple of the 3 of ring"),
        ({"ring": [*RING[:3], *ring(1, 1, 5, 32)[3:]]}, ValueError, r"v_words must be .* not \[1, 1, 5, 8\]"),
        ({"ring": [RING[1], *RING[1:]]}, TypeError, "k_words must be uint32, not .*float32"),
        ({"ring": [*RING[:1], RING[0][..., :1], *RING[2:]]}, TypeError, "k_scales must be floating, not .*uint32"),
        ({"bits": 4}, ValueError, r"k_words must be \[1, 1, 4, 4\] for such q and 4 bits, not \[1, 1, 4, 8\]"),
        ({"bits": 3}, ValueError, "bits must be 4 or 8, not 3"),
        ({"window": 0}, ValueError, "window must be at least 1, not 0"),
        ({"position": mx.array([0, 1])}, ValueError, r"position must be integers \[1\], not .*int32 \[2\]"),
        ({"position": mx.array([0.0])}, ValueError, r"position must be integers \[1\], not .*float32 \[1\]"),
        ({"form": "kernel"}, dispatch.Unsupported, "the kernel needs a GPU, and MLX computes on the CPU here"),
    ],
)  # fmt: skip
def test_bad_input_is_named(change, kind, message):
    with pytest.raises(kind, match=f"^quantized_kv_attention: {message}$"):
        quantized_kv_attention(**({"q": Q, "ring": RING, "position": POSITION, "scale": 1.0, "bits": 8} | change))
