"""A model folder in the Hub's format <-> the module tree.

A folder is config.json, model.safetensors (or shards of it), generation_config.json and the tokenizer's files.
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxgpt import files, models
from mlxgpt import tokenizer as tokenizers
from mlxgpt.config import from_table, nearest
from mlxgpt.errors import Error, UsageError
from mlxgpt.models.layers import named_parameters


@dataclass(frozen=True)
class Layout:
    """How one architecture's tensors are named and laid out on disk; module names and disk names are else the same."""

    class_name: str  # `architectures` in config.json
    fixed: dict[str, Any]  # what config.json says beside our own keys
    defaults: dict[str, Any]  # what transformers takes for the keys of ours that a config.json leaves out
    supported: dict[str, tuple[Any, ...]]  # values that mlxgpt runs, the default first, of keys it does not have
    transposed: str = r"(?!)"  # names stored [in, out] (GPT-2's Conv1D)
    prefix: str = ""  # an optional prefix of names on disk
    ignored: str = r"(?!)"  # names on disk that are no parameters of ours


LAYOUTS = {
    "gpt2": Layout(
        class_name="GPT2LMHeadModel",
        fixed={"activation_function": "gelu_new", "tie_word_embeddings": True},
        defaults={"vocab_size": 50257},
        supported={
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "tie_word_embeddings": (True,),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
        },
        transposed=r"h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight",
        prefix="transformer.",
        ignored=r"h\.\d+\.attn\.(bias|masked_bias)",
    ),
    "mistral": Layout(
        class_name="MistralForCausalLM",
        fixed={"hidden_act": "silu", "attention_dropout": 0.0, "use_cache": True},
        defaults={
            "vocab_size": 32000,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
            "rms_norm_eps": 1e-6,
        },
        supported={"hidden_act": ("silu", "swish")},
        ignored=r".*rotary_emb\.inv_freq",
    ),
}


