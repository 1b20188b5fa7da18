"""Quantized models: as MLX stores them in any width and mode, and made while loading, with the memory that leaves."""

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxgpt import models, weights
from mlxgpt.errors import Error, UsageError
from mlxgpt.models import gpt2, mistral
from mlxgpt.models.layers import named_parameters
from mlxgpt.quantization import CHOICES, Quantization

MISTRAL = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS: dict[str, models.Config] = {
    "mistral": mistral.Config(**MISTRAL),
    "mistral tied": mistral.Config(**MISTRAL, tie_word_embeddings=True),
    "gpt2": gpt2.Config(vocab_size=96, n_positions=32, n_embd=128, n_layer=2, n_head=4),
}
ROUNDED = 1e-3  # of the largest logit; random weights as large as these magnify what a product was rounded by
TOKENS = mx.random.randint(0, 96, (2, 20), key=mx.random.key(0))
KINDS = [
    *(Quantization(bits, 64) for bits in (1, 2, 3, 4, 5, 6, 8)), Quantization(4, 32), Quantization(8, 32),
    Quantization(4, 32, "mxfp4"), Quantization(8, 32, "mxfp8"), Quantization(4, 16, "nvfp4"),
]  # fmt: skip


def build(config: models.Config) -> models.Model:
    mx.random.seed(3)
    return models.build(config).apply(lambda p: p + 0.2 * mx.random.normal(p.shape)).eval()


