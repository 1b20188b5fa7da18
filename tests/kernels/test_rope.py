"""Rotary positions: MLX's own values, gradients that turn back, an offset for all or for each."""

import mlx.core as mx
import numpy as np
import pytest
from mlxgpt.kernels.rope import reference, rope

OP = "rope"  # for `form`


def draw(*shape: int, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 3, 7, 10), (2, 2, 40, 64), (3, 4, 1, 96)], ids=str)
@pytest.mark.parametrize("offset", [0, 5, "each"])
@pytest.mark.parametrize("base", [10000.0, 1e6])
def test_it_is_mlxs(form, shape, offset, base):
    offset = mx.arange(shape[0]) * 3 if offset == "each" else offset
    x, weights = draw(*shape), draw(*shape, seed=1)
    np.testing.assert_allclose(np.array(rope(x, offset, base)), np.array(reference(x, offset, base)), rtol=0, atol=2e-5)
    got, expected = (mx.grad(lambda x, f=f: (f(x, offset, base) * weights).sum())(x) for f in (rope, reference))
    np.testing.assert_allclose(np.array(got), np.array(expected), rtol=0, atol=2e-5)


def test_far_positions_keep_their_distance(form):
    """The product of a query and a key depends on how far apart they are (arXiv 2104.09864, section 3.2)."""
    q, k = draw(1, 1, 1, 64), draw(1, 1, 1, 64, seed=1)
    near = (rope(q, 7, 1e4) * rope(k, 3, 1e4)).sum().item()
    assert near == pytest.approx((rope(q, 8004, 1e4) * rope(k, 8000, 1e4)).sum().item(), abs=0.02)


def test_it_compiles_with_an_offset_that_changes(form):
    x = draw(2, 4, 1, 16).swapaxes(0, 1)
    step = mx.compile(lambda x, offset: rope(x, offset, 1e4))
    for position in (3, 900):
        at = mx.array(position)
        np.testing.assert_allclose(np.array(step(x, at)), np.array(reference(x, at, 1e4)), rtol=0, atol=1e-4)


def test_other_types_are_left_to_mlx(form):
    x = draw(1, 2, 3, 8).astype(mx.bfloat16)
    assert mx.array_equal(rope(x, 2, 1e4), reference(x, 2, 1e4))
