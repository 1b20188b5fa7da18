"""Matrix product with quantized weights."""

from mlxgpt.kernels.quantized_matmul.op import quantized_matmul, reference

__all__ = ["quantized_matmul", "reference"]
