"""Layouts and descriptions: Mistral's own release gives the Hub's logits, and no config takes memory or crashes."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlxgpt import layouts, models, weights
from mlxgpt.errors import Error, UsageError

HUB = Path(__file__).parent / "golden" / "hub"
RELEASED = {
    "embed_tokens": "tok_embeddings", "norm": "norm", "lm_head": "output",
    "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3",
}  # fmt: skip


def tensors_of(folder: Path) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        found |= mx.load(str(path))  # type: ignore[operator]
    return found


def interleave(w: mx.array, heads: int) -> mx.array:
    """Each head's rows a0 a1 … b0 b1 … as a0 b0 a1 b1 …, one by one."""
    rows, size = np.array(w), w.shape[0] // heads
    order = [h * size + half * (size // 2) + i for h in range(heads) for i in range(size // 2) for half in (0, 1)]
    return mx.array(rows[order])


def release(hub: Path, folder: Path, **more) -> Path:
    """The model of the Hub's folder `hub` as Mistral would release it; `more` goes over its params.json."""
    config, tensors = json.loads((hub / "config.json").read_text()), {}
    for name, w in tensors_of(hub).items():
        module = name.removesuffix(".weight")
        for kind, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if module.endswith(kind):
                w = interleave(w, config[heads])
        for ours, theirs in RELEASED.items():
            if module == ours or module.endswith(f".{ours}"):
                tensors[
                    module.removeprefix("model.").removesuffix(ours.removeprefix("model.")) + theirs + ".weight"
                ] = w
    assert len(tensors) == len(tensors_of(hub))
    params = {
        "dim": config["hidden_size"], "n_layers": config["num_hidden_layers"], "head_dim": config["head_dim"],
        "hidden_dim": config["intermediate_size"], "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"], "norm_eps": config["rms_norm_eps"],
        "vocab_size": config["vocab_size"], "rope_theta": config["rope_parameters"]["rope_theta"],
        "sliding_window": config["sliding_window"], "tied_embeddings": config["tie_word_embeddings"],
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "params.json").write_text(json.dumps({k: v for k, v in (params | more).items() if v is not ...}))
    mx.save_safetensors(str(folder / "consolidated.safetensors"), tensors)
    return folder


@pytest.mark.parametrize("name", ["mistral", "mistral_sharded", "mistral_tied"])
def test_mistrals_own_release_gives_the_logits_of_the_hub(name, tmp_path):
    golden: dict[str, mx.array] = mx.load(str(HUB / name / "logits.safetensors"))  # type: ignore[assignment]
    folder = release(HUB / name, tmp_path)
    ours = weights.load(folder)(golden["tokens"])
    np.testing.assert_allclose(np.array(ours), np.array(golden["logits"]), rtol=0, atol=1e-4)
    assert mx.array_equal(ours, weights.load(HUB / name)(golden["tokens"]))
    greedy: list[int] = golden["greedy"].tolist()  # type: ignore[assignment]
    assert weights.load(folder)(mx.array([greedy]))[0, 9:-1].argmax(-1).tolist() == greedy[10:]


def test_a_release_in_shards_with_an_index(tmp_path):
    folder = release(HUB / "mistral", tmp_path)
    whole = folder / "consolidated.safetensors"
    tensors: dict[str, mx.array] = mx.load(str(whole))  # type: ignore[assignment]
    mx.eval(tensors)
    before = mx.array(weights.load(folder)(mx.array([[1, 2, 3]])))
    names, index = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"consolidated-0000{i}-of-00002.safetensors"
        mx.save_safetensors(str(folder / file), {n: tensors[n] for n in part})
        index |= dict.fromkeys(part, file)
    whole.unlink()
    assert mx.array_equal(weights.load(folder)(mx.array([[1, 2, 3]])), before)
    (folder / "consolidated.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert mx.array_equal(weights.load(folder)(mx.array([[1, 2, 3]])), before)


def test_of_two_layouts_in_one_folder_one_is_read(tmp_path):
    folder = release(HUB / "mistral", tmp_path / "both")
    (folder / "consolidated.safetensors").write_bytes(b"broken")
    shutil.copy(HUB / "mistral" / "model.safetensors", folder)
    shutil.copy(HUB / "mistral" / "config.json", folder)
    assert not layouts.describe(folder).release
    tokens = mx.array([[1, 2, 3]])
    assert mx.array_equal(weights.load(folder)(tokens), weights.load(HUB / "mistral")(tokens))
    release(HUB / "mistral", folder)
    (folder / "model.safetensors").unlink()
    assert layouts.describe(folder).release
    weights.load(folder)


@pytest.mark.parametrize(
    ("change", "theta"),
    [
        ({"rope_theta": ..., "sliding_window": 4096}, 1e4),  # v0.1
        ({"rope_theta": ..., "sliding_window": None}, 1e6),
        ({"rope_theta": None, "sliding_window": ..., "_sliding_window": 4096}, 1e4),
        ({"rope_theta": 5e5, "sliding_window": 4096}, 5e5),
    ],
)
def test_the_rotary_base_that_a_release_leaves_out(change, theta, tmp_path):
    config = layouts.describe(release(HUB / "mistral", tmp_path, **change)).config
    window = change.get("_sliding_window", change["sliding_window"])
    assert (config.rope_theta, config.sliding_window) == (theta, window)  # type: ignore[union-attr]


def test_every_tensor_of_a_release_that_does_not_fit_is_named_as_it_is_on_disk(tmp_path):
    folder = release(HUB / "mistral", tmp_path)
    tensors: dict[str, mx.array] = mx.load(str(folder / "consolidated.safetensors"))  # type: ignore[assignment]
    mx.eval(tensors)
    del tensors["layers.1.attention.wk.weight"]
    tensors |= {
        "layers.0.attention.wq.qscale_weight": mx.ones(1), "output.weight": mx.ones((48, 31)),
        "layers.0.attention.wq.weight": mx.ones((7, 32)), "model.norm.weight": mx.ones(32),
    }  # fmt: skip
    mx.save_safetensors(str(folder / "consolidated.safetensors"), tensors)
    with pytest.raises(Error) as refused:
        weights.load(folder)
    assert str(refused.value) == (
        f"{folder}: the tensors do not fit the model of params.json; missing: layers.1.attention.wk.weight; "
        "unexpected: layers.0.attention.wq.qscale_weight, model.norm.weight; "
        "wrong shape: layers.0.attention.wq.weight is (7, 32), not (48, 32), output.weight is (48, 31), not (48, 32)"
    )


def test_one_parameter_under_two_names_is_refused(tmp_path):
    folder = Path(shutil.copytree(HUB / "gpt2", tmp_path / "gpt2"))
    tensors = tensors_of(folder)
    mx.eval(tensors)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors | {"ln_f.bias": mx.ones(24)})
    with pytest.raises(Error, match=r"unexpected: (transformer\.)?ln_f\.bias$"):
        weights.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moe": {"num_experts": 8}}, "'moe' is not supported"),
        ({"vision_encoder": {}}, "'vision_encoder' is not supported"),
        ({"quantization": {"qformat_weight": "fp8_e4m3"}}, "'quantization' is not supported"),
        ({"yarn": {"factor": 4}}, "'yarn' is not supported"),
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported"),
        ({"use_biases": True}, "use_biases True is not supported"),
        ({"dim": ..., "norm_eps": None}, "params.json: dim, norm_eps missing"),
        ({"n_heads": 0}, "must be at least 1"),
        ({"n_layers": -3}, "must be at least 1"),
        ({"head_dim": 1 << 40}, "must be below"),
        ({"sliding_window": [4096, None]}, "model.sliding_window must be a whole number"),
    ],
)
def test_a_release_that_cannot_be_run_is_one_line(change, message, tmp_path):
    with pytest.raises(Error) as refused:
        weights.load(release(HUB / "mistral", tmp_path, **change))
    assert str(refused.value).startswith(f"{tmp_path / 'params.json'}: ")
    assert message in str(refused.value)


