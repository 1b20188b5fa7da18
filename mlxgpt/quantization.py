"""Quantized weights: which modules, in how many bits, as MLX stores them and config.json says it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxgpt.config import require
from mlxgpt.errors import UsageError

MODES = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}  # the only bits and group size of each
AFFINE_BITS, AFFINE_GROUPS = (1, 2, 3, 4, 5, 6, 8), (32, 64, 128)


@dataclass(frozen=True)
class Quantization:
    """`bits` a weight, and a scale (affine: and a bias) for every `group_size` weights of a row."""

    bits: int = 4
    group_size: int = 64
    mode: str = "affine"

    def __post_init__(self) -> None:
        sizes = all(type(n) is int for n in (self.bits, self.group_size))
        fits = self.bits in AFFINE_BITS and self.group_size in AFFINE_GROUPS
        if self.mode != "affine":
            fits = isinstance(self.mode, str) and MODES.get(self.mode) == (self.bits, self.group_size)
        require(
            sizes and fits,
            f"MLX has no quantization of {self.bits!r} bits in groups of {self.group_size!r}, mode {self.mode!r}",
        )

    def suits(self, module: nn.Module) -> bool:
        """Whether `module` is quantized when a model is: every linear layer and embedding of whole groups, the head
        too (mlx-lm's rule, `mlx_lm.utils.quantize_model`)."""
        return hasattr(module, "to_quantized") and module.weight.shape[-1] % self.group_size == 0

    def as_table(self) -> dict[str, Any]:
        """The keys of config.json, and of `nn.Linear.to_quantized`."""
        return asdict(self)


CHOICES = {"4": Quantization(4), "8": Quantization(8), "mxfp4": Quantization(4, 32, "mxfp4")}  # --quantize


@dataclass(frozen=True)
class Scheme:
    """What config.json says of a quantized folder: of all modules, and of some by their path in the tree (None: left
    in floating point)."""

    default: Quantization
    overrides: Mapping[str, Quantization | None]


def scheme(table: dict[str, Any], prefix: str = "") -> Scheme | None:
    """The quantization that a config.json describes, None if none; `prefix` is dropped from its modules' paths.

    Raises UsageError for another quantization than MLX's.
    """
    found = table.get("quantization") or table.get("quantization_config")
    if not found:
        return None
    require(isinstance(found, dict), f"quantization must be a table, not {found!r}")
    if "quantization" not in table and "quant_method" in found:
        raise UsageError(f"weights quantized by {found['quant_method']!r} are not supported: MLX's own can be run")
    require("bits" in found and "group_size" in found, "quantization must say its bits and group_size")
    default = Quantization(found["bits"], found["group_size"], found.get("mode", "affine"))
    overrides: dict[str, Quantization | None] = {}
    for path, value in found.items():
        if path in ("bits", "group_size", "mode", "quant_method"):
            continue
        if isinstance(value, bool):
            overrides[path.removeprefix(prefix)] = default if value else None
        elif isinstance(value, dict) and not value.keys() - {"bits", "group_size", "mode"}:
            bits, group_size = MODES.get(str(value.get("mode")), (4, 64))  # MLX's, where they are left out
            overrides[path.removeprefix(prefix)] = Quantization(
                value.get("bits", bits), value.get("group_size", group_size), value.get("mode", "affine")
            )
        else:
            raise UsageError(f"quantization of {path[:80]!r} must be bits, group_size and mode, or false: {value!r}")
    return Scheme(default, overrides)


def leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that hold parameters, by their path."""
    return list(tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module))  # type: ignore[arg-type]


def prepare(model: nn.Module, scheme: Scheme, weights: Mapping[str, mx.array]) -> None:
    """Make those modules of an empty `model` quantized that the scheme says, or else whose tensors say, are.

    Lazy. Raises UsageError where a module cannot be quantized as the scheme says.
    """
    plan: dict[str, Quantization] = {}
    for path, module in leaves(model):
        if not hasattr(module, "to_quantized"):
            continue
        if path in scheme.overrides:
            chosen = scheme.overrides[path]
        else:
            chosen = _stored(path, module.weight.shape[-1], weights, scheme.default)
        if chosen:
            width = module.weight.shape[-1]
            require(chosen.suits(module), f"{path} is {width} wide, which groups of {chosen.group_size} do not divide")
            plan[path] = chosen
    nn.quantize(model, class_predicate=lambda path, module: path in plan and plan[path].as_table())


def _stored(path: str, width: int, weights: Mapping[str, mx.array], default: Quantization) -> Quantization | None:
    """How a module `width` wide is quantized, by its tensors (as mlx-lm does: config.json's default may be wrong for
    modules it does not name); the default where they make no sense; None where they are not quantized."""
    scales, weight = weights.get(f"{path}.scales"), weights.get(f"{path}.weight")
    if scales is None:
        return None
    if weight is None or not (weight.ndim and weight.shape[-1] and scales.ndim and scales.shape[-1]):
        return default
    bits, group_size = weight.shape[-1] * 32 // width, width // scales.shape[-1]
    modes = [mode for mode, sizes in MODES.items() if sizes == (bits, group_size)]
    mode = "affine" if scales.dtype != mx.uint8 else modes[0] if modes else default.mode
    try:
        return Quantization(bits, group_size, mode)
    except UsageError:
        return default
