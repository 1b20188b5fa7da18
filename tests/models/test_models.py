"""The architectures: what each position sees, dropout, initial weights, configurations."""

import dataclasses
import re

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxgpt import models
from mlxgpt.errors import UsageError
from mlxgpt.models import gpt2, mistral, qwen3

GPT2 = gpt2.Config(vocab_size=17, n_positions=160, n_embd=16, n_layer=2, n_head=2)
MISTRAL = mistral.Config(
    vocab_size=17, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=6, max_position_embeddings=160,
)  # fmt: skip
CONFIGS = {
    "gpt2": GPT2,
    "gpt2, no biases": dataclasses.replace(GPT2, bias=False),
    "mistral": MISTRAL,
    "mistral, window": dataclasses.replace(MISTRAL, sliding_window=3),
    "mistral, tied": dataclasses.replace(MISTRAL, tie_word_embeddings=True, num_key_value_heads=4, head_dim=None),
    "qwen3": qwen3.Config(**dataclasses.asdict(MISTRAL)),
    "qwen3, window": qwen3.Config(**dataclasses.asdict(MISTRAL) | {"sliding_window": 3}),
}


def build(config: models.Config) -> models.Model:
    """A model in evaluation mode whose every parameter matters: none is 0 or 1, activations are of order 1."""
    mx.random.seed(3)
    return models.build(config).apply(lambda p: p + 0.3 * mx.random.normal(p.shape)).eval()


def tokens(T: int, B: int = 1) -> mx.array:
    return mx.random.randint(0, 17, (B, T), key=mx.random.key(T))


def sensitivity(model: models.Model, T: int, positions: list[int], monkeypatch) -> np.ndarray:
    """[len(positions), T]: the largest gradient of a position's logits with respect to each input's embedding."""
    embedding = model.wte if isinstance(model, gpt2.Model) else model.model.embed_tokens
    lookup = nn.Embedding.__call__
    x = tokens(T)

    def logits(nudge):
        with monkeypatch.context() as patch:
            patch.setattr(
                nn.Embedding, "__call__", lambda self, t: lookup(self, t) + (nudge if self is embedding else 0)
            )
            return model(x)[0]

    rows = []
    for t in positions:
        weights = mx.zeros((T, 17))
        weights[t] = mx.random.normal((17,), key=mx.random.key(t))
        _, (gradient,) = mx.vjp(logits, [mx.zeros((1, T, 16))], [weights])
        rows.append(np.abs(np.array(gradient[0])).max(-1))
    return np.array(rows)


@pytest.mark.parametrize("T", [9, 131])  # from 128 queries on the CPU's attention works in blocks
@pytest.mark.parametrize("name", CONFIGS)
def test_a_position_sees_the_past_its_window_reaches_and_nothing_else(name, T, monkeypatch):
    config = CONFIGS[name]
    positions = list(range(9)) if T == 9 else [0, 32, 33, 65, 66, 98, 99, 129, 130]
    seen = sensitivity(build(config), T, positions, monkeypatch)
    window = getattr(config, "sliding_window", None)
    reach = T if window is None else 2 * (window - 1)  # two layers
    for row, t in zip(seen, positions, strict=True):
        visible = np.arange(T) <= t
        if window is not None:
            visible &= np.arange(T) >= t - reach
        assert (row[~visible] == 0).all()
        assert (row[visible] > 1e-7).all()


