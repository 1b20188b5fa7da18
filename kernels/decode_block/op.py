"""What joins the matrix products of one decoding step: residual and norm, and rotary positions, in a launch each.

A launch costs some microseconds, and a small model's step is little else. What the exported graph of the compiled step
counts to for a layer of Mistral's, with MLX's fused norm, rotation and attention as one each:

    norm 2 | product 7 | rotation 2 | write into the cache 2 | attention 1 | addition 2 | silu(gate) · up 1 | in all 17

Here an addition and the norm after it are one, and so are the rotations of queries and keys: 14. For GPT-2, without
rotations, 12 become 10; with quantized weights nothing is won, since compiling adds the bias and the residual at once.
`silu(gate) · up` is one already: `mx.compile` fuses it. The write into the cache stays MLX's:
a kernel's output is never its input's memory, so it would have to copy the cache.
"""

import math

import mlx.core as mx
from mlxgpt.kernels import dispatch
from mlxgpt.kernels.add_norm import reference as norm
from mlxgpt.kernels.rope import reference as rope

DTYPES = (mx.float32, mx.float16, mx.bfloat16)
FORMS = {"metal": "kernel", "cuda": "kernel", "cpu": "reference"}
MOST_THREADS = 1024
THREADS = 128

ADD_NORM = dispatch.Kernel(
    __file__, "add_norm", ("x", "change", "weight", "bias", "eps"), ("added", "normed")
)  # fmt: skip
ROTATE = dispatch.Kernel(
    __file__, "rotate", ("q", "k", "offset", "log2_base", "sizes"), ("q_out", "k_out")
)  # fmt: skip


def reference_add_norm(
    x: mx.array, change: mx.array, weight: mx.array, bias: mx.array | None, eps: float, centered: bool
) -> tuple[mx.array, mx.array]:
    """`add_norm` in plain MLX."""
    added = x + change
    return added, norm(added, weight, bias, eps, centered)


def add_norm(
    x: mx.array, change: mx.array, weight: mx.array, bias: mx.array | None, eps: float, centered: bool,
    form: str = "auto",
) -> tuple[mx.array, mx.array]:  # fmt: skip
    """x + change, and its norm over the last axis: LayerNorm if `centered`, else RMSNorm, which has no bias.

    x and change [..., C], weight and bias [C], all of one of float32, float16 and bfloat16; the sum is rounded to it
    and then normalised in float32. Returns both, [..., C]; not differentiable.

    form: see `dispatch.use_kernel`. Raises TypeError for a dtype, ValueError for a shape, dispatch.Unsupported where
    form="kernel" and there is no GPU.
    """
    _check_add_norm(x, change, weight, bias, centered)
    if not dispatch.use_kernel("decode_block", _large(x=x), form):
        return reference_add_norm(x, change, weight, bias, eps, centered)
    if not x.size:
        return x, x
    C = x.shape[-1]
    threads = min(MOST_THREADS, -(-C // 32) * 32)
    added, normed = ADD_NORM(
        x, change, weight, weight if bias is None else bias, mx.array([eps], mx.float32),
        template=[("T", x.dtype), ("C", C), ("CENTERED", centered), ("BIASED", bias is not None)],
        grid=(x.size // C * threads, 1, 1), threadgroup=(threads, 1, 1), output_shapes=[x.shape, x.shape],
        output_dtypes=[x.dtype, x.dtype],
    )  # fmt: skip
    return added, normed


def reference_rotate(q: mx.array, k: mx.array, offset: mx.array, base: float) -> tuple[mx.array, mx.array]:
    """`rotate` in plain MLX."""
    return rope(q, offset, base), rope(k, offset, base)


def rotate(
    q: mx.array, k: mx.array, offset: mx.array, base: float, form: str = "auto"
) -> tuple[mx.array, mx.array]:  # fmt: skip
    """Queries and keys after rotary positions (arXiv 2104.09864), number i of a head paired with i + D / 2.

    q [B, H, T, D] and k [B, Hkv, T, D], of one of float32, float16 and bfloat16, D even; offset integers [B], the
    position of the first of the T; base: that of the frequencies, above 1. Returns both; not differentiable.

    form: see `dispatch.use_kernel`. Raises TypeError for a dtype, ValueError for a shape or base, dispatch.Unsupported
    where form="kernel" and there is no GPU.
    """
    _check_rotate(q, k, offset, base)
    if not dispatch.use_kernel("decode_block", _large(q=q, k=k), form):
        return reference_rotate(q, k, offset, base)
    pairs = (q.size + k.size) // 2
    if not pairs:
        return q, k
    _, H, T, D = q.shape
    q, k = ROTATE(
        q, k, offset.astype(mx.int32), mx.array([math.log2(base)], mx.float32),
        mx.array([H, k.shape[1], T, pairs], mx.uint32), template=[("T", q.dtype), ("D", D)],
        grid=(-(-pairs // THREADS) * THREADS, 1, 1), threadgroup=(THREADS, 1, 1), output_shapes=[q.shape, k.shape],
        output_dtypes=[q.dtype, q.dtype],
    )  # fmt: skip
    return q, k


def _large(**arrays: mx.array) -> str:
    name = next((name for name, x in arrays.items() if x.size >= 1 << 31), "")
    return f"{name} has 2^31 elements or more" if name else ""


def _check_dtypes(op: str, arrays: dict[str, mx.array]) -> None:
    (first, x), *rest = arrays.items()
    if x.dtype not in DTYPES:
        raise TypeError(f"{op}: {first} must be float32, float16 or bfloat16, not {x.dtype}")
    for name, other in rest:
        if other.dtype != x.dtype:
            raise TypeError(f"{op}: {name} is {other.dtype}, {first} {x.dtype}")


def _check_add_norm(x: mx.array, change: mx.array, weight: mx.array, bias: mx.array | None, centered: bool) -> None:
    if bias is not None and not centered:
        raise ValueError("add_norm: bias is LayerNorm's, and centered is false")
    rest = {} if bias is None else {"bias": bias}
    _check_dtypes("add_norm", {"x": x, "change": change, "weight": weight, **rest})
    if not x.ndim or not x.shape[-1] or change.shape != x.shape:
        raise ValueError(f"add_norm: x and change must be [..., C] alike, not {list(x.shape)} and {list(change.shape)}")
    for name, array in {"weight": weight, **rest}.items():
        if array.shape != x.shape[-1:]:
            raise ValueError(f"add_norm: {name} must be [{x.shape[-1]}], not {list(array.shape)}")


def _check_rotate(q: mx.array, k: mx.array, offset: mx.array, base: float) -> None:
    _check_dtypes("rotate", {"q": q, "k": k})
    if q.ndim != 4 or q.shape[-1] % 2 or not q.shape[-1]:
        raise ValueError(f"rotate: q must be [B, H, T, D] with D even, not {list(q.shape)}")
    if k.ndim != 4 or (k.shape[0], *k.shape[2:]) != (q.shape[0], *q.shape[2:]):
        raise ValueError(f"rotate: k must be [{q.shape[0]}, Hkv, {q.shape[2]}, {q.shape[3]}], not {list(k.shape)}")
    if offset.shape != (q.shape[0],) or not mx.issubdtype(offset.dtype, mx.integer):
        raise ValueError(f"rotate: offset must be integers [{q.shape[0]}], not {offset.dtype} {list(offset.shape)}")
    if not 1 < base < math.inf:
        raise ValueError(f"rotate: base must be above 1 and finite, not {base}")
