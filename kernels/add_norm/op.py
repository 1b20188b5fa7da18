"""x + change and its norm: MLX's fused norms on a GPU, C++ of our own on a CPU.

MLX's CPU back end makes a norm of six elementwise passes, and its gradient of twenty, one thread each. In a decoding
step on a GPU the two are one launch of `kernels.decode_block`.
"""

from collections.abc import Callable
from functools import cache

import mlx.core as mx
from mlxgpt.kernels import compiled

FORMS = {"metal": "mx.fast", "cuda": "mx.fast", "cpu": "C++"}


def reference(x: mx.array, weight: mx.array, bias: mx.array | None, eps: float, centered: bool) -> mx.array:
    """The norm of x [..., C] in plain MLX."""
    return mx.fast.layer_norm(x, weight, bias, eps) if centered else mx.fast.rms_norm(x, weight, eps)


@cache
def _in_cpp(eps: float, centered: bool, changed: bool, biased: bool) -> Callable[..., list[mx.array]]:
    """x, weight, change and bias where there are such, to the norm and, if changed, x + change."""
    cpu = compiled.load("add_norm")
    assert cpu

    @mx.custom_function
    def run(x, weight, *others):
        rest = list(others)
        change = rest.pop(0) if changed else None
        return cpu.forward(x, weight, change, rest[0] if biased else None, eps, centered)

    @run.vjp
    def run_vjp(primals, cotangents, outputs):
        x = outputs[1] if changed else primals[0]
        d_normed, d_added = cotangents if changed else (cotangents[0], None)
        d_x, *d_weights = cpu.backward(x, primals[1], d_normed, d_added, biased, eps, centered)
        return (d_x, d_weights[0], *([d_x] if changed else []), *d_weights[1:])

    return run  # type: ignore[return-value]


def add_norm(
    x: mx.array, change: mx.array | None, weight: mx.array, bias: mx.array | None, eps: float, centered: bool
) -> tuple[mx.array, mx.array]:  # fmt: skip
    """x + change, where there is one, and its norm over the last axis: LayerNorm if `centered`, else RMSNorm.

    x and change [..., C], weight and bias [C] (RMSNorm has no bias); both results are of x's shape and type.
    Differentiable once.
    """
    others = [a for a in (change, bias) if a is not None]
    float32 = all(a.dtype == mx.float32 for a in (x, weight, *others)) and x.size > 0
    if float32 and mx.default_device() == mx.cpu and compiled.load("add_norm"):
        run = _in_cpp(eps, centered, change is not None, bias is not None)
        normed, *added = run(x, weight, *others)
        return added[0] if added else x, normed
    x = x if change is None else x + change
    return x, reference(x, weight, bias, eps, centered)
