"""What a run begins with, and what it leaves: random weights, a ready model's, or an adapter beside a ready model's."""

import dataclasses
import hashlib
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from mlxgpt import adapters, backend, files, layouts, models, quantization, tensors, weights
from mlxgpt import tokenizer as tokenizers
from mlxgpt.config import Recipe, TokenizerConfig, require
from mlxgpt.errors import Error
from mlxgpt.models import layers
from mlxgpt.models.layers import named_parameters
from mlxgpt.tokenizer import Tokenizer
from mlxgpt.training import memory

SAMPLES = 64  # places in a file of weights that its fingerprint looks at


def resolve(recipe: Recipe) -> Recipe:
    """`recipe` with what `init.model` stands for: its place, its configuration as `model`, its tokenizer.

    Raises UsageError and Error; the weights are downloaded now, where they are the Hub's.
    """
    if not recipe.init.model:
        return recipe
    require(recipe.tokenizer == TokenizerConfig(), "[tokenizer] goes without init.model (--init), which has its own")
    folder = _folder(recipe)
    config = layouts.describe(folder).config
    found = [p for p in tokenizers.candidates(folder) if tokenizers.load(p).vocab_size <= config.vocab_size]
    require(bool(found), f"{folder} has no tokenizer of at most the model's {config.vocab_size} tokens")
    return dataclasses.replace(
        recipe,
        model={"type": models.architecture(config), **dataclasses.asdict(config)},
        tokenizer=TokenizerConfig(kind="file", path=str(found[0].absolute())),
        init=dataclasses.replace(recipe.init, model=_lasting(recipe.init.model)),
    )


def _lasting(name: str) -> str:
    """A name that means the same from every working directory: a folder's whole path, or what the Hub knows."""
    folder = Path(name).expanduser()
    return str(folder.absolute()) if folder.is_dir() else name


def _folder(recipe: Recipe) -> Path:
    folder, adapter = adapters.locate(recipe.init.model)
    require(adapter is None, f"{adapter} is an adapter: `mlxgpt fuse` makes a model of it, which --init takes")
    return folder


def adapter_of(recipe: Recipe, model: models.Model) -> adapters.Adapter:
    """The adapter that a recipe asks for, not trained yet. Raises UsageError."""
    init, there = recipe.init, len(model.layers)
    require(init.layers <= there, f"init.layers ({init.layers}) is more than the model has ({there})")
    return adapters.Adapter(init.rank, init.scale, init.dropout, init.layers or there, init.model, init.bits)


def build(recipe: Recipe, config: models.Config, processes: int = 1) -> tuple[models.Model, memory.Estimate]:
    """The model that a run begins with, and what a step takes. Random numbers are MLX's global generator's.

    Nothing is read or made before it is known to fit this machine's memory, which so many `processes` of the run share.
    Raises UsageError and Error.
    """
    init, dtype = recipe.init, backend.compute_dtype(recipe.train.dtype)
    if not init.model:
        model = models.build(config)
        estimate = memory.require(model, recipe, dtype, processes)
        model.init_weights()
    else:
        bits = quantization.CHOICES[str(init.bits)] if init.bits else None
        source = weights.open_folder(_folder(recipe), bits)
        compact = init.lora and recipe.train.dtype == "auto"
        require(
            init.lora or not source.quantized,
            f"{source.folder} is quantized and its weights cannot be trained: --lora trains an adapter beside them",
        )
        held = dtype if init.lora else mx.float32
        estimate = memory.require(_outline(source, recipe, held, compact), recipe, dtype, processes)
        model = weights.fill(source, held, bits, compact)
        if init.lora:
            adapters.attach(model, adapter_of(recipe, model))
    if recipe.train.grad_checkpoint:
        layers.recompute(model)
    model.train()
    return model, estimate


def _outline(source: weights.Source, recipe: Recipe, held: mx.Dtype, compact: bool) -> models.Model:
    """The model that `source` will be, of which nothing is computed: for the sizes of its arrays."""
    model = models.build(source.description.config)
    scheme = None if source.description.release else quantization.scheme(source.description.table)
    if scheme:
        quantization.prepare(model, scheme, source.weights)
    for path, module in quantization.leaves(model):
        parameters = named_parameters(module)
        stored = {name: w for name in parameters if (w := source.weights.get(f"{path}.{name}")) is not None}
        narrow = compact and held == mx.float32 and not recipe.init.bits
        kept = layers.kept_in_bf16(module, stored) if narrow else frozenset()
        for name, p in parameters.items():
            if mx.issubdtype(p.dtype, mx.floating):
                module[name] = p.astype(mx.bfloat16 if name in kept else held)
    if recipe.init.bits:
        chosen = quantization.CHOICES[str(recipe.init.bits)]
        nn.quantize(model, class_predicate=lambda _, m: chosen.suits(m) and chosen.as_table())
    if recipe.init.lora:
        adapters.attach(model, adapter_of(recipe, model))
    return model


def begin(out: Path, model: models.Model, recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Everything of the run's model or adapter folder but the weights. Raises Error."""
    if recipe.init.lora:
        adapters.write_config(out, adapter_of(recipe, model))
    else:
        weights.save_tokenizer_and_config(out, model.config, tokenizer)


def save(out: Path, model: models.Model, recipe: Recipe) -> None:
    """The weights that a run has trained, whole or not at all. Raises Error."""
    if recipe.init.lora:
        adapters.write_weights(out, model)
    else:
        weights.save_weights(out / "model.safetensors", weights.to_disk(model))


def result(out: Path, recipe: Recipe) -> Path:
    """The file that `save` writes."""
    return out / (adapters.WEIGHTS if recipe.init.lora else "model.safetensors")


def fingerprint(recipe: Recipe) -> dict[str, str] | None:
    """A hash of each file of the base model's weights: of its size, its beginning and places all through it, which is
    quick and differs between any two models. None where a run has no base."""
    if not recipe.init.model:
        return None
    folder = _folder(recipe)
    stem = layouts.RELEASE.stem if layouts.describe(folder).release else layouts.MISTRAL.stem
    return {path.name: _sampled(path) for path in tensors.shards(folder, stem)}


def _sampled(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open(path, "rb") as file:
        for i in range(SAMPLES):
            file.seek(size * i // SAMPLES)
            digest.update(file.read(4096))
    return digest.hexdigest()


def check_base(out: Path, recipe: Recipe) -> None:
    """Raise Error where the base model is not the one that the run in `out` began with."""
    then = files.read_table(out / "training" / "recipe.json").get("base")
    if recipe.init.model and then != fingerprint(recipe):
        raise Error(f"{recipe.init.model} is not the model that this run began with; start a new run")
