"""Cross-entropy of a linear layer's outputs without keeping them."""

from mlxgpt.kernels.linear_cross_entropy.op import linear_cross_entropy, reference

__all__ = ["linear_cross_entropy", "reference"]
