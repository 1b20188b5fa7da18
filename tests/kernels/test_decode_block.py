"""decode_block: a decoding step with it equals one without, a layer in fewer launches; what is wrong is named."""

from collections import Counter

import mlx.core as mx
import numpy as np
import pytest
from metal_model.simulated import simulated_metal
from mlxgpt.kernels.decode_block import add_norm, reference_add_norm, reference_rotate, rotate
from mlxgpt.kernels.dispatch import Unsupported

from mlxgpt.generation.engine import Decoder, compiled_step
from mlxgpt.models import gpt2, mistral, qwen3

LAYERS = 3
MODELS = {
    "mistral": mistral.Model(mistral.Config(24, 64, 32, LAYERS, 4, 2, max_position_embeddings=64, sliding_window=6)),
    "qwen3": qwen3.Model(qwen3.Config(24, 64, 32, LAYERS, 4, 2, max_position_embeddings=64, sliding_window=6)),
    "gpt2": gpt2.Model(gpt2.Config(24, 64, 48, LAYERS, 4)),
    "gpt2 without biases": gpt2.Model(gpt2.Config(24, 64, 48, LAYERS, 4, bias=False)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_decoding_step_is_the_same_in_fewer_launches(name):
    model = MODELS[name]
    mx.random.seed(2)
    model.init_weights()
    model.eval()

    def logits() -> list[mx.array]:
        decoder = Decoder(model)
        rows = [decoder.prefill([1, 2, 3])]
        rows += [decoder.step(mx.array([token])) for token in (4, 5, 6, 7, 8, 9)]
        mx.eval(rows)
        return rows

    wanted = logits()
    with simulated_metal() as simulation:
        found = logits()
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), atol=1e-4)
    launched = Counter(launch.kernel.name for launch in simulation.launches)
    expected = {"decode_block_add_norm": 6 * 2 * LAYERS}
    if name in ("mistral", "qwen3"):
        expected["decode_block_rotate"] = 6 * LAYERS
    assert launched == expected


def test_rows_of_a_batch_have_positions_of_their_own():
    model = MODELS["mistral"]
    buffers = [[mx.zeros((2, 2, 8, 16)) for _ in range(2)] for _ in range(LAYERS)]
    arguments = (mx.array([3, 4]), mx.array([5, 0]), buffers)
    wanted, _ = compiled_step(model, None)(*arguments)
    with simulated_metal() as simulation:
        found, _ = compiled_step(model, None)(*arguments)
        assert len(simulation.launches) == 3 * LAYERS
    np.testing.assert_allclose(np.array(found), np.array(wanted), atol=1e-4)


def test_the_forms_agree_over_arrays_that_are_not_contiguous_and_over_none():
    draw = np.random.default_rng(0)
    wide = mx.array(draw.standard_normal((40, 6)).astype(np.float32))
    x, weight = wide.T, wide[:, 1]
    with simulated_metal():
        for bias, centered in ((None, False), (None, True), (wide[:, 2], True)):
            found = add_norm(x, x[::-1], weight, bias, 1e-5, centered, form="kernel")
            for a, b in zip(found, reference_add_norm(x, x[::-1], weight, bias, 1e-5, centered), strict=True):
                np.testing.assert_allclose(np.array(a), np.array(b), atol=1e-5)
        q = mx.array(draw.standard_normal((2, 3, 4, 8)).astype(np.float32)).swapaxes(1, 2)
        k, offset = q[:, ::2], mx.array([0, 90])
        for a, b in zip(rotate(q, k, offset, 1e4, form="kernel"), reference_rotate(q, k, offset, 1e4), strict=True):
            np.testing.assert_allclose(np.array(a), np.array(b), atol=1e-4)
        assert add_norm(x[:0], x[:0], weight, None, 1e-5, False, form="kernel")[1].shape == (0, 40)
        assert rotate(q[:0], k[:0], offset[:0], 1e4, form="kernel")[1].shape == (0, 2, 3, 8)


X, W = mx.zeros((2, 8)), mx.ones((8,))
Q, K = mx.zeros((1, 2, 1, 8)), mx.zeros((1, 1, 1, 8))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"x": mx.zeros((2, 8), mx.int32)}, TypeError, "x must be float32, float16 or bfloat16, not .*int32"),
        ({"weight": W.astype(mx.float16)}, TypeError, "weight is .*float16, x .*float32"),
        ({"change": mx.zeros((8,))}, ValueError, r"x and change must be \[..., C\] alike, not \[2, 8\] and \[8\]"),
        ({"x": mx.zeros(()), "change": mx.zeros(())}, ValueError, r"x and change must be .* not \[\] and \[\]"),
        ({"weight": mx.ones((7,))}, ValueError, r"weight must be \[8\], not \[7\]"),
        ({"bias": mx.ones((1,)), "centered": True}, ValueError, r"bias must be \[8\], not \[1\]"),
        ({"bias": W}, ValueError, "bias is LayerNorm's, and centered is false"),
        ({"form": "kernel"}, Unsupported, "the kernel needs a GPU, and MLX computes on the CPU here"),
    ],
)
def test_bad_input_to_add_norm_is_named(change, kind, message):
    arguments = {"x": X, "change": X, "weight": W, "bias": None, "eps": 1e-5, "centered": False}
    with pytest.raises(kind, match=f"^(add_norm|decode_block): {message}$"):
        add_norm(**(arguments | change))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"q": Q.astype(mx.int32)}, TypeError, "q must be float32, float16 or bfloat16, not .*int32"),
        ({"k": K.astype(mx.float16)}, TypeError, "k is .*float16, q .*float32"),
        ({"q": Q[0]}, ValueError, r"q must be \[B, H, T, D\] with D even, not \[2, 1, 8\]"),
        ({"q": Q[..., :7]}, ValueError, r"q must be \[B, H, T, D\] with D even, not \[1, 2, 1, 7\]"),
        ({"k": mx.zeros((1, 1, 2, 8))}, ValueError, r"k must be \[1, Hkv, 1, 8\], not \[1, 1, 2, 8\]"),
        ({"offset": mx.array(3)}, ValueError, r"offset must be integers \[1\], not .*int32 \[\]"),
        ({"offset": mx.array([1.0])}, ValueError, r"offset must be integers \[1\], not .*float32 \[1\]"),
        ({"base": 1.0}, ValueError, "base must be above 1 and finite, not 1.0"),
    ],
)
def test_bad_input_to_rotate_is_named(change, kind, message):
    with pytest.raises(kind, match=f"^rotate: {message}$"):
        rotate(**({"q": Q, "k": K, "offset": mx.array([0]), "base": 1e4} | change))
