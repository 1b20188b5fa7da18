"""A residual and its norm: the reference's values and gradients in odd shapes, whoever asks for which part."""

import mlx.core as mx
import numpy as np
import pytest
from mlxgpt.kernels.add_norm import add_norm, reference

OP = "add_norm"  # for `form`
# A row of one number, less and more than a vector, whole ones; more rows than a task has.
SHAPES = [(1, 1), (3, 5), (2, 33, 16), (2, 3, 17), (70, 48), (1, 4, 130)]


def draw(*shape: int, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)) + 0.3


def plainly(x, change, weight, bias, centered, eps=1e-5):
    added = x if change is None else x + change
    return added, reference(added, weight, bias, eps, centered)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize(("centered", "biased"), [(False, False), (True, False), (True, True)])
def test_values_and_gradients_are_the_references(form, shape, changed, centered, biased):
    C = shape[-1]
    arrays = [draw(*shape), draw(*shape, seed=1), draw(C, seed=2), draw(C, seed=3)]
    arrays = [a for a, there in zip(arrays, (True, changed, True, biased), strict=True) if there]
    weights = [draw(*shape, seed=4), draw(*shape, seed=5)]

    def run(function, *arrays):
        x, *rest = arrays
        change = rest.pop(0) if changed else None
        return function(x, change, rest[0], rest[1] if biased else None, centered=centered)

    def ours(*a, **named):
        return add_norm(*a, eps=1e-5, **named)

    def total(function, wanted, *arrays):
        results = run(function, *arrays)
        return sum((results[i] * weights[i]).sum() for i in wanted)

    for got, expected in zip(run(ours, *arrays), run(plainly, *arrays), strict=True):
        assert (got.shape, got.dtype) == (shape, mx.float32)
        np.testing.assert_allclose(np.array(got), np.array(expected), rtol=2e-5, atol=2e-5)
    every = tuple(range(len(arrays)))
    for wanted in ((0, 1), (1,)):
        got = mx.grad(lambda *a, w=wanted: total(ours, w, *a), every)(*arrays)
        expected = mx.grad(lambda *a, w=wanted: total(plainly, w, *a), every)(*arrays)
        for a, b in zip(got, expected, strict=True):
            # LayerNorm of one number has no gradient but what rounding makes of 1 / √eps
            np.testing.assert_allclose(np.array(a), np.array(b), rtol=2e-4, atol=2e-4 * max(1, np.abs(b).max()))


def test_it_compiles_and_takes_what_is_not_rows_in_memory(form):
    x, weight = draw(6, 20, 9).swapaxes(0, 1), draw(18, seed=1)[::2]
    got = mx.compile(lambda x: add_norm(x, x, weight, None, 1e-5, False))(x)
    for a, b in zip(got, plainly(x, x, weight, None, False), strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=2e-5, atol=2e-5)


def test_other_types_are_left_to_mlx(form):
    x = draw(3, 16).astype(mx.bfloat16)
    added, normed = add_norm(x, x, mx.ones(16, mx.bfloat16), None, 1e-5, False)
    assert added.dtype == normed.dtype == mx.bfloat16
    assert add_norm(mx.zeros((0, 4)), None, mx.ones(4), None, 1e-5, True)[1].shape == (0, 4)
