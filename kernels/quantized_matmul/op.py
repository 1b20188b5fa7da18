"""x · dequantize(w)ᵀ: MLX's kernels on a GPU, C++ of our own on a CPU, where MLX's is a loop over scalars.

The gradient in x, dy · dequantize(w), is MLX's on a GPU; on a CPU, where MLX's is scalar too, BLAS's product with some
columns of w at a time, in float32: what QLoRA (arXiv 2305.14314) trains through.

On a CPU each group of x is rounded to 16 bits (`cpu.cpp`): to 2⁻¹⁶ of the largest number in the group, so the result
keeps four to five digits, more than bfloat16 holds.
"""

import mlx.core as mx
from mlxgpt.kernels import compiled

FORMS = {"metal": "mx.quantized_matmul", "cuda": "mx.quantized_matmul", "cpu": "C++"}


def reference(
    x: mx.array, w: mx.array, scales: mx.array, biases: mx.array | None, group_size: int, bits: int,
    mode: str = "affine",
) -> mx.array:  # fmt: skip
    """`mx.quantized_matmul` by the transpose of w; shapes as in `quantized_matmul`."""
    return mx.quantized_matmul(x, w, scales, biases, transpose=True, group_size=group_size, bits=bits, mode=mode)


def quantized_matmul(
    x: mx.array, w: mx.array, scales: mx.array, biases: mx.array | None, group_size: int, bits: int,
    mode: str = "affine",
) -> mx.array:  # fmt: skip
    """x [..., K] by the transpose of w, which `mx.quantize` made of an [N, K] matrix: [..., N].

    w is uint32 [N, K · bits / 32], `scales` and `biases` [N, K / group_size]. The result has the type that x and the
    scales promote to. Differentiable in x.
    """
    if mode == "affine" and bits in (4, 8) and (cpu := compiled.load("quantized_matmul")):
        return cpu.quantized_matmul(x, w, scales, biases, group_size, bits)  # what it has no form for goes to MLX's
    return reference(x, w, scales, biases, group_size, bits, mode)
