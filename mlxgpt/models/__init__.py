"""The architectures, by the Hub's `model_type`."""

from types import ModuleType
from typing import Any

from mlxgpt.config import from_table, nearest, require
from mlxgpt.models import gpt2, mistral, qwen3

ARCHITECTURES: dict[str, ModuleType] = {"gpt2": gpt2, "mistral": mistral, "qwen3": qwen3}
Config = gpt2.Config | mistral.Config  # Qwen3's is a Mistral's
Model = gpt2.Model | mistral.Model


def config_from_table(table: dict[str, Any]) -> Config:
    """The typed configuration of a recipe's [model] table, whose `type` names the architecture."""
    kind = table["type"]
    known = isinstance(kind, str) and kind in ARCHITECTURES
    require(known, f"model.type '{kind}' is unknown{nearest(str(kind), list(ARCHITECTURES))}")
    for name, value in table.items():
        beyond = isinstance(value, int) and abs(value) >= 1 << 31
        require(not beyond, f"model.{name} is too large: {value}; a size is at most 2,147,483,647")
    return from_table(ARCHITECTURES[kind].Config, {k: v for k, v in table.items() if k != "type"}, "model")


def architecture(config: Config) -> str:
    """The Hub's `model_type` of a configuration."""
    return next(name for name, module in ARCHITECTURES.items() if type(config) is module.Config)


def build(config: Config) -> Model:
    """The model of a configuration, its weights not yet meaningful: load them, or call `init_weights`."""
    return ARCHITECTURES[architecture(config)].Model(config)
