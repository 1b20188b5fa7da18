"""Recipes: frozen dataclasses, filled from TOML and `--set key=value`, every key typed and documented."""

import dataclasses
import difflib
import sys
import tomllib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from mlxgpt.errors import UsageError

T = TypeVar("T")
RECIPES = "mlxgpt.configs"
SMALLEST_BPE = 300  # tokens: 256 bytes, three control tokens and some text


def key(default: Any, doc: str, at_least: float | None = None) -> Any:
    """A dataclass field with its documentation and, for a number, the smallest value it may have."""
    return dataclasses.field(default=default, metadata={"doc": doc, "at_least": at_least})


def require(condition: bool, message: str) -> None:
    """Raise `UsageError(message)` unless `condition` holds."""
    if not condition:
        raise UsageError(message)


@dataclass(frozen=True)
class DataConfig:
    """[data]: which files become the corpus, and which of them are held out."""

    split: Literal["file", "tail"] = key(
        "file", "file: whole files are held out, by content hash; tail: the end of each file (nanoGPT's split)"
    )
    validation_fraction: float = key(0.05, "share of the corpus that is held out for validation", 0)
    max_validation_bytes: int = key(1 << 20, "hold out no more than about this many bytes; 0: no limit", 0)
    near_duplicates: float = key(0.85, "drop a file this similar (Jaccard, 0 to 1) to one kept; 0: keep all", 0)
    max_file_bytes: int = key(1 << 20, "skip larger files found in folders; files named directly are kept", 0)
    order: Literal["name", "imports"] = key(
        "name", "of the training files in the stream of tokens; imports: a file after, and near, those it imports"
    )
    fim_rate: float = key(0.0, "share of the documents that are trained on as fill-in-the-middle", 0)
    fim_spm: float = key(0.5, "of these, the share whose suffix comes before the prefix (SPM), not after it (PSM)", 0)
    isolate_documents: bool = key(False, "no attention from one document to another that is packed into its sequence")

    def __post_init__(self) -> None:
        require(self.fim_rate <= 1 and self.fim_spm <= 1, "data.fim_rate and data.fim_spm must be at most 1")
        require(self.validation_fraction < 1, "data.validation_fraction must be below 1")
        require(self.near_duplicates <= 1, "data.near_duplicates must be at most 1")


@dataclass(frozen=True)
class TokenizerConfig:
    """[tokenizer]: how text becomes tokens."""

    kind: Literal["bpe", "char", "byte", "file"] = key(
        "bpe", "bpe: SentencePiece, trained on the corpus; char: its characters; byte; file: a ready tokenizer"
    )
    vocab_size: int = key(2048, "bpe: number of tokens, the 256 bytes and three special tokens included", SMALLEST_BPE)
    byte_fallback: bool = key(
        True, "char: spell unknown characters in bytes; false: the corpus's characters and nothing else"
    )
    path: str = key("", "file: a tokenizer.model or tokenizer.json, or a folder that holds one")
    sample_bytes: int = key(4_000_000, "bpe: train on about this many bytes of the corpus", 1)


@dataclass(frozen=True)
class OptimizerConfig:
    """[optimizer]: the update and its schedule."""

    kind: Literal["adamw", "muon"] = key("adamw", "muon: Muon for the matrices of the blocks, AdamW for the rest")
    lr: float = key(1e-3, "peak learning rate", 0)
    muon_lr: float = key(0.02, "muon: peak learning rate of its matrices, on the same schedule", 0)
    muon_momentum: float = key(0.95, "muon: decay of its matrices' momentum", 0)
    min_lr: float = key(1e-4, "learning rate at the end of the run", 0)
    schedule: Literal["cosine", "wsd", "constant"] = key(
        "cosine", "after the warm-up: cosine decay; wsd: stable, then linear decay; constant"
    )
    warmup_steps: int = key(100, "steps of linear warm-up", 0)
    decay_fraction: float = key(0.3, "wsd: share of the run that decays", 0)
    beta1: float = key(0.9, "AdamW's decay of the gradient's mean", 0)
    beta2: float = key(0.99, "AdamW's decay of the gradient's square", 0)
    eps: float = key(1e-8, "AdamW's epsilon", 0)
    weight_decay: float = key(0.1, "decoupled decay, on matrices only (not on biases and norms)", 0)
    clip: float = key(1.0, "largest global norm of the gradient; 0: no clipping", 0)

    def __post_init__(self) -> None:
        require(self.beta1 < 1 and self.beta2 < 1, "optimizer.beta1 and optimizer.beta2 must be below 1")
        require(self.lr > 0 or self.kind != "muon", "optimizer.lr must be above 0: muon's own rate follows it")
        require(self.muon_momentum < 1, "optimizer.muon_momentum must be below 1")
        require(self.decay_fraction <= 1, "optimizer.decay_fraction must be at most 1")
        require(self.min_lr <= self.lr, "optimizer.min_lr must not exceed optimizer.lr")


