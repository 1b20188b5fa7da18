"""silu(gate) · up (arXiv 2002.05202).

MLX's CPU back end runs sigmoid as a kernel of its own, one libm call an element; written with exp, and with a gradient
that computes it again, each direction is one fused loop under `mx.compile`.
"""

import mlx.core as mx
import mlx.nn as nn

FORMS = {"metal": "mlx.nn", "cuda": "mlx.nn", "cpu": "one fused loop"}


def reference(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) · up, elementwise; the result has the inputs' shape and dtype."""
    return nn.silu(gate) * up


def _sigmoid(x: mx.array) -> mx.array:
    return 1 / (1 + mx.exp(-x))


@mx.custom_function
def _swiglu_cpu(gate: mx.array, up: mx.array) -> mx.array:
    return gate * _sigmoid(gate) * up


@_swiglu_cpu.vjp
def _swiglu_cpu_vjp(primals, cotangent, output):
    gate, up = primals
    s = _sigmoid(gate)
    silu = gate * s
    return cotangent * up * (s + silu * (1 - s)), cotangent * silu


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) · up, elementwise; gate and up have one shape and dtype, and so has the result."""
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    return _swiglu_cpu(gate, up) if on_cpu else reference(gate, up)  # type: ignore[return-value]
