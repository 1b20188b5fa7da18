"""quantized_kv_attention over heads of each size, 8 and 4 bits, grouped and several queries, rings come around and
rings nearly empty, windows of 1 and beyond, and splits of which some see nothing."""

from typing import Any

import mlx.core as mx
import numpy as np
from mlxgpt.kernels.quantized_kv_attention.op import quantized_kv_attention
from mlxgpt.kernels.verify import Benchmark, Case


def dequantized(words: np.ndarray, scales: np.ndarray, biases: np.ndarray, bits: int) -> np.ndarray:
    """The numbers [..., D] of words [..., D · bits / 32], the lowest bits first, by groups, in float64."""
    numbers = (words[..., None] >> np.arange(0, 32, bits, dtype=np.uint32)) & np.uint32((1 << bits) - 1)
    grouped = numbers.reshape(*scales.shape, -1).astype(np.float64) * scales[..., None] + biases[..., None]
    return grouped.reshape(*words.shape[:-1], -1)


def exact(q: np.ndarray, *rest: Any, scale: float, bits: int, window: int | None) -> np.ndarray:
    """The op in float64, a query at a time."""
    k, v = (dequantized(rest[i], rest[i + 1], rest[i + 2], bits) for i in (0, 3))
    position = rest[6]
    B, H, T, D = q.shape
    Hkv, capacity = k.shape[1:3]
    out = np.zeros((B, H, T, D))
    for b, h, t in np.ndindex(B, H, T):
        last = int(position[b]) - T + 1 + t
        low = max(0, int(position[b]) - capacity + 1, 0 if window is None else last - window + 1)
        slots = np.arange(low, last + 1) % capacity
        scores = k[b, h * Hkv // H, slots] @ q[b, h, t] * scale
        weights = np.exp(scores - scores.max())
        out[b, h, t] = weights @ v[b, h * Hkv // H, slots] / weights.sum()
    return out


def _case(
    heads: tuple[int, int], D: int, bits: int, capacity: int, position: list[int], T: int = 1, window: int | None = None
) -> Case:
    H, Hkv = heads
    B, groups = len(position), D // 64 if D % 64 == 0 else D // 32

    def make(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        def half() -> list[np.ndarray]:
            words = rng.integers(0, 1 << 32, (B, Hkv, capacity, D * bits // 32), dtype=np.uint32)
            scales = rng.uniform(0.5, 1, (B, Hkv, capacity, groups)) * 4 / (1 << bits)
            return [words, scales, -scales * (1 << bits) / 2 + rng.normal(0, 0.1, scales.shape)]

        return rng.standard_normal((B, H, T, D)), *half(), *half(), np.array(position, np.int32)

    options: dict[str, Any] = {"scale": D**-0.5, "bits": bits, "window": window}

    def run(q: mx.array, *rest: mx.array) -> mx.array:
        return quantized_kv_attention(q, rest[:6], rest[6], **options, form="kernel")

    def expected(*arrays: Any) -> np.ndarray:
        return exact(*arrays, **options)

    name = f"{H}:{Hkv} heads of {D}, {bits} bits, {T} at {position} of {capacity}, window {window}"
    return Case("quantized_kv_attention", name, make, run, expected)


CASES = [
    _case((1, 1), 32, 8, 1, [0]),
    _case((1, 1), 32, 4, 5, [2]),
    _case((4, 2), 64, 4, 37, [36, 11]),
    _case((3, 3), 96, 4, 33, [100]),
    _case((8, 2), 128, 8, 20, [50], window=7),
    _case((2, 2), 64, 8, 40, [25], T=8),
    _case((12, 2), 32, 4, 30, [70, 3], T=3, window=1),
    _case((4, 2), 64, 4, 600, [599], window=590),
    _case((2, 1), 64, 8, 700, [3], T=2),
    _case((2, 1), 32, 4, 520, [1500], T=4, window=514),
]


def _plain(q: mx.array, *rest: mx.array) -> mx.array:
    """What the cache does without the kernel: all dequantized, then MLX's fused attention."""
    k, v = (mx.dequantize(rest[i], rest[i + 1], rest[i + 2], 64, 4) for i in (0, 3))
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=128**-0.5, mask=mx.arange(8192) <= rest[6][0])


LONG = _case((32, 8), 128, 4, 8192, [8191])
BENCHMARKS = [
    Benchmark(
        "quantized_kv_attention", "Mistral 7B's layer, 8,192 positions in 4 bits", LONG.make, LONG.run, _plain,
        bytes_moved=lambda *arrays: sum(x.nbytes for x in arrays),
    )
]  # fmt: skip
