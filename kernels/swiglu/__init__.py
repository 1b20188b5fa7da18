"""SwiGLU's elementwise half."""

from mlxgpt.kernels.swiglu.op import reference, swiglu

__all__ = ["reference", "swiglu"]
