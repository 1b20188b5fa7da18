"""Causal attention as models and caches ask for it: with dropout, or under a mask of their own."""

from functools import cache

import mlx.core as mx
from mlxgpt.kernels import compiled
from mlxgpt.kernels.windowed_attention import reference, visible, windowed_attention

FORMS = {"metal": "mx.fast", "cuda": "mx.fast", "cpu": "C++"}
FEW = 8  # queries: more are better done by products of matrices


@cache
def _in_cpp(scale: float):
    cpu = compiled.load("attention")
    assert cpu

    @mx.custom_function
    def attend(q, k, v, mask):
        return cpu.attend(q, k, v, mask, scale)

    @attend.vjp
    def attend_vjp(primals, cotangent, output):
        q, k, v, mask = primals
        gradients = mx.vjp(lambda *qkv: reference(*qkv, scale, mask), [q, k, v], [cotangent])[1]
        return (*gradients, mx.zeros_like(mask))

    return attend


def causal_attention(
    q: mx.array, k: mx.array, v: mx.array, scale: float, window: int | None = None, dropout: float = 0.0,
    documents: mx.array | None = None, key: mx.array | None = None,
) -> mx.array:  # fmt: skip
    """Attention of T queries, the last of S positions, each over itself and what came before it.

    q [B, H, T, D]; k, v [B, Hkv, S, D], T <= S; a query sees at most the `window` newest keys, itself included.
    `dropout` is the share of attention weights dropped, drawn with `key` (None: MLX's own), `documents` as in
    `windowed_attention`. Returns [B, H, T, D] in q's dtype.
    """
    if dropout > 0:
        return reference(q, k, v, scale, visible(q.shape[2], k.shape[2], window, documents), dropout, key)
    return windowed_attention(q, k, v, scale, window, documents)


def masked_attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array) -> mx.array:
    """Attention under an explicit boolean mask, [T, S] or [B, 1, T, S], for a cache of fixed size.

    Shapes as in `reference`; at least one key must be visible to each query. Differentiable once.
    """
    if mx.default_device().type == mx.DeviceType.gpu:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    float32 = q.dtype == k.dtype == v.dtype == mx.float32 and q.size > 0
    if float32 and q.shape[2] <= FEW and compiled.load("attention"):
        return _in_cpp(scale)(q, k, v, mask)
    return reference(q, k, v, scale, mask)