# config.json


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mistral", {"vocab_size": 0}, "vocab_size must be at least 1"),
        ("mistral", {"hidden_size": -1}, "hidden_size must be at least 1"),
        ("mistral", {"num_hidden_layers": 10**9}, "1000000000 layers are more than"),
        ("mistral", {"hidden_size": 1 << 40, "head_dim": 12}, "hidden_size must be below"),
        ("mistral", {"intermediate_size": (1 << 31) - 1}, "mlp.up_proj.weight is (40, 32), not (2147483647, 32)"),
        ("mistral", {"num_attention_heads": 1 << 30, "head_dim": 1 << 30}, "head_dim must be below"),
        ("mistral", {"max_position_embeddings": 10**4000}, "must be below"),
        ("mistral", {"rope_theta": 0, "rope_parameters": None}, "rope_theta must be at least 1"),
        ("mistral", {"rms_norm_eps": 0}, "rms_norm_eps must be above 0"),
        ("mistral", {"rms_norm_eps": float("nan")}, "rms_norm_eps must be a number"),
        ("mistral", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types other than"),
        ("mistral", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "rotary positions on a part"),
        ("gpt2", {"n_embd": 3 << 29}, "must be below"),
        ("gpt2", {"layer_norm_epsilon": 0}, "layer_norm_epsilon must be above 0"),
        ("gpt2", {"n_inner": 100, "n_embd": None}, "n_embd must be a whole number"),
        ("gpt2", {"n_inner": 100}, "n_inner 100 is not supported"),
        ("gpt2", {"n_positions": 1 << 30}, "wpe.weight is (32, 24), not (1073741824, 24)"),
    ],
)  # fmt: skip
def test_sizes_that_no_tensor_has_are_refused_before_memory_is_taken(name, change, message, tmp_path):
    folder = Path(shutil.copytree(HUB / name, tmp_path / name))
    table = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(table | change))
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    with pytest.raises(Error) as refused:
        weights.load(folder)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert mx.get_peak_memory() - before < 10_000_000


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, " " * 17_000_000, "9" * 5000, "\ufeff{}", "NaN"])
def test_deep_and_huge_json_is_one_line(text, tmp_path):
    folder = Path(shutil.copytree(HUB / "gpt2", tmp_path / "gpt2"))
    (folder / "config.json").write_text(text)
    with pytest.raises(Error, match=r"config\.json") as refused:
        weights.load(folder)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000


