"""Causal attention within a sliding window (arXiv 2310.06825, section 2) and documents packed side by side.

MLX trains any array mask unfused, with all T×S scores. Here a query's keys are one range, from `first_key` to itself,
so blocks outside it are never read: on a GPU three kernels (arXiv 2205.14135) that keep a log-sum-exp a query, on a
CPU blocks of queries over the keys that the window leaves them, in C++ where it serves.
"""

from functools import cache

import mlx.core as mx
from mlxgpt.kernels import compiled, dispatch

BLOCKS = 4  # query blocks on a CPU; the share of scores computed is (BLOCKS + 1) / (2 BLOCKS)
ROWS = 32  # queries, or in dK and dV keys, that a threadgroup of four simdgroups holds
THREADS = 128
DTYPES = (mx.float32, mx.float16, mx.bfloat16)
LARGEST_HEAD = 128
FORMS = {"metal": "kernel", "cuda": "kernel", "cpu": "C++"}

FORWARD = dispatch.Kernel(__file__, "forward", ("q", "k", "v", "low", "scale"), ("out", "lse"), ("tiles",))
BACKWARD_DQ = dispatch.Kernel(
    __file__, "backward_dq", ("q", "k", "v", "out", "lse", "d_out", "low", "scale"), ("dq", "delta"), ("tiles",)
)
BACKWARD_DKV = dispatch.Kernel(
    __file__, "backward_dkv", ("q", "k", "v", "lse", "delta", "d_out", "low", "scale"), ("dk", "dv"), ("tiles",)
)


def first_key(T: int, S: int, window: int | None, documents: mx.array | None = None) -> mx.array:
    """The oldest key that each of T queries, the last of S positions, may see: int32 [T], with documents [B, T].

    It never falls from a query to the next. `documents` as in `windowed_attention`.
    """
    query = mx.arange(S - T, S)
    low = mx.zeros_like(query) if window is None else mx.maximum(query - window + 1, 0)
    if documents is None:
        return low
    new = mx.concatenate([mx.ones_like(documents[:, :1]), documents[:, 1:] != documents[:, :-1]], axis=1)
    starts = mx.cummax(mx.where(new.astype(mx.bool_), mx.arange(S), 0), axis=1)
    return mx.maximum(low, starts[:, S - T :])


def visible(T: int, S: int, window: int | None, documents: mx.array | None = None) -> mx.array:
    """Boolean [T, S], with documents [B, 1, T, S]: may query i, at position S - T + i, see key j?

    It may if the key is not newer, closer than `window` and of the query's document.
    """
    low = first_key(T, S, window, documents)
    key = mx.arange(S)
    mask = (key <= mx.arange(S - T, S)[:, None]) & (key >= low[..., None])
    return mask if documents is None else mask[:, None]


def reference(
    q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array, dropout: float = 0.0,
    key: mx.array | None = None,
) -> mx.array:  # fmt: skip
    """softmax(scale · q kᵀ, where mask) v in plain MLX, computed in q's dtype with a float32 softmax.

    q [B, H, T, D]; k, v [B, Hkv, S, D] with Hkv dividing H (grouped queries); mask [T, S] or [B, 1, T, S], true
    where a key is seen. `dropout` is the share of attention weights dropped, drawn with `key` (None: MLX's own).
    Returns [B, H, T, D].
    """
    B, H, T, D = q.shape
    groups = H // k.shape[1]
    if groups > 1:
        q = q.reshape(B, k.shape[1], groups, T, D)
        k, v = k[:, :, None], v[:, :, None]
        mask = mask if mask.ndim < 4 else mask[:, :, None]
    scores = ((q * scale) @ k.swapaxes(-1, -2)).astype(mx.float32)
    scores = mx.where(mask, scores, -mx.inf)
    # exp and a multiplication fuse under mx.compile, where mx.softmax is a kernel of its own
    weights = mx.exp(scores - mx.stop_gradient(scores.max(axis=-1, keepdims=True)))
    weights = weights * (1 / weights.sum(axis=-1, keepdims=True))
    if dropout > 0:
        weights = weights * mx.random.bernoulli(1 - dropout, weights.shape, key) * (1 / (1 - dropout))
    return (weights.astype(v.dtype) @ v).reshape(B, H, T, D)


