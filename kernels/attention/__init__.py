"""Causal attention, with an optional sliding window."""

from mlxgpt.kernels.attention.op import causal_attention, masked_attention, reference, visible

__all__ = ["causal_attention", "masked_attention", "reference", "visible"]
