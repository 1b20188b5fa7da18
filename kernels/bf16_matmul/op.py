"""x · wᵀ for weights of bfloat16, added up in float32: MLX's product on a GPU, C++ of our own on a CPU.

MLX's CPU product of bfloat16 is scalar, so weights had to be held as float32, twice the memory and twice the bytes that
a token's decoding reads.
"""

import mlx.core as mx
from mlxgpt.kernels import compiled

FORMS = {"metal": "MLX's product", "cuda": "MLX's product", "cpu": "C++"}


def reference(x: mx.array, w: mx.array) -> mx.array:
    """x [..., K] by the transpose of w [N, K], both widened to float32; the result [..., N] is of x's type."""
    return (x.astype(mx.float32) @ w.astype(mx.float32).T).astype(x.dtype)


def bf16_matmul(x: mx.array, w: mx.array) -> mx.array:
    """x [..., K], float32 or bfloat16, by the transpose of w, bfloat16 [N, K]: [..., N], float32 where x is.

    On a CPU a float32 x keeps 16 bits of each number's fraction, to 2⁻¹⁷ of it; w is exact. Differentiable in both, as
    PyTorch's autocast to bfloat16 is: dw is of x rounded to bfloat16, and of w's type.
    """
    if mx.default_device() != mx.cpu:
        return x @ w.T
    cpu = compiled.load("bf16_matmul")
    return cpu.bf16_matmul(x, w) if cpu else reference(x, w)
