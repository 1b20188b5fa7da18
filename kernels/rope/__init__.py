"""Rotary positions."""

from mlxgpt.kernels.rope.op import reference, rope

__all__ = ["reference", "rope"]
