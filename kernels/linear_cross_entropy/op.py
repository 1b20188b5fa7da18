"""Mean cross-entropy of x Wᵀ against token ids, logits made and dropped a chunk of tokens at a time.

The gradient of a mean is known with the loss but for one factor, so dX and dW are made on the way, as in Liger-Kernel
(arXiv 2410.10989, section 3.2), and `.vjp` only scales them: a step keeps one chunk of logits where it would keep all
of them, twice in float32. There is no second chunking over the vocabulary, which costs every product with W again
(arXiv 2411.09009): a kernel walks a row of the chunk in strips, and the chunk has fewer rows where rows are longer.
"""

from collections.abc import Callable
from functools import cache

import mlx.core as mx
from mlxgpt.kernels import compiled, dispatch
from mlxgpt.kernels.bf16_matmul import bf16_matmul

CHUNK = 1 << 25  # logits at a time: 64 MiB of bfloat16, and as much for their gradient
THREADS = 256
DTYPES = (mx.float32, mx.float16, mx.bfloat16)
FORMS = {"metal": "kernel", "cuda": "kernel", "cpu": "the same chunks, rows in C++"}

FORWARD = dispatch.Kernel(__file__, "forward", ("logits", "targets", "ignored", "options"), ("loss", "gradient"))


def reference(
    x: mx.array, weight: mx.array, targets: mx.array, ignore_index: int = -100, softcap: float | None = None,
    z_loss: float = 0.0,
) -> mx.array:  # fmt: skip
    """`linear_cross_entropy` in plain MLX with all logits at once, its gradient MLX's own."""
    logits, targets = (x @ weight.T).astype(mx.float32), targets.astype(mx.int32)
    if softcap is not None:
        logits = softcap * mx.tanh(logits / softcap)
    lse = mx.logsumexp(logits, axis=-1)
    counted = targets != ignore_index
    exists = (targets >= 0) & (targets < logits.shape[-1])
    chosen = mx.take_along_axis(logits, mx.where(exists, targets, 0)[..., None], axis=-1)[..., 0]
    losses = mx.where(counted, lse - mx.where(exists, chosen, mx.nan) + z_loss * lse * lse, 0)
    return losses.sum() / mx.maximum(counted.sum(), 1)


def rows_reference(
    logits: mx.array, targets: mx.array, ignore_index: int, softcap: float | None, z_loss: float
) -> tuple[mx.array, mx.array]:
    """Each row's loss, float32 [N], and its gradient in the row, as logits [N, V]; both 0 for an ignored target."""
    x, slope = logits.astype(mx.float32), None
    if softcap is not None:
        bent = mx.tanh(x / softcap)
        x, slope = softcap * bent, 1 - bent * bent
    top = x.max(axis=-1, keepdims=True)
    e = mx.exp(x - top)
    total = e.sum(axis=-1, keepdims=True)
    lse = top + mx.log(total)
    index = targets[:, None]
    exists = (index >= 0) & (index < x.shape[1])
    chosen = mx.take_along_axis(x, mx.where(exists, index, 0), axis=-1)
    losses = mx.log(total) + (top - mx.where(exists, chosen, mx.nan)) + z_loss * lse * lse
    counted = index != ignore_index
    # one fused loop, where the ignored rows' share and onehot are 0
    share = mx.where(counted, (1 + 2 * z_loss * lse) / total, 0)
    hit = mx.arange(x.shape[1], dtype=mx.int32) == mx.where(counted, index, -1)
    gradient = e * share - hit
    if slope is not None:
        gradient = gradient * slope
    return mx.where(counted, losses, 0)[:, 0], gradient.astype(logits.dtype)


def rows_kernel(
    logits: mx.array, targets: mx.array, ignore_index: int, softcap: float | None, z_loss: float
) -> tuple[mx.array, mx.array]:
    """`rows_reference` by the kernel, a threadgroup a row; targets int32."""
    loss, gradient = FORWARD(
        logits, targets, mx.array([ignore_index], mx.int32), mx.array([softcap or 0.0, z_loss], mx.float32),
        template=[("T", logits.dtype), ("CAPPED", softcap is not None)],
        grid=(logits.shape[0] * THREADS, 1, 1), threadgroup=(THREADS, 1, 1),
        output_shapes=[targets.shape, logits.shape], output_dtypes=[mx.float32, logits.dtype],
    )  # fmt: skip
    return loss, gradient


def rows_cpp(
    logits: mx.array, targets: mx.array, ignore_index: int, softcap: float | None, z_loss: float
) -> tuple[mx.array, mx.array]:
    """`rows_reference` in C++ for float32 logits without a softcap; targets int32."""
    cpu = compiled.load("linear_cross_entropy")
    if cpu is None or softcap is not None or logits.dtype != mx.float32:
        return rows_reference(logits, targets, ignore_index, softcap, z_loss)
    gradient, losses = cpu.rows(logits, targets, ignore_index, z_loss)
    return losses, gradient


