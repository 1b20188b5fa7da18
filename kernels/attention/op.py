"""Causal attention with an optional sliding window: MLX's fused kernel on a GPU, blocks of queries on a CPU.

MLX's CPU back end computes the whole T×S score matrix. Causal scores are half empty and windowed ones emptier,
so there each block of queries meets only the keys it can see.
"""

import mlx.core as mx

FORMS = {"metal": "mx.fast", "cuda": "mx.fast", "cpu": "blocks of queries"}
BLOCKS = 4  # query blocks on a CPU; the share of scores computed is (BLOCKS + 1) / (2 BLOCKS)


def visible(T: int, S: int, window: int | None) -> mx.array:
    """Boolean [T, S]: may query i, at position S - T + i, see key j? Causal, and closer than `window`."""
    query = mx.arange(S - T, S)[:, None]
    key = mx.arange(S)[None, :]
    mask = key <= query
    return mask if window is None else mask & (key > query - window)


def reference(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array, dropout: float = 0.0) -> mx.array:
    """softmax(scale · q kᵀ, where mask) v in plain MLX, computed in q's dtype with a float32 softmax.

    q [B, H, T, D]; k, v [B, Hkv, S, D] with Hkv dividing H (grouped queries); mask broadcasts to [T, S], true
    where a key is seen. `dropout` is the share of attention weights dropped. Returns [B, H, T, D].
    """
    B, H, T, D = q.shape
    groups = H // k.shape[1]
    if groups > 1:
        q = q.reshape(B, k.shape[1], groups, T, D)
        k, v = k[:, :, None], v[:, :, None]
    scores = ((q * scale) @ k.swapaxes(-1, -2)).astype(mx.float32)
    scores = mx.where(mask, scores, -mx.inf)
    # exp and a multiplication fuse under mx.compile, where mx.softmax is a kernel of its own
    weights = mx.exp(scores - mx.stop_gradient(scores.max(axis=-1, keepdims=True)))
    weights = weights * (1 / weights.sum(axis=-1, keepdims=True))
    if dropout > 0:
        weights = weights * mx.random.bernoulli(1 - dropout, weights.shape) * (1 / (1 - dropout))
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


def causal_attention(
    q: mx.array, k: mx.array, v: mx.array, scale: float, window: int | None = None, dropout: float = 0.0
) -> mx.array:
    """Attention of T queries, the last of S positions, each over itself and what came before it.

    q [B, H, T, D]; k, v [B, Hkv, S, D], T <= S; a query sees at most the `window` newest keys, itself included.
    Returns [B, H, T, D] in q's dtype. Mistral's window: arXiv 2310.06825, section 2.
    """
    T, S = q.shape[2], k.shape[2]
    if window is not None and window >= S:
        window = None
    if dropout > 0:
        return reference(q, k, v, scale, visible(T, S, window), dropout)
    if mx.default_device().type == mx.DeviceType.gpu:
        mask = "causal" if window is None else visible(T, S, window)
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=None if T == S == 1 else mask)
    B, H, _, D = q.shape
    grouped = q.reshape(B, k.shape[1], -1, T, D)
    k, v, factor = k[:, :, None], v[:, :, None], mx.array(scale)  # float32, as the scores are
    size = -(-T // BLOCKS) if T >= 32 * BLOCKS else T
    blocks = []
    for start in range(0, T, size):
        stop = min(start + size, T)
        first, last = S - T + start, S - T + stop
        low = 0 if window is None else max(0, first - window + 1)
        mask = visible(stop - start, last - low, window)
        block = _attend(grouped[..., start:stop, :], k[..., low:last, :], v[..., low:last, :], mask, factor)[0]  # type: ignore[index]
        blocks.append(block)
    out = blocks[0] if len(blocks) == 1 else mx.concatenate(blocks, axis=3)
    return out.reshape(B, H, T, D)


def masked_attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array) -> mx.array:
    """Attention under an explicit boolean mask, [T, S] or [B, 1, T, S], for a cache of fixed size.

    Shapes as in `reference`; at least one key must be visible to each query.
    """
    if mx.default_device().type == mx.DeviceType.gpu:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    return reference(q, k, v, scale, mask if mask.ndim < 4 or q.shape[1] == k.shape[1] else mask[:, :, None])
