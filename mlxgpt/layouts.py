"""Names on disk <-> the module tree, and the files that describe a model: one table a layout.

config.json (the Hub's) and params.json (Mistral's own release) become our typed configuration here; the weights
themselves are `weights.py`'s.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxgpt import models, tensors
from mlxgpt import tokenizer as tokenizers
from mlxgpt.config import from_table, nearest, require
from mlxgpt.errors import Error, UsageError
from mlxgpt.models.layers import named_parameters

MOST_LAYERS = 1000  # what a folder may ask for before its tensors are compared with it
MOST = 1 << 31  # sizes from here on do not fit MLX's shapes


@dataclass(frozen=True)
class Layout:
    """How one kind of folder names and lays out its tensors. N stands for a layer's number."""

    stem: str = "model"  # of the files: STEM.safetensors, or STEM-00001-of-00002.safetensors and so on
    renamed: Mapping[str, str] = field(default_factory=dict)  # module on disk -> in the tree; if empty, they are equal
    prefix: str = ""  # what names on disk may begin with beside
    transposed: tuple[str, ...] = ()  # modules in the tree whose weight is stored [in, out]
    interleaved: tuple[str, ...] = ()  # modules in the tree whose rows alternate the two halves of each rotary head
    ignored: str = r"(?!)"  # names on disk that are no parameters of ours

    def tree_name(self, name: str) -> str | None:
        """The name in the tree of the tensor `name` on disk; None where the layout has no such tensor."""
        name = name.removeprefix(self.prefix)
        return _rename(name, self.renamed) if self.renamed else name

    def disk_name(self, name: str) -> str:
        """The name on disk of the tensor `name` in the tree, without the optional prefix."""
        return _rename(name, {ours: theirs for theirs, ours in self.renamed.items()}) or name


# GPT-2 on the Hub: Conv1D matrices, in the tree's names, since transformers 5 under "transformer."
GPT2 = Layout(
    prefix="transformer.",
    transposed=("h.N.attn.c_attn", "h.N.attn.c_proj", "h.N.mlp.c_fc", "h.N.mlp.c_proj"),
    ignored=r"h\.\d+\.attn\.(bias|masked_bias)",
)
# GPT-2 as mlx-lm writes it: under "model.", and nothing transposed.
GPT2_MLX = Layout(prefix="model.")
# Mistral on the Hub, and as mlx-lm writes it: the tree's own names.
MISTRAL = Layout(ignored=r".*rotary_emb\.inv_freq")
# Mistral's own release. The table and the order of rows: transformers' convert_mistral_weights_to_hf.py.
RELEASE = Layout(
    stem="consolidated",
    renamed={
        "tok_embeddings": "model.embed_tokens",
        "layers.N.attention_norm": "model.layers.N.input_layernorm",
        "layers.N.attention.wq": "model.layers.N.self_attn.q_proj",
        "layers.N.attention.wk": "model.layers.N.self_attn.k_proj",
        "layers.N.attention.wv": "model.layers.N.self_attn.v_proj",
        "layers.N.attention.wo": "model.layers.N.self_attn.o_proj",
        "layers.N.ffn_norm": "model.layers.N.post_attention_layernorm",
        "layers.N.feed_forward.w1": "model.layers.N.mlp.gate_proj",
        "layers.N.feed_forward.w2": "model.layers.N.mlp.down_proj",
        "layers.N.feed_forward.w3": "model.layers.N.mlp.up_proj",
        "norm": "model.norm",
        "output": "lm_head",
    },
    interleaved=("model.layers.N.self_attn.q_proj", "model.layers.N.self_attn.k_proj"),
)


@dataclass(frozen=True)
class Hub:
    """What config.json says of one architecture beside our own keys."""

    class_name: str  # `architectures`
    fixed: dict[str, Any]  # what we write beside our keys
    defaults: dict[str, Any]  # what transformers takes for the keys of ours that a config.json leaves out
    supported: dict[str, tuple[Any, ...]]  # values that mlxgpt runs, the default first, of keys it does not have


