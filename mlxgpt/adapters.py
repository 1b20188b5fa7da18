"""Low-rank adapters (LoRA, arXiv 2106.09685): mlx-lm's layers in our module tree, and its folder on disk.

A folder is adapters.safetensors and adapter_config.json, which `mlx_lm.load(base, adapter_path=folder)` opens.
"""

import importlib
import importlib.util
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlxgpt import files, hub, layouts, models, tensors
from mlxgpt.errors import Error, UsageError
from mlxgpt.models.layers import Dropout, Embedding, Linear, QuantizedEmbedding, QuantizedLinear

WEIGHTS, CONFIG = "adapters.safetensors", "adapter_config.json"
MOST_RANK = 1 << 16


@dataclass(frozen=True)
class Adapter:
    """Rank, scale and dropout; how many of the last blocks have one; the name of the base model, and the bits its
    weights were quantized to in training (0: as they are); the linear layers in a block (empty: all); the tensors by
    their names in the tree (empty: not trained yet)."""

    rank: int
    scale: float
    dropout: float
    blocks: int
    base: str = ""
    bits: int = 0
    keys: tuple[str, ...] = ()
    tensors: dict[str, mx.array] = field(default_factory=dict)


@cache
def _tuner() -> ModuleType:
    """mlx_lm.tuner.lora by its file: the packages around it import transformers, seconds that no layer needs."""
    found = importlib.util.find_spec("mlx_lm")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("mlx-lm is not installed")
    root, alias = Path(found.origin).parent, "mlxgpt._mlx_lm"
    for name in ("", ".tuner", ".models"):
        package = ModuleType(alias + name)
        package.__path__ = [str(root.joinpath(*name.split(".")))]
        sys.modules[package.__name__] = package
    return importlib.import_module(f"{alias}.tuner.lora")


def _layer(linear: nn.Module, adapter: Adapter) -> nn.Module:
    """mlx-lm's LoRALinear around a linear layer of ours."""
    layer = _tuner().LoRALinear.from_base(linear, adapter.rank, adapter.dropout, adapter.scale)
    layer.dropout = Dropout(adapter.dropout)
    return layer


def places(model: models.Model, adapter: Adapter) -> dict[str, nn.Module]:
    """The linear layers that have an adapter, by their path. Raises UsageError where the model has no such layers."""
    if adapter.blocks > len(model.layers):
        raise UsageError(f"the adapter is for {adapter.blocks} blocks, and the model has {len(model.layers)}")
    within = {id(block) for block in model.layers[len(model.layers) - adapter.blocks :]}
    found: dict[str, nn.Module] = {}
    for path, block in model.named_modules():
        if id(block) not in within:
            continue
        linear = {n: m for n, m in block.named_modules() if isinstance(m, Linear | QuantizedLinear)}
        if strangers := set(adapter.keys) - linear.keys():
            raise UsageError(f"the adapter is for {sorted(strangers)[0]!r}, which is no linear layer of a block")
        found |= {f"{path}.{n}": m for n, m in linear.items() if not adapter.keys or n in adapter.keys}
    return found


