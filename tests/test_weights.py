"""Model folders in the Hub's format: what transformers and mlx-lm write and read gives the same logits here."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlxgpt.kernels import compiled

from mlxgpt import models, tensors, weights
from mlxgpt.errors import Error, UsageError
from mlxgpt.models import gpt2, mistral, qwen3
from mlxgpt.models.layers import named_parameters
from mlxgpt.tokenizer import CharTokenizer, SentencePieceTokenizer, Tokenizer

HUB = Path(__file__).parent / "golden" / "hub"  # written by transformers: golden/make_goldens.py
LETTERS = CharTokenizer("abcdefghijklmnopq")  # and bytes, <s>, </s>: 258 tokens


def gpt2_config(**more) -> gpt2.Config:
    table = {"vocab_size": 300, "n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 3}
    return gpt2.Config(**table | more)


def mistral_config(**more) -> mistral.Config:
    table = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "max_position_embeddings": 64, "rope_theta": 500.0,
    }  # fmt: skip
    return mistral.Config(**table | more)


CONFIGS: dict[str, models.Config] = {
    "gpt2": gpt2_config(dropout=0.25),
    "gpt2 without biases": gpt2_config(bias=False),
    "mistral": mistral_config(num_key_value_heads=2, head_dim=12, rms_norm_eps=1e-3),
    "mistral tied, windowed": mistral_config(tie_word_embeddings=True, sliding_window=6),
    "qwen3": qwen3.Config(**vars(mistral_config(num_key_value_heads=2, head_dim=12, rms_norm_eps=1e-3))),
    "qwen3 tied, windowed": qwen3.Config(**vars(mistral_config(tie_word_embeddings=True, sliding_window=6))),
}
TOKENS = mx.random.randint(0, 300, (2, 20), key=mx.random.key(0))


def build(config: models.Config) -> models.Model:
    """A model whose every parameter matters: none is 0 or 1, and the logits are of order 1."""
    mx.random.seed(3)
    return models.build(config).apply(lambda p: p + 0.3 * mx.random.normal(p.shape)).eval()


def save(model: models.Model, folder: Path, tokenizer: Tokenizer = LETTERS) -> Path:
    folder.mkdir(exist_ok=True)
    weights.save_tokenizer_and_config(folder, model.config, tokenizer)
    weights.save_weights(folder / "model.safetensors", weights.to_disk(model))
    return folder


def assert_close(mine: mx.array, expected, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(np.array(mine), np.array(expected), rtol=0, atol=tolerance)


# What transformers writes


@pytest.fixture(params=["mistral", "qwen3", "gpt2"])
def hub(request, tmp_path) -> Path:
    """A copy of a folder that transformers wrote."""
    return Path(shutil.copytree(HUB / request.param, tmp_path / request.param))


def golden(folder: Path) -> tuple[mx.array, mx.array]:
    tensors = mx.load(str(folder / "logits.safetensors"))
    return tensors["tokens"], tensors["logits"]  # type: ignore[index]


def edit_config(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / "config.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


@pytest.mark.parametrize("name", ["mistral", "mistral_sharded", "mistral_tied", "qwen3", "gpt2"])
def test_a_folder_that_transformers_wrote_gives_its_logits_and_greedy_tokens(name):
    folder = HUB / name
    tokens, logits = golden(folder)
    assert logits.std().item() > 1
    model = weights.load(folder)
    assert_close(model(tokens), logits)
    greedy = mx.load(str(folder / "logits.safetensors"))["greedy"].tolist()  # type: ignore[index]
    assert model(mx.array([greedy]))[0, 9:-1].argmax(-1).tolist() == greedy[10:]


def test_the_golden_sequence_is_longer_than_the_window(tmp_path):
    """Else the goldens would not show that the window is as wide as transformers'."""
    for window in (5, 7, None):
        folder = Path(shutil.copytree(HUB / "mistral", tmp_path / str(window)))
        edit_config(folder, lambda t, window=window: t.update(sliding_window=window))
        tokens, logits = golden(folder)
        assert mx.abs(weights.load(folder)(tokens) - logits).max().item() > 0.1


