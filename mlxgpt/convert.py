"""A model folder -> another one, in another type or quantized: written once, to be opened often, here and in mlx-lm."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxgpt import adapters, files, layouts, models, weights
from mlxgpt import tokenizer as tokenizers
from mlxgpt.errors import UsageError
from mlxgpt.models.layers import named_parameters
from mlxgpt.quantization import Quantization

SHARD = 5 * 10**9  # bytes; the Hub's habit
COPIED = r"(tokenizer|tekken|special_tokens_map|added_tokens|vocab|merges|chat_template|generation_config)[\w.-]*"


def convert(
    source: Path,
    target: Path,
    dtype: mx.Dtype | None = None,
    quantize: Quantization | None = None,
    shard_bytes: int = SHARD,
    adapter: Path | None = None,
    dequantize: bool = False,
) -> None:
    """Write the model folder `source`, in any layout, to `target` in the Hub's (where quantized: mlx-lm's): weights in
    `dtype` (None: as stored), then quantized; shards of at most `shard_bytes`; the tokenizer's files as they are, and
    those of the Hub where there is only a tekken.json or the like. The adapter in a folder of its own becomes part of
    the weights, quantized ones are quantized again; `dequantize` writes those in floating point.

    `target` must not exist, and appears whole or not at all. Memory: one shard and one tensor. Raises Error.
    """
    if target.exists() or target.is_symlink():
        raise UsageError(f"{target} is there already: name another folder, or remove it")
    opened = weights.open_folder(source, quantize)
    quantized = quantize is not None or (opened.quantized and not dequantize)
    modules = weights.finished(opened, dtype, quantize)
    if adapter is not None:
        found = weights.read_adapter(adapter, opened)
        modules = adapters.fused(modules, adapters.places(opened.model, found).keys(), found, dequantize)
    with files.folder(target) as folder:
        kept = _write_weights(modules, opened.description.config, folder, quantized, shard_bytes)
        config = _config(opened, kept, quantize, quantized)
        (folder / "config.json").write_text(files.to_json(config), encoding="utf-8")
        for file in sorted(source.iterdir()):
            if re.fullmatch(COPIED, file.name, re.ASCII) and file.is_file():
                shutil.copyfile(file, folder / file.name)
        only_in_release = not any((folder / name).exists() for name in ("tokenizer.model", "tokenizer.json"))
        if only_in_release and tokenizers.candidates(source):
            tokenizers.load(source, opened.description.config.vocab_size).save(folder)


def _write_weights(
    modules: Iterator[tuple[str, nn.Module]], config: models.Config, folder: Path, quantized: bool, shard_bytes: int
) -> str:
    """Write the shards, and their index if there are several; the name of the type that the weights are kept in."""
    metadata = {"format": "mlx" if quantized else "pt"}
    shards: list[list[str]] = []
    shard: dict[str, mx.array] = {}
    total, kept = 0, "float32"

    def write() -> None:
        mx.save_safetensors(str(folder / f"{len(shards)}.safetensors"), shard, metadata)
        shards.append(sorted(shard))
        shard.clear()

    for path, module in modules:
        own = {f"{path}.{name}": w for name, w in named_parameters(module).items()}
        module.clear()
        size = sum(w.nbytes for w in own.values())
        if shard and sum(w.nbytes for w in shard.values()) + size > shard_bytes:
            write()
        floats = [w.dtype for w in own.values() if mx.issubdtype(w.dtype, mx.floating)]
        kept = str(floats[0]).removeprefix("mlx.core.") if floats else kept
        shard |= layouts.as_written(own, config, quantized)
        total += size
    write()
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
        index = {name: file for file, held in zip(names, shards, strict=True) for name in held}
        table = {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}
        (folder / "model.safetensors.index.json").write_text(files.to_json(table), encoding="utf-8")
    for i, name in enumerate(names):
        (folder / f"{i}.safetensors").rename(folder / name)
    return kept


def _config(opened: weights.Source, kept: str, quantize: Quantization | None, quantized: bool) -> dict[str, Any]:
    """config.json of the new folder: the source's, with every key of ours spelled out (readers differ in what they
    take for one that is left out), and the quantization as mlx-lm says it."""
    described = opened.description
    theirs = {} if described.release else {k: v for k, v in described.table.items() if k != "dtype"}
    table = theirs | layouts.hub_config(described.config, None, kept)
    if not quantized:
        table = {k: v for k, v in table.items() if k not in ("quantization", "quantization_config")}
    if quantize:
        table["quantization"] = table["quantization_config"] = quantize.as_table()
    return table