def save(model: models.Model, folder: Path, quantization: dict | None = None) -> Path:
    """A folder as mlx-lm would write it: with its names for GPT-2, and `quantization` in its config.json."""
    prefix = "model." if isinstance(model.config, gpt2.Config) else ""
    tensors = {prefix + name: w for name, w in named_parameters(model).items()}
    folder.mkdir(exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    table = weights.hub_config(model.config, None, "float32")
    if quantization:
        table |= {"quantization": quantization, "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(table))
    return folder


def dequantized(model: models.Model) -> models.Model:
    """The model with plain modules that hold what `model`'s quantized ones stand for."""
    plain = models.build(model.config).eval()
    values = named_parameters(model)
    for path, module in model.named_modules():
        if hasattr(module, "scales"):
            parts = [values.pop(f"{path}.{name}", None) for name in ("weight", "scales", "biases")]
            w = mx.dequantize(*parts, module.group_size, module.bits, module.mode)
            values[f"{path}.weight"] = w.astype(mx.float32)
    plain.load_weights(list(values.items()))
    return plain


def assert_close(mine: mx.array, expected: mx.array, tolerance: float = 1e-5) -> None:
    """Within `tolerance` of the largest logit."""
    np.testing.assert_allclose(
        np.array(mine), np.array(expected), rtol=0, atol=tolerance * mx.abs(expected).max().item()
    )


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_quantized_folder_gives_the_logits_of_its_dequantized_weights(name, kind, tmp_path):
    model = build(CONFIGS[name])
    nn.quantize(model, **kind.as_table())
    said = kind.as_table()
    if kind.mode == "affine":
        del said["mode"]  # as older folders leave it out
    folder = save(model, tmp_path, said)
    loaded = weights.load(folder)
    held = named_parameters(loaded)
    assert held.keys() == named_parameters(model).keys()
    assert all(mx.array_equal(held[n], w) for n, w in named_parameters(model).items())
    # a product of packed weights adds up in another order; on a CPU its other factor may be rounded to 16 bits
    rounded = kind.mode == "affine" and kind.bits in (4, 8)
    assert_close(loaded(TOKENS), dequantized(model)(TOKENS), ROUNDED if rounded else 3e-5)


def test_modules_may_differ_by_override_or_by_what_is_stored(tmp_path):
    """mlx-lm takes bits and group sizes of modules that config.json does not name from their tensors."""
    model = build(CONFIGS["mistral"])
    wide, plain = {"bits": 8, "group_size": 32}, ("model.layers.0.mlp.down_proj", "lm_head")
    of = {"model.embed_tokens": wide, "model.layers.1.mlp.up_proj": {"bits": 6, "group_size": 64}}
    unnamed = {"model.layers.1.self_attn.q_proj": {"bits": 2, "group_size": 32}}

    def chosen(path: str, module: nn.Module):
        return hasattr(module, "to_quantized") and path not in plain and (of | unnamed).get(path, True)

    nn.quantize(model, 64, 4, class_predicate=chosen)
    folder = save(model, tmp_path, {"bits": 4, "group_size": 64, **of, "lm_head": False})
    loaded = weights.load(folder)
    q_proj, down = loaded.layers[1].self_attn.q_proj, loaded.layers[0].mlp.down_proj  # type: ignore[union-attr]
    assert (q_proj.bits, q_proj.group_size) == (2, 32)
    assert isinstance(down, nn.Linear)
    assert_close(loaded(TOKENS), dequantized(model)(TOKENS), ROUNDED)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("choice", CHOICES)
def test_quantizing_while_loading_is_what_mlx_lm_makes(choice, name, tmp_path):
    from mlx_lm.utils import load_model, quantize_model

    folder = save(build(CONFIGS[name]), tmp_path)
    kind = CHOICES[choice]
    theirs, config = load_model(folder)
    theirs, _ = quantize_model(theirs, config, kind.group_size, kind.bits, kind.mode)
    expected = {n.removeprefix("model.") if name == "gpt2" else n: w for n, w in named_parameters(theirs).items()}
    ours = weights.load(folder, quantize=kind)
    held = named_parameters(ours)
    assert held.keys() == expected.keys()
    assert all(mx.array_equal(held[n], w) for n, w in expected.items())
    assert_close(ours(TOKENS), theirs(TOKENS), 1e-5 if choice == "mxfp4" else ROUNDED)


def test_a_module_that_groups_do_not_divide_stays_as_it_is(tmp_path):
    config = mistral.Config(**MISTRAL | {"intermediate_size": 80})
    model = weights.load(save(build(config), tmp_path), quantize=CHOICES["4"])
    mlp = model.layers[0].mlp  # type: ignore[union-attr]
    assert [type(m).__name__ for m in (mlp.up_proj, mlp.down_proj)] == ["QuantizedLinear", "Linear"]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
def test_types_of_what_is_not_packed_are_converted(dtype, name, tmp_path):
    folder = save(build(CONFIGS[name]), tmp_path / "plain")
    loaded = weights.load(folder, dtype, CHOICES["4"])
    assert {w.dtype for w in named_parameters(loaded).values()} == {dtype, mx.uint32}
    assert loaded(TOKENS).dtype == dtype
    nn.quantize(model := build(CONFIGS[name]), **CHOICES["mxfp4"].as_table())
    again = weights.load(save(model, tmp_path / "packed", CHOICES["mxfp4"].as_table()), dtype)
    assert {w.dtype for w in named_parameters(again).values()} == {dtype, mx.uint32, mx.uint8}
    assert again(TOKENS).dtype == dtype


# What cannot be run


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"bits": 7, "group_size": 64}, "MLX has no quantization of 7 bits in groups of 64"),
        ({"bits": 4, "group_size": 48}, "MLX has no quantization of 4 bits in groups of 48"),
        ({"bits": True, "group_size": 64}, "MLX has no quantization of True bits"),
        ({"bits": 4, "group_size": 64, "mode": "mxfp4"}, "MLX has no quantization of 4 bits in groups of 64, mode"),
        ({"bits": 4, "group_size": 64, "mode": ["x"]}, "MLX has no quantization of"),
        ({"bits": 4}, "quantization must say its bits and group_size"),
        ([4, 64], "quantization must be a table, not [4, 64]"),
        ({"bits": 4, "group_size": 64, "lm_head": "no"}, "quantization of 'lm_head' must be bits, group_size"),
        ({"bits": 4, "group_size": 64, "lm_head": {"global_scale": True}}, "quantization of 'lm_head' must be"),
        ({"bits": 4, "group_size": 64, "lm_head": {"group_size": 128}}, "lm_head is 64 wide, which groups of 128"),
    ],
)
def test_another_quantization_is_one_line(quantization, message, tmp_path):
    nn.quantize(model := build(CONFIGS["mistral"]), 64, 4)
    with pytest.raises(Error) as refused:
        weights.load(save(model, tmp_path, quantization))
    assert type(refused.value) is Error
    assert str(refused.value).startswith(f"{tmp_path / 'config.json'}: ")
    assert message in str(refused.value)