def check(model: models.Model, adapter: Adapter) -> None:
    """Raise UsageError unless the adapter's tensors are those that `model` needs, of the right shapes."""
    expected: dict[str, tuple[int, ...]] = {}
    for path, layer in places(model, adapter).items():
        rows, columns = layer.weight.shape
        if isinstance(layer, QuantizedLinear):
            columns = columns * 32 // layer.bits
        expected |= {f"{path}.lora_a": (columns, adapter.rank), f"{path}.lora_b": (adapter.rank, rows)}
    found = {name: tuple(w.shape) for name, w in adapter.tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            has, needs = found.get(name, "missing"), expected.get(name, "no such layer")
            raise UsageError(f"the adapter is not for this model: {name[:80]} is {has}, and the model has {needs}")


def attach(model: models.Model, adapter: Adapter) -> None:
    """Freeze `model` and put the adapter beside its linear layers: its tensors, or where it has none those to begin
    with, drawn with MLX's global generator (what they add is 0). Raises UsageError where the two do not fit."""
    if adapter.tensors:
        check(model, adapter)
    model.freeze()
    layers = {path: _layer(linear, adapter) for path, linear in places(model, adapter).items()}
    model.update_modules(tree_unflatten(list(layers.items())))
    for layer in layers.values():
        layer.unfreeze(keys=["lora_a", "lora_b"], recurse=False)
    model.load_weights(list(adapter.tensors.items()), strict=False)


def write_weights(folder: Path, model: models.Model) -> None:
    """adapters.safetensors: what is trained of `model`. Raises Error."""
    trained = dict(tree_flatten(model.trainable_parameters()))
    named = layouts.as_written(trained, model.config, quantized=True)  # mlx-lm's names
    files.write(folder / WEIGHTS, lambda p: mx.save_safetensors(str(p), named, {"format": "mlx"}))


def write_config(folder: Path, adapter: Adapter) -> None:
    """adapter_config.json. Raises Error."""
    table = {
        "model": adapter.base, "fine_tune_type": "lora", "num_layers": adapter.blocks,
        "lora_parameters": {"rank": adapter.rank, "scale": adapter.scale, "dropout": adapter.dropout}
        | ({"keys": list(adapter.keys)} if adapter.keys else {}),
        "bits": adapter.bits,
    }  # fmt: skip
    files.write_json(folder / CONFIG, table)


def locate(name: str | None, adapter: Path | None = None) -> tuple[Path, Path | None]:
    """The folder of the model that `name` means (a folder, an alias, a Hub id), and that of its adapter, if any.

    An adapter's folder without another name beside it, or as the name, means the model that it was trained for. Raises
    Error, UsageError.
    """
    if adapter is None and name is not None:
        folder = hub.resolve(name, check=layouts.describe)
        if (folder / "config.json").exists() or not (folder / CONFIG).is_file():
            return folder, None
        name, adapter = None, folder
    if adapter is None or not (adapter / CONFIG).is_file():
        raise UsageError(f"no adapter in {adapter}: {CONFIG} is missing")
    return hub.resolve(name or _base(adapter), check=layouts.describe), adapter


def _base(folder: Path) -> str:
    table = tensors.read_json(folder / CONFIG)
    base = table.get("model") if isinstance(table, dict) else None
    if not isinstance(base, str) or not base:
        raise Error(f"{folder / CONFIG} does not name the model it is for: give --model MODEL --adapter {folder}")
    return base


def read(folder: Path, config: models.Config) -> Adapter:
    """The adapter in `folder`, ours or mlx-lm's, for a model of `config`. Raises Error."""
    path, table = folder / CONFIG, tensors.read_json(folder / CONFIG)
    try:
        kind = table.get("fine_tune_type", "lora")
        if kind != "lora":
            raise Error(f"{path}: fine_tune_type {kind!r} is not supported: 'lora' can be run")
        blocks, low_rank = table["num_layers"], table["lora_parameters"]
        total = len(models.build(config).layers)
        bits = table.get("bits", 0)
        numbers = {name: low_rank[name] for name in ("rank", "scale", "dropout")}
        keys = low_rank.get("keys") or []
        sound = all(type(n) in (int, float) for n in numbers.values()) and type(blocks) is int and bits in (0, 4, 8)
        sound = sound and type(numbers["rank"]) is int and 1 <= numbers["rank"] < MOST_RANK
        sound = sound and 0 <= numbers["dropout"] < 1 and all(isinstance(k, str) for k in keys)
        if not sound:
            raise ValueError("rank, scale, dropout, num_layers, keys or bits are no such values")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Error(f"{path} does not describe an adapter of mlx-lm's: {error}") from None
    prefix = layouts.GPT2_MLX.prefix if isinstance(config, models.gpt2.Config) else ""
    stored = {name.removeprefix(prefix): w for name, w in tensors.read([folder / WEIGHTS]).items()}
    if stray := [name for name, w in stored.items() if not mx.issubdtype(w.dtype, mx.floating)]:
        raise Error(f"{folder / WEIGHTS}: {stray[0][:80]!r} is not of a floating-point type")
    blocks = total if blocks < 0 else min(blocks, total)  # as mlx-lm takes -1 and more than there are
    base = str(table.get("model", ""))
    return Adapter(**numbers, blocks=blocks, base=base, bits=bits, keys=tuple(keys), tensors=stored)


def fused(
    modules: Iterator[tuple[str, nn.Module]], paths: Collection[str], adapter: Adapter, dequantize: bool
) -> Iterator[tuple[str, nn.Module]]:
    """`modules`, by path, those of `paths` with the adapter's product added to their weights; a quantized one is
    quantized again or, with `dequantize`, as are all others, left in floating point."""
    for path, module in modules:
        if path in paths:
            layer = _layer(module, adapter)
            layer.update({name: adapter.tensors[f"{path}.{name}"] for name in ("lora_a", "lora_b")})
            module = layer.fuse(dequantize)
        elif dequantize and isinstance(module, QuantizedLinear | QuantizedEmbedding):
            module = _dequantized(module)
        mx.eval(module.parameters())
        yield path, module


def _dequantized(module: Any) -> nn.Module:
    weight = mx.dequantize(
        module.weight, module.scales, module.get("biases"), module.group_size, module.bits, module.mode
    )
    plain: nn.Module = Embedding(1, 1) if isinstance(module, QuantizedEmbedding) else Linear(1, 1, bias=False)
    plain.weight = weight
    if "bias" in module:
        plain.bias = module.bias
    return plain
