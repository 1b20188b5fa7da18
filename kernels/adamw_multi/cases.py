"""The norm over one, 24 and more tensors, AdamW over four and five, of one element to several chunks."""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlxgpt.kernels.adamw_multi.op import CHUNK, adamw, global_norm, reference_adamw, reference_norm
from mlxgpt.kernels.verify import Benchmark, Case

BETAS, EPS, DECAY, RATE, FACTOR, STEP = (0.8, 0.95), 1e-3, 0.1, 1e-2, 0.7, 3

Shapes = Sequence[tuple[int, ...]]


def _norm_case(shapes: Shapes) -> Case:
    def make(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        return tuple(rng.standard_normal(shape) / 10 for shape in shapes)

    def run(*gradients: mx.array) -> mx.array:
        return global_norm(gradients, form="kernel")

    def expected(*gradients: np.ndarray) -> np.ndarray:
        return np.sqrt(np.array(sum((g**2).sum() for g in gradients)))

    tolerance = dict.fromkeys((mx.float32, mx.float16, mx.bfloat16), 1e-5)  # summed in float32, not rounded again
    return Case("adamw_multi", f"norm of {len(shapes)}", make, run, expected, tolerance=tolerance)


def exact(p: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
    """One tensor's step in float64."""
    g = g * FACTOR
    m = BETAS[0] * m + (1 - BETAS[0]) * g
    v = BETAS[1] * v + (1 - BETAS[1]) * g**2
    p = p * (1 - RATE * DECAY)
    corrected = (m / (1 - BETAS[0] ** STEP)) / (np.sqrt(v / (1 - BETAS[1] ** STEP)) + EPS)
    return p - RATE * corrected, m, v


def _step(arrays: Sequence[mx.array], update: Callable[..., Any], *form: str) -> list[mx.array]:
    """The new tensors of a step; arrays: each tensor's parameter, gradient and moments."""
    groups = [arrays[i::4] for i in range(4)]
    scalars = mx.array(FACTOR), mx.array(RATE), mx.array(STEP, mx.uint64)
    return [x for new in update(*groups, *scalars, BETAS, EPS, DECAY, *form) for x in new]


def _tensors(shapes: Shapes) -> Callable[[np.random.Generator], tuple[np.ndarray, ...]]:
    def one(rng: np.random.Generator, shape: tuple[int, ...]) -> list[np.ndarray]:
        p, g, m, v = (rng.standard_normal(shape) for _ in range(4))
        return [p, g, m / 10, v**2]

    return lambda rng: tuple(x for shape in shapes for x in one(rng, shape))


def _step_case(shapes: Shapes) -> Case:
    def run(*arrays: mx.array) -> list[mx.array]:
        return _step(arrays, adamw, "kernel")

    def expected(*arrays: np.ndarray) -> list[np.ndarray]:
        return [x for i in range(0, len(arrays), 4) for x in exact(*arrays[i : i + 4])]

    return Case("adamw_multi", f"step of {len(shapes)}", _tensors(shapes), run, expected)


SMALL: Shapes = [(1,), (7,), (3, 100), (2, CHUNK)]
CASES = [
    _norm_case([(1,)]),
    _norm_case(SMALL),
    _norm_case([*SMALL, *[(i + 1,) for i in range(20)]]),
    _norm_case([(CHUNK + 1,), *[(8,)] * 24, (5, 5)]),
    _step_case(SMALL),
    _step_case([(CHUNK + 1,), (8,), (3,), (2, 5), (33,)]),
]

MANY: Shapes = [(512, 512)] * 32 + [(512,)] * 16
BENCHMARKS = [
    Benchmark(
        "adamw_multi", "norm of 48 tensors", lambda rng: tuple(rng.standard_normal(shape) for shape in MANY),
        lambda *x: global_norm(x, form="kernel"), lambda *x: reference_norm(x),
        bytes_moved=lambda *x: sum(g.nbytes for g in x), dtype=mx.float32,
    ),
    Benchmark(
        "adamw_multi", "step of 48 tensors", _tensors(MANY), lambda *x: _step(x, adamw, "kernel"),
        mx.compile(lambda *x: _step(x, reference_adamw)), bytes_moved=lambda *x: sum(a.nbytes for a in x) * 7 // 4,
        dtype=mx.float32,
    ),
]  # fmt: skip
