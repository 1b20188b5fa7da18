"""Where an operation gets its C++ form from: `mlxgpt.native` compiles it, which this package may not import."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

build: Callable[[Path], ModuleType | None] | None = None  # mlxgpt puts its own here


@cache
def _module(op: str) -> ModuleType | None:
    return build(Path(__file__).parent / op / "cpu.cpp") if build else None


def load(op: str) -> ModuleType | None:
    """The module compiled from `op`/cpu.cpp beside this file, where the default device is a CPU that it serves.

    None on a GPU, under MLXGPT_KERNELS=reference, and where it could not be built (a warning has then said so): the
    reference is to be used. The first call for an operation may compile it.
    """
    from mlxgpt.kernels import dispatch  # not with this module, which `import mlxgpt` loads: it imports mlx

    on_cpu = dispatch.platform() == "cpu" and dispatch.setting() != "reference"
    return _module(op) if on_cpu else None
