"""exp: the smallest whole operation, and the page to learn from.

A body in Metal Shading Language for each direction, a reference in plain MLX, and an `mx.custom_function` that ties
them into MLX's gradients. On Metal the bodies run; elsewhere the reference does.
"""

from functools import cache
from pathlib import Path

import mlx.core as mx

THREADS = 256
DTYPES = (mx.float32, mx.float16, mx.bfloat16)


def reference(x: mx.array) -> mx.array:
    """exp(x), elementwise, computed in float32 and returned in x's shape and dtype."""
    return mx.exp(x.astype(mx.float32)).astype(x.dtype)


@cache
def _kernel(direction: str, inputs: tuple[str, ...], output: str):
    body = Path(__file__).with_name(f"{direction}.metal").read_text()
    return mx.fast.metal_kernel(
        name=f"exp_{direction}", input_names=[*inputs, "size"], output_names=[output], source=body
    )


def run_kernel(direction: str, names: tuple[str, ...], output: str, *arrays: mx.array) -> mx.array:
    """Launch one of the bodies over arrays of one shape and dtype; the result has the same."""
    like = arrays[0]
    groups = -(-like.size // THREADS)
    return _kernel(direction, names, output)(
        inputs=[*arrays, mx.array([like.size], mx.uint32)],
        template=[("T", like.dtype)],
        grid=(groups * THREADS, 1, 1),
        threadgroup=(THREADS, 1, 1),
        output_shapes=[like.shape],
        output_dtypes=[like.dtype],
    )[0]


@mx.custom_function
def _exp_metal(x: mx.array) -> mx.array:
    return run_kernel("forward", ("x",), "y", x)


@_exp_metal.vjp
def _exp_metal_vjp(primal, cotangent, output):
    return run_kernel("backward", ("dy", "y"), "dx", cotangent, output)


def exp(x: mx.array) -> mx.array:
    """exp(x), elementwise, for float32, float16 and bfloat16 of any shape; differentiable once.

    Raises TypeError for another dtype.
    """
    if x.dtype not in DTYPES:
        raise TypeError(f"exp takes float32, float16 or bfloat16, not {x.dtype}")
    on_metal = mx.metal.is_available() and mx.default_device().type == mx.DeviceType.gpu
    return _exp_metal(x) if on_metal and x.size else reference(x)  # type: ignore[return-value]
