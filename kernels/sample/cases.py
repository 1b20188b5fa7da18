"""sample with each filter alone and all together, over rows of one element to several times the threads, ties at the
threshold of top-k, and histories that repeat themselves. The draws are made again in NumPy, and must be the same."""

from typing import Any

import mlx.core as mx
import numpy as np
from mlxgpt.kernels.sample.op import KEYS, NO_PENALTIES, reference, sample
from mlxgpt.kernels.verify import Benchmark, Case


def threefry(key: np.ndarray, row: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The first word of Threefry-2x32-20 for a key [2] and counters (row, index), uint32."""
    parity, turns = KEYS
    keys = [*(int(k) for k in key), parity ^ int(key[0]) ^ int(key[1])]
    mask = np.uint64(0xFFFFFFFF)
    x, y = ((c.astype(np.uint64) + np.uint64(k)) & mask for c, k in zip((row, index), keys, strict=False))
    for i in range(20):
        x = (x + y) & mask
        y = ((y << np.uint64(turns[i % 8])) | (y >> np.uint64(32 - turns[i % 8]))) & mask
        y ^= x
        if i % 4 == 3:
            s = i // 4 + 1
            x = (x + np.uint64(keys[s % 3])) & mask
            y = (y + np.uint64(keys[(s + 1) % 3] + s)) & mask
    return x.astype(np.uint32)


def penalised(row: np.ndarray, history: np.ndarray, repetition: float, presence: float, frequency: float) -> np.ndarray:
    """One row of logits [V] after the penalties for history [N]."""
    x = row.copy()
    for token in set(history.tolist()):
        if 0 <= token < len(x):
            x[token] = x[token] * repetition if x[token] < 0 else x[token] / repetition
            x[token] -= presence + frequency * (history == token).sum()
    return x


def kept(x: np.ndarray, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """Which of a row [V] the filters leave, boolean [V], each defined by itself."""
    order = np.lexsort((np.arange(len(x)), -x))  # the largest first, of equals the first
    weights = np.exp(x - x.max())
    stays = weights >= min_p
    if top_p < 1:
        above = np.array([weights[x > value].sum() for value in x]) if len(x) < 1000 else _above(x, weights)
        stays &= above < top_p * weights.sum()
    if 0 < top_k < len(x):
        stays[order[top_k:]] = False
    return stays


def _above(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    falling = np.sort(x)[::-1]
    mass = np.concatenate([[0], np.cumsum(weights[np.argsort(-x)])])
    return mass[np.searchsorted(-falling, -x)]


def exact(
    logits: np.ndarray, key: np.ndarray, history: np.ndarray, temperature: float = 1.0, top_k: int = 0,
    top_p: float = 1.0, min_p: float = 0.0, penalties: tuple[float, float, float] = NO_PENALTIES,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The op in float64, a row at a time."""
    tokens, logprobs = [], []
    for b, row in enumerate(logits):
        x = penalised(row, history[b], *penalties)
        bits = threefry(key, np.array(b), np.arange(len(x)))
        u = np.minimum((bits.astype(np.float64) + 0.5) * 2.0**-32, 1 - 2.0**-24)
        scores = x if temperature == 0 else x / temperature - np.log(-np.log1p(-u))
        tokens.append(np.where(kept(x, top_k, top_p, min_p) | (temperature == 0), scores, -np.inf).argmax())
        logprobs.append(x[tokens[-1]] - x.max() - np.log(np.exp(x - x.max()).sum()))
    return np.array(tokens, np.uint32), np.array(logprobs)


def _case(B: int, V: int, N: int = 0, levels: int = 0, **options: Any) -> Case:
    """B rows of V logits, N tokens of history; with `levels` the logits are one of so many values, many alike."""

    def make(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        logits = rng.integers(0, levels, (B, V)) / 2.0 if levels else rng.normal(0, 3, (B, V))
        key = rng.integers(0, 1 << 32, 2).astype(np.uint32)
        return logits, key, rng.integers(-1, min(V, 12), (B, N)).astype(np.int32)

    def run(logits: mx.array, key: mx.array, history: mx.array) -> tuple[mx.array, mx.array]:
        return sample(logits, key, history=history, form="kernel", **options)

    def expected(*arrays: Any) -> tuple[np.ndarray, ...]:
        return exact(*arrays, **options)

    name = f"{B} of {V}" + f" after {N}" * (N > 0) + f" of {levels} levels" * (levels > 0)
    tolerance = dict.fromkeys((mx.float32, mx.float16, mx.bfloat16), 2e-5)  # all is computed in float32
    name += "".join(f" {k} {v}" for k, v in options.items())
    return Case("sample", name, make, run, expected, tolerance=tolerance)


PENALTIES: dict[str, Any] = {"penalties": (1.3, 0.2, 0.1)}
CASES = [
    _case(1, 1),
    _case(3, 2, top_k=1),
    _case(1, 7, top_p=0.6),
    _case(2, 33, 4, temperature=0.0, **PENALTIES),
    _case(2, 65, temperature=0.7),
    _case(2, 257, top_k=40),
    _case(2, 1025, top_k=40, levels=9),
    _case(2, 100, top_p=0.7, levels=9),
    _case(2, 300, min_p=0.2),
    _case(2, 1500, 20, temperature=0.8, top_k=40, top_p=0.9, min_p=0.02, **PENALTIES),
]


def _row(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    return rng.normal(0, 3, (1, 50_257)), rng.integers(0, 1 << 32, 2).astype(np.uint32)


FILTERS: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.95}
BENCHMARKS = [
    Benchmark(
        "sample", "all filters over 50,257", _row, lambda x, key: sample(x, key, **FILTERS, form="kernel"),
        lambda x, key: reference(x, key, **FILTERS), bytes_moved=lambda x, key: x.nbytes,
    ),
    Benchmark(
        "sample", "greedy over 50,257", _row, lambda x, key: sample(x, key, 0.0, form="kernel"),
        lambda x, key: reference(x, key, 0.0), bytes_moved=lambda x, key: x.nbytes,
    ),
]  # fmt: skip