@mx.custom_function
def _attend(q: mx.array, k: mx.array, v: mx.array, mask: mx.array, scale: mx.array) -> tuple[mx.array, mx.array]:
    """`reference` without dropout, for grouped q [B, Hkv, G, T, D] and k, v [B, Hkv, 1, S, D]; also the weights."""
    scores = mx.where(mask, (q @ k.swapaxes(-1, -2)).astype(mx.float32) * scale, -mx.inf)
    weights = mx.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = (weights * (1 / weights.sum(axis=-1, keepdims=True))).astype(v.dtype)
    return weights @ v, weights


@_attend.vjp
def _attend_vjp(primals, cotangents, outputs):
    """FlashAttention's backward (arXiv 2205.14135, appendix B.2), the weights kept: dS = P (dP - rowsum(dO O))."""
    q, k, v, mask, scale = primals
    out, weights = outputs
    d_out = cotangents[0]
    correction = (d_out * out).sum(axis=-1, keepdims=True)
    d_scores = (weights * (d_out @ v.swapaxes(-1, -2) - correction) * scale).astype(q.dtype)
    d_k = (d_scores.swapaxes(-1, -2) @ q).sum(axis=2, keepdims=True)
    d_v = (weights.swapaxes(-1, -2) @ d_out).sum(axis=2, keepdims=True)
    return d_scores @ k, d_k, d_v, mx.zeros_like(mask), mx.zeros_like(scale)