def hub_config(config: models.Config, tokenizer: tokenizers.Tokenizer | None, dtype: str) -> dict[str, Any]:
    """config.json of a model: its configuration under the Hub's names, and what readers there expect beside it."""
    kind = models.architecture(config)
    layout = LAYOUTS[kind]
    table = dataclasses.asdict(config)
    if isinstance(config, models.gpt2.Config):
        dropout = table.pop("dropout")
        table.pop("bias")  # written as zeros: the Hub's GPT-2 always has biases
        table |= {"n_ctx": config.context, "embd_pdrop": dropout, "attn_pdrop": dropout, "resid_pdrop": dropout}
    else:
        table["head_dim"] = config.head_size
        table["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_theta}
    ids = {} if tokenizer is None else {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    return {
        "architectures": [layout.class_name],
        "model_type": kind,
        "torch_dtype": dtype,
        **table,
        **layout.fixed,
        **ids,
    }


def config_from_hub(table: dict[str, Any]) -> models.Config:
    """The typed configuration that a config.json describes. Raises UsageError for what mlxgpt cannot run."""
    kind = table.get("model_type")
    if not isinstance(kind, str) or kind not in models.ARCHITECTURES:
        raise UsageError(f"model_type {kind!r} is not supported{nearest(str(kind), list(models.ARCHITECTURES))}")
    cls, layout = models.ARCHITECTURES[kind].Config, LAYOUTS[kind]
    for name, values in layout.supported.items():
        if (value := table.get(name, values[0])) not in values:
            raise UsageError(f"{name} {value!r} is not supported: {' and '.join(map(repr, values))} can be run")
    known = {f.name for f in dataclasses.fields(cls)}
    ours = layout.defaults | {k: v for k, v in table.items() if k in known}
    if kind == "gpt2":
        ours["dropout"] = table.get("resid_pdrop", 0.0)
    else:
        rope = table.get("rope_parameters") or table.get("rope_scaling") or {}  # since transformers 5, and before
        if not isinstance(rope, dict):
            raise UsageError(f"the rotary positions must be a table, not {rope!r}")
        if (scaling := rope.get("rope_type", rope.get("type", "default"))) != "default":
            raise UsageError(f"rotary positions of type {scaling!r} are not supported: 'default' can be run")
        ours["rope_theta"] = rope.get("rope_theta", ours.get("rope_theta", 10000.0))
    return from_table(cls, ours, "model")


def to_disk(model: models.Model) -> dict[str, mx.array]:
    """The model's parameters by their names, and in their layout, on disk."""
    layout = LAYOUTS[models.architecture(model.config)]
    weights = named_parameters(model)
    if isinstance(model.config, models.gpt2.Config) and not model.config.bias:
        for name in [n for n in weights if re.search(r"(ln_\w|c_attn|c_proj|c_fc)\.weight$", n)]:
            weights[name.removesuffix("weight") + "bias"] = mx.zeros(weights[name].shape[0], weights[name].dtype)
    return {n: mx.contiguous(w.T) if re.fullmatch(layout.transposed, n) else w for n, w in weights.items()}


def from_disk(weights: dict[str, mx.array], config: models.Config) -> dict[str, mx.array]:
    """Tensors of a folder by their names, and in their layout, in the module tree."""
    layout = LAYOUTS[models.architecture(config)]
    tree = {}
    for disk_name, w in weights.items():
        name = disk_name.removeprefix(layout.prefix)
        tied_head = name == "lm_head.weight" and getattr(config, "tie_word_embeddings", True)
        if not re.fullmatch(layout.ignored, name) and not tied_head:
            tree[name] = w.T if re.fullmatch(layout.transposed, name) and w.ndim == 2 else w
    return tree


def check(model: models.Model, weights: dict[str, mx.array], where: Path) -> None:
    """Raise one Error that names every tensor of `weights` that is missing, unexpected, mis-shaped or not of a
    floating-point type (quantized) for `model`."""
    expected = {name: p.shape for name, p in named_parameters(model).items()}
    missing = sorted(expected.keys() - weights.keys())
    unexpected = sorted(weights.keys() - expected.keys())
    misshaped = [
        f"{name} is {weights[name].shape}, not {shape}"
        for name, shape in expected.items()
        if name in weights and weights[name].shape != shape
    ]
    mistyped = [
        f"{name} is {str(w.dtype).removeprefix('mlx.core.')}"
        for name, w in sorted(weights.items())
        if not mx.issubdtype(w.dtype, mx.floating)
    ]
    found = {"missing": missing, "unexpected": unexpected, "wrong shape": misshaped, "wrong type": mistyped}
    problems = [f"{label}: {', '.join(names)}" for label, names in found.items() if names]
    if problems:
        raise Error(f"{where}: the tensors do not fit the model of config.json; " + "; ".join(problems))


def save_tokenizer_and_config(folder: Path, config: models.Config, tokenizer: tokenizers.Tokenizer) -> None:
    """Everything of a model folder but the weights."""
    try:
        tokenizer.save(folder)
    except OSError as error:
        raise Error(f"{folder} cannot be written: {files.reason(error, folder)}") from None
    files.write_json(folder / "config.json", hub_config(config, tokenizer, "float32"))
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    files.write_json(folder / "generation_config.json", {k: v for k, v in ids.items() if v is not None})


def save_weights(path: Path, weights: dict[str, mx.array]) -> None:
    """Tensors as one safetensors file at `path`, whole or not at all. Raises Error."""
    files.write(path, lambda p: mx.save_safetensors(str(p), weights, {"format": "pt"}))


def read_tensors(folder: Path) -> dict[str, mx.array]:
    """Every tensor of a model folder by its name on disk, lazily: nothing is read until it is used. Raises Error."""
    whole = folder / "model.safetensors"
    shards = [whole] if whole.is_file() else sorted(folder.glob("model-*.safetensors"))
    if not shards:
        raise Error(f"{folder} has no weights: model.safetensors is missing")
    tensors: dict[str, mx.array] = {}
    for shard in shards:
        try:
            tensors.update(mx.load(str(shard)))  # type: ignore[arg-type]
        except (RuntimeError, ValueError) as error:
            raise Error(f"{shard} cannot be read as safetensors: {str(error).splitlines()[0]}") from None
    return tensors


def load(folder: Path, dtype: mx.Dtype | None = None) -> models.Model:
    """The model in `folder`, in evaluation mode, its weights in `dtype` (None: as stored). Raises Error."""
    if not folder.is_dir():
        raise UsageError(f"no model folder at {folder}")
    table = files.read_json(folder / "config.json")
    try:
        config = config_from_hub(table if isinstance(table, dict) else {})
    except UsageError as error:
        raise Error(f"{folder / 'config.json'}: {error}") from None
    model = models.build(config)
    weights = from_disk(read_tensors(folder), config)
    check(model, weights, folder)
    if dtype is not None:
        weights = {name: w.astype(dtype) for name, w in weights.items()}
    model.load_weights(list(weights.items()))
    model.eval()
    try:
        mx.eval(model.parameters())
    except RuntimeError as error:
        raise Error(f"{folder}: the weights are cut short or damaged: {str(error).splitlines()[0]}") from None
    return model


def load_with_tokenizer(folder: Path, dtype: mx.Dtype | None = None) -> tuple[models.Model, tokenizers.Tokenizer]:
    """The model in `folder` and its tokenizer. Raises Error, also when the vocabulary does not fit the model."""
    model = load(folder, dtype)
    tokenizer = tokenizers.load(folder)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise Error(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens and the model only {model.config.vocab_size}: "
            "they are not of one model"
        )
    return model, tokenizer
