"""Converted folders: what mlx-lm opens is what we computed, written once, in shards, whole or not at all."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlxgpt import convert, files, models, weights
from mlxgpt import tokenizer as tokenizers
from mlxgpt.errors import Error, UsageError
from mlxgpt.models import gpt2, mistral
from mlxgpt.models.layers import named_parameters
from mlxgpt.quantization import CHOICES
from mlxgpt.tokenizer import CharTokenizer

LETTERS = CharTokenizer("abcdefghijklmnopq")  # and bytes, <s>, </s>: 258 tokens
MISTRAL = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 64, "rope_theta": 500.0,
}  # fmt: skip
CONFIGS: dict[str, models.Config] = {
    "mistral": mistral.Config(**MISTRAL),
    "mistral tied": mistral.Config(**MISTRAL, tie_word_embeddings=True),
    "gpt2": gpt2.Config(vocab_size=300, n_positions=32, n_embd=128, n_layer=2, n_head=4),
}
TOKENS = mx.random.randint(0, 300, (2, 20), key=mx.random.key(0))


def save(name: str, folder: Path) -> Path:
    mx.random.seed(3)
    model = models.build(CONFIGS[name]).apply(lambda p: p + 0.2 * mx.random.normal(p.shape))
    folder.mkdir()
    weights.save_tokenizer_and_config(folder, model.config, LETTERS)
    weights.save_weights(folder / "model.safetensors", weights.to_disk(model))
    return folder


def assert_close(mine: mx.array, expected: mx.array, tolerance: float = 1e-5) -> None:
    """Within `tolerance` of the largest logit."""
    np.testing.assert_allclose(
        np.array(mine), np.array(expected), rtol=0, atol=tolerance * mx.abs(expected).max().item()
    )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("choice", [*CHOICES, "bfloat16"])
def test_mlx_lm_opens_it_and_gives_our_logits(choice, name, tmp_path):
    """Computed in float32, so that only the weights' rounding is left, which must be the same."""
    import mlx_lm

    source, target = save(name, tmp_path / "source"), tmp_path / "target"
    dtype, kind = (mx.bfloat16, None) if choice == "bfloat16" else (None, CHOICES[choice])
    convert.convert(source, target, dtype, kind, shard_bytes=60_000)
    assert len(list(target.glob("model-*-of-*.safetensors"))) > 1
    theirs, tokenizer = mlx_lm.load(str(target))
    if dtype:
        theirs.set_dtype(mx.float32)
    ours, direct = weights.load(target, mx.float32), weights.load(source, dtype, kind)
    held = named_parameters(direct)
    converted = named_parameters(weights.load(target))
    assert held.keys() == converted.keys()
    assert all(mx.array_equal(converted[n], w) and converted[n].dtype == w.dtype for n, w in held.items())
    # what meets quantized weights may be rounded to 16 bits on a CPU: see test_quantization
    assert_close(ours(TOKENS), theirs(TOKENS), 1e-3 if choice in ("4", "8") else 1e-5)
    assert tokenizer.eos_token_id == LETTERS.eos_id
    assert weights.load_with_tokenizer(target)[1].fingerprint() == LETTERS.fingerprint()


def test_the_folder_says_what_it_is(tmp_path):
    source, target = save("mistral", tmp_path / "source"), tmp_path / "target"
    table = json.loads((source / "config.json").read_text())
    del table["rope_theta"]  # as transformers 5 writes it: in rope_parameters alone
    (source / "config.json").write_text(json.dumps(table | {"dtype": "float32", "pad_token_id": 7}))
    (source / "README.md").write_text("not of the model")
    (source / "tokenizer.model.v3").write_bytes(b"as it is")
    convert.convert(source, target, mx.float16, CHOICES["8"])
    config = json.loads((target / "config.json").read_text())
    said = {"bits": 8, "group_size": 64, "mode": "affine"}
    assert config["quantization"] == config["quantization_config"] == said
    assert (config["torch_dtype"], config["rope_theta"], config["pad_token_id"]) == ("float16", 500.0, 7)
    assert "dtype" not in config
    names = {path.name for path in target.iterdir()}
    assert names == {path.name for path in source.iterdir()} - {"README.md"}
    for name in names - {"config.json", "model.safetensors"}:
        assert (target / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize("name", ["mistral_instruct_tokenizer_240323.model.v3", "tekken_240911.json"])
def test_a_tokenizer_of_mistrals_release_becomes_one_that_mlx_lm_opens(name, tmp_path):
    import mistral_common
    import mlx_lm

    source = save("mistral", tmp_path / "source")
    for file in source.glob("tokenizer*"):
        file.unlink()
    data = Path(mistral_common.__file__).parent / "data" / name
    shutil.copy(data, source / ("tekken.json" if name.endswith("json") else "tokenizer.model.v3"))
    vocabulary = tokenizers.load(source).vocab_size
    config = mistral.Config(**MISTRAL | {"vocab_size": vocabulary})
    weights.save_weights(source / "model.safetensors", weights.to_disk(models.build(config)))
    (source / "config.json").write_text(files.to_json(weights.hub_config(config, None, "float32")))
    convert.convert(source, tmp_path / "target")
    _, theirs = mlx_lm.load(str(tmp_path / "target"))[:2]
    ours = weights.load_with_tokenizer(tmp_path / "target")[1]
    for text in ("def f(x):\n    return x", "naïve 🙂\tx  y"):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)[-len(ours.encode(text)) :]
        assert ours.decode(ours.begin(text)).decode() == text


