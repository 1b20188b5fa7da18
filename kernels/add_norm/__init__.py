"""A residual and the norm after it."""

from mlxgpt.kernels.add_norm.op import add_norm, reference

__all__ = ["add_norm", "reference"]
