"""Documents packed into one sequence: what is before another document might as well not be there."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxgpt import models
from mlxgpt.models import gpt2, mistral, qwen3

CONFIGS = {
    "gpt2": gpt2.Config(vocab_size=60, n_positions=64, n_embd=32, n_layer=2, n_head=2),
    "mistral": mistral.Config(
        vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    ),
    "mistral, window": mistral.Config(
        vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, sliding_window=7,
    ),
    "qwen3": qwen3.Config(
        vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    ),
}  # fmt: skip
ENDS = (9, 10, 30, 48)  # of four documents in the first row
NUMBERS = np.searchsorted(ENDS, np.arange(48), "right")
# Each document of the first row has words of its own; the second row is one document.
ROW = np.array([15 * n + i % (14 - n) for i, n in enumerate(NUMBERS)])
TOKENS = mx.array(np.stack([ROW, ROW[::-1]]).astype(np.int32))
DOCUMENTS = mx.array(np.stack([NUMBERS, np.zeros(48)]).astype(np.int32))


@pytest.fixture(params=CONFIGS)
def model(request):
    mx.random.seed(4)
    model = models.build(CONFIGS[request.param])
    model.init_weights()
    model.apply(lambda p: p * 5 if p.ndim == 2 else p)  # so that attention is no mere mean
    return model.eval()


def embeddings(model) -> str:
    return next(
        name for name, _ in tree_flatten(model.parameters()) if name.endswith(("wte.weight", "embed_tokens.weight"))
    )


@pytest.mark.parametrize("document", range(4))
def test_a_documents_loss_does_not_depend_on_another_documents_embeddings(model, document):
    name = embeddings(model)
    table = dict(tree_flatten(model.parameters()))[name]
    own = mx.array(document == NUMBERS)

    def loss(table: mx.array, documents: mx.array | None) -> mx.array:
        model.load_weights([(name, table)], strict=False)
        features = model.features(TOKENS, documents=documents)[0]
        return (features * own[:, None] * mx.arange(features.shape[1])).sum()

    apart = np.array(mx.grad(loss)(table, DOCUMENTS))
    touched = {int(row) for row in np.flatnonzero(np.abs(apart).max(axis=1))}
    assert touched == set(ROW[document == NUMBERS].tolist())
    if document:
        packed = np.array(mx.grad(loss)(table, None))
        before = set(ROW[document - 1 == NUMBERS].tolist())
        assert {int(row) for row in np.flatnonzero(np.abs(packed).max(axis=1))} & before, "without isolation it does"


def test_an_isolated_document_reads_as_if_it_were_alone(model):
    """Rotary positions are relative; GPT-2's are those in the row, which are put right here."""
    isolated = model.features(TOKENS, documents=DOCUMENTS)
    for start, end in zip((0, *ENDS), ENDS, strict=False):
        if isinstance(model.config, gpt2.Config):
            positions = model.wpe.weight
            model.wpe.weight = mx.roll(positions, -start, axis=0)
            alone = model.features(TOKENS[:1, start:end])
            model.wpe.weight = positions
        else:
            alone = model.features(TOKENS[:1, start:end])
        np.testing.assert_allclose(isolated[0, start:end], alone[0], atol=2e-4, rtol=2e-4)
    whole = model.features(TOKENS)
    np.testing.assert_allclose(isolated[1], whole[1], atol=2e-4, rtol=2e-4)
    assert np.abs(np.array(isolated[0, 30:] - whole[0, 30:])).max() > 1e-2


def test_dropout_leaves_documents_apart():
    config = gpt2.Config(vocab_size=60, n_positions=64, n_embd=32, n_layer=2, n_head=2, dropout=0.2)
    mx.random.seed(4)
    model = models.build(config)
    model.init_weights()
    model.train()
    other = mx.array(np.where(NUMBERS == 0, (ROW + 1) % 9, ROW)[None].astype(np.int32))
    made = []
    for tokens in (TOKENS[:1], other):
        mx.random.seed(9)
        made.append(np.array(model.features(tokens, documents=DOCUMENTS[:1])))
    assert np.array_equal(made[0][0, 9:], made[1][0, 9:])
    assert not np.array_equal(made[0][0, :9], made[1][0, :9])
