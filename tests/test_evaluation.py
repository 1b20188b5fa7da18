"""Loss on held-out text: all of it, once, however it is cut into batches."""

import math

import mlx.core as mx
import numpy as np
import pytest

from mlxgpt.evaluation import Evaluator
from mlxgpt.models import gpt2

LENGTH = 12
TOKENS = np.random.default_rng(0).integers(0, 30, 100).astype(np.uint16)


@pytest.fixture
def model():
    mx.random.seed(1)
    model = gpt2.Model(gpt2.Config(vocab_size=30, n_positions=16, n_embd=16, n_layer=2, n_head=2, dropout=0.5))
    model.init_weights()
    model.wte.weight = model.wte.weight * 20  # far from uniform: every position has a loss of its own
    model.eval()
    return model


def plainly(model, tokens: np.ndarray) -> float:
    """The sum of -log p over every token but the first, in float64, a sequence at a time: no batch, no padding."""
    nats = 0.0
    for start in range(0, len(tokens) - 1, LENGTH):
        part = tokens[start : start + LENGTH + 1].astype(np.int32)
        logits = np.array(model(mx.array(part[None, :-1])))[0].astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        logp = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        nats -= logp[np.arange(len(part) - 1), part[1:]].sum()
    return nats


@pytest.mark.parametrize("count", [2, LENGTH, LENGTH + 1, LENGTH + 2, 3 * LENGTH + 1, 100])
def test_every_token_counts_once_in_batches_of_any_size(model, count):
    tokens = TOKENS[:count]
    nats = plainly(model, tokens)
    for batch_size in (1, 3, 64):
        result = Evaluator(model, tokens, n_bytes=37, batch_size=batch_size, length=LENGTH).run()
        assert result.val_loss == pytest.approx(nats / (count - 1), rel=1e-5)
        assert result.val_bpb == pytest.approx(nats / math.log(2) / 37, rel=1e-5)


def test_a_uniform_model_needs_log2_of_its_vocabulary(model):
    model.wte.weight = mx.zeros_like(model.wte.weight)
    result = Evaluator(model, TOKENS, n_bytes=99, batch_size=4, length=LENGTH).run()
    assert result.val_loss == pytest.approx(math.log(30), rel=1e-6)
    assert result.val_bpb == pytest.approx(math.log2(30), rel=1e-6)


def test_it_sees_the_weights_as_they_are_now(model):
    evaluator = Evaluator(model, TOKENS, n_bytes=99, batch_size=4, length=LENGTH)
    before = evaluator.run()
    assert evaluator.run() == before
    model.wte.weight = model.wte.weight * 0.5
    assert evaluator.run().val_loss == pytest.approx(plainly(model, TOKENS) / 99, rel=1e-5)
    assert evaluator.run() != before
