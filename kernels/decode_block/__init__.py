"""What joins the matrix products of one decoding step: residual and norm, and rotary positions, in a launch each."""

from mlxgpt.kernels.decode_block.op import add_norm, reference_add_norm, reference_rotate, rotate

__all__ = ["add_norm", "reference_add_norm", "reference_rotate", "rotate"]
