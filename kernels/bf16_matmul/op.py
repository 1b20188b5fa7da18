"""x · wᵀ for weights of bfloat16, added up in float32: MLX's product on a GPU, C++ of our own on a CPU.

MLX's CPU product of bfloat16 is scalar, so weights had to be held as float32, twice the memory and twice the bytes that
a token's decoding reads; and training computed in float32, which takes a CPU with AVX512-BF16 twice as long.
"""

import mlx.core as mx
from mlxgpt.kernels import compiled

FORMS = {"metal": "MLX's product", "cuda": "MLX's product", "cpu": "C++"}


def reference(x: mx.array, w: mx.array, rounded: bool = False) -> mx.array:
    """x [..., K] by the transpose of w [N, K] in float32, with `rounded` as bfloat16 has them; [..., N] of x's type."""
    if rounded:
        x, w = x.astype(mx.bfloat16).astype(x.dtype), w.astype(mx.bfloat16)
    return (x.astype(mx.float32) @ w.astype(mx.float32).T).astype(x.dtype)


def bf16_matmul(x: mx.array, w: mx.array, rounded: bool = False) -> mx.array:
    """x [..., K], float32 or bfloat16, by the transpose of w, bfloat16 [N, K]: [..., N], float32 where x is.

    On a CPU a float32 x keeps 16 bits of each number's fraction, to 2⁻¹⁷ of it; w is exact. Differentiable in both: dw
    is of x rounded to bfloat16, and of w's type. With `rounded` x is rounded to bfloat16 itself, in the gradients dy
    too, as PyTorch's autocast does; w may then be float32, and dw is.
    """
    if mx.default_device() != mx.cpu:
        return x @ w.T
    cpu = compiled.load("bf16_matmul")
    return cpu.bf16_matmul(x, w, rounded) if cpu else reference(x, w, rounded)


def is_fast() -> bool:
    """Whether products of float32 are faster `rounded`: on a CPU with instructions for it, and the C++ compiled."""
    cpu = compiled.load("bf16_matmul")
    return cpu is not None and cpu.fast
