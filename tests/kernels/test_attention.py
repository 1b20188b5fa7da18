"""Causal attention over the shapes that models and caches give it, its window, and its dropout."""

import mlx.core as mx
import numpy as np
import pytest
from mlxgpt.kernels.attention import causal_attention, masked_attention, reference, visible
from mlxgpt.kernels.windowed_attention import op

# B, H, Hkv, T, S, D, window. From 128 queries on a CPU works in four blocks; 129 and 199 do not divide by four.
SHAPES = [
    (1, 1, 1, 1, 1, 2, None),
    (2, 4, 2, 1, 9, 6, None),
    (2, 4, 2, 1, 9, 6, 3),
    (1, 6, 2, 5, 5, 4, 1),
    (1, 2, 2, 7, 7, 4, 7),
    (1, 2, 2, 7, 7, 4, 100),
    (2, 3, 1, 6, 31, 4, 5),
    (1, 2, 1, 128, 128, 8, None),
    (1, 2, 2, 129, 129, 8, 33),
    (1, 4, 2, 129, 129, 8, 1),
    (1, 2, 2, 129, 129, 8, 128),
    (1, 4, 2, 199, 260, 8, None),
    (1, 2, 1, 199, 260, 8, 70),
    (1, 2, 1, 131, 1000, 8, 16),
]


