"""A model folder <-> the module tree: the door to `layouts`, `tensors` and `quantization`.

A folder is config.json, model.safetensors (or shards of it), generation_config.json and the tokenizer's files, or
Mistral's own release: params.json, consolidated.safetensors and the tokenizer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlxgpt import adapters, files, layouts, models, quantization, tensors
from mlxgpt import tokenizer as tokenizers
from mlxgpt.errors import Error, UsageError
from mlxgpt.layouts import config_from_hub, hub_config, to_disk
from mlxgpt.models.layers import kept_in_bf16, named_parameters
from mlxgpt.quantization import Quantization

__all__ = [
    "Quantization", "Source", "check", "config_from_hub", "hub_config", "load", "load_with_tokenizer", "open_folder",
    "read_adapter", "save_tokenizer_and_config", "save_weights", "to_disk",
]  # fmt: skip

KEPT = 1 << 28  # bytes of freed buffers while a model is loaded: enough for the next layer's


@dataclass(frozen=True)
class Source:
    """A folder whose tensors are known to fit its configuration, and of which nothing but headers has been read."""

    folder: Path
    description: layouts.Description
    model: models.Model  # its parameters are not meaningful yet
    weights: dict[str, mx.array]  # by their names in the tree, lazy
    quantized: bool


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


def open_folder(folder: Path, quantize: Quantization | None = None) -> Source:
    """Read what `folder` holds, its headers and not its data. Raises Error for what does not fit or cannot be run, and
    UsageError for no folder or one that is quantized already where `quantize` asks for it."""
    description = layouts.describe(folder)
    stem = layouts.RELEASE.stem if description.release else layouts.MISTRAL.stem
    stored = tensors.read(tensors.shards(folder, stem))
    layout = description.layout(list(stored))
    model = models.build(description.config)
    weights, strangers = layouts.from_disk(stored, description.config, layout)
    try:
        scheme = None if description.release else quantization.scheme(description.table, layout.prefix)
        if scheme and quantize:
            raise UsageError(f"{folder} is quantized already: give the original model, or no --quantize")
        if scheme:
            quantization.prepare(model, scheme, weights)
    except UsageError as error:
        if quantize:
            raise
        raise Error(f"{description.path}: {str(error)[:500]}") from None
    check(model, weights, description.path, layout, strangers)
    return Source(folder, description, model, weights, scheme is not None)


def check(
    model: models.Model, weights: dict[str, mx.array], path: Path, layout: layouts.Layout, strangers: list[str]
) -> None:
    """Raise one Error that names every tensor of `weights` that is missing, unexpected (`strangers` included),
    mis-shaped or of another type than `model`, which `path` describes, has. Nothing is read."""
    expected = named_parameters(model)
    shared = expected.keys() & weights.keys()
    missing = sorted(layout.disk_name(name) for name in expected.keys() - shared)
    unexpected = sorted([layout.disk_name(name) for name in weights.keys() - shared] + strangers)
    misshaped = [
        f"{layout.disk_name(name)} is {weights[name].shape}, not {p.shape}"
        for name, p in expected.items()
        if name in shared and weights[name].shape != p.shape
    ]
    mistyped = [
        f"{layout.disk_name(name)} is {str(weights[name].dtype).removeprefix('mlx.core.')}"
        for name in sorted(shared)
        if not _same_kind(weights[name].dtype, expected[name].dtype)
    ]
    found = {"missing": missing, "unexpected": unexpected, "wrong shape": misshaped, "wrong type": mistyped}
    problems = [f"{label}: {', '.join(names)}" for label, names in found.items() if names]
    if problems:
        raise Error(f"{path.parent}: the tensors do not fit the model of {path.name}; " + "; ".join(problems))


def _same_kind(found: mx.Dtype, expected: mx.Dtype) -> bool:
    """Whether a tensor of type `found` can be the parameter: floating point of any type that a GPU has too, or else
    (packed weights, scales of eight bits) exactly the expected one."""
    if mx.issubdtype(expected, mx.floating):
        return mx.issubdtype(found, mx.floating) and found != mx.float64
    return found == expected


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turn a failure to read tensors into an Error, and keep few freed buffers meanwhile."""
    limit = mx.set_cache_limit(KEPT)
    mx.set_cache_limit(min(limit, KEPT))
    try:
        yield
    except RuntimeError as error:
        raise Error(f"{folder}: the weights are cut short or damaged: {str(error).splitlines()[0]}") from None
    finally:
        mx.set_cache_limit(limit)


