"""AdamW against its formula in float64 (PyTorch's: torch.optim.AdamW), and what it decays."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map

from mlxgpt.config import OptimizerConfig
from mlxgpt.models import gpt2, mistral
from mlxgpt.models.layers import named_parameters
from mlxgpt.training import optimizers


def adamw(p, grads, rates, beta1, beta2, eps, decay) -> np.ndarray:
    """Loshchilov and Hutter's Algorithm 2 (arXiv 1711.05101) as PyTorch runs it: decay first, then m̂ / (√v̂ + eps)."""
    m = v = 0.0
    for t, (g, lr) in enumerate(zip(grads, rates, strict=True), 1):
        p = p * (1 - lr * decay)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        p = p - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return p


@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_adamw_is_pytorchs(eps):
    draw = np.random.default_rng(0)
    config = OptimizerConfig(beta1=0.8, beta2=0.95, eps=eps, weight_decay=0.3)
    rates = [1e-2, 3e-2, 2e-2, 1e-3, 5e-2]
    model = nn.Linear(7, 5)
    start = {n: np.array(p, np.float64) for n, p in named_parameters(model).items()}
    grads = {n: draw.normal(size=(5, *p.shape)) * 10.0 ** draw.integers(-3, 2) for n, p in start.items()}
    optimizer = optimizers.make(config)
    for t, rate in enumerate(rates):
        optimizer.learning_rate = rate
        optimizer.update(model, {n: mx.array(g[t].astype(np.float32)) for n, g in grads.items()})
    for name, parameter in named_parameters(model).items():
        decay = 0.3 if name == "weight" else 0.0
        expected = adamw(start[name], grads[name], rates, 0.8, 0.95, eps, decay)
        np.testing.assert_allclose(np.array(parameter), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    "model",
    [
        gpt2.Model(gpt2.Config(vocab_size=9, n_positions=8, n_embd=8, n_layer=1, n_head=2)),
        mistral.Model(
            mistral.Config(
                vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
                num_key_value_heads=1, max_position_embeddings=8,
            )
        ),
    ],
    ids=["gpt2", "mistral"],
)  # fmt: skip
def test_matrices_decay_and_biases_and_norms_do_not(model):
    model.update(tree_map(mx.ones_like, model.parameters()))
    optimizer = optimizers.make(OptimizerConfig(weight_decay=0.5))
    optimizer.learning_rate = 0.1
    optimizer.update(model, tree_map(mx.zeros_like, model.trainable_parameters()))
    decayed = {n for n, p in named_parameters(model).items() if p.min().item() < 1}
    vectors = {n for n in named_parameters(model) if n.endswith("bias") or "ln_" in n or "norm" in n}
    assert decayed == named_parameters(model).keys() - vectors
    assert vectors
    for name in decayed:
        assert named_parameters(model)[name].max().item() == pytest.approx(0.95)
