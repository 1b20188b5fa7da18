"""Muon over many matrices in one launch."""

from mlxgpt.kernels.muon_multi.op import muon, orthogonalize, reference

__all__ = ["muon", "orthogonalize", "reference"]