def finished(
    source: Source, dtype: mx.Dtype | None = None, quantize: Quantization | None = None, compact: bool = False
) -> Iterator[tuple[str, nn.Module]]:
    """The modules of `source` one by one, by path, with their parameters read: floating point in `dtype` (None: as
    stored), then quantized. Each tensor is dropped from `source.weights` and never held in both forms beyond its turn.
    `compact` leaves bfloat16 matrices and scales as stored where a float32 model computes with them all the same.

    Quantized modules are new ones: they are not put into `source.model`. Raises Error.
    """
    for path, module in quantization.leaves(source.model):
        own = {name: source.weights.pop(f"{path}.{name}") for name in named_parameters(module)}
        if dtype is not None:
            kept = kept_in_bf16(module, own) if compact and dtype == mx.float32 and not quantize else frozenset()
            own = {
                name: w if name in kept or not mx.issubdtype(w.dtype, mx.floating) else w.astype(dtype)
                for name, w in own.items()
            }
        module.update(own)
        del own
        if quantize and quantize.suits(module):
            plain, module = module, module.to_quantized(**quantize.as_table())
            plain.clear()
        with _reading(source.folder):
            mx.eval(module.parameters())
        yield path, module


def fill(
    source: Source, dtype: mx.Dtype | None = None, quantize: Quantization | None = None, compact: bool = False
) -> models.Model:
    """The model of `source`, read as `finished` does, in evaluation mode. Raises Error."""
    modules = list(finished(source, dtype, quantize, compact))
    if quantize:
        source.model.update_modules(tree_unflatten(modules))
    source.model.eval()
    return source.model


def load(folder: Path, dtype: mx.Dtype | None = None, quantize: Quantization | None = None) -> models.Model:
    """The model in `folder`, in evaluation mode, its weights in `dtype` (None: as stored), then quantized.

    Memory: the finished model and about one tensor. Raises Error.
    """
    return fill(open_folder(folder, quantize), dtype, quantize)


def load_with_tokenizer(
    folder: Path, dtype: mx.Dtype | None = None, quantize: Quantization | None = None, compact: bool = False,
    adapter: Path | None = None,
) -> tuple[models.Model, tokenizers.Tokenizer]:  # fmt: skip
    """The model in `folder`, read as `finished` does, and its tokenizer; with the adapter in a folder of its own, and
    then quantized as that was trained. Raises Error, also when the vocabulary or the adapter does not fit the model:
    before the weights are read."""
    source = open_folder(folder, quantize)
    vocabulary = source.description.config.vocab_size
    beside = None if adapter is None else read_adapter(adapter, source)
    if beside and beside.bits and not quantize and not source.quantized:
        quantize = Quantization(beside.bits)
    tokenizer = tokenizers.load(folder, vocabulary)
    if tokenizer.vocab_size > vocabulary:
        raise Error(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens and the model only {vocabulary}: "
            "they are not of one model"
        )
    model = fill(source, dtype, quantize, compact)
    if beside:
        adapters.attach(model, beside)
        mx.eval(model.parameters())
        model.eval()
    return model, tokenizer


def read_adapter(folder: Path, source: Source) -> adapters.Adapter:
    """The adapter in `folder`, which fits the model of `source`. Raises Error."""
    found = adapters.read(folder, source.description.config)
    try:
        adapters.check(source.model, found)
    except UsageError as error:
        raise Error(f"{folder}: {error}") from None
    return found
