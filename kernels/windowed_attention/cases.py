"""windowed_attention over its edges: windows of 1, of T and beyond, documents of one token, ragged and whole blocks,
grouped queries, fewer queries than keys, and fewer than the eight elements below which MLX binds inputs otherwise."""

import mlx.core as mx
import numpy as np
from mlxgpt.kernels.verify import Benchmark, Case
from mlxgpt.kernels.windowed_attention.op import reference, visible, windowed_attention

F32, F16, BF16 = mx.float32, mx.float16, mx.bfloat16
EVERY = (F32, F16, BF16)


def exact(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, window: int | None, documents: np.ndarray | None
) -> np.ndarray:
    """The op in float64; documents int [B, S]."""
    (B, H, T, D), (_, Hkv, S, _) = q.shape, k.shape
    query, key = np.arange(S - T, S)[:, None], np.arange(S)
    mask = np.broadcast_to((key <= query) & (key > query - (window or S)), (B, 1, 1, T, S))
    if documents is not None:
        run = np.cumsum(np.diff(documents, axis=1, prepend=documents[:, :1]) != 0, axis=1)
        mask = mask & (run[:, S - T :, None] == run[:, None, :])[:, None, None]
    k, v = k[:, :, None], v[:, :, None]
    scores = np.where(mask, scale * q.reshape(B, Hkv, H // Hkv, T, D) @ k.swapaxes(-1, -2), -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True) @ v).reshape(q.shape)


# A size of head is a variant of the three kernels for each type, and a variant seconds of a compiler.
def _case(
    B: int, H: int, Hkv: int, T: int, S: int, D: int, window: int | None, document: float | None = None,
    dtypes: tuple[mx.Dtype, ...] = EVERY,
) -> Case:  # fmt: skip
    """`document`: the share of positions that begin one."""
    scale = D**-0.5

    def make(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        arrays = tuple(rng.standard_normal(shape) for shape in ((B, H, T, D), (B, Hkv, S, D), (B, Hkv, S, D)))
        if document is None:
            return arrays
        return (*arrays, np.cumsum(rng.random((B, S)) < document, axis=1).astype(np.int32) % 3)  # numbers come again

    def run(q: mx.array, k: mx.array, v: mx.array, documents: mx.array | None = None) -> mx.array:
        return windowed_attention(q, k, v, scale, window, documents, form="kernel")

    def expected(q: np.ndarray, k: np.ndarray, v: np.ndarray, documents: np.ndarray | None = None) -> np.ndarray:
        return exact(q, k, v, scale, window, documents)

    def plain(q: mx.array, k: mx.array, v: mx.array, documents: mx.array | None = None) -> mx.array:
        return reference(q, k, v, scale, visible(T, S, window, documents))

    name = f"{B}x{H}/{Hkv}x{T}/{S}x{D}" + f" window {window}" * (window is not None) + " documents" * bool(document)
    return Case("windowed_attention", name, make, run, expected, plain, (0, 1, 2), dtypes, mutants=D == 32)


CASES = [
    _case(1, 1, 1, 1, 1, 32, 1),
    _case(1, 2, 1, 3, 3, 32, 1),
    _case(1, 1, 1, 7, 7, 32, 100),  # a window beyond T: plain causality
    _case(2, 4, 2, 33, 33, 32, 33),
    _case(1, 1, 1, 64, 64, 32, 40, dtypes=(F32,)),
    _case(2, 2, 1, 70, 70, 32, 32),
    _case(1, 2, 2, 100, 100, 32, 1, dtypes=(F32,)),
    _case(1, 2, 1, 9, 150, 32, 40),  # the first keys are seen by no query: their gradient is 0
    _case(2, 2, 1, 70, 70, 32, None, 0.1),
    _case(1, 2, 1, 40, 40, 32, None, 1.1),  # documents of one token
    _case(2, 2, 2, 65, 70, 32, 20, 0.05),
    _case(1, 4, 1, 50, 50, 64, 17, 0.05, dtypes=(F16,)),
    _case(1, 2, 1, 41, 41, 80, 16, dtypes=(F32,)),  # blocks of 16 keys: more would not fit
    _case(1, 2, 1, 41, 41, 128, 16, dtypes=(BF16,)),
]


def _long(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    return tuple(rng.standard_normal((1, heads, 8192, 64), np.float32) for heads in (16, 4, 4))


def _bytes(q: mx.array, k: mx.array, v: mx.array) -> int:
    """Of each kernel's inputs and outputs, once: q, out; q, out, d_out, dq; q, d_out: and k, v three times, dk, dv."""
    return 8 * q.nbytes + 4 * (k.nbytes + v.nbytes)


BENCHMARKS = [
    Benchmark(
        "windowed_attention", "T 8192, window 1024, 16 heads of 64, 4 of keys", _long,
        lambda q, k, v: windowed_attention(q, k, v, 0.125, 1024, form="kernel"),
        lambda q, k, v: windowed_attention(q, k, v, 0.125, 1024, form="reference"), _bytes, gradients=(0, 1, 2),
    )
]  # fmt: skip
