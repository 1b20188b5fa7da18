"""Small models of each kind, and caches whose edges come early."""

import dataclasses

import mlx.core as mx
import pytest

from mlxgpt import models
from mlxgpt.generation import engine
from mlxgpt.models import cache, gpt2, mistral, qwen3

MISTRAL = mistral.Config(
    vocab_size=17, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, max_position_embeddings=90,
)  # fmt: skip
TINY = {
    "gpt2": gpt2.Config(vocab_size=17, n_positions=90, n_embd=64, n_layer=2, n_head=2),
    "mistral": MISTRAL,
    "mistral, window": dataclasses.replace(MISTRAL, sliding_window=5, tie_word_embeddings=True),
    "qwen3": qwen3.Config(**vars(MISTRAL)),
}


def built(config: models.Config, seed: int = 5) -> models.Model:
    mx.random.seed(seed)
    return models.build(config).apply(lambda p: p + 0.3 * mx.random.normal(p.shape)).eval()


@pytest.fixture(params=TINY)
def tiny(request) -> models.Model:
    """A model of 17 tokens and 90 positions, its weights random and large enough to say different things."""
    return built(TINY[request.param])


@pytest.fixture
def windowed() -> models.Model:
    """`tiny`, the one that sees five tokens."""
    return built(TINY["mistral, window"])


@pytest.fixture
def small_draft() -> models.Model:
    """A model of the same tokens, one layer of half the width, that sees and holds less."""
    return built(
        mistral.Config(
            vocab_size=17, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=4, max_position_embeddings=40, sliding_window=3,
        ), 6,
    )  # fmt: skip


@pytest.fixture
def small_steps(monkeypatch):
    """Caches that grow, roll over and are filled every few tokens."""
    monkeypatch.setattr(cache, "STEP", 8)
    monkeypatch.setattr(cache, "SLACK", 9)
    monkeypatch.setattr(engine, "PREFILL_CHUNK", 7)
