"""Products with bfloat16 weights: right in every shape, type and instruction set, and their gradients."""

import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlxgpt.kernels import compiled
from mlxgpt.kernels.bf16_matmul import bf16_matmul

from mlxgpt import backend, native
from mlxgpt.models.layers import Embedding, Linear, round_products

# (M, N, K): one of each, odd rows, less and more than a vector, than a tile's rows and depth, than a chunk's rows.
SHAPES = [(1, 1, 2), (1, 1, 1), (1, 7, 30), (2, 33, 32), (3, 16, 34), (5, 40, 130), (8, 9, 64), (9, 31, 66), (9, 5, 33),
          (17, 70, 300), (300, 65, 258), (40, 33, 1000)]  # fmt: skip
OP = "bf16_matmul"  # for `form`


def draw(*shape: int, seed: int = 0, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def exact(*arrays: mx.array) -> list[np.ndarray]:
    return [np.array(a.astype(mx.float32), np.float64) for a in arrays]


def error(y: mx.array, x: mx.array, w: mx.array) -> float:
    """The largest error of y, over what |x| · |w|ᵀ is at most, in float64."""
    got, a, b = exact(y, x, w)
    assert got.shape == (a @ b.T).shape
    return float((np.abs(got - a @ b.T) / (np.abs(a) @ np.abs(b).T).max()).max())


@pytest.mark.parametrize(("dtype", "bound"), [(mx.float32, 4e-6), (mx.bfloat16, 4e-3)], ids=str)
def test_it_is_the_product(form, dtype, bound):
    for M, N, K in SHAPES:
        x, w = draw(M, K, dtype=dtype), draw(N, K, seed=1, dtype=mx.bfloat16)
        y = bf16_matmul(x, w)
        assert (y.shape, y.dtype) == ((M, N), dtype)
        assert error(y, x, w) < bound, (M, N, K)


@pytest.mark.parametrize("M", [3, 20])
def test_arrays_that_are_not_rows_in_memory(form, M):
    w = draw(64, 40, seed=1, dtype=mx.bfloat16).T
    assert error(bf16_matmul(draw(64, M).T, w), draw(64, M).T, w) < 4e-6
    x = draw(2, M, 256)[:, ::2, 1::4]
    y = bf16_matmul(x, w)
    assert y.shape == (2, -(-M // 2), 40)
    assert error(y.reshape(-1, 40), x.reshape(-1, 64), w) < 4e-6
    assert bf16_matmul(mx.zeros((0, 64)), w).shape == (0, 40)


def test_what_is_not_finite_is_not_hidden(form):
    w = draw(24, 96, seed=1, dtype=mx.bfloat16)
    for bad in (np.inf, np.nan, -np.inf):
        x = mx.where((mx.arange(96) == 7) & (mx.arange(3)[:, None] != 1), bad, draw(3, 96))
        y = np.array(bf16_matmul(x, w))
        assert not np.isfinite(y[[0, 2]]).any()
        assert np.isfinite(y[1]).all()


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_gradients_compile_and_vmap(form, dtype):
    x, w = draw(2, 9, 64, dtype=dtype), draw(34, 64, seed=1, dtype=mx.bfloat16)
    direction = draw(2, 9, 34, seed=2)
    d_x, d_w = mx.grad(lambda x, w: (bf16_matmul(x, w) * direction).sum(), (0, 1))(x, w)
    assert (d_x.dtype, d_w.dtype) == (dtype, mx.bfloat16)
    a, b, c = exact(x, w, direction)
    for got, expected in ((d_x, c @ b), (d_w, c.reshape(-1, 34).T @ a.reshape(-1, 64))):
        coarse = got.dtype == mx.bfloat16 or dtype == mx.bfloat16
        np.testing.assert_allclose(
            exact(got)[0], expected, rtol=0, atol=(1e-2 if coarse else 1e-5) * np.abs(expected).max()
        )
    tangents = [draw(2, 9, 64, seed=3, dtype=dtype), draw(34, 64, seed=4, dtype=mx.bfloat16)]
    [tangent] = mx.jvp(bf16_matmul, [x, w], tangents)[1]
    expected = exact(tangents[0])[0] @ b.T + a @ exact(tangents[1])[0].T
    np.testing.assert_allclose(exact(tangent)[0], expected, rtol=0, atol=2e-2 * np.abs(expected).max())
    y = bf16_matmul(x, w)
    assert mx.array_equal(mx.compile(lambda x: bf16_matmul(x * 2, w))(x / 2), y)
    over = mx.vmap(lambda x: bf16_matmul(x, w), in_axes=1, out_axes=1)(x)
    np.testing.assert_allclose(exact(over)[0], exact(y)[0], rtol=0, atol=1e-4)


def test_layers_keep_their_bfloat16_weights(form):
    x = draw(3, 64)
    for bias in (False, True):
        layer = Linear(64, 20, bias=bias)
        layer.set_dtype(mx.bfloat16)
        expected = x @ layer.weight.astype(mx.float32).T + (layer.bias if bias else 0)
        assert layer(x).dtype == mx.float32
        np.testing.assert_allclose(np.array(layer(x)), np.array(expected), rtol=0, atol=1e-5)
    head = Embedding(20, 64)
    head.set_dtype(mx.bfloat16)
    np.testing.assert_allclose(
        np.array(head.as_linear(x)), np.array(x @ head.weight.astype(mx.float32).T), rtol=0, atol=1e-5
    )


def test_other_types_are_left_to_mlx(form):
    x, w = draw(2, 64, dtype=mx.float16), draw(20, 64, seed=1, dtype=mx.bfloat16)
    assert error(bf16_matmul(x, w), x, w) < 1e-3
    with pytest.raises(ValueError, match="matmul"):
        bf16_matmul(draw(2, 60), w)


@pytest.mark.skipif(compiled.load("bf16_matmul") is None, reason="nothing is compiled on this machine")
@pytest.mark.parametrize("cpu", ["avx512", "avx2", "baseline"])
def test_a_lesser_cpu_gives_the_same(cpu):
    if not native.CPUS[cpu][1] <= backend.cpu_flags():
        pytest.skip("this CPU is lesser yet")
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_bf16_matmul as t
from mlxgpt.kernels import compiled
assert compiled.load("bf16_matmul")
t.test_it_is_the_product("compiled", t.mx.float32, 4e-6)
t.test_it_is_the_product("compiled", t.mx.bfloat16, 4e-3)
t.test_gradients_compile_and_vmap("compiled", t.mx.bfloat16)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"MLXGPT_CPU": cpu}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "compiling" not in line] == []


@pytest.mark.parametrize("w_dtype", [mx.float32, mx.bfloat16], ids=str)
def test_rounded_it_is_the_product_of_what_rounding_leaves(form, w_dtype):
    for M, N, K in [*SHAPES, (97, 100, 257), (200, 49, 515)]:
        x, w, d_y = draw(M, K), draw(N, K, seed=1, dtype=w_dtype), draw(M, N, seed=2)
        y = bf16_matmul(x, w, rounded=True)
        assert (y.shape, y.dtype) == ((M, N), mx.float32)
        halves = [a.astype(mx.bfloat16) for a in (x, w, d_y)]
        assert error(y, *halves[:2]) < 4e-6, (M, N, K)
        if form == "reference":
            continue  # whose gradient is MLX's own, of the product that was not rounded
        d_x, d_w = mx.grad(lambda x, w, d=d_y: (bf16_matmul(x, w, rounded=True) * d).sum(), (0, 1))(x, w)
        assert error(d_x, halves[2], halves[1].T) < 4e-6, (M, N, K)
        assert error(d_w, halves[2].T, halves[0].T) < (4e-6 if w_dtype == mx.float32 else 4e-3), (M, N, K)


def test_gradients_of_gradients(form):
    x, w, d = draw(9, 34), draw(20, 34, seed=1), draw(9, 20, seed=2)

    def of(product):
        inner = mx.grad(lambda x, w: (product(x, w) ** 2 * d).sum(), (0, 1))
        return mx.grad(lambda x, w: sum((g * g).sum() for g in inner(x, w)), (0, 1))(x, w)

    for got, expected in zip(of(lambda x, w: bf16_matmul(x, w, rounded=True)), of(lambda x, w: x @ w.T), strict=True):
        np.testing.assert_allclose(exact(got)[0], exact(expected)[0], rtol=0, atol=3e-2 * np.abs(expected).max())


def test_linear_layers_round_only_while_they_train(form):
    x, layer = draw(20, 64), Linear(64, 20, bias=False)
    plain = layer(x)
    round_products(layer, True)
    assert not mx.array_equal(layer(x), plain)
    layer.eval()
    assert mx.array_equal(layer(x), plain)
    layer.train()
    round_products(layer, False)
    assert mx.array_equal(layer(x), plain)