@dataclass(frozen=True)
class InitConfig:
    """[init]: the model that training goes on from, and what of it is trained."""

    model: str = key("", "a folder, an alias or a Hub id (`--init`), whose tokenizer is used; empty: random weights")
    lora: bool = key(False, "train a low-rank adapter beside the frozen weights (arXiv 2106.09685), not the weights")
    rank: int = key(8, "lora: its rank", 1)
    scale: float = key(20.0, "lora: factor of what it adds, as mlx-lm's (elsewhere: alpha / rank)", 0)
    dropout: float = key(0.0, "lora: share of its inputs dropped in training", 0)
    layers: int = key(0, "lora: last blocks whose linear layers get one; 0: all", 0)
    bits: Literal[0, 4, 8] = key(0, "lora: quantize the frozen weights as they are loaded (QLoRA); 0: as they are")

    def __post_init__(self) -> None:
        require(self.dropout < 1, "init.dropout must be below 1")
        require(bool(self.model) or not self.lora, "init.lora needs init.model: the model that it adapts (--init)")
        require(self.lora or not self.bits, "init.bits goes with init.lora: quantized weights cannot be trained")


@dataclass(frozen=True)
class TrainConfig:
    """[train]: the loop."""

    steps: int = key(1000, "optimizer steps; `--minutes` overrides it", 1)
    minutes: float = key(0.0, "train for this long, with the schedule fitted to it; 0: count steps", 0)
    batch_size: int = key(16, "sequences in one forward and backward pass", 1)
    accumulation: int = key(1, "passes whose gradients are averaged into one step", 1)
    auto_batch: bool = key(
        False, "cut a step's batch_size * accumulation sequences into the fewest passes that memory has room for"
    )
    grad_checkpoint: bool = key(
        False, "compute each block's activations again in the backward pass: less memory, a third more time"
    )
    sequence_length: int = key(256, "tokens a sequence, at most the model's positions", 1)
    batch_warmup: float = key(0.0, "share of the run in which a step has a quarter, then half of its sequences", 0)
    sequence_warmup: float = key(
        0.0, "share of the run in which sequences are cut into four, then in two, as many tokens a step as ever", 0
    )
    evaluations: int = key(8, "evaluations on the validation split, evenly spread; the last is at the end", 1)
    sample_tokens: int = key(96, "tokens of the sample printed at each evaluation", 0)
    dtype: Literal["auto", "float32", "bfloat16"] = key(
        "auto",
        "compute type; the weights stay float32. auto: bfloat16 on a GPU and a CPU with AVX512-BF16, else float32",
    )
    checkpoint_minutes: float = key(10.0, "write a checkpoint this often, besides at evaluations; 0: only there", 0)
    keep_checkpoints: int = key(1, "newest checkpoints that stay on disk; the best model always does", 1)
    on_divergence: Literal["stop", "rollback"] = key(
        "stop", "at a loss that is no number, or a spike; rollback: to the last checkpoint, with half the learning rate"
    )
    spike: float = key(
        0.0, "nats above the mean of the last 50 losses, or of those there are, that count as divergence; 0: none do", 0
    )
    tensorboard: bool = key(False, "write TensorBoard's event files too (`pip install 'mlxgpt[tensorboard]'`)")
    seed: int = key(1337, "seed of the weights, the batches and the samples, below 4294967296", 0)

    def __post_init__(self) -> None:
        require(self.seed < 1 << 32, f"train.seed must be below {1 << 32}")
        require(self.batch_warmup <= 1, "train.batch_warmup must be at most 1")
        require(self.sequence_warmup <= 1, "train.sequence_warmup must be at most 1")
        require(
            not self.sequence_warmup or self.sequence_length % 4 == 0,
            f"train.sequence_length ({self.sequence_length}) must be a multiple of 4 for train.sequence_warmup",
        )


@dataclass(frozen=True)
class Recipe:
    """One run, whole. `model` stays a table here; `mlxgpt.models` types it for the architecture it names."""

    model: dict[str, Any]
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    init: InitConfig = InitConfig()


SECTIONS: dict[str, type] = {
    "tokenizer": TokenizerConfig, "data": DataConfig, "optimizer": OptimizerConfig, "train": TrainConfig,
    "init": InitConfig,
}  # fmt: skip


def nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?` for the known word closest to `word`, or the known words where none is close."""
    by_tail = {name.rsplit(".", 1)[-1]: name for name in known}
    close = difflib.get_close_matches(word, known, 1) or [
        by_tail[tail] for tail in difflib.get_close_matches(word.rsplit(".", 1)[-1], list(by_tail), 1)
    ]
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"


def _fits(value: Any, kind: Any) -> bool:
    origin = typing.get_origin(kind)
    if origin is Literal:
        return value in typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, k) for k in typing.get_args(kind))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(kind)))
    if typing.get_args(kind):
        return " or ".join("null" if k is type(None) else _describe(k) for k in typing.get_args(kind))
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}.get(kind, str(kind))


def from_table(cls: type[T], table: dict[str, Any], where: str) -> T:
    """Build dataclass `cls` from a table, refusing unknown keys, wrong types and values out of range.

    `where` names the table in errors ("train", "optimizer"). Raises `UsageError`.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    values = {}
    for name, value in table.items():
        if name not in fields:
            raise UsageError(
                f"unknown key '{where}.{name}'{nearest(f'{where}.{name}', [f'{where}.{n}' for n in fields])}"
            )
        if not _fits(value, hints[name]):
            raise UsageError(f"{where}.{name} must be {_describe(hints[name])}, not {value!r}")
        least = fields[name].metadata.get("at_least")
        if least is not None and value is not None and value < least:
            raise UsageError(f"{where}.{name} must be at least {least}, not {value!r}")
        values[name] = float(value) if hints[name] is float else value
    return cls(**values)


def recipe_names() -> list[str]:
    """Names of the recipes that ship with mlxgpt."""
    from importlib.resources import files

    return sorted(p.name[:-5] for p in files(RECIPES).iterdir() if p.name.endswith(".toml"))


def read_recipe_text(name: str) -> str:
    """The TOML of a recipe: a file's path, or the name of one that ships with mlxgpt."""
    from importlib.resources import files

    path = Path(name)
    if path.suffix == ".toml" or "/" in name:
        if not path.is_file():
            raise UsageError(f"no such configuration file: {name}")
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{name} cannot be read: {error}") from None
    names = recipe_names()
    if name not in names:
        raise UsageError(f"no configuration is called '{name}'{nearest(name, names)} (or give a .toml file)")
    return (files(RECIPES) / f"{name}.toml").read_text(encoding="utf-8")


def parse_setting(setting: str) -> tuple[str, str, Any]:
    """`section.key=value` -> (section, key, value); the value is TOML, or a plain string where it is not."""
    path, sep, text = setting.partition("=")
    section, dot, name = path.strip().partition(".")
    require(bool(sep), f"--set takes key=value, not '{setting}'")
    if not dot or section not in (*SECTIONS, "model"):
        raise UsageError(f"unknown key '{path.strip()}'{nearest(path.strip(), _known_keys())}")
    try:
        table = tomllib.loads(f"value = {text.strip()}")
    except tomllib.TOMLDecodeError:
        table = {}
    return section, name, table["value"] if len(table) == 1 else text.strip()


def _known_keys() -> list[str]:
    from mlxgpt.models import ARCHITECTURES

    tables = [*SECTIONS.items(), *(("model", module.Config) for module in ARCHITECTURES.values())]
    return list(dict.fromkeys(f"{section}.{f.name}" for section, cls in tables for f in dataclasses.fields(cls)))


def load_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """Read recipe `name` (shipped, or a file) and lay `settings` ("section.key=value") over it."""
    try:
        table = tomllib.loads(read_recipe_text(name))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name}: not valid TOML: {error}") from None
    for section in table:
        if section not in (*SECTIONS, "model"):
            raise UsageError(f"{name}: unknown section [{section}]{nearest(section, [*SECTIONS, 'model'])}")
        require(isinstance(table[section], dict), f"{name}: '{section}' must be a section: [{section}]")
    for setting in settings:
        section, key_name, value = parse_setting(setting)
        table.setdefault(section, {})[key_name] = value
    parts: dict[str, Any] = {
        section: from_table(cls, table.get(section, {}), section) for section, cls in SECTIONS.items()
    }
    if parts["init"].model:
        require(not table.get("model"), f"{name}: [model] goes without init.model (--init), whose own model is trained")
        return Recipe(model={}, **parts)
    require("type" in table.get("model", {}), f"{name}: [model] must say its type: gpt2, mistral or qwen3")
    return Recipe(model=table["model"], **parts)


def to_table(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested plain tables (JSON and TOML ready)."""
    return dataclasses.asdict(recipe)


def document_keys() -> str:
    """Every key of a recipe with its type, default and meaning, as text; the models' keys included."""
    from mlxgpt.models import ARCHITECTURES

    sections = {
        **SECTIONS,
        **{f'model] with [type = "{name}"': module.Config for name, module in ARCHITECTURES.items()},
    }
    lines = []
    for section, cls in sections.items():
        lines.append(f"[{section}]")
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            lines.append(f"  {field.name} = {field.default!r}  ({_describe(hints[field.name])})")
            lines.append(f"      {field.metadata['doc']}")
    return "\n".join(lines)
