"""silu(gate) · up (arXiv 2002.05202).

MLX's CPU back end runs sigmoid as a kernel of its own, one libm call an element; written with exp, and with a gradient
that computes it again, each direction is one fused loop under `mx.compile`, and in C++ one on vectors and threads.
"""

import mlx.core as mx
import mlx.nn as nn
from mlxgpt.kernels import compiled

FORMS = {"metal": "mlx.nn", "cuda": "mlx.nn", "cpu": "C++"}


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


@mx.custom_function
def _swiglu_cpp(gate: mx.array, up: mx.array) -> mx.array:
    return compiled.load("swiglu").swiglu(gate, up)


@_swiglu_cpp.vjp
def _swiglu_cpp_vjp(primals, cotangent, output):
    return compiled.load("swiglu").swiglu_backward(*primals, cotangent)


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) · up, elementwise; gate and up have one shape and dtype, and so has the result."""
    if mx.default_device().type != mx.DeviceType.cpu:
        return reference(gate, up)
    in_cpp = gate.dtype == up.dtype == mx.float32 and gate.shape == up.shape and compiled.load("swiglu")
    return (_swiglu_cpp if in_cpp else _swiglu_cpu)(gate, up)  # type: ignore[return-value]
