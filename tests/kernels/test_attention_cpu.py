"""Attention in C++ for a CPU: equal to the reference forward and backward, over shapes that fit no block."""

import mlx.core as mx
import numpy as np
import pytest
from mlxgpt.kernels import compiled
from mlxgpt.kernels.windowed_attention import op, reference, visible, windowed_attention

pytestmark = pytest.mark.skipif(
    compiled.load("windowed_attention") is None, reason="nothing is compiled on this machine: a GPU, macOS, no compiler"
)
# B, H, Hkv, T, S, D, window
SHAPES = [
    (1, 1, 1, 1, 1, 1, None), (2, 3, 3, 7, 7, 5, None), (1, 4, 2, 64, 64, 16, None), (2, 6, 2, 65, 65, 24, None),
    (1, 2, 1, 200, 200, 32, 50), (2, 2, 2, 129, 300, 8, None), (1, 4, 1, 130, 301, 12, 64), (1, 2, 2, 1, 90, 64, 33),
    (1, 2, 2, 70, 70, 17, 1), (3, 1, 1, 33, 257, 40, 256),
]  # fmt: skip


@pytest.fixture
def in_cpp(monkeypatch):
    """Fails where the op takes another form."""
    monkeypatch.setattr(op, "_in_blocks", lambda *_: pytest.fail("not in C++"))


def draw(B, H, Hkv, T, S, D) -> list[mx.array]:
    """q, k and v as a model has them: turned from [B, T, H, D]."""
    shapes = (B, T, H, D), (B, S, Hkv, D), (B, S, Hkv, D)
    return [mx.random.normal(s, key=mx.random.key(i)).swapaxes(1, 2) for i, s in enumerate(shapes)]


def value_and_gradients(f, arrays):
    weights = mx.random.normal(arrays[0].shape, key=mx.random.key(9))
    (out,), gradients = mx.vjp(lambda *x: f(*x), list(arrays), [weights])
    return [out, *gradients]


def assert_alike(mine, its):
    for a, b in zip(mine, its, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_reference(shape, compile, in_cpp):
    *sizes, window = shape
    T, S = sizes[3:5]
    arrays = draw(*sizes)

    def run(*x):
        return value_and_gradients(lambda *x: windowed_attention(*x, 0.3, window), x)

    expected = value_and_gradients(lambda *x: reference(*x, 0.3, visible(T, S, window)), arrays)
    assert_alike((mx.compile(run) if compile else run)(*arrays), expected)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: mx.contiguous(x),
        lambda x: mx.repeat(x, 2, axis=-1)[..., ::2],
        lambda x: mx.contiguous(x.swapaxes(-1, -2)).swapaxes(-1, -2),
        lambda x: mx.broadcast_to(x[:, :, :1], x.shape),
    ],
    ids=["heads first", "every other", "turned", "broadcast"],
)
def test_arrays_may_lie_in_memory_as_they_like(view, in_cpp):
    arrays = [view(x) for x in draw(2, 4, 2, 70, 70, 6)]
    expected = value_and_gradients(lambda *x: reference(*x, 0.3, visible(70, 70, None)), arrays)
    assert_alike(value_and_gradients(lambda *x: windowed_attention(*x, 0.3), arrays), expected)


def test_scores_far_out_and_not_a_number(in_cpp):
    q, k, v = draw(1, 1, 1, 70, 70, 8)
    out = windowed_attention(1e4 * q, 1e3 * k, v, 1.0)
    exact = reference(1e4 * q, 1e3 * k, v, 1.0, visible(70, 70, None))
    np.testing.assert_allclose(np.array(out), np.array(exact), rtol=1e-5, atol=1e-5)
    q[:, :, 5] = mx.nan
    bad = np.isnan(np.array(windowed_attention(q, k, v, 1.0)))
    assert bad[:, :, 5].all()
    assert not np.delete(bad, 5, axis=2).any()


def test_forms_for_other_types_and_when_it_is_turned_off(monkeypatch):
    monkeypatch.setattr(op, "_attend_in_cpp", lambda *_: pytest.fail("in C++"))
    q, k, v = draw(1, 2, 2, 9, 9, 4)
    windowed_attention(*(x.astype(mx.bfloat16) for x in (q, k, v)), 0.3)
    windowed_attention(q, k, v, 0.3, documents=mx.zeros((1, 9), mx.int32))
    windowed_attention(q, k, v, 0.3, form="reference")
    monkeypatch.setenv("MLXGPT_KERNELS", "reference")
    windowed_attention(q, k, v, 0.3)
