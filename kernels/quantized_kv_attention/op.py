"""Attention of one to eight queries over keys and values kept in 8 or 4 bits, in a ring of fixed capacity.

Plain MLX dequantizes all of the ring, writes it and reads it again: 4.5 + 16 + 16 bits a number where the kernel reads
4.5, and reads only what the window leaves. The query heads of a key head share what is read of it. Long rings are split
over threadgroups, whose parts a second kernel combines (flash decoding), because one key head alone would keep one
core of the GPU busy.
"""

from collections.abc import Sequence

import mlx.core as mx
from mlxgpt.kernels import dispatch

DTYPES = (mx.float32, mx.float16, mx.bfloat16)
FORMS = {"metal": "kernel", "cuda": "kernel", "cpu": "reference"}
HEADS = (32, 64, 96, 128)
MOST_QUERIES = 8
MOST_ROWS = 8  # queries that share a threadgroup: their sums stay in registers
THREADS = 256
SPLIT = 256  # positions that are worth a threadgroup of their own
MOST_SPLITS = 32
ENDLESS = (1 << 31) - 1

RING = ("k_words", "k_scales", "k_biases", "v_words", "v_scales", "v_biases")
FORWARD = dispatch.Kernel(
    __file__, "forward", ("q", *RING, "position", "scale", "sizes"), ("parts", "highests", "sums")
)  # fmt: skip
COMBINE = dispatch.Kernel(__file__, "combine", ("parts", "highests", "sums"), ("out",))


def visible(position: mx.array, capacity: int, T: int, window: int | None) -> mx.array:
    """Boolean [B, T, capacity]: may query t, at position - T + 1 + t, see what each slot of the ring holds?"""
    age = (position[:, None] - mx.arange(capacity)) % capacity  # 0 for the slot of the newest position
    held = (position[:, None] - age)[:, None]
    query = (position[:, None] - mx.arange(T - 1, -1, -1))[..., None]
    mask = (held >= 0) & (held <= query)
    return mask if window is None else mask & (query - held < window)


