"""The exact MSL of a launch: MLX prints what it generates while a function is exported, on a machine without a GPU."""

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx

REAL_METAL_KERNEL = mx.fast.metal_kernel


@dataclass(frozen=True)
class Kernel:
    """What `mx.fast.metal_kernel` is given."""

    name: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    source: str
    header: str = ""
    atomic_outputs: bool = False


def generated_source(
    kernel: Kernel, inputs: Sequence[mx.array], template: Sequence[tuple[str, Any]], output_dtypes: Sequence[mx.Dtype]
) -> str:
    """The Metal source that MLX generates for such inputs. It depends on their types, ranks, and whether they have
    fewer than 8 elements."""
    kinds = tuple((x.dtype, min(x.size, 8), x.ndim) for x in inputs)
    return _generate(kernel, kinds, tuple(template), tuple(output_dtypes))


@cache
def _generate(kernel: Kernel, kinds: tuple, template: tuple, output_dtypes: tuple) -> str:
    launch = REAL_METAL_KERNEL(
        name=kernel.name, input_names=list(kernel.input_names), output_names=list(kernel.output_names),
        source=kernel.source, header=kernel.header, atomic_outputs=kernel.atomic_outputs,
    )  # fmt: skip

    def call(*inputs: mx.array) -> list[mx.array]:
        return launch(
            inputs=list(inputs), template=list(template), grid=(32, 1, 1), threadgroup=(32, 1, 1),
            output_shapes=[(1,)] * len(output_dtypes), output_dtypes=list(output_dtypes), verbose=True,
        )  # fmt: skip

    like = [mx.zeros((size,) + (1,) * (ndim - 1) if ndim else (), dtype) for dtype, size, ndim in kinds]
    text = _printed(call, like)
    start, end = text.index("```\n") + 4, text.rindex("\n```")
    return text[start:end]


def _printed(call: Any, inputs: list[mx.array]) -> str:
    """What exporting `call` writes to file descriptor 1."""
    sys.stdout.flush()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as captured:
        stdout = os.dup(1)
        os.dup2(captured.fileno(), 1)
        try:
            mx.export_function(str(Path(folder) / "launch.mlxfn"), call, *inputs)
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
        captured.seek(0)
        return captured.read().decode()
