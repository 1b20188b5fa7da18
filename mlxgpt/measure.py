"""What this machine can do: the time of a piece of work, the fastest matrix product, the fastest reading of memory."""

import statistics
import time
from collections.abc import Callable

import mlx.core as mx


def seconds_of(work: Callable[[], object], repeats: int = 5, warm_up: int = 1) -> float:
    """The median time of `work`, which ends by evaluating what it computes; its first `warm_up` calls do not count."""
    times = []
    for _ in range(warm_up + repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[warm_up:])


def matmul(
    n: int = 1024, dtype: mx.Dtype = mx.float32, repeats: int = 5,
    product: Callable[[mx.array, mx.array], mx.array] = mx.matmul,
) -> float:  # fmt: skip
    """FLOP/s of an n×n×n matrix product of arrays in `dtype` on the default device."""
    a, b = (mx.random.normal((n, n)).astype(dtype) for _ in range(2))
    mx.eval(a, b)
    return 2 * n**3 / seconds_of(lambda: mx.eval(product(a, b)), repeats)


def bandwidth(size: int = 1 << 29) -> float:
    """Bytes/s at which a float32 matrix of `size` bytes is read once: its product with one vector."""
    n = int((size / 4) ** 0.5)
    matrix, vector = mx.ones((n, n)), mx.ones((1, n))
    mx.eval(matrix, vector)
    return matrix.nbytes / seconds_of(lambda: mx.eval(vector @ matrix.T))