def test_another_programs_quantization_is_named(tmp_path):
    folder = save(build(CONFIGS["mistral"]), tmp_path)
    table = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(table | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(Error, match="weights quantized by 'gptq' are not supported"):
        weights.load(folder)


def test_packed_tensors_that_do_not_fit_are_named_at_once(tmp_path):
    nn.quantize(model := build(CONFIGS["mistral"]), 64, 4)
    folder = save(model, tmp_path, {"bits": 4, "group_size": 64, "model.layers.1.mlp.up_proj": False})
    tensors = named_parameters(model)
    del tensors["model.layers.0.mlp.up_proj.biases"]
    tensors["lm_head.scales"] = mx.zeros((96, 1), mx.uint8)
    tensors["model.layers.0.mlp.gate_proj.weight"] = mx.zeros((128, 9), mx.uint32)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    with pytest.raises(Error) as refused:
        weights.load(folder)
    assert str(refused.value) == (
        f"{folder}: the tensors do not fit the model of config.json; missing: model.layers.0.mlp.up_proj.biases; "
        "unexpected: model.layers.1.mlp.up_proj.biases, model.layers.1.mlp.up_proj.scales; "
        "wrong shape: model.layers.0.mlp.gate_proj.weight is (128, 9), not (128, 8), "
        "model.layers.1.mlp.up_proj.weight is (128, 8), not (128, 64); "
        "wrong type: lm_head.scales is uint8, model.layers.1.mlp.up_proj.weight is uint32"
    )


def test_what_is_quantized_cannot_be_quantized_again(tmp_path):
    nn.quantize(model := build(CONFIGS["mistral"]), 64, 4)
    folder = save(model, tmp_path, {"bits": 4, "group_size": 64})
    with pytest.raises(UsageError, match="is quantized already"):
        weights.load(folder, quantize=CHOICES["8"])


# Memory


def test_freed_buffers_are_not_kept_while_loading_and_the_limit_is_put_back(tmp_path, monkeypatch):
    folder = save(build(CONFIGS["mistral"]), tmp_path)
    monkeypatch.setattr(weights, "KEPT", 0)
    limit = mx.set_cache_limit(1 << 30)
    try:
        mx.clear_cache()
        model = weights.load(folder, mx.float16, CHOICES["4"])
        assert mx.get_cache_memory() == 0
        assert mx.set_cache_limit(limit) == 1 << 30
    finally:
        mx.set_cache_limit(limit)
    assert model(TOKENS).dtype == mx.float16


LOADS = """
import resource, sys
from pathlib import Path
import mlx.core as mx
from mlxgpt import weights
from mlxgpt.quantization import CHOICES
mx.set_cache_limit(4 << 30)
def peak():  # ru_maxrss of a new process on Linux begins with its parent's
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
before = peak()
model = weights.load(Path(sys.argv[1]), getattr(mx, sys.argv[2]), CHOICES.get(sys.argv[3]))
print(peak() - before, mx.get_active_memory())
"""


@pytest.mark.parametrize(
    ("dtype", "choice", "share"), [("bfloat16", "4", 4.5 / 16), ("float32", "4", 5 / 16), ("float16", "none", 1.0)]
)
def test_loading_takes_the_finished_model_and_about_one_tensor(dtype, choice, share, tmp_path):
    """A checkpoint of 302 MB: 12 layers of 12.6M weights, the largest tensor 8 MB as stored."""
    config = mistral.Config(
        vocab_size=1024, hidden_size=1024, intermediate_size=2816, num_hidden_layers=12, num_attention_heads=8,
        num_key_value_heads=8,
    )  # fmt: skip
    shapes = named_parameters(models.build(config))
    block = (mx.random.normal((4 << 20,)) * 0.02).astype(mx.bfloat16)
    (tmp_path / "config.json").write_text(json.dumps(weights.hub_config(config, None, "bfloat16")))
    mx.save_safetensors(
        str(tmp_path / "model.safetensors"), {n: block[: p.size].reshape(p.shape) for n, p in shapes.items()}
    )
    stored = (tmp_path / "model.safetensors").stat().st_size
    assert stored > 300_000_000
    command = [sys.executable, "-c", LOADS, str(tmp_path), dtype, choice]
    peak, held = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    least, most = {"bfloat16 4": (0.27, 0.29), "float32 4": (0.3, 0.32), "float16 none": (0.99, 1.01)}[
        f"{dtype} {choice}"
    ]
    assert least * stored < held < most * stored
    assert peak < held + 60_000_000