def reference(
    q: mx.array, ring: Sequence[mx.array], position: mx.array, scale: float, bits: int, window: int | None = None
) -> mx.array:
    """`quantized_kv_attention` in plain MLX: dequantized, then computed in float32."""
    B, H, T, D = q.shape
    Hkv, capacity = ring[0].shape[1:3]
    group = D // ring[1].shape[-1]
    keys, values = (
        mx.dequantize(ring[i], ring[i + 1], ring[i + 2], group, bits).astype(mx.float32)[:, :, None] for i in (0, 3)
    )
    grouped = q.astype(mx.float32).reshape(B, Hkv, H // Hkv, T, D)
    scores = grouped @ keys.swapaxes(-1, -2) * scale
    scores = mx.where(visible(position, capacity, T, window)[:, None, None], scores, -mx.inf)
    return (mx.softmax(scores, axis=-1) @ values).reshape(B, H, T, D).astype(q.dtype)


def problem(q: mx.array, ring: Sequence[mx.array]) -> str:
    """Why the kernel cannot take what the op can; "" where it can."""
    if q.shape[-1] not in HEADS:
        return f"q has heads of {q.shape[-1]}, and the kernel takes {', '.join(map(str, HEADS))}"
    return "q or ring has 2^31 elements or more" if max(x.size for x in (q, *ring)) >= 1 << 31 else ""


def quantized_kv_attention(
    q: mx.array, ring: Sequence[mx.array], position: mx.array, scale: float, bits: int, window: int | None = None,
    form: str = "auto",
) -> mx.array:  # fmt: skip
    """softmax(scale · q kᵀ) v for the T newest positions of a quantized cache, 1 <= T <= 8, causal.

    q [B, H, T, D] in float32, float16 or bfloat16, D 32, 64, 96 or 128. ring: what `mx.quantize` makes of the keys and
    then of the values, each its words uint32 [B, Hkv, capacity, D · bits / 32], its scales and its biases [B, Hkv,
    capacity, D / group], with Hkv dividing H, bits 8 or 4; position p lies in slot p modulo the capacity. position:
    int32 [B], that of the newest key and the last query, which the ring already holds; not checked. `window`: keys a
    query sees, itself included, unset: all; with T - 1 at most the capacity. Returns [B, H, T, D] in q's dtype.

    form: see `dispatch.use_kernel`. Raises TypeError for a dtype, ValueError for a shape or size that does not fit,
    dispatch.Unsupported where form="kernel" and there is no GPU, or a head of another size.
    """
    _check(q, ring, position, bits, window)
    B, H, T, D = q.shape
    Hkv, capacity = ring[0].shape[1:3]
    if not dispatch.use_kernel("quantized_kv_attention", problem(q, ring), form):
        return reference(q, ring, position, scale, bits, window)
    if not q.size:
        return mx.zeros_like(q)
    queries = H // Hkv * T
    rows = min(queries, MOST_ROWS)
    blocks = -(-queries // rows)
    splits = max(1, min(MOST_SPLITS, min(capacity, window or capacity) // SPLIT))
    whole = splits == 1
    parts = FORWARD(
        q, *ring, position.astype(mx.int32), mx.array([scale], mx.float32),
        mx.array([capacity, min(window or ENDLESS, ENDLESS), T, H // Hkv, blocks], mx.int32),
        template=[
            ("O", q.dtype if whole else mx.float32), ("D", D), ("BITS", bits), ("GROUP", D // ring[1].shape[-1]),
            ("ROWS", rows), ("SPLITS", splits),
        ],
        grid=(splits * THREADS, Hkv * blocks, B), threadgroup=(THREADS, 1, 1),
        output_shapes=[q.shape if whole else (B, H, T, splits, D), (B, H, T, splits), (B, H, T, splits)],
        output_dtypes=[q.dtype if whole else mx.float32, mx.float32, mx.float32],
    )  # fmt: skip
    if whole:
        return parts[0]
    return COMBINE(
        *parts, template=[("T", q.dtype), ("D", D), ("SPLITS", splits)], grid=(B * H * T * D, 1, 1),
        threadgroup=(D, 1, 1), output_shapes=[q.shape], output_dtypes=[q.dtype],
    )[0]  # fmt: skip


def _check(q: mx.array, ring: Sequence[mx.array], position: mx.array, bits: int, window: int | None) -> None:
    op = "quantized_kv_attention"
    if q.dtype not in DTYPES:
        raise TypeError(f"{op}: q must be float32, float16 or bfloat16, not {q.dtype}")
    if q.ndim != 4 or not 1 <= q.shape[2] <= MOST_QUERIES:
        raise ValueError(f"{op}: q must be [B, H, T, D] with T from 1 to {MOST_QUERIES}, not {list(q.shape)}")
    if bits not in (4, 8):
        raise ValueError(f"{op}: bits must be 4 or 8, not {bits}")
    if window is not None and window < 1:
        raise ValueError(f"{op}: window must be at least 1, not {window}")
    if len(ring) != len(RING) or ring[0].ndim != 4:
        raise ValueError(
            f"{op}: ring must be words, scales and biases of keys and of values, [B, Hkv, capacity, ...] each"
        )
    B, H, T, D = q.shape
    Hkv, capacity = ring[0].shape[1:3]
    if not Hkv or H % Hkv:
        raise ValueError(f"{op}: q has {H} heads, which is no multiple of the {Hkv} of ring")
    if capacity < T:
        raise ValueError(f"{op}: q has {T} positions and ring room for {capacity}")
    groups = ring[1].shape[-1]
    for name, x in zip(RING, ring, strict=True):
        words = name.endswith("words")
        shape = (B, Hkv, capacity, D * bits // 32 if words else groups)
        if (words and x.dtype != mx.uint32) or (not words and x.dtype not in DTYPES):
            raise TypeError(f"{op}: {name} must be {'uint32' if words else 'floating'}, not {x.dtype}")
        if x.shape != shape or not groups or D % groups:
            raise ValueError(f"{op}: {name} must be {list(shape)} for such q and {bits} bits, not {list(x.shape)}")
    if position.shape != (B,) or not mx.issubdtype(position.dtype, mx.integer):
        raise ValueError(f"{op}: position must be integers [{B}], not {position.dtype} {list(position.shape)}")
