"""`with simulated_metal():` kernels run on the CPU model, through the very `mx.fast.metal_kernel` that ops call."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import mlx.core as mx
from metal_model.capture import Kernel
from metal_model.execute import Finding, launch
from mlxgpt.kernels import dispatch


class KernelFault(RuntimeError):
    """A kernel did what it must not; the message has a line for each finding."""

    def __init__(self, kernel: str, findings: list[Finding]) -> None:
        super().__init__(f"{kernel}:\n" + "\n".join(str(f) for f in findings))
        self.findings = findings


@dataclass
class Launch:
    """One launch as it was made."""

    kernel: Kernel
    inputs: list[mx.array]
    template: tuple[tuple[str, Any], ...]
    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    output_shapes: list[tuple[int, ...]]
    output_dtypes: list[mx.Dtype]
    init_value: float | None


@dataclass
class Simulation:
    """What has run under `simulated_metal`; an op is seen to have used its kernel by its launches."""

    launches: list[Launch] = field(default_factory=list)
    threadgroup_bytes: int = 0


@contextmanager
def simulated_metal(change: Callable[[Kernel], Kernel] | None = None) -> Iterator[Simulation]:
    """MLX as on a Mac, as far as `dispatch` and `mx.fast.metal_kernel` tell: each kernel is type-checked and runs on
    the model when it is called, so `mx.grad` goes through; `mx.compile` is off meanwhile. `change` may replace a kernel
    by another. Raises KernelFault at the first launch with a finding."""
    simulation = Simulation()

    def metal_kernel(
        name: str, input_names: Sequence[str], output_names: Sequence[str], source: str, header: str = "",
        ensure_row_contiguous: bool = True, atomic_outputs: bool = False, compile_options: Any = None,
    ) -> Callable[..., list[mx.array]]:  # fmt: skip
        if not ensure_row_contiguous:
            raise NotImplementedError("the model runs kernels over contiguous inputs only")
        kernel = Kernel(name, tuple(input_names), tuple(output_names), source, header, atomic_outputs)
        kernel = change(kernel) if change else kernel

        def call(
            *, inputs: Sequence[Any], output_shapes: Sequence[Sequence[int]], output_dtypes: Sequence[mx.Dtype],
            grid: tuple[int, int, int], threadgroup: tuple[int, int, int], template: Sequence[tuple[str, Any]] = (),
            init_value: float | None = None, verbose: bool = False, stream: Any = None,
        ) -> list[mx.array]:  # fmt: skip
            arrays = [x if isinstance(x, mx.array) else mx.array(x) for x in inputs]
            shapes = [tuple(s) for s in output_shapes]
            made = Launch(
                kernel, arrays, tuple(template or ()), grid, threadgroup, shapes, list(output_dtypes), init_value
            )
            simulation.launches.append(made)
            outputs, findings, used = launch(
                kernel, arrays, made.template, grid, threadgroup, shapes, made.output_dtypes, init_value
            )
            if findings:
                raise KernelFault(kernel.name, findings)
            simulation.threadgroup_bytes = max(simulation.threadgroup_bytes, used)
            return outputs

        return call

    mx.disable_compile()
    try:
        with patch.object(mx.fast, "metal_kernel", metal_kernel), patch.object(dispatch, "platform", lambda: "metal"):
            yield simulation
    finally:
        mx.enable_compile()
