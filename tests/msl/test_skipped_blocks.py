"""windowed_attention's kernels read no block of keys, or of queries, that lies outside the window or the document."""

import mlx.core as mx
import numpy as np
import pytest
from metal_model.simulated import simulated_metal
from mlxgpt.kernels.windowed_attention import windowed_attention

T = 192
# Window, documents, the keys that queries 64 to 95 need and the queries that need keys 64 to 95, in whole blocks of 32.
RANGES = {
    "window": (16, None, (49, 113), (64, 128)),
    "documents": (None, np.arange(T) // 64, (64, 96), (64, 128)),
}


def poisoned(x: mx.array, kept: tuple[int, int]) -> mx.array:
    """NaN in all rows but the kept ones: even with a weight of 0 it would show in a product."""
    row = mx.arange(T)[:, None]
    return mx.where((row >= kept[0]) & (row < kept[1]), x, mx.nan)


@pytest.mark.parametrize(("window", "numbers", "keys", "queries"), RANGES.values(), ids=RANGES)
def test_what_is_outside_is_not_read(window, numbers, keys, queries):
    q, k, v, d_out = (mx.random.normal((1, 1, T, 32), key=mx.random.key(i)) for i in range(4))
    documents = None if numbers is None else mx.array(numbers[None].astype(np.int32))

    def run(q, k, v, d_out):
        attend = lambda *x: windowed_attention(*x, 0.2, window, documents, form="kernel")  # noqa: E731
        (out,), gradients = mx.vjp(attend, [q, k, v], [d_out])
        return [np.array(x)[0, 0, 64:96] for x in (out, *gradients)]

    with simulated_metal():
        whole = run(q, k, v, d_out)
        by_queries = run(q, poisoned(k, keys), poisoned(v, keys), d_out)
        by_keys = run(poisoned(q, queries), k, v, poisoned(d_out, queries))
    for mine, its in zip(by_queries[:2] + by_keys[2:], whole, strict=True):
        np.testing.assert_array_equal(mine, its)
