"""Cross-entropy of logits and token ids."""

from mlxgpt.kernels.cross_entropy.op import cross_entropy, reference

__all__ = ["cross_entropy", "reference"]