def qkv(B, H, Hkv, T, S, D, *_) -> list[mx.array]:
    shapes = (B, H, T, D), (B, Hkv, S, D), (B, Hkv, S, D)
    return [mx.random.normal(shape, key=mx.random.key(i)) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("form", [mx.cpu, mx.gpu], ids=["cpu", "gpu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradient_are_the_reference_s(shape, form, monkeypatch):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(form))
    monkeypatch.setenv("MLXGPT_KERNELS", "reference")
    *_, T, S, D, window = shape
    inputs, weights = qkv(*shape), mx.random.normal((*shape[:2], T, D), key=mx.random.key(9))

    def run(attend):
        return mx.vjp(lambda q, k, v: attend(q, k, v), inputs, [weights])

    (out,), gradients = run(lambda q, k, v: causal_attention(q, k, v, D**-0.5, window))
    (expected,), alike = run(lambda q, k, v: reference(q, k, v, D**-0.5, visible(T, S, window)))
    for mine, its in zip([out, *gradients], [expected, *alike], strict=True):
        np.testing.assert_allclose(np.array(mine), np.array(its), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(("T", "S", "window"), [(1, 1, None), (4, 4, None), (3, 7, 2), (2, 5, 1), (4, 4, 9)])
def test_visible(T, S, window):
    expected = [
        [key <= (at := S - T + query) and (window is None or at - key < window) for key in range(S)]
        for query in range(T)
    ]
    assert visible(T, S, window).tolist() == expected


def test_blocks_see_no_key_they_need_not(monkeypatch):
    """On a CPU the blocks of queries together compute the scores that can be seen, not all T × T of them."""
    scores = []
    attend = op._attend
    monkeypatch.setenv("MLXGPT_KERNELS", "reference")
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    monkeypatch.setattr(
        op, "_attend", lambda q, k, *rest: scores.append(q.shape[-2] * k.shape[-2]) or attend(q, k, *rest)
    )
    causal_attention(*qkv(1, 1, 1, 400, 400, 2), 1.0)
    assert sum(scores) == 400 * 400 * 5 / 8
    scores.clear()
    causal_attention(*qkv(1, 1, 1, 400, 400, 2), 1.0, window=10)
    assert sum(scores) == 100 * 100 + 3 * 100 * 109


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
def test_the_softmax_of_half_precision_is_one_of_float32(dtype, monkeypatch):
    """Weights rounded once sum to 1 to the last bit; of a sum and a quotient that are rounded too, a third do not."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    q, k, _ = (x.astype(dtype) for x in qkv(1, 2, 2, 200, 200, 16))
    mask = visible(200, 200, None)
    for out in (causal_attention(q, k, mx.ones_like(k), 0.25), masked_attention(q, k, mx.ones_like(k), 0.25, mask)):
        assert (out == 1).astype(mx.float32).mean().item() > 0.98


@pytest.mark.parametrize("size", [1e2, 1e5])
def test_extreme_scores_stay_finite(size):
    """Scores of ± size²: the softmax becomes a choice of the largest, and gradients vanish rather than overflow."""
    q, k, v = (x * size for x in qkv(1, 2, 2, 130, 130, 4))
    k[:, :, 0] = -q[:, :, 0]  # the first query's one key is as unlike it as can be
    (out,), gradients = mx.vjp(lambda *x: causal_attention(*x, 1.0), [q, k, v], [mx.ones_like(q)])
    assert all(mx.isfinite(x).all().item() for x in (out, *gradients))
    best = mx.where(visible(130, 130, None), q @ k.swapaxes(-1, -2), -mx.inf).argmax(-1)
    chosen = mx.abs(out - mx.take_along_axis(v, best[..., None], axis=2)).max(-1) < 1e-3 * size
    assert chosen[:, :, 0].all().item()
    assert chosen.astype(mx.float32).mean().item() > 0.99


def test_dropout_drops_its_share_and_scales_the_rest():
    mx.random.seed(0)
    q, k, _ = qkv(4, 8, 8, 64, 64, 4)
    ones = mx.ones_like(k)
    alone = causal_attention(q, k, ones, 0.5, window=1, dropout=0.3)[..., 0]  # one weight of 1 each
    kept = alone > 0
    np.testing.assert_allclose(np.array(alone), np.array(kept) / 0.7, rtol=1e-6)
    share = 1 - kept.astype(mx.float32).mean().item()
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / kept.size) ** 0.5
    sums = causal_attention(q, k, ones, 0.5, dropout=0.3)  # the dropped weights' mean is 1, and each draw differs
    assert abs(sums.mean().item() - 1) < 0.02
    assert not mx.array_equal(sums, causal_attention(q, k, ones, 0.5, dropout=0.3))


def test_dropout_has_the_gradient_of_the_weights_it_kept():
    q, k, v = qkv(1, 1, 1, 5, 5, 5)

    def attend(v):
        mx.random.seed(5)
        return causal_attention(q, k, v, 0.5, dropout=0.5)

    kept = attend(mx.eye(5)[None, None])[0, 0]  # the weights themselves, [T, S]
    gradient = mx.grad(lambda v: attend(v)[..., 0].sum())(v)[0, 0, :, 0]
    assert 0 < (kept == 0).sum().item() - 10 < 15  # beside the 10 that causality hides
    np.testing.assert_allclose(np.array(gradient), np.array(kept.sum(0)), rtol=1e-5)


@pytest.mark.parametrize(
    ("B", "H", "Hkv", "T", "S", "D"), [(1, 1, 1, 1, 1, 2), (2, 4, 2, 1, 9, 6), (2, 6, 2, 5, 40, 33)]
)
@pytest.mark.parametrize("rows", ["each", "all"])
def test_a_few_queries_under_a_mask_are_the_reference_s(B, H, Hkv, T, S, D, rows, monkeypatch):
    q, k, v = qkv(B, H, Hkv, T, S, D)
    mask = mx.random.bernoulli(0.6, (B, 1, T, S) if rows == "each" else (T, S), key=mx.random.key(5))
    mask = mask | (mx.arange(S) == S - 1)
    k = mx.where(mask.any(axis=-2, keepdims=True).any(axis=0).reshape(1, 1, S, 1), k, mx.nan)  # what nobody sees
    v = mx.where(mask.any(axis=-2, keepdims=True).any(axis=0).reshape(1, 1, S, 1), v, mx.nan)
    expected = reference(q, mx.nan_to_num(k), mx.nan_to_num(v), D**-0.5, mask)
    got = masked_attention(q, k, v, D**-0.5, mask)
    np.testing.assert_allclose(np.array(got), np.array(expected), rtol=1e-5, atol=2e-6)
