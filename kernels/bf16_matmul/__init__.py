"""Matrix product with bfloat16 weights, added up in float32."""

from mlxgpt.kernels.bf16_matmul.op import bf16_matmul, is_fast, reference

__all__ = ["bf16_matmul", "is_fast", "reference"]