def _in_blocks(
    q: mx.array, k: mx.array, v: mx.array, scale: float, window: int | None, documents: mx.array | None
) -> mx.array:
    """The CPU's form: each block of queries meets the keys from its first query's window to its last query."""
    (B, H, T, D), S = q.shape, k.shape[2]
    grouped = q.reshape(B, k.shape[1], -1, T, D)
    k, v, factor = k[:, :, None], v[:, :, None], mx.array(scale)  # float32, as the scores are
    size = -(-T // BLOCKS) if T >= 32 * BLOCKS else T
    blocks = []
    for start in range(0, T, size):
        stop = min(start + size, T)
        first, last = S - T + start, S - T + stop
        low = 0 if window is None else max(0, first - window + 1)
        mask = visible(stop - start, last - low, window, None if documents is None else documents[:, low:last])
        mask = mask if documents is None else mask[:, None]
        block = _attend(grouped[..., start:stop, :], k[..., low:last, :], v[..., low:last, :], mask, factor)[0]  # type: ignore[index]
        blocks.append(block)
    out = blocks[0] if len(blocks) == 1 else mx.concatenate(blocks, axis=3)
    return out.reshape(B, H, T, D)


@cache
def _attend_in_cpp(scale: float, window: int):
    """q, k, v of float32, [B, T, H, D] and [B, S, Hkv, D], to the output, of q's shape, and for each query the log of
    the sum of e^score, [B, H, T]. In memory that is how layers before and after have them."""

    @mx.custom_function
    def attend(q: mx.array, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        return compiled.load("windowed_attention").forward(q, k, v, scale, window)

    @attend.vjp
    def attend_vjp(primals, cotangents, outputs):
        cpu = compiled.load("windowed_attention")
        return cpu.backward(*primals, *outputs, cotangents[0], scale, window)

    return attend


def _launch(kernel: dispatch.Kernel, *arrays: mx.array) -> list[mx.array]:
    """A body over its inputs; its outputs: float32 [B, H, T], or of the type and shape of q or, for dk and dv, k."""
    q, k = arrays[:2]
    B, H, T, D = q.shape
    held = k if kernel is BACKWARD_DKV else q  # whose rows a threadgroup holds
    shapes = {"lse": (B, H, T), "delta": (B, H, T), "dk": k.shape, "dv": k.shape}
    return kernel(
        *arrays,
        template=[("T", q.dtype), ("D", D), ("BLOCK", 32 if D * q.dtype.size <= 256 else 16)],  # in 17 KB
        grid=(-(-held.shape[2] // ROWS) * THREADS, held.shape[1], B),
        threadgroup=(THREADS, 1, 1),
        output_shapes=[shapes.get(name, q.shape) for name in kernel.outputs],
        output_dtypes=[mx.float32 if name in ("lse", "delta") else q.dtype for name in kernel.outputs],
    )


@mx.custom_function
def _attend_in_kernels(q: mx.array, k: mx.array, v: mx.array, low: mx.array, scale: mx.array) -> list[mx.array]:
    """The output, and log2 of the sum of 2^(score · log2 e) for each query; low int32 [B, T], scale float32 [1]."""
    return _launch(FORWARD, q, k, v, low, scale)


@_attend_in_kernels.vjp
def _attend_in_kernels_vjp(primals, cotangents, outputs):
    q, k, v, low, scale = primals
    out, lse = outputs
    d_out = cotangents[0]
    dq, delta = _launch(BACKWARD_DQ, q, k, v, out, lse, d_out, low, scale)
    dk, dv = _launch(BACKWARD_DKV, q, k, v, lse, delta, d_out, low, scale)
    return dq, dk, dv, mx.zeros_like(low), mx.zeros_like(scale)


def _check(q: mx.array, k: mx.array, v: mx.array, window: int | None, documents: mx.array | None) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype not in DTYPES:
            raise TypeError(f"windowed_attention: {name} must be float32, float16 or bfloat16, not {x.dtype}")
        if x.dtype != q.dtype:
            raise TypeError(f"windowed_attention: {name} is {x.dtype} and q {q.dtype}; they must be alike")
        if x.ndim != 4:
            raise ValueError(f"windowed_attention: {name} must be [batch, heads, positions, size], not {x.shape}")
    (B, H, T, D), (_, Hkv, S, _) = q.shape, k.shape
    if k.shape[0] != B or k.shape[3] != D or T > S:
        raise ValueError(f"windowed_attention: k {k.shape} does not fit q {q.shape} (batch, size, positions)")
    if v.shape != k.shape:
        raise ValueError(f"windowed_attention: v {v.shape} must have k's shape {k.shape}")
    if Hkv == 0 or H % Hkv:
        raise ValueError(f"windowed_attention: q's {H} heads are not a multiple of k's {Hkv}")
    if window is not None and (not isinstance(window, int) or window < 1):
        raise ValueError(f"windowed_attention: window must be a whole number of at least 1, not {window}")
    if documents is not None and documents.shape != (B, S):
        raise ValueError(f"windowed_attention: documents must be {(B, S)}, not {documents.shape}")
    if documents is not None and not mx.issubdtype(documents.dtype, mx.integer):
        raise TypeError(f"windowed_attention: documents must be of an integer type, not {documents.dtype}")


def windowed_attention(
    q: mx.array, k: mx.array, v: mx.array, scale: float, window: int | None = None, documents: mx.array | None = None,
    form: str = "auto",
) -> mx.array:  # fmt: skip
    """Attention of T queries, the last of S positions, each over itself and what came before it.

    q [B, H, T, D]; k, v [B, Hkv, S, D] of q's type (float32, float16, bfloat16), Hkv dividing H, T <= S. A query sees
    at most the `window` newest keys, itself included, and only its own document: `documents` int [B, S] numbers the
    keys' documents, a run of equal numbers being one. Returns [B, H, T, D] in q's dtype; differentiable once in q, k
    and v. form: see `dispatch.use_kernel`. Raises TypeError or ValueError, naming the argument, where these do not
    hold, and dispatch.Unsupported where form="kernel" cannot be had.
    """
    _check(q, k, v, window, documents)
    (B, _, T, D), S = q.shape, k.shape[2]
    if window is not None and window >= S:
        window = None
    plain = window is None and documents is None
    problem = "" if D % 8 == 0 and D <= LARGEST_HEAD else f"q's heads of {D} numbers are no multiple of 8 up to 128"
    # MLX's own kernels are the better ones for plain causality, and after a cache: no gradient, few keys out of sight
    wanted = form == "kernel" or not (plain or T < S)
    kernel = dispatch.use_kernel("windowed_attention", problem, form) if wanted else False
    if q.size == 0:
        return mx.zeros_like(q)
    if kernel:
        low = mx.broadcast_to(first_key(T, S, window, documents), (B, T))
        return _attend_in_kernels(q, k, v, low, mx.array([scale], mx.float32))[0]  # type: ignore[index]
    if mx.default_device().type == mx.DeviceType.cpu:
        if form == "auto" and documents is None and q.dtype == mx.float32 and compiled.load("windowed_attention"):
            attend = _attend_in_cpp(scale, window or S)
            return attend(*(x.swapaxes(1, 2) for x in (q, k, v)))[0].swapaxes(1, 2)
        return _in_blocks(q, k, v, scale, window, documents)
    mask = "causal" if plain else visible(T, S, window, documents)
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=None if T == S == 1 else mask)
