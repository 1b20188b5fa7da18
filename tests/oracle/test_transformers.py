"""transformers, live: it opens what mlxgpt writes and gives the same logits, and the goldens are still what it gives.

Needs PyTorch: `pip install -e ".[oracle]"`, as .ci/run does.
"""

import importlib.util
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("torch", reason="transformers computes with PyTorch: pip install -e '.[oracle]'")

import torch
import transformers

from mlxgpt import models, weights
from mlxgpt.models import gpt2, mistral, qwen3
from mlxgpt.tokenizer import CharTokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
TOKENIZER = CharTokenizer("abcdefghijklmnopq")
GPT2 = {"vocab_size": 300, "n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 3}
MISTRAL = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rope_theta": 500.0,
}  # fmt: skip
CONFIGS: dict[str, models.Config] = {
    "gpt2": gpt2.Config(**GPT2, dropout=0.25),
    "gpt2 without biases": gpt2.Config(**GPT2, bias=False, layer_norm_epsilon=1e-3),
    "mistral": mistral.Config(**MISTRAL, head_dim=12, rms_norm_eps=1e-3),
    "mistral, window": mistral.Config(**MISTRAL, sliding_window=6),
    "mistral, tied": mistral.Config(**MISTRAL, tie_word_embeddings=True),
    "qwen3": qwen3.Config(**MISTRAL, head_dim=12, rms_norm_eps=1e-3),
    "qwen3, window": qwen3.Config(**MISTRAL, sliding_window=6),
    "qwen3, tied": qwen3.Config(**MISTRAL, tie_word_embeddings=True),
}


def written(config: models.Config, spread: float, folder: Path) -> models.Model:
    """A model of random weights, normal with that spread about what they begin as, and its folder."""
    mx.random.seed(3)
    model = models.build(config).apply(lambda p: p + spread * mx.random.normal(p.shape)).eval()
    weights.save_tokenizer_and_config(folder, model.config, TOKENIZER)
    weights.save_weights(folder / "model.safetensors", weights.to_disk(model))
    return model


def theirs(folder: Path, tokens: mx.array) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert model.dtype == torch.float32
    with torch.no_grad():
        return model(torch.tensor(np.array(tokens).astype(np.int64))).logits.numpy()


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_gives_the_same_logits(name, tmp_path):
    model = written(CONFIGS[name], 0.3, tmp_path)
    tokens = mx.random.randint(0, 300, (2, 20), key=mx.random.key(0))
    ours = np.array(model(tokens))
    assert ours.std() > 1
    np.testing.assert_allclose(ours, theirs(tmp_path, tokens), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_is_as_close_to_float32_as_transformers_is(name, tmp_path):
    """Weights of a trained model's size (the goldens' are far larger): relative to the norm of the logits."""
    written(CONFIGS[name], 0.05, tmp_path)
    tokens = mx.random.randint(0, 300, (2, 20), key=mx.random.key(0))
    exact = theirs(tmp_path, tokens)
    half = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        rounded = half(torch.tensor(np.array(tokens).astype(np.int64))).logits.float().numpy()
    ours = np.array(weights.load(tmp_path, mx.bfloat16)(tokens).astype(mx.float32))
    error, accepted = (np.linalg.norm(logits - exact) / np.linalg.norm(exact) for logits in (ours, rounded))
    assert 0 < error < 2e-2
    assert error < 1.25 * accepted


@pytest.mark.parametrize("name", ["gpt2", "mistral", "mistral_sharded", "mistral_tied", "qwen3"])
def test_the_goldens_are_what_transformers_gives(name):
    folder = GOLDEN / "hub" / name
    golden: dict[str, mx.array] = mx.load(str(folder / "logits.safetensors"))  # type: ignore[assignment]
    np.testing.assert_allclose(theirs(folder, golden["tokens"]), np.array(golden["logits"]), rtol=0, atol=1e-5)


def test_the_goldens_are_what_their_script_makes(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("make_goldens", GOLDEN / "make_goldens.py")
    assert spec
    assert spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "FOLDER", tmp_path)
    for name, config in script.CONFIGS.items():
        script.make(name, config)
        files = sorted(path.name for path in (tmp_path / name).glob("*.safetensors*"))
        assert files == sorted(path.name for path in (GOLDEN / "hub" / name).glob("*.safetensors*"))
        for file in (name for name in files if name.endswith(".safetensors")):
            made: dict[str, mx.array] = mx.load(str(tmp_path / name / file))  # type: ignore[assignment]
            kept: dict[str, mx.array] = mx.load(str(GOLDEN / "hub" / name / file))  # type: ignore[assignment]
            assert made.keys() == kept.keys()
            for tensor in made:
                np.testing.assert_allclose(np.array(made[tensor]), np.array(kept[tensor]), rtol=0, atol=1e-5)
