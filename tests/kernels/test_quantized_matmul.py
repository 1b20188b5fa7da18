"""Products with quantized weights: right in every shape, type, group and instruction set, and differentiable in x."""

import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlxgpt.kernels import compiled
from mlxgpt.kernels.quantized_matmul import quantized_matmul, reference

from mlxgpt import backend, native

# (M, N, groups in a row): one of each; less and more than a vector; the last rows, read past, of few groups and many.
SHAPES = [(1, 1, 1), (1, 7, 1), (1, 40, 16), (2, 33, 2), (3, 16, 3), (4, 9, 17), (5, 40, 5), (8, 70, 4), (9, 31, 9),
          (17, 64, 4), (70, 100, 17), (300, 65, 2)]  # fmt: skip
OP = "quantized_matmul"  # for `form`


def draw(*shape: int, seed: int = 0, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def quantize(N: int, K: int, group_size: int, bits: int, dtype: mx.Dtype = mx.float32) -> list[mx.array]:
    w, scales, biases = mx.quantize(draw(N, K, seed=1), group_size, bits)
    return [w, scales.astype(dtype), biases.astype(dtype)]


def error(y: mx.array, x: mx.array, packed: list[mx.array], group_size: int, bits: int) -> float:
    """The largest error of y, over what |x| · |w|ᵀ is at most: in float64, of the values that the arrays stand for."""
    w, *rest = packed
    real = mx.dequantize(w, *(a.astype(mx.float32) for a in rest), group_size, bits)
    a, b = (np.array(m.astype(mx.float32), np.float64) for m in (x, real))
    y64 = np.array(y.astype(mx.float32), np.float64)
    assert y64.shape == (a @ b.T).shape
    return float((np.abs(y64 - a @ b.T) / (np.abs(a) @ np.abs(b).T).max()).max())


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_it_is_the_product_with_the_dequantized_weights(form, bits, group_size, dtype):
    for M, N, groups in SHAPES if form == "compiled" else SHAPES[:4]:
        packed = quantize(N, groups * group_size, group_size, bits, dtype)
        x = draw(M, groups * group_size)
        y = quantized_matmul(x, *packed, group_size, bits)
        assert (y.shape, y.dtype) == ((M, N), mx.float32)
        assert error(y, x, packed, group_size, bits) < (4e-5 if form == "compiled" else 1e-6), (M, N, groups)


@pytest.mark.parametrize("M", [1, 12])
def test_bfloat16_in_and_out(form, M):
    packed = quantize(50, 192, 64, 4, mx.bfloat16)
    x = draw(M, 192, dtype=mx.bfloat16)
    y = quantized_matmul(x, *packed, 64, 4)
    assert y.dtype == mx.bfloat16
    assert error(y, x, packed, 64, 4) < (4e-3 if form == "compiled" else 4e-2)  # MLX's own adds up in bfloat16
    assert quantized_matmul(x, *quantize(50, 192, 64, 4), 64, 4).dtype == mx.float32  # what the two types promote to


@pytest.mark.parametrize("shape", [(192,), (0, 192), (2, 3, 192), (2, 1, 9, 192)])
def test_any_number_of_leading_axes(form, shape):
    packed = quantize(20, 192, 64, 4)
    x = draw(*shape)
    y = quantized_matmul(x, *packed, 64, 4)
    assert y.shape == (*shape[:-1], 20)
    if x.size:
        assert error(y.reshape(-1, 20), x.reshape(-1, 192), packed, 64, 4) < 4e-5


@pytest.mark.parametrize("M", [3, 20])
def test_arrays_that_are_not_rows_in_memory(form, M):
    packed = quantize(40, 128, 64, 8)
    x = draw(128, M).T
    assert error(quantized_matmul(x, *packed, 64, 8), x, packed, 64, 8) < 4e-5
    x = draw(2 * M, 256)[::2, 1::2]
    assert error(quantized_matmul(x, *packed, 64, 8), x, packed, 64, 8) < 4e-5
    odd = [a[1::2] for a in packed]
    assert error(quantized_matmul(x, *odd, 64, 8), x, odd, 64, 8) < 4e-5


def test_every_magnitude_keeps_its_digits_and_what_is_not_finite_is_not_hidden(form):
    packed = quantize(24, 256, 64, 4)
    for scale in (0.0, 1e-36, 1e-20, 1e20):
        y = quantized_matmul(draw(2, 256) * scale, *packed, 64, 4)
        expected = np.array(reference(draw(2, 256), *packed, 64, 4), np.float64) * scale
        np.testing.assert_allclose(np.array(y), expected, rtol=0, atol=2e-3 * max(scale, 1e-30))
    # a row with one group a million times larger than the rest: they have scales of their own
    x = draw(1, 256) * mx.repeat(mx.array([1e6, 1, 1, 1]), 64)
    zeroed = [packed[0], packed[1] * mx.array([0, 1, 1, 1]), packed[2] * mx.array([0, 1, 1, 1])]
    assert error(quantized_matmul(x, *zeroed, 64, 4), x * (mx.abs(x) < 100), zeroed, 64, 4) < 4e-5
    for bad in (np.inf, np.nan):
        x = mx.where(mx.arange(256) == 7, bad, draw(3, 256)) * mx.array([[1.0], [0.0], [1.0]])
        x = mx.where(mx.arange(3)[:, None] == 1, draw(3, 256), x)
        y = np.array(quantized_matmul(x, *packed, 64, 4))
        assert not np.isfinite(y[[0, 2]]).any()
        assert np.isfinite(y[1]).all()


def test_gradient_compile_and_vmap(form):
    packed = quantize(40, 128, 64, 4)
    x, direction = draw(2, 5, 128), draw(2, 5, 40, seed=4)

    def loss(product):
        return lambda x: (product(x, *packed, 64, 4) * direction).sum()

    expected = mx.grad(loss(reference))(x)
    got = mx.grad(loss(quantized_matmul))(x)
    np.testing.assert_allclose(np.array(got), np.array(expected), rtol=0, atol=1e-4)
    [tangent] = mx.jvp(lambda x: quantized_matmul(x, *packed, 64, 4), [x], [draw(2, 5, 128, seed=5)])[1]
    forward = reference(draw(2, 5, 128, seed=5), *packed, 64, 4)
    np.testing.assert_allclose(np.array(tangent), np.array(forward), atol=1e-2)
    y = np.array(quantized_matmul(x, *packed, 64, 4))
    fused = mx.compile(lambda x: 2 * quantized_matmul(x / 2, *packed, 64, 4))
    np.testing.assert_array_equal(np.array(fused(x)), y)
    np.testing.assert_allclose(np.array(fused(x[:1])), y[:1], rtol=0, atol=1e-4)  # few rows add up in another order
    if form == "reference":
        return  # MLX has no vmap of it
    over = mx.vmap(lambda x: quantized_matmul(x, *packed, 64, 4), in_axes=1, out_axes=1)(x)
    np.testing.assert_array_equal(np.array(over), y)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_gradient_is_the_product_with_the_dequantized_weights(form, bits, group_size, dtype):
    """dx = dy · w in float64, of the values that the arrays stand for; scales and x in `dtype`."""
    for M, N, groups in SHAPES if form == "compiled" else SHAPES[:4]:
        K = groups * group_size
        w, *rest = quantize(N, K, group_size, bits, dtype)
        x, dy = draw(M, K, dtype=dtype), draw(M, N, seed=3, dtype=dtype)
        [dx] = mx.vjp(lambda x, w=w, rest=rest: quantized_matmul(x, w, *rest, group_size, bits), [x], [dy])[1]
        assert (dx.shape, dx.dtype) == ((M, K), dtype)
        real = mx.dequantize(w, *(a.astype(mx.float32) for a in rest), group_size, bits)
        a, b = (np.array(m.astype(mx.float32), np.float64) for m in (dy, real))
        off = np.abs(np.array(dx.astype(mx.float32), np.float64) - a @ b) / (np.abs(a) @ np.abs(b)).max()
        exact = 1e-6 if dtype == mx.float32 else 4e-3 if form == "compiled" else 2e-2  # bfloat16 has 8 bits
        assert off.max() < exact, (M, N, groups)


def test_the_gradient_takes_weights_a_block_of_columns_at_a_time_and_arrays_that_are_not_rows(form):
    """More weights than the C++ unpacks at once: three blocks, the last one smaller."""
    packed = quantize(40_000, 576, 64, 4)
    dy = draw(40_000, 6).T.reshape(2, 3, 40_000)
    [dx] = mx.vjp(lambda x: quantized_matmul(x, *packed, 64, 4), [draw(2, 3, 576)], [dy])[1]
    expected = np.array(dy @ mx.dequantize(*packed, 64, 4))
    np.testing.assert_allclose(np.array(dx), expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    for shape in ((192,), *([(0, 192)] if form == "compiled" else [])):  # MLX divides by no rows
        small, x = quantize(20, 192, 64, 8), draw(*shape)
        [dx] = mx.vjp(lambda x, small=small: quantized_matmul(x, *small, 64, 8), [x], [draw(*shape[:-1], 20)])[1]
        assert dx.shape == shape
        expected = draw(*shape[:-1], 20) @ mx.dequantize(*small, 64, 8)
        np.testing.assert_allclose(np.array(dx), np.array(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("bits", "group_size"), [(3, 64), (6, 32), (2, 128)])
def test_other_widths_are_left_to_mlx(bits, group_size):
    packed = quantize(16, 256, group_size, bits)
    x = draw(2, 256)
    assert mx.array_equal(quantized_matmul(x, *packed, group_size, bits), reference(x, *packed, group_size, bits))


def test_what_does_not_fit_is_said_as_mlx_says_it(form):
    packed = quantize(16, 256, 64, 4)
    with pytest.raises(ValueError, match=r"\[quantized_matmul\]"):
        quantized_matmul(draw(2, 192), *packed, 64, 4)
    half = draw(2, 256, dtype=mx.float16)  # served by MLX
    assert error(quantized_matmul(half, *packed, 64, 4), half, packed, 64, 4) < 1e-3


NEEDS_COMPILED = pytest.mark.skipif(
    compiled.load("quantized_matmul") is None, reason="nothing is compiled on this machine: a GPU, macOS, no compiler"
)


def elsewhere(code: str, **environment: str) -> None:
    """Run code in a Python of its own, where this file is `t`; it must end well and say nothing."""
    head = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_quantized_matmul as t\n"
    head += 'assert t.compiled.load("quantized_matmul")\n'
    done = subprocess.run(
        [sys.executable, "-c", head + code], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "compiling" not in line] == []


EVERY_PRODUCT = """
for dtype in (t.mx.float32, t.mx.bfloat16):
    for bits in (4, 8):
        for group_size in (32, 64, 128):
            t.test_it_is_the_product_with_the_dequantized_weights("compiled", bits, group_size, dtype)
            t.test_the_gradient_is_the_product_with_the_dequantized_weights("compiled", bits, group_size, dtype)
"""


@NEEDS_COMPILED
@pytest.mark.parametrize("cpu", ["avx512", "avx2", "baseline"])
def test_a_lesser_cpu_gives_the_same(cpu):
    if not native.CPUS[cpu][1] <= backend.cpu_flags():
        pytest.skip("this CPU is lesser yet")
    elsewhere(EVERY_PRODUCT, MLXGPT_CPU=cpu)


@NEEDS_COMPILED
def test_several_threads_give_the_same():
    elsewhere(EVERY_PRODUCT, OPENBLAS_NUM_THREADS="5")


@NEEDS_COMPILED
def test_two_streams_at_once_share_the_threads():
    code = """
mx = t.mx
packed, x = t.quantize(512, 1024, 64, 4), t.draw(40, 1024)
mx.eval(packed, x)
alone = [t.quantized_matmul(x[:m], *packed, 64, 4) for m in (1, 40)]
mx.eval(alone)
streams = [mx.new_stream(mx.cpu) for _ in range(2)]
for _ in range(30):
    both = []
    for stream, m in zip(streams, (1, 40)):
        with mx.stream(stream):
            both.append([t.quantized_matmul(x[:m], *packed, 64, 4) for _ in range(4)])
    mx.eval(both)
    assert all(mx.array_equal(y, expected) for ys, expected in zip(both, alone) for y in ys)
"""
    elsewhere(code, OPENBLAS_NUM_THREADS="3")
