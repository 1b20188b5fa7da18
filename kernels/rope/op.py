"""Rotary positions (arXiv 2104.09864): MLX's fused form on a GPU, C++ of our own on a CPU.

MLX's CPU back end makes them of four products and a concatenation, one thread each.
"""

from functools import cache

import mlx.core as mx
from mlxgpt.kernels import compiled

FORMS = {"metal": "mx.fast", "cuda": "mx.fast", "cpu": "C++"}


def reference(x: mx.array, offset: int | mx.array, base: float) -> mx.array:
    """`rope` in plain MLX."""
    return mx.fast.rope(x, x.shape[-1], traditional=False, base=base, scale=1.0, offset=offset)


@cache
def _in_cpp(base: float):
    cpu = compiled.load("rope")
    assert cpu

    @mx.custom_function
    def turn(x, offset):
        return cpu.rotate(x, offset, base, False)

    @turn.vjp
    def turn_vjp(primals, cotangent, output):
        return cpu.rotate(cotangent, primals[1], base, True), mx.zeros_like(primals[1])

    return turn


def rope(x: mx.array, offset: int | mx.array, base: float) -> mx.array:
    """x [B, H, T, D] turned by positions from `offset` on, an int or int [B]; D even, number i paired with i + D / 2.

    The result is of x's shape and type. Differentiable once in x.
    """
    if x.dtype == mx.float32 and x.size and mx.default_device() == mx.cpu and compiled.load("rope"):
        return _in_cpp(base)(x.swapaxes(1, 2), mx.array(offset, mx.int32)).swapaxes(1, 2)  # rows as a product made them
    return reference(x, offset, base)