def test_the_older_layout_gives_the_same_logits(hub):
    """Before transformers 5: rope_theta, torch_dtype; bare names, masks among the tensors and the tied head twice."""

    def older(table: dict) -> None:
        table["torch_dtype"] = table.pop("dtype")
        if rope := table.pop("rope_parameters", None):
            table |= {"rope_theta": rope["rope_theta"], "rope_scaling": None}
        else:
            table["n_ctx"] = table["n_positions"]
            for key in ("tie_word_embeddings", "scale_attn_weights", "add_cross_attention", "n_inner"):
                del table[key]

    edit_config(hub, older)
    tensors: dict[str, mx.array] = mx.load(str(hub / "model.safetensors"))  # type: ignore[assignment]
    if hub.name == "gpt2":
        tensors = {name.removeprefix("transformer."): w for name, w in tensors.items()}
        mask = mx.tril(mx.ones((32, 32), mx.uint8))[None, None]
        tensors |= {f"h.{i}.attn.bias": mask for i in range(2)}
        tensors |= {f"h.{i}.attn.masked_bias": mx.array(-1e4) for i in range(2)}
        tensors["lm_head.weight"] = tensors["wte.weight"]
    else:
        tensors |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": mx.ones(6) for i in range(2)}
    mx.save_safetensors(str(hub / "model.safetensors"), tensors)
    tokens, logits = golden(hub)
    assert_close(weights.load(hub)(tokens), logits)


def test_a_tied_mistral_may_store_its_head_twice(tmp_path):
    model = build(CONFIGS["mistral tied, windowed"])
    folder = save(model, tmp_path)
    tensors = weights.to_disk(model)
    weights.save_weights(
        folder / "model.safetensors", tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    )
    assert mx.array_equal(weights.load(folder)(TOKENS), model(TOKENS))


@pytest.mark.parametrize("name", ["mistral", "qwen3", "gpt2"])
def test_keys_that_a_config_leaves_out_are_what_transformers_takes(name):
    import transformers

    theirs = transformers.CONFIG_MAPPING[name]().to_dict()
    ours = weights.config_from_hub({"model_type": name})
    if isinstance(ours, mistral.Config):
        assert ours.rope_theta == theirs["rope_parameters"]["rope_theta"]
    shared = [key for key in vars(ours) if key in theirs and key != "head_dim"]
    assert len(shared) >= 6
    assert {key: getattr(ours, key) for key in shared} == {key: theirs[key] for key in shared}