@pytest.mark.parametrize("most", [60_000, 150_000])
def test_shards_are_within_their_size_and_indexed(most, tmp_path):
    source, target = save("mistral", tmp_path / "source"), tmp_path / "target"
    convert.convert(source, target, shard_bytes=most)
    index = json.loads((target / "model.safetensors.index.json").read_text())
    shards = sorted(target.glob("*.safetensors"))
    held = {path.name: mx.load(str(path)) for path in shards}
    assert index["weight_map"] == {name: path for path, tensors in held.items() for name in tensors}
    assert index["metadata"]["total_size"] == sum(w.nbytes for tensors in held.values() for w in tensors.values())
    assert all(len(t) == 1 or sum(w.nbytes for w in t.values()) <= most for t in held.values())
    assert [path.name[6:11] for path in shards] == [f"{i:05}" for i in range(1, len(shards) + 1)]
    assert all(path.name[11:] == f"-of-{len(shards):05}.safetensors" for path in shards)
    assert mx.array_equal(weights.load(target)(TOKENS), weights.load(source)(TOKENS))


def test_a_quantized_folder_is_kept_quantized(tmp_path):
    source = save("gpt2", tmp_path / "source")
    convert.convert(source, tmp_path / "once", quantize=CHOICES["4"])
    convert.convert(tmp_path / "once", tmp_path / "twice", mx.bfloat16)
    model = weights.load(tmp_path / "twice")
    once = named_parameters(weights.load(tmp_path / "once", mx.bfloat16))
    assert all(mx.array_equal(w, once[name]) for name, w in named_parameters(model).items())
    with pytest.raises(UsageError, match="is quantized already"):
        convert.convert(tmp_path / "once", tmp_path / "third", quantize=CHOICES["8"])
    assert not (tmp_path / "third").exists()


def test_what_is_there_is_not_overwritten(tmp_path):
    source = save("mistral", tmp_path / "source")
    for target in (source, tmp_path / "file", tmp_path / "dangling"):
        if target.name == "file":
            target.write_text("mine")
        elif target.name == "dangling":
            target.symlink_to(tmp_path / "none")
        with pytest.raises(UsageError, match="is there already"):
            convert.convert(source, target)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("failing", ["save", "read", "copy"])
def test_a_failure_leaves_nothing_behind(failing, tmp_path, monkeypatch):
    source, target = save("mistral", tmp_path / "source"), tmp_path / "target"
    before = sorted(path.name for path in tmp_path.iterdir())
    real, calls = mx.save_safetensors, []

    def cut(*_):
        data = (source / "model.safetensors").read_bytes()
        (source / "model.safetensors").write_bytes(data[:2000])

    def fail(path, *rest):
        calls.append(path)
        if len(calls) > 1:
            raise RuntimeError("[save] Failed to write")
        real(path, *rest)

    def full(*_):
        raise OSError(28, "No space left on device")

    if failing == "save":
        monkeypatch.setattr(mx, "save_safetensors", fail)
    elif failing == "read":
        monkeypatch.setattr(weights, "check", cut)
    else:
        monkeypatch.setattr(shutil, "copyfile", full)
    expected = {"save": r"target could not be written \(\[save\] Failed", "read": "source: the weights are cut short",
                "copy": r"target could not be written \(.*No space left"}  # fmt: skip
    with pytest.raises(Error, match=expected[failing]) as refused:
        convert.convert(source, target, quantize=CHOICES["4"], shard_bytes=30_000)
    assert "\n" not in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_the_source_may_be_missing(tmp_path):
    with pytest.raises(UsageError, match="no model folder at"):
        convert.convert(tmp_path / "none", tmp_path / "target")
    assert not (tmp_path / "target").exists()
