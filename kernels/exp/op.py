"""exp: the smallest whole operation, and the page to learn from.

A body in Metal Shading Language for each direction, a reference in plain MLX, and an `mx.custom_function` that ties
them into MLX's gradients. On Metal the bodies run, on CUDA their translation; elsewhere the reference does.
"""

import mlx.core as mx
from mlxgpt.kernels import dispatch

THREADS = 256
DTYPES = (mx.float32, mx.float16, mx.bfloat16)
FORMS = {"metal": "kernel", "cuda": "kernel", "cpu": "reference"}

FORWARD = dispatch.Kernel(__file__, "forward", ("x", "size"), ("y",))
BACKWARD = dispatch.Kernel(__file__, "backward", ("dy", "y", "size"), ("dx",))


def reference(x: mx.array) -> mx.array:
    """exp(x), elementwise, computed in float32 and returned in x's shape and dtype."""
    return mx.exp(x.astype(mx.float32)).astype(x.dtype)


def _launch(kernel: dispatch.Kernel, *arrays: mx.array) -> mx.array:
    """A body over arrays of one shape and dtype, one thread an element; the result has the same."""
    like = arrays[0]
    groups = -(-like.size // THREADS)
    return kernel(
        *arrays,
        mx.array([like.size], mx.uint32),
        template=[("T", like.dtype)],
        grid=(groups * THREADS, 1, 1),
        threadgroup=(THREADS, 1, 1),
        output_shapes=[like.shape],
        output_dtypes=[like.dtype],
    )[0]


@mx.custom_function
def _exp(x: mx.array) -> mx.array:
    return _launch(FORWARD, x)


@_exp.vjp
def _exp_vjp(primal, cotangent, output):
    return _launch(BACKWARD, cotangent, output)


def exp(x: mx.array, form: str = "auto") -> mx.array:
    """exp(x), elementwise, for float32, float16 and bfloat16 of any shape; differentiable once.

    form: see `dispatch.use_kernel`. Raises TypeError for another dtype, dispatch.Unsupported where form="kernel" and
    there is no GPU.
    """
    if x.dtype not in DTYPES:
        raise TypeError(f"exp takes float32, float16 or bfloat16, not {x.dtype}")
    problem = "x has 2^32 elements or more" if x.size >= 1 << 32 else ""
    if not dispatch.use_kernel("exp", problem, form) or not x.size:
        return reference(x)
    return _exp(x)  # type: ignore[return-value]
