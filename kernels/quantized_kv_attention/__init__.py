"""Attention of a few queries over a quantized ring of keys and values."""

from mlxgpt.kernels.quantized_kv_attention.op import MOST_QUERIES, problem, quantized_kv_attention, reference

__all__ = ["MOST_QUERIES", "problem", "quantized_kv_attention", "reference"]
