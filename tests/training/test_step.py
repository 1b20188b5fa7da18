"""One optimizer step: it learns, clips, accumulates, and keeps float32 weights under any compute type."""

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxgpt.config import OptimizerConfig
from mlxgpt.models import gpt2, mistral
from mlxgpt.models.layers import named_parameters
from mlxgpt.training import optimizers
from mlxgpt.training.step import make_step

GPT2 = gpt2.Config(vocab_size=40, n_positions=16, n_embd=32, n_layer=2, n_head=2)
MISTRAL = mistral.Config(
    vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=16, sliding_window=5,
)  # fmt: skip


def make(config=GPT2):
    mx.random.seed(3)
    model = (gpt2 if isinstance(config, gpt2.Config) else mistral).Model(config)
    model.init_weights()
    model.train()
    return model


def batch(rows: int = 4, seed: int = 0) -> tuple[mx.array, mx.array]:
    block = np.random.default_rng(seed).integers(0, 40, (rows, 13)).astype(np.int32)
    return mx.array(block[:, :-1]), mx.array(block[:, 1:])


def flat(model) -> np.ndarray:
    return np.concatenate([np.array(p).ravel() for _, p in sorted(named_parameters(model).items())])


@pytest.mark.parametrize("config", [GPT2, MISTRAL])
def test_a_repeated_batch_is_learned(config):
    model = make(config)
    optimizer = optimizers.make(OptimizerConfig(lr=1e-2))
    step = make_step(model, optimizer, 1.0, mx.float32)
    losses = [step([batch()])[0].item() for _ in range(40)]
    assert losses[0] == pytest.approx(np.log(40), abs=0.1)
    assert losses[-1] < losses[0] / 4


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_loss_and_the_gradient_are_those_of_the_whole_batch(parts):
    """However a batch is cut: with plain gradient descent at rate 1, the weights move by minus the gradient."""
    x, y = batch(8)
    model = make()
    expected_loss, gradient = _by_hand(make(), x, y)
    before = flat(model)
    size = 8 // parts
    batches = [(x[i : i + size], y[i : i + size]) for i in range(0, 8, size)]
    loss, norm = make_step(model, optim.SGD(1.0), 0.0, mx.float32)(batches)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-5)
    np.testing.assert_allclose(before - flat(model), gradient, atol=2e-6)
    assert norm.item() == pytest.approx(np.linalg.norm(gradient), rel=1e-4)


def _by_hand(model, x, y) -> tuple[float, np.ndarray]:
    """Mean loss and its gradient, without compilation and with MLX's own cross-entropy."""
    import mlx.nn as nn

    loss, grads = nn.value_and_grad(model, lambda m: nn.losses.cross_entropy(m(x), y).mean())(model)
    return loss.item(), np.concatenate([np.array(g).ravel() for _, g in sorted(tree_flatten(grads))])


@pytest.mark.parametrize("parts", [1, 2])
def test_the_gradient_is_clipped_to_a_norm(parts):
    free, clipped = make(), make()
    start = flat(free)
    batches = [batch(4, seed) for seed in range(parts)]
    _, norm = make_step(free, optim.SGD(1.0), 0.0, mx.float32)(batches)
    _, same = make_step(clipped, optim.SGD(1.0), 0.05, mx.float32)(batches)
    assert same.item() == norm.item() > 0.05
    np.testing.assert_allclose(start - flat(clipped), (start - flat(free)) * 0.05 / norm.item(), atol=1e-6)


def test_a_gradient_below_the_norm_is_left_alone():
    free, clipped = make(), make()
    make_step(free, optim.SGD(1.0), 0.0, mx.float32)([batch()])
    make_step(clipped, optim.SGD(1.0), 100.0, mx.float32)([batch()])
    np.testing.assert_allclose(flat(clipped), flat(free), atol=1e-7)


def test_bfloat16_compute_keeps_float32_weights():
    """Steps of 1e-5 are far below bfloat16's resolution near 1; float32 weights take them all."""
    model, exact = make(), make()
    optimizer = optimizers.make(OptimizerConfig(lr=1e-5, min_lr=0.0, weight_decay=0.0))
    step = make_step(model, optimizer, 1.0, mx.bfloat16)
    reference = make_step(
        exact, optimizers.make(OptimizerConfig(lr=1e-5, min_lr=0.0, weight_decay=0.0)), 1.0, mx.float32
    )
    losses = [step([batch()])[0].item() for _ in range(3)]
    references = [reference([batch()])[0].item() for _ in range(3)]
    assert losses != references
    assert losses == pytest.approx(references, abs=0.02)
    assert {p.dtype for p in named_parameters(model).values()} == {mx.float32}
    kept = [v for name, v in tree_flatten(optimizer.state) if name.endswith((".m", ".v"))]
    assert kept
    assert {v.dtype for v in kept} == {mx.float32}
    assert np.median(np.abs(np.array(model.ln_f.weight) - 1)) == pytest.approx(3e-5, rel=0.1)


def test_dropout_draws_anew_at_each_step_and_not_in_evaluation():
    config = gpt2.Config(vocab_size=40, n_positions=16, n_embd=32, n_layer=2, n_head=2, dropout=0.3)
    model = make(config)
    step = make_step(model, optim.SGD(0.0), 0.0, mx.float32)

    def loss(seed: int, parts: int = 1) -> float:
        mx.random.seed(seed)
        return step([batch()] * parts)[0].item()

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)
    assert loss(1, parts=2) != loss(1)  # the second micro-batch has a mask of its own
    model.eval()
    x, _ = batch()
    assert mx.array_equal(model(x), model(x))
