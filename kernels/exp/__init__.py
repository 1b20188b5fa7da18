"""exp with a Metal kernel and a gradient of its own."""

from mlxgpt.kernels.exp.op import exp, reference

__all__ = ["exp", "reference"]
