"""AdamW and Muon against their formulas in float64, and what they decay."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map, tree_unflatten
from mlxgpt.kernels import muon_multi

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


@pytest.mark.parametrize("shape", [(6, 6), (3, 8), (40, 5), (2, 7, 4), (1, 1)])
def test_newton_schulz_keeps_the_directions_and_evens_out_their_lengths(shape):
    gradient = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    ours = np.array(muon_multi.orthogonalize(mx.array(gradient * 1e-4)))
    left, _, right = np.linalg.svd(gradient, full_matrices=False)
    middle = left.swapaxes(-1, -2) @ ours @ right.swapaxes(-1, -2)  # diagonal in the gradient's own directions
    lengths = np.diagonal(middle, axis1=-2, axis2=-1)
    np.testing.assert_allclose(middle, lengths[..., None] * np.eye(lengths.shape[-1]), atol=1e-4)
    assert lengths.min() > 0.3  # small singular values need more than five steps
    assert lengths.max() < 1.25
    exact = np.array(muon_multi.orthogonalize(mx.array(left @ right)))
    np.testing.assert_allclose(exact, exact[..., :1, :1] / (left @ right)[..., :1, :1] * (left @ right), atol=1e-4)


def test_nothing_comes_of_no_gradient():
    assert not np.array(muon_multi.orthogonalize(mx.zeros((4, 3)))).any()


def muon(p, grads, rates, ratio, momentum, decay, parts) -> np.ndarray:
    """Jordan et al.'s Muon in float64, its Newton-Schulz as ours, with arXiv 2502.16982's decoupled decay."""
    m = np.zeros_like(p)
    for g, lr in zip(grads, rates, strict=True):
        m = momentum * m + (1 - momentum) * g
        ahead = momentum * m + (1 - momentum) * g
        pieces = []
        for piece in np.split(ahead, parts):
            x = piece / np.linalg.norm(piece)
            for _ in range(5):
                a = x @ x.T
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
            pieces.append(x * max(1, piece.shape[0] / piece.shape[1]) ** 0.5)
        p = p * (1 - lr * ratio * decay) - lr * ratio * np.concatenate(pieces)
    return p


def test_muon_is_its_formula_on_the_blocks_matrices_and_adamw_has_the_rest():
    draw = np.random.default_rng(0)
    config = OptimizerConfig(kind="muon", lr=1e-2, muon_lr=0.05, muon_momentum=0.8, weight_decay=0.3)
    model = gpt2.Model(gpt2.Config(vocab_size=9, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    model.init_weights()
    start = {n: np.array(p, np.float64) for n, p in named_parameters(model).items()}
    grads = {n: draw.normal(size=(3, *p.shape)).astype(np.float32) for n, p in start.items()}
    rates = [1e-2, 5e-3, 2e-2]
    optimizer = optimizers.make(config)
    for t, rate in enumerate(rates):
        optimizer.learning_rate = rate
        optimizer.update(model, tree_unflatten([(n, mx.array(g[t])) for n, g in grads.items()]))
    for name, parameter in named_parameters(model).items():
        if parameter.ndim == 2 and name.startswith("h."):
            expected = muon(start[name], grads[name], rates, 5.0, 0.8, 0.3, 3 if "c_attn" in name else 1)
        else:
            decay = 0.3 if parameter.ndim == 2 else 0.0
            expected = adamw(start[name], grads[name], rates, 0.9, 0.99, 1e-8, decay)
        np.testing.assert_allclose(np.array(parameter), expected, rtol=1e-4, atol=1e-5, err_msg=name)


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
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_matrices_decay_and_biases_and_norms_do_not(kind, model):
    model.update(tree_map(mx.ones_like, model.parameters()))
    optimizer = optimizers.make(OptimizerConfig(kind=kind, lr=0.02, muon_lr=0.02, weight_decay=0.5))
    optimizer.learning_rate = 0.1
    optimizer.update(model, tree_map(mx.zeros_like, model.trainable_parameters()))
    decayed = {n for n, p in named_parameters(model).items() if p.min().item() < 1}
    vectors = {n for n in named_parameters(model) if n.endswith("bias") or "ln_" in n or "norm" in n}
    assert decayed == named_parameters(model).keys() - vectors
    assert vectors
    for name in decayed:
        assert named_parameters(model)[name].max().item() == pytest.approx(0.95)