def test_causality_holds_in_training_with_dropout(monkeypatch):
    model = build(dataclasses.replace(GPT2, dropout=0.2)).train()
    mx.random.seed(0)
    seen = sensitivity(model, 9, list(range(9)), monkeypatch)
    assert (seen[np.triu_indices(9, 1)] == 0).all()
    assert (np.diag(seen) > 0).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_sequences_of_a_batch_do_not_meet(name):
    model = build(CONFIGS[name])
    x = tokens(7, B=3)
    together = model(x)
    assert together.shape == (3, 7, 17)
    for row in range(3):
        np.testing.assert_allclose(np.array(together[row]), np.array(model(x[row : row + 1])[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_compiled_model_is_the_model(name):
    model = build(CONFIGS[name])
    x = tokens(8, B=2)
    np.testing.assert_allclose(np.array(mx.compile(model)(x)), np.array(model(x)), rtol=1e-4, atol=1e-5)


def test_dropout_is_off_in_evaluation_and_everywhere_in_training(monkeypatch):
    x = tokens(8)
    model = build(dataclasses.replace(GPT2, dropout=0.5))
    assert mx.array_equal(model(x), model(x))
    assert mx.array_equal(model(x), build(GPT2)(x))
    model.train()
    assert not mx.allclose(model(x), model(x), atol=0.1)

    dropped = []
    attend, drop = gpt2.causal_attention, nn.Dropout.__call__
    monkeypatch.setattr(nn.Dropout, "__call__", lambda self, y: dropped.append("activations") or drop(self, y))
    monkeypatch.setattr(
        gpt2,
        "causal_attention",
        lambda *args, dropout, **more: dropped.append(dropout) or attend(*args, dropout=dropout, **more),
    )
    model(x)
    assert dropped == ["activations", *[0.5, "activations", "activations"] * 2]
    dropped.clear()
    model.eval()(x)
    assert dropped == ["activations", *[0.0, "activations", "activations"] * 2]


RESIDUAL = 0.02 / (2 * 3) ** 0.5
WIDE = [
    gpt2.Config(vocab_size=300, n_positions=200, n_embd=128, n_layer=3, n_head=2),
    gpt2.Config(vocab_size=300, n_positions=200, n_embd=128, n_layer=3, n_head=2, bias=False),
    mistral.Config(
        vocab_size=300, hidden_size=128, intermediate_size=200, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2,
    ),
    mistral.Config(
        vocab_size=300, hidden_size=128, intermediate_size=200, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, tie_word_embeddings=True,
    ),
    qwen3.Config(
        vocab_size=300, hidden_size=128, intermediate_size=200, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2,
    ),
]  # fmt: skip


@pytest.mark.parametrize("config", WIDE, ids=lambda c: type(c).__module__)
def test_initial_weights_have_the_documented_spread(config):
    def draw() -> dict[str, np.ndarray]:
        mx.random.seed(11)
        model = models.build(config)
        model.init_weights()
        return {name: np.array(p) for name, p in tree_flatten(model.parameters())}

    first, second = draw(), draw()
    for name, p in first.items():
        np.testing.assert_array_equal(p, second[name])
        if p.ndim == 1:
            assert (p == (0 if name.endswith("bias") else 1)).all(), name
        else:
            std = RESIDUAL if re.search(r"\.(c_proj|o_proj|down_proj)\.", name) else 0.02
            assert p.std() == pytest.approx(std, rel=0.03), name
            assert abs(p.mean()) < 0.05 * std, name


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_that_begins_as_zeros_is_the_identity_and_learns(tied):
    """Blocks add nothing, and an untied head says nothing; what is 0 has a gradient nonetheless, or would stay so."""
    model = models.build(dataclasses.replace(WIDE[2], zero_init=True, tie_word_embeddings=tied))
    model.init_weights()
    zeros = {name for name, p in tree_flatten(model.parameters()) if not p.any()}
    assert {name.split(".")[-2] for name in zeros} == {"o_proj", "down_proj"} | (set() if tied else {"lm_head"})
    x = tokens(12, B=2)
    embedded = model.model.embed_tokens(x)
    assert mx.allclose(model.features(x), model.model.norm(embedded), rtol=1e-5)
    other = models.build(dataclasses.replace(WIDE[2], tie_word_embeddings=tied))
    mx.random.seed(1)
    other.init_weights()
    mx.random.seed(1)
    model.init_weights()
    assert mx.array_equal(model.model.embed_tokens.weight, other.model.embed_tokens.weight), "the others are as drawn"

    def loss(model):
        return nn.losses.cross_entropy(model(x[:, :-1]), x[:, 1:], reduction="mean")

    _, gradients = nn.value_and_grad(model, loss)(model)
    moving = {name for name, g in tree_flatten(gradients) if g.any()} & zeros
    assert moving == (zeros if tied else {"lm_head.weight"})


def test_qk_norm_makes_the_size_of_queries_and_keys_nothing():
    """Their weights ten times as large leave the logits as they are, which in a Mistral they do not."""
    for name, same in (("qwen3", True), ("mistral", False)):
        model = build(dataclasses.replace(CONFIGS[name], rms_norm_eps=1e-12))
        x = tokens(9)
        before = model(x)
        for block in model.layers:
            for layer in (block.self_attn.q_proj, block.self_attn.k_proj):
                layer.weight = 10 * layer.weight
        assert mx.allclose(model(x), before, rtol=1e-3, atol=1e-4).item() is same


def test_an_untrained_model_finds_all_tokens_about_as_likely():
    for config in CONFIGS.values():
        mx.random.seed(0)
        model = models.build(config)
        model.init_weights()
        logits = model.eval()(tokens(20))
        loss = nn.losses.cross_entropy(logits[:, :-1], tokens(20)[:, 1:], reduction="mean").item()
        assert loss == pytest.approx(np.log(17), abs=0.05)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"type": "gpt2", "n_embd": 10, "n_head": 3}, "model.n_embd (10) is not a multiple of n_head (3)"),
        ({"type": "gpt2", "dropout": 1.0}, "model.dropout must be below 1"),
        ({"type": "gpt2", "dropout": -0.1}, "model.dropout must be at least 0, not -0.1"),
        ({"type": "gpt2", "n_layer": 0}, "model.n_layer must be at least 1, not 0"),
        ({"type": "gpt2", "n_layer": 2.0}, "model.n_layer must be a whole number, not 2.0"),
        ({"type": "gpt2", "n_layers": 2}, "unknown key 'model.n_layers'; did you mean 'model.n_layer'?"),
        ({"type": "gpt3"}, "model.type 'gpt3' is unknown; did you mean 'gpt2'?"),
        ({"type": ["gpt2"]}, "model.type '['gpt2']' is unknown; did you mean 'gpt2'?"),
        (
            {"type": "mistral", "num_attention_heads": 6, "num_key_value_heads": 4},
            "model.num_attention_heads (6) is not a multiple of num_key_value_heads (4)",
        ),
        (
            {"type": "mistral", "hidden_size": 10, "num_attention_heads": 4, "num_key_value_heads": 2},
            "model.hidden_size (10) is not a multiple of num_attention_heads (4): set head_dim",
        ),
        ({"type": "mistral", "head_dim": 5}, "model.head_dim (5) must be even for rotary positions"),
        (
            {"type": "mistral", "hidden_size": 12, "num_attention_heads": 4, "num_key_value_heads": 1},
            "model.head_dim (3) must be even for rotary positions",
        ),
        ({"type": "mistral", "sliding_window": 0}, "model.sliding_window must be at least 1, not 0"),
        ({"type": "mistral", "rope_theta": 0.5}, "model.rope_theta must be at least 1, not 0.5"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(table, message):
    with pytest.raises(UsageError) as refused:
        models.config_from_table(table)
    assert str(refused.value) == message


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_names_its_architecture_and_context(name):
    config = CONFIGS[name]
    table = {"type": models.architecture(config), **dataclasses.asdict(config)}
    assert models.config_from_table(table) == config
    assert config.context == 160
