"""Causal attention with dropout, and attention under an explicit mask."""

from mlxgpt.kernels.attention.op import causal_attention, masked_attention
from mlxgpt.kernels.windowed_attention import reference, visible

__all__ = ["causal_attention", "masked_attention", "reference", "visible"]