@pytest.mark.parametrize(
    ("change", "window"),
    [
        ({"sliding_window": 8}, None),
        ({"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0}, 8),
        ({"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 28}, None),
        ({"sliding_window": 8, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}, 8),
        ({"use_sliding_window": True, "max_window_layers": 0}, 4096),
    ],
)
def test_qwen3s_window_is_where_transformers_has_it(change, window):
    import transformers

    table = {"model_type": "qwen3", "num_hidden_layers": 2} | change
    assert weights.config_from_hub(table).sliding_window == window
    theirs = transformers.Qwen3Config(**table)
    assert set(theirs.layer_types) == {"full_attention" if window is None else "sliding_attention"}
    assert weights.config_from_hub(theirs.to_dict()).sliding_window == window


@pytest.mark.parametrize("kind", ["mistral", "qwen3"])
def test_how_a_model_began_is_not_written(kind):
    config = models.config_from_table({"type": kind, "zero_init": True, "vocab_size": 9})
    table = weights.hub_config(config, None, "float32")
    assert not table.keys() & {"zero_init", "qk_norm"}
    assert weights.config_from_hub(table) == models.config_from_table({"type": kind, "vocab_size": 9, "head_dim": 128})


def test_shards_are_read_together_and_a_whole_file_before_them(hub):
    tokens, logits = golden(hub)
    whole = hub / "model.safetensors"
    tensors: dict[str, mx.array] = mx.load(str(whole))  # type: ignore[assignment]
    names = sorted(tensors)
    mx.eval(tensors)
    for i, part in enumerate((names[::2], names[1::2]), 1):
        mx.save_safetensors(str(hub / f"model-0000{i}-of-00002.safetensors"), {n: tensors[n] for n in part})
    whole.unlink()
    assert_close(weights.load(hub)(tokens), logits)
    (hub / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(Error) as refused:
        weights.load(hub)
    missing = str(refused.value).partition("missing: ")[2].split(", ")
    assert len(missing) == len(names) // 2
    mx.save_safetensors(str(whole), tensors)
    (hub / "model-00001-of-00002.safetensors").write_bytes(b"left over")
    assert_close(weights.load(hub)(tokens), logits)


@pytest.mark.parametrize(("dtype", "tolerance"), [(mx.bfloat16, 2e-2), (mx.float16, 2.5e-3)], ids=str)
@pytest.mark.parametrize("name", ["mistral", "mistral_sharded", "mistral_tied", "qwen3", "gpt2"])
def test_weights_are_loaded_in_another_type(name, dtype, tolerance):
    tokens, logits = golden(HUB / name)
    out = weights.load(HUB / name, dtype)(tokens)
    assert out.dtype == dtype
    error = mx.linalg.norm(out.astype(mx.float32) - logits) / mx.linalg.norm(logits)
    assert 0 < error.item() < tolerance


# What mlxgpt writes


@pytest.mark.parametrize("name", CONFIGS)
def test_a_float32_model_may_keep_its_bfloat16_matrices(name, tmp_path):
    model = build(CONFIGS[name])
    model.set_dtype(mx.bfloat16)
    folder = save(model, tmp_path)
    wide = weights.load(folder, mx.float32)
    small, _ = weights.load_with_tokenizer(folder, mx.float32, compact=True)
    held = {n: p.dtype for n, p in named_parameters(small).items()}
    matrices = {n for n, p in named_parameters(small).items() if p.ndim == 2}
    stays = mx.bfloat16 if compiled.load("bf16_matmul") else mx.float32
    assert held == {n: stays if n in matrices else mx.float32 for n in held}
    assert small(TOKENS).dtype == mx.float32
    assert_close(small(TOKENS), wide(TOKENS), 1e-3 * mx.abs(wide(TOKENS)).max().item())
    quantized, _ = weights.load_with_tokenizer(folder, mx.float32, weights.Quantization(8, 32), compact=True)
    assert {p.dtype for p in named_parameters(quantized).values()} <= {mx.float32, mx.uint32}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_model_is_the_loaded_one(name, tmp_path):
    model = build(CONFIGS[name])
    folder = save(model.train(), tmp_path)
    loaded, tokenizer = weights.load_with_tokenizer(folder)
    assert not loaded.training
    assert_close(loaded(TOKENS), model.eval()(TOKENS), 1e-5)
    assert tokenizer.fingerprint() == LETTERS.fingerprint()
    if not isinstance(model.config, gpt2.Config):
        assert loaded.config.sliding_window == model.config.sliding_window  # type: ignore[union-attr]
    else:
        assert loaded.config.dropout == model.config.dropout  # type: ignore[union-attr]
    again = save(loaded, tmp_path / "again")
    before, after = (tensors.read(tensors.shards(f)) for f in (folder, again))
    assert before.keys() == after.keys()
    assert all(mx.array_equal(before[name], after[name]) for name in before)
    assert (again / "config.json").read_text() == (folder / "config.json").read_text()


@pytest.mark.parametrize("name", CONFIGS)
def test_mlx_lm_gives_the_same_logits(name, tmp_path):
    """mlx-lm ignores Mistral's window: there only the positions within it are compared."""
    import mlx_lm

    model = build(CONFIGS[name])
    folder = save(model, tmp_path)
    theirs, tokenizer = mlx_lm.load(str(folder))
    reach = getattr(model.config, "sliding_window", None) or TOKENS.shape[1]
    assert_close(theirs(TOKENS)[:, :reach], model(TOKENS)[:, :reach])
    assert tokenizer.eos_token_id == LETTERS.eos_id


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_reads_the_configuration(name, tmp_path):
    import transformers

    config = CONFIGS[name]
    folder = save(build(config), tmp_path)
    theirs = transformers.AutoConfig.from_pretrained(folder)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (LETTERS.bos_id, LETTERS.eos_id)
    assert str(theirs.dtype).endswith("float32")
    if isinstance(config, gpt2.Config):
        assert (theirs.resid_pdrop, theirs.embd_pdrop, theirs.attn_pdrop) == (config.dropout,) * 3
    else:
        assert theirs.rope_parameters == {"rope_type": "default", "rope_theta": 500.0}
        assert theirs.head_dim == config.head_size
    again = weights.config_from_hub(theirs.to_dict())
    assert again == weights.config_from_hub(json.loads((folder / "config.json").read_text()))
    generation = transformers.GenerationConfig.from_pretrained(folder)
    assert (generation.bos_token_id, generation.eos_token_id) == (LETTERS.bos_id, LETTERS.eos_id)


def test_without_control_tokens_none_are_named(tmp_path):
    import transformers

    tokenizer = CharTokenizer("ab\n", byte_fallback=False)
    folder = save(build(gpt2_config(vocab_size=3)), tmp_path, tokenizer)
    assert json.loads((folder / "generation_config.json").read_text()) == {}
    theirs = transformers.AutoConfig.from_pretrained(folder)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (None, None)
    assert transformers.GenerationConfig.from_pretrained(folder).eos_token_id is None


CODE = 'def größe(x):\n    return x["🙂"] + 1  # ok\n\n'


@pytest.mark.parametrize("kind", ["char", "bytes", "characters only", "bpe"])
def test_transformers_reads_the_tokenizer(kind, tmp_path):
    import transformers

    tokenizer: Tokenizer = {
        "char": lambda: CharTokenizer("".join(sorted(set(CODE) - {"🙂"}))),
        "bytes": lambda: CharTokenizer(""),
        "characters only": lambda: CharTokenizer("".join(sorted(set(CODE))), byte_fallback=False),
        "bpe": lambda: SentencePieceTokenizer.train([CODE * 50], 300),
    }[kind]()
    folder = save(build(gpt2_config()), tmp_path, tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ids = theirs.encode(CODE, add_special_tokens=False)
    assert ids == tokenizer.encode(CODE)
    assert theirs.decode(ids) == CODE
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    weights.save_weights(path, {"a": mx.ones(3)})
    before = path.read_bytes()

    def fail(name, *_):
        Path(name).write_bytes(b"half")
        raise RuntimeError("[save] Failed to write")

    monkeypatch.setattr(mx, "save_safetensors", fail)
    with pytest.raises(Error, match=r"model\.safetensors could not be written .*; what was there before is whole$"):
        weights.save_weights(path, {"a": mx.zeros(3)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# Folders that cannot be loaded


def refusal(folder: Path, kind: type[Error] = Error) -> str:
    """The one line that loading `folder` ends in."""
    with pytest.raises(kind) as refused:
        weights.load_with_tokenizer(folder)
    assert type(refused.value) is kind
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_every_tensor_that_does_not_fit_is_named_at_once(tmp_path):
    model = build(CONFIGS["gpt2"])
    folder = save(model, tmp_path)
    tensors = weights.to_disk(model)
    for name in ("wpe.weight", "h.1.ln_1.bias"):
        del tensors[name]
    tensors |= {
        "extra": mx.zeros(1),
        "h.2.ln_1.weight": mx.zeros(24),
        "ln_f.weight": mx.zeros(25),
        "h.0.mlp.c_fc.weight": mx.zeros((24, 24)),
        "h.0.mlp.c_fc.bias": mx.zeros(96, mx.uint8),
    }
    weights.save_weights(folder / "model.safetensors", tensors)
    assert refusal(folder) == (
        f"{folder}: the tensors do not fit the model of config.json; missing: h.1.ln_1.bias, wpe.weight; "
        "unexpected: extra, h.2.ln_1.weight; "
        "wrong shape: h.0.mlp.c_fc.weight is (24, 24), not (96, 24), ln_f.weight is (25,), not (24,); "
        "wrong type: h.0.mlp.c_fc.bias is uint8"
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], " is cut short or damaged: "),
        (lambda data: data[:100], " is not a safetensors file or cut short: 100 bytes, a header of "),
        (lambda data: b"", " is not a safetensors file or cut short: 0 bytes"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n" * 3, " is not a safetensors file or cut short"),
        (lambda data: data.replace(b'"F32"', b'"F99"', 1), " has type 'F99', which mlxgpt does not read"),
    ],
)
def test_damaged_tensors_are_one_line(damage, message, hub):
    file = hub / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    said = refusal(hub)
    assert said.startswith(str(file))
    assert message in said


def test_tensors_that_end_while_they_are_read_are_one_line(hub, monkeypatch):
    file = hub / "model.safetensors"
    monkeypatch.setattr(weights, "check", lambda *_: file.write_bytes(file.read_bytes()[:5000]))
    with pytest.raises(Error, match=r"(mistral|qwen3|gpt2): the weights are cut short or damaged: [^\n]+$"):
        weights.load(hub)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "config.json is missing"),
        ("config.json", "{", "config.json cannot be read as JSON: "),
        ("config.json", "[1]", "config.json: it must be a table"),
        ("config.json", "{}", "config.json: model_type None is not supported; known: gpt2, mistral, qwen3"),
        ("config.json", '{"model_type": "gpt_2"}', "model_type 'gpt_2' is not supported; did you mean 'gpt2'?"),
        ("config.json", '{"model_type": ["gpt2"]}', "config.json: model_type ['gpt2'] is not supported"),
        ("config.json", '{"model_type": "gpt2", "n_head": "3"}', "model.n_head must be a whole number, not '3'"),
        ("config.json", '{"model_type": "gpt2", "n_head": 7}', "is not a multiple of n_head (7)"),
        ("model.safetensors", None, "has no weights: model.safetensors is missing"),
        ("tokenizer.json", None, "has no tokenizer: tokenizer.model, tokenizer.json, tekken.json or"),
        ("tokenizer.json", "{", "tokenizer.json: cannot be read as a tokenizer"),
    ],
)
def test_files_missing_or_wrong_are_one_line(name, content, message, tmp_path):
    folder = save(build(CONFIGS["gpt2"]), tmp_path)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    said = refusal(folder)
    assert str(folder) in said
    assert message in said


def test_no_folder_is_wrong_usage(tmp_path):
    assert refusal(tmp_path / "none", UsageError) == f"no model folder at {tmp_path / 'none'}"


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("gpt2", {"activation_function": "relu"}, "activation_function 'relu' is not supported: 'gelu_new'"),
        ("gpt2", {"tie_word_embeddings": False}, "tie_word_embeddings False is not supported: True can be run"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights False is not supported"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True is not supported"),
        ("mistral", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported: 'silu' and 'swish' can be run"),
        ("mistral", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rotary positions of type 'yarn'"),
        ("mistral", {"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rotary positions of type 'linear'"),
        ("mistral", {"rope_parameters": [1]}, "the rotary positions must be a table, not [1]"),
        ("qwen3", {"attention_bias": True}, "attention_bias True is not supported: False can be run"),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "layer_types": None},
            "max_window_layers 1 is not supported: 0 and the number of layers can be run",
        ),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]},
            "layer_types other than 'full_attention' do not go with sliding_window",
        ),
    ],
)
def test_what_would_compute_something_else_is_refused(name, setting, message, tmp_path):
    folder = Path(shutil.copytree(HUB / name, tmp_path / name))
    edit_config(folder, lambda table: table.update(setting))
    said = refusal(folder)
    assert said.startswith(f"{folder / 'config.json'}: ")
    assert message in said


def test_a_vocabulary_that_does_not_fit_is_one_line(tmp_path):
    folder = save(build(gpt2_config(vocab_size=LETTERS.vocab_size - 1)), tmp_path)
    size = LETTERS.vocab_size
    assert refusal(folder) == (
        f"{folder}: the tokenizer has {size} tokens and the model only {size - 1}: they are not of one model"
    )
    save(build(gpt2_config(vocab_size=size)), tmp_path)
    assert weights.load_with_tokenizer(tmp_path)[1].vocab_size == size
