"""AdamW as PyTorch runs it: bias-corrected, decoupled decay on matrices only."""

import mlx.core as mx
import mlx.optimizers as optim

from mlxgpt.config import OptimizerConfig


def is_matrix(path: str, parameter: mx.array) -> bool:
    """Whether a parameter decays: embeddings and linear weights do, biases and norms do not."""
    return parameter.ndim >= 2


def make(config: OptimizerConfig) -> optim.Optimizer:
    """The optimizer of a recipe; its learning rate is set at every step."""

    def adamw(weight_decay: float) -> optim.AdamW:
        betas = [config.beta1, config.beta2]
        return optim.AdamW(config.lr, betas, config.eps, weight_decay=weight_decay, bias_correction=True)

    return optim.MultiOptimizer([adamw(config.weight_decay), adamw(0.0)], [is_matrix])