HUB = {
    "gpt2": Hub(
        class_name="GPT2LMHeadModel",
        fixed={"activation_function": "gelu_new", "tie_word_embeddings": True},
        defaults={"vocab_size": 50257},
        supported={
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "tie_word_embeddings": (True,),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
        },
    ),
    "mistral": Hub(
        class_name="MistralForCausalLM",
        fixed={"hidden_act": "silu", "attention_dropout": 0.0, "use_cache": True},
        defaults={
            "vocab_size": 32000,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
            "rms_norm_eps": 1e-6,
        },
        supported={"hidden_act": ("silu", "swish")},
    ),
    "qwen3": Hub(
        class_name="Qwen3ForCausalLM",
        fixed={"hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0, "use_cache": True},
        defaults={
            "vocab_size": 151936,
            "intermediate_size": 22016,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "sliding_window": 4096,
            "rms_norm_eps": 1e-6,
        },
        supported={
            "hidden_act": ("silu", "swish"),
            "attention_bias": (False,),
            "use_sliding_window": (False, True),
        },
    ),
}
PARAMS = {  # params.json's keys -> ours
    "dim": "hidden_size", "n_layers": "num_hidden_layers", "head_dim": "head_dim", "hidden_dim": "intermediate_size",
    "n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads", "norm_eps": "rms_norm_eps",
    "vocab_size": "vocab_size", "rope_theta": "rope_theta", "sliding_window": "sliding_window",
    "tied_embeddings": "tie_word_embeddings", "max_position_embeddings": "max_position_embeddings",
}  # fmt: skip
PARAMS_NEEDED = ("dim", "n_layers", "hidden_dim", "n_heads", "n_kv_heads", "norm_eps", "vocab_size")
PARAMS_FIXED = {"model_type": "transformer", "use_biases": False, "causal": True}  # the values that mlxgpt runs
PARAMS_UNUSED = ("max_batch_size", "ragged_attention")  # how to serve it, not what it computes


@dataclass(frozen=True)
class Description:
    """What a folder's config.json or params.json says, before any weights are looked at."""

    path: Path
    table: dict[str, Any]  # as it stands in the file
    config: models.Config
    release: bool

    def layout(self, names: list[str]) -> Layout:
        """The layout of the folder's tensors, which are called `names`."""
        if self.release:
            return RELEASE
        if isinstance(self.config, models.mistral.Config):
            return MISTRAL
        return GPT2_MLX if any(name.startswith(GPT2_MLX.prefix) for name in names) else GPT2


def describe(folder: Path) -> Description:
    """Read what `folder` says of its model. Raises Error for what mlxgpt cannot run, UsageError for no folder.

    config.json speaks for the Hub's layout; params.json for Mistral's release, where the former is missing or has only
    the release's weights beside it.
    """
    if not folder.is_dir():
        raise UsageError(f"no model folder at {folder}")
    release = (folder / "params.json").is_file() and (
        not (folder / "config.json").is_file()
        or (any(folder.glob("consolidated*.safetensors")) and not any(folder.glob("model*.safetensors*")))
    )
    path = folder / ("params.json" if release else "config.json")
    table = tensors.read_json(path)
    try:
        require(isinstance(table, dict), "it must be a table")
        config = config_from_release(table) if release else config_from_hub(table)
        _require_sane(config)
    except UsageError as error:
        raise Error(f"{path}: {str(error)[:500]}") from None
    return Description(path, table, config, release)


def hub_config(config: models.Config, tokenizer: tokenizers.Tokenizer | None, dtype: str) -> dict[str, Any]:
    """config.json of a model: its configuration under the Hub's names, and what readers there expect beside it."""
    kind = models.architecture(config)
    table = dataclasses.asdict(config)
    if isinstance(config, models.gpt2.Config):
        dropout = table.pop("dropout")
        table.pop("bias")  # written as zeros: the Hub's GPT-2 always has biases
        table |= {"n_ctx": config.context, "embd_pdrop": dropout, "attn_pdrop": dropout, "resid_pdrop": dropout}
    else:
        table.pop("zero_init")  # how it began is nothing to a reader
        table["head_dim"] = config.head_size
        table["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_theta}
        if kind == "qwen3":
            table |= {"use_sliding_window": config.sliding_window is not None, "max_window_layers": 0}
    ids = {} if tokenizer is None else {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    return {
        "architectures": [HUB[kind].class_name],
        "model_type": kind,
        "torch_dtype": dtype,
        **table,
        **HUB[kind].fixed,
        **ids,
    }


def config_from_hub(table: dict[str, Any]) -> models.Config:
    """The typed configuration that a config.json describes. Raises UsageError for what mlxgpt cannot run."""
    kind = table.get("model_type")
    if not isinstance(kind, str) or kind not in models.ARCHITECTURES:
        raise UsageError(f"model_type {kind!r} is not supported{nearest(str(kind)[:80], list(models.ARCHITECTURES))}")
    cls, hub = models.ARCHITECTURES[kind].Config, HUB[kind]
    for name, values in hub.supported.items():
        if (value := table.get(name, values[0])) not in values:
            raise UsageError(f"{name} {value!r} is not supported: {' and '.join(map(repr, values))} can be run")
    known = {f.name for f in dataclasses.fields(cls)}
    ours = hub.defaults | {k: v for k, v in table.items() if k in known}
    if kind == "gpt2":
        ours["dropout"] = table.get("resid_pdrop", 0.0)
    else:
        rope = table.get("rope_parameters") or table.get("rope_scaling") or {}  # since transformers 5, and before
        if not isinstance(rope, dict):
            raise UsageError(f"the rotary positions must be a table, not {rope!r}")
        if (scaling := rope.get("rope_type", rope.get("type", "default"))) != "default":
            raise UsageError(f"rotary positions of type {scaling!r} are not supported: 'default' can be run")
        if (part := rope.get("partial_rotary_factor", 1)) != 1:
            raise UsageError(f"rotary positions on a part of each head ({part!r}) are not supported")
        ours["rope_theta"] = rope.get("rope_theta", ours.get("rope_theta", 10000.0))
        if kind == "qwen3" and not _has_window(table, ours.get("num_hidden_layers", 32)):
            ours["sliding_window"] = None
        kinds = table.get("layer_types")
        same = ["full_attention" if ours["sliding_window"] is None else "sliding_attention"]
        if kinds is not None and not (isinstance(kinds, list) and all(kind in same for kind in kinds)):
            raise UsageError(f"layer_types other than {same[0]!r} do not go with sliding_window")
    config = from_table(cls, ours, "model")
    if kind == "gpt2" and (inner := table.get("n_inner")) not in (None, 4 * config.n_embd):
        raise UsageError(f"n_inner {inner!r} is not supported: 4 * n_embd can be run")
    return config


def _has_window(table: dict[str, Any], layers: Any) -> bool:
    """Whether the layers of a Qwen3 have the window that its config.json names. Raises UsageError where some do."""
    if not table.get("use_sliding_window", False):
        return False
    if (kinds := table.get("layer_types")) is not None:
        return not isinstance(kinds, list) or "full_attention" not in kinds
    full = table.get("max_window_layers", 28)  # the first layers, which have none
    if full != 0 and not (isinstance(full, int) and isinstance(layers, int) and full >= layers):
        raise UsageError(f"max_window_layers {full!r} is not supported: 0 and the number of layers can be run")
    return full == 0


def config_from_release(table: dict[str, Any]) -> models.Config:
    """The typed configuration that a params.json describes. Raises UsageError for what mlxgpt cannot run."""
    given = {name: value for name, value in table.items() if value is not None}
    for other, name in {"_sliding_window": "sliding_window", "max_seq_len": "max_position_embeddings"}.items():
        if other in given:
            given.setdefault(name, given.pop(other))
    if lacking := [name for name in PARAMS_NEEDED if name not in given]:
        raise UsageError(f"{', '.join(lacking)} missing")
    for name, value in given.items():
        if name in PARAMS_FIXED and value != PARAMS_FIXED[name]:
            raise UsageError(f"{name} {value!r} is not supported: {PARAMS_FIXED[name]!r} can be run")
        if name not in (*PARAMS, *PARAMS_FIXED, *PARAMS_UNUSED) and value is not False:
            raise UsageError(f"{name[:80]!r} is not supported: mlxgpt runs Mistral's dense text models")
    # Mistral's reference code, where the file leaves it out: v0.1 alone has a window.
    ours: dict[str, Any] = {"rope_theta": 1e4 if "sliding_window" in given else 1e6}
    ours |= {PARAMS[name]: value for name, value in given.items() if name in PARAMS}
    return from_table(models.mistral.Config, ours, "model")


def _require_sane(config: models.Config) -> None:
    """Raise UsageError for sizes that no model has: the tree of such a model is not even to be laid out."""
    require(config.vocab_size >= 1, "model.vocab_size must be at least 1")
    layers = config.n_layer if isinstance(config, models.gpt2.Config) else config.num_hidden_layers
    require(layers <= MOST_LAYERS, f"{layers} layers are more than the {MOST_LAYERS} that mlxgpt reads")
    sizes = {name: value for name, value in dataclasses.asdict(config).items() if type(value) is int}
    if isinstance(config, models.gpt2.Config):
        require(config.layer_norm_epsilon > 0, "model.layer_norm_epsilon must be above 0")
        sizes["4 * n_embd"] = 4 * config.n_embd
    else:
        require(config.rms_norm_eps > 0, "model.rms_norm_eps must be above 0")
        sizes["num_attention_heads * head_dim"] = config.num_attention_heads * config.head_size
    for name, value in sizes.items():
        require(value < MOST, f"model.{name} must be below {MOST}")


def to_disk(model: models.Model) -> dict[str, mx.array]:
    """The model's parameters by their names, and in their layout, on the Hub."""
    weights = named_parameters(model)
    if isinstance(model.config, models.gpt2.Config) and not model.config.bias:
        for name in [n for n in weights if re.search(r"(ln_\w|c_attn|c_proj|c_fc)\.weight$", n)]:
            weights[name.removesuffix("weight") + "bias"] = mx.zeros(weights[name].shape[0], weights[name].dtype)
    return as_written(weights, model.config, quantized=False)


def as_written(weights: dict[str, mx.array], config: models.Config, quantized: bool) -> dict[str, mx.array]:
    """Some of a model's parameters by the names, and in the layout, that a folder of ours has: the Hub's, or where
    the model is quantized mlx-lm's."""
    if isinstance(config, models.gpt2.Config):
        if quantized:
            return {GPT2_MLX.prefix + name: w for name, w in weights.items()}
        return {n: mx.contiguous(w.T) if _within(n, GPT2.transposed) else w for n, w in weights.items()}
    return weights


def from_disk(
    weights: dict[str, mx.array], config: models.Config, layout: Layout
) -> tuple[dict[str, mx.array], list[str]]:
    """The tensors of a folder by their names, and in their layout, in the module tree; and the names of those that the
    layout does not have or has twice. Lazy."""
    tree: dict[str, mx.array] = {}
    strangers = []
    tied = getattr(config, "tie_word_embeddings", True)
    for disk_name, w in weights.items():
        name = layout.tree_name(disk_name)
        if re.fullmatch(layout.ignored, name or disk_name) or (tied and name and name.startswith("lm_head.")):
            continue
        if name is None or name in tree:
            strangers.append(disk_name)
        elif _within(name, layout.transposed) and w.ndim == 2:
            tree[name] = w.T
        elif _within(name, layout.interleaved):
            tree[name] = half_split(w, config.head_size)  # type: ignore[union-attr]
        else:
            tree[name] = w
    return tree, strangers


def half_split(w: mx.array, head_size: int) -> mx.array:
    """Rows of each head in the release's rotary order (a0 b0 a1 b1 …) -> in the Hub's (a0 a1 … b0 b1 …); w [H·D, C].

    Source: `permute_for_rope` in transformers' convert_mistral_weights_to_hf.py. Other shapes are left alone.
    """
    if w.ndim != 2 or w.shape[0] % head_size:
        return w
    return w.reshape(-1, head_size // 2, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def _generic(module: str) -> tuple[str, str]:
    """A module's name with N for its layer's number, and the number."""
    number = re.search(r"(?<=\.)\d+(?=\.)", module)
    return (module[: number.start()] + "N" + module[number.end() :], number[0]) if number else (module, "")


def _rename(name: str, table: Mapping[str, str]) -> str | None:
    module, _, leaf = name.rpartition(".")
    generic, number = _generic(module)
    return f"{table[generic].replace('.N.', f'.{number}.')}.{leaf}" if generic in table else None


def _within(name: str, modules: tuple[str, ...]) -> bool:
    """Whether `name` is the weight of one of these modules."""
    module, _, leaf = name.rpartition(".")
    return leaf == "weight" and _generic(module)[0] in modules
