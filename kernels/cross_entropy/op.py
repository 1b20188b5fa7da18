"""Cross-entropy of logits against token ids, in nats: MLX's fused loss on a GPU, two passes over the row on a CPU.

MLX's CPU log-sum-exp is one libm call an element, and its gradient materialises a softmax; here the exponentials
fuse under `mx.compile` and the gradient is one loop: softmax - onehot.
"""

import mlx.core as mx
import mlx.nn as nn

FORMS = {"metal": "mlx.nn", "cuda": "mlx.nn", "cpu": "two fused passes"}


def reference(logits: mx.array, targets: mx.array) -> mx.array:
    """-log softmax(logits)[target]: logits [..., V], targets int [...]; float32 [...]."""
    return nn.losses.cross_entropy(logits.astype(mx.float32), targets)


def _exponentials(logits: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    top = logits.max(axis=-1, keepdims=True)
    e = mx.exp(logits - top)
    return e, e.sum(axis=-1, keepdims=True), top


@mx.custom_function
def _cross_entropy_cpu(logits: mx.array, targets: mx.array) -> mx.array:
    _, total, top = _exponentials(logits)
    picked = mx.take_along_axis(logits, targets[..., None], axis=-1)
    return (mx.log(total) + (top - picked))[..., 0]  # top and picked may be large and near each other


@_cross_entropy_cpu.vjp
def _cross_entropy_cpu_vjp(primals, cotangent, output):
    logits, targets = primals
    e, total, _ = _exponentials(logits)
    scale = cotangent[..., None]
    softmax = e * (scale / total)
    hit = mx.arange(logits.shape[-1], dtype=targets.dtype) == targets[..., None]
    return mx.where(hit, softmax - scale, softmax), mx.zeros_like(targets)


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """-log softmax(logits)[target] for each position: logits [..., V] of any float type, targets int [...].

    Computed in float32; returns float32 [...]. Differentiable in the logits.
    """
    if mx.default_device().type == mx.DeviceType.cpu:
        return _cross_entropy_cpu(logits.astype(mx.float32), targets)  # type: ignore[return-value]
    return reference(logits, targets)