sizes = st.integers(-2, 100) | st.integers() | st.sampled_from([1 << 31, 1 << 62, 10**30])
anything = st.recursive(
    st.none() | st.booleans() | sizes | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
schemes = st.dictionaries(
    st.sampled_from(["bits", "group_size", "mode", "quant_method", "lm_head", "model.embed_tokens", "h.0.attn.c_attn"]),
    st.sampled_from([2, 4, 8, 32, 64, "affine", "mxfp4", False, True, {"bits": 4, "group_size": 32}]) | anything,
    max_size=6,
)


def tables(name: str, file: str, extra: tuple[str, ...]) -> st.SearchStrategy:
    """The description of a good folder with a few keys changed, dropped or added."""
    good = json.loads((HUB / name / "config.json").read_text()) if file == "config.json" else {}
    keys = st.sampled_from([*good, *extra])
    changes = st.dictionaries(keys, sizes | anything, max_size=4)
    quantized = st.just({}) | st.fixed_dictionaries({"quantization": schemes})
    dropped = st.sets(st.sampled_from([*good, ""]), max_size=3)
    return st.builds(
        lambda c, q, d: {k: v for k, v in (good | c | q).items() if k not in d}, changes, quantized, dropped
    )


def loads_or_refuses(folder: Path, path: Path, table: object) -> None:
    path.write_text(json.dumps(table))
    mx.reset_peak_memory()
    refused = None
    try:
        model = weights.load(folder)
    except Error as error:
        refused = error
    if refused:
        assert type(refused) is Error
        assert "\n" not in str(refused)
    else:
        assert model(mx.array([[1, 2, 3]])).shape == (1, 3, model.config.vocab_size)
    assert mx.get_peak_memory() < 50_000_000


FUZZ = settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
EXTRA = (
    "quantization_config", "rope_scaling", "rope_theta", "layer_types", "n_inner", "scale_attn_weights", "type", "bias",
)  # fmt: skip


@pytest.mark.parametrize("name", ["mistral", "gpt2"])
@FUZZ
@given(data=st.data())
def test_any_config_is_a_model_or_one_line(name, tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / f"fuzz-{name}"
    if not folder.exists():
        shutil.copytree(HUB / name, folder)
    table = data.draw(tables(name, "config.json", EXTRA) | anything)
    loads_or_refuses(folder, folder / "config.json", table)


@FUZZ
@given(changes=st.dictionaries(st.sampled_from([*layouts.PARAMS, *layouts.PARAMS_FIXED, "moe", "x", "max_seq_len"]),
                               sizes | anything, max_size=4))  # fmt: skip
@example(changes={"head_dim": 0})
def test_any_params_is_a_model_or_one_line(tmp_path_factory, changes):
    folder = tmp_path_factory.getbasetemp() / "fuzz-release"
    if not folder.exists():
        release(HUB / "mistral", folder)
        (folder / "good.json").write_text((folder / "params.json").read_text())
    loads_or_refuses(folder, folder / "params.json", json.loads((folder / "good.json").read_text()) | changes)


def test_a_missing_folder_is_wrong_usage_and_a_missing_description_is_not(tmp_path):
    with pytest.raises(UsageError, match="no model folder at"):
        layouts.describe(tmp_path / "none")
    with pytest.raises(Error, match=r"config\.json is missing") as refused:
        layouts.describe(tmp_path)
    assert type(refused.value) is Error
    assert models.ARCHITECTURES.keys() == layouts.HUB.keys()
