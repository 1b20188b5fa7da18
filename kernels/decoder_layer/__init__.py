"""A layer of a decoder over a few tokens, whole."""

from mlxgpt.kernels.decoder_layer.op import FEW, Weights, decoder_layer, reference, served

__all__ = ["FEW", "Weights", "decoder_layer", "reference", "served"]
