"""Causal attention within a sliding window and documents."""

from mlxgpt.kernels.windowed_attention.op import reference, visible, windowed_attention

__all__ = ["reference", "visible", "windowed_attention"]
