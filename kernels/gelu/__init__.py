"""GELU in the tanh form that GPT-2 uses."""

from mlxgpt.kernels.gelu.op import gelu, reference

__all__ = ["gelu", "reference"]
