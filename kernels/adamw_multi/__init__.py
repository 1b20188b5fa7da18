"""The global norm of gradients, and AdamW, over many tensors in few launches."""

from mlxgpt.kernels.adamw_multi.op import adamw, global_norm, reference_adamw, reference_norm

__all__ = ["adamw", "global_norm", "reference_adamw", "reference_norm"]
