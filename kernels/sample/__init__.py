"""Choosing a token from a row of logits, in one kernel."""

from mlxgpt.kernels.sample.op import reference, sample, threefry

__all__ = ["reference", "sample", "threefry"]