@cache
def _function(rows: Callable, ignore_index: int, softcap: float | None, z_loss: float, rounded: bool):
    """x [N, C], weight [V, C], targets int32 [N] to the mean; then what the gradient takes: dX and dW of the sum, the
    tokens counted."""

    def product(x: mx.array, weight: mx.array) -> mx.array:
        return bf16_matmul(x, weight, rounded=True) if rounded else x @ weight.T

    @mx.custom_function
    def mean(x: mx.array, weight: mx.array, targets: mx.array) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        size = max(1, CHUNK // weight.shape[0])
        wide = mx.float32 if x.dtype == mx.float16 else x.dtype  # a sum over tokens may pass float16's 65504
        total = mx.array(0.0)
        dw = mx.array(0.0)
        dx: list[mx.array] = []
        for start in range(0, x.shape[0], size):
            chunk = x[start : start + size]
            if dx:  # one chunk after the other, or all logits are there at once
                chunk = mx.depends(chunk, [total, dx[-1], dw])
            losses, gradient = rows(
                product(chunk, weight), targets[start : start + size], ignore_index, softcap, z_loss
            )
            total = total + losses.sum()
            if rounded:
                d_chunk, d_weight = mx.vjp(product, [chunk, weight], [gradient])[1]
            else:
                d_chunk, d_weight = gradient @ weight, gradient.T.astype(wide) @ chunk.astype(wide)
            dx.append(d_chunk)
            dw = dw + d_weight.astype(mx.float32)
        count = mx.maximum((targets != ignore_index).sum(), 1).astype(mx.float32)
        return total / count, dx[0] if len(dx) == 1 else mx.concatenate(dx), dw, count

    @mean.vjp
    def mean_vjp(primals, cotangents, outputs):
        x, weight, targets = primals
        _, dx, dw, count = outputs
        factor = cotangents[0] / count
        return (dx * factor).astype(x.dtype), (dw * factor).astype(weight.dtype), mx.zeros_like(targets)

    return mean


def _check(x: mx.array, weight: mx.array, targets: mx.array, softcap: float | None, z_loss: float) -> None:
    for name, array in (("x", x), ("weight", weight)):
        if array.dtype not in DTYPES:
            raise TypeError(f"linear_cross_entropy: {name} must be float32, float16 or bfloat16, not {array.dtype}")
    if weight.dtype != x.dtype:
        raise TypeError(f"linear_cross_entropy: weight is {weight.dtype} and x {x.dtype}; they must be alike")
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"linear_cross_entropy: weight must be [vocabulary, size], not {weight.shape}")
    if x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear_cross_entropy: x {x.shape} must end in weight's {weight.shape[1]} columns")
    if targets.shape != x.shape[:-1]:
        raise ValueError(f"linear_cross_entropy: targets {targets.shape} must be x's {x.shape[:-1]}")
    if not mx.issubdtype(targets.dtype, mx.integer):
        raise TypeError(f"linear_cross_entropy: targets must be of an integer type, not {targets.dtype}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"linear_cross_entropy: softcap must be above 0, not {softcap}")
    if not z_loss >= 0:
        raise ValueError(f"linear_cross_entropy: z_loss must be at least 0, not {z_loss}")


def linear_cross_entropy(
    x: mx.array, weight: mx.array, targets: mx.array, ignore_index: int = -100, softcap: float | None = None,
    z_loss: float = 0.0, form: str = "auto", rounded: bool = False,
) -> mx.array:  # fmt: skip
    """The mean over tokens of lse(y) - y[target] + z_loss · lse(y)², in nats, where y = x Wᵀ; float32, a scalar.

    x [..., C] and weight [V, C] of one type (float32, float16, bfloat16), targets int [...]. A target of `ignore_index`
    does not count; the mean of none is 0; any other target outside 0 .. V - 1 makes it NaN. `softcap` c bends y to
    c · tanh(y / c) (Gemma 2, arXiv 2408.00118, section 2); z_loss holds lse near 0 (PaLM, arXiv 2204.02311, section
    5). Differentiable once in x and weight; over several chunks their gradients are made with the value, wanted or
    not. On a CPU, `rounded` has float32's products done in bfloat16. form: see `dispatch.use_kernel`. Raises TypeError
    or ValueError, naming the argument, where this does not hold.
    """
    _check(x, weight, targets, softcap, z_loss)
    if targets.size == 0:
        return mx.array(0.0)
    plain = rows_cpp if form == "auto" else rows_reference
    rows = rows_kernel if dispatch.use_kernel("linear_cross_entropy", form=form) else plain
    mean = _function(rows, ignore_index, softcap, z_loss, rounded)
    return mean(x.reshape(-1, x.shape[-1]), weight, targets.reshape(-1).astype(mx.int32))[0]
