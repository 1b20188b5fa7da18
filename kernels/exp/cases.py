"""exp at one element, below the eight where MLX binds inputs otherwise, at ragged ends, and over several groups."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
from mlxgpt.kernels.exp.op import exp, reference
from mlxgpt.kernels.verify import Benchmark, Case


def _run(x: mx.array) -> mx.array:
    return exp(x, form="kernel")


def _make(*shape: int) -> Callable[[np.random.Generator], tuple[np.ndarray]]:
    return lambda rng: (rng.uniform(-2, 1, shape),)


SHAPES = [(1,), (7,), (8,), (256,), (257,), (3, 100), (2, 3, 171)]
CASES = [
    Case(
        "exp", "x".join(map(str, shape)), _make(*shape), _run, np.exp, reference=reference, gradients=(0,)
    )
    for shape in SHAPES
]  # fmt: skip
BENCHMARKS = [
    Benchmark(
        "exp", "16M", _make(1 << 24), _run, mx.exp,
        bytes_moved=lambda x: 5 * x.nbytes, gradients=(0,),  # x, y; dy, y, dx
    )
]  # fmt: skip
