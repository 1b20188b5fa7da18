"""What the model files share."""

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten


def normal_(layer: nn.Module, std: float) -> None:
    """Draw `layer.weight` from N(0, std²) with MLX's global generator; a bias becomes 0."""
    layer.weight = mx.random.normal(layer.weight.shape) * std
    if "bias" in layer:
        layer.bias = mx.zeros_like(layer.bias)


def named_parameters(model: nn.Module) -> dict[str, mx.array]:
    """Every parameter by its dotted name in the module tree."""
    return dict(tree_flatten(model.parameters()))
