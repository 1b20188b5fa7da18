"""add_norm over rows shorter than a simdgroup to longer than a threadgroup, and rotate over odd counts of heads and
positions, several to a batch."""

from typing import Any

import mlx.core as mx
import numpy as np
from mlxgpt.kernels.decode_block.op import add_norm, reference_add_norm, reference_rotate, rotate
from mlxgpt.kernels.verify import TOLERANCE, Benchmark, Case

EPS = 1e-5


def _norm_case(shape: tuple[int, ...], centered: bool, biased: bool = False) -> Case:
    C = shape[-1]

    def make(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        weights = [rng.standard_normal(C) + 1 for _ in range(1 + biased)]
        return rng.standard_normal(shape) + 0.5, rng.standard_normal(shape), *weights

    def run(x: mx.array, change: mx.array, weight: mx.array, bias: mx.array | None = None) -> tuple[mx.array, mx.array]:
        return add_norm(x, change, weight, bias, EPS, centered, form="kernel")

    def expected(x: np.ndarray, change: np.ndarray, weight: np.ndarray, bias: Any = 0.0) -> tuple[np.ndarray, ...]:
        added = x + change
        middle = added - added.mean(-1, keepdims=True) if centered else added
        return added, middle / np.sqrt((middle**2).mean(-1, keepdims=True) + EPS) * weight + bias

    name = f"{'layer' if centered else 'rms'} norm {'x'.join(map(str, shape))}" + " with a bias" * biased
    tolerance = dict(TOLERANCE)
    if C <= 2:  # the norm of a sum that was rounded
        tolerance |= {mx.float16: 1e-2, mx.bfloat16: 6e-2}
    return Case("decode_block", name, make, run, expected, tolerance=tolerance)


def _rotate_case(B: int, H: int, Hkv: int, T: int, D: int, offset: list[int]) -> Case:
    base = 10_000.0

    def make(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        return rng.standard_normal((B, H, T, D)), rng.standard_normal((B, Hkv, T, D)), np.array(offset, np.int32)

    def run(q: mx.array, k: mx.array, offset: mx.array) -> tuple[mx.array, mx.array]:
        return rotate(q, k, offset, base, form="kernel")

    def expected(q: np.ndarray, k: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, ...]:
        angles = (offset[:, None] + np.arange(T))[:, None, :, None] * base ** (-np.arange(D // 2) / (D / 2))

        def turned(x: np.ndarray) -> np.ndarray:
            low, high = x[..., : D // 2], x[..., D // 2 :]
            c, s = np.cos(angles), np.sin(angles)
            return np.concatenate([low * c - high * s, low * s + high * c], -1)

        return turned(q), turned(k)

    tolerance = TOLERANCE | {mx.float32: 1e-4}  # angles up to 1,000 in float32
    return Case("decode_block", f"rotate {H}:{Hkv} of {D} at {offset}, {T}", make, run, expected, tolerance=tolerance)


CASES = [
    _norm_case((1,), False),
    _norm_case((1, 7), False),
    _norm_case((3, 1, 33), False),
    _norm_case((2, 1500), False),
    _norm_case((1, 2), True),
    _norm_case((2, 1, 100), True, biased=True),
    _norm_case((2, 1025), True, biased=True),
    _rotate_case(1, 1, 1, 1, 2, [0]),
    _rotate_case(2, 3, 1, 1, 32, [7, 1000]),
    _rotate_case(2, 4, 2, 3, 80, [300, 5]),
]

NORM, ROTATION = _norm_case((1, 1, 4096), False), _rotate_case(1, 32, 8, 1, 128, [4000])
BENCHMARKS = [
    Benchmark(
        "decode_block", "add_norm of 4,096", NORM.make, NORM.run,
        lambda x, change, weight: reference_add_norm(x, change, weight, None, EPS, False),
        bytes_moved=lambda x, change, weight: 4 * x.nbytes + weight.nbytes,
    ),
    Benchmark(
        "decode_block", "rotate 32:8 heads of 128", ROTATION.make, ROTATION.run,
        lambda q, k, offset: reference_rotate(q, k, offset, 10_000.0),
        bytes_moved=lambda q, k, offset: 2 * (q.nbytes + k.nbytes),
    ),
]  # fmt: skip
