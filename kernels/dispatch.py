"""Which form of an operation runs, and the launch of its kernel.

A kernel is a body in Metal Shading Language in a file beside its op. On Metal it is launched as it is, on CUDA the same
body is translated; on a CPU an op runs its plain form. `MLXGPT_KERNELS=reference` takes the plain form everywhere.
"""

import hashlib
import os
import sys
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlxgpt.kernels.translate import prelude, to_cuda

INCLUDE = Path(__file__).with_name("include")
FORMS = ("auto", "kernel", "reference")
SETTINGS = ("auto", "reference")


class Unsupported(ValueError):
    """The kernel was asked for and cannot do this; the message names the op, the argument and the reason."""


def platform() -> str:
    """Where MLX computes by default: "metal", "cuda" or "cpu"."""
    if mx.default_device().type == mx.DeviceType.cpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda" if mx.cuda.is_available() else "cpu"


def setting() -> str:
    """What `MLXGPT_KERNELS` says: "auto", also where it is not set, or "reference". Raises ValueError for another."""
    value = os.environ.get("MLXGPT_KERNELS") or "auto"
    if value not in SETTINGS:
        raise ValueError(f"MLXGPT_KERNELS={value} is neither {' nor '.join(SETTINGS)}")
    return value


def use_kernel(op: str, problem: str = "", form: str = "auto") -> bool:
    """Whether `op` launches its kernel for this call; if not, it computes its plain form.

    problem: why the kernel cannot take these arguments, "" where it can. form: "auto" takes the kernel on a GPU unless
    there is a problem, which is then said once, or `MLXGPT_KERNELS` is "reference"; "kernel" insists; "reference"
    declines. Raises Unsupported where the kernel is asked for and cannot be had, ValueError for another form.
    """
    if form not in FORMS:
        raise ValueError(f"{op}: form={form!r} is none of {', '.join(FORMS)}")
    if form == "kernel":
        if problem or platform() == "cpu":
            raise Unsupported(f"{op}: {problem or 'the kernel needs a GPU, and MLX computes on the CPU here'}")
        return True
    if form == "reference" or platform() == "cpu" or setting() == "reference":
        return False
    if problem:
        _say_once(f"{op}: {problem}; computed in plain MLX instead")
    return not problem


@cache
def _say_once(message: str) -> None:
    print(f"mlxgpt: {message}", file=sys.stderr)


class Kernel:
    """One launchable body: `NAME.metal` in the folder of the op, with the files of kernels/include that it names.

    file: the op's `__file__`. inputs, outputs: the parameters' names in the order of the arrays.
    """

    def __init__(
        self, file: str, name: str, inputs: Sequence[str], outputs: Sequence[str], include: Sequence[str] = (),
        atomic_outputs: bool = False,
    ) -> None:  # fmt: skip
        self.folder = Path(file).parent
        self.body = name
        self.name = f"{self.folder.name}_{name}"
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.include = tuple(include)
        self.atomic_outputs = atomic_outputs
        self._launchers: dict[Any, Any] = {}

    @cached_property
    def source(self) -> str:
        """The body as it is in its file."""
        return (self.folder / f"{self.body}.metal").read_text(encoding="utf-8")

    @cached_property
    def header(self) -> str:
        """The included files, one after another."""
        return "".join((INCLUDE / f"{name}.metal").read_text(encoding="utf-8") for name in self.include)

    def __call__(
        self, *inputs: mx.array, template: Sequence[tuple[str, Any]] = (), grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int], output_shapes: Sequence[Sequence[int]], output_dtypes: Sequence[mx.Dtype],
        init_value: float | None = None, **options: Any,
    ) -> list[mx.array]:  # fmt: skip
        """Launch it on the GPU. The grid counts threads and is a multiple of the threadgroup, which is of 32; other
        options are those of `mx.fast.metal_kernel`'s result. Returns the outputs."""
        launcher = self._launcher(mx.fast.cuda_kernel if platform() == "cuda" else mx.fast.metal_kernel)
        return launcher(
            inputs=list(inputs), template=list(template), grid=grid, threadgroup=threadgroup,
            output_shapes=[tuple(s) for s in output_shapes], output_dtypes=list(output_dtypes), init_value=init_value,
            **options,
        )  # fmt: skip

    def _launcher(self, maker: Any) -> Any:
        if maker not in self._launchers:
            names: dict[str, Any] = {"input_names": list(self.inputs), "output_names": list(self.outputs)}
            if maker is mx.fast.cuda_kernel:
                # MLX keeps compiled CUDA on disk by name alone, so a changed body needs a changed name.
                header, source = prelude() + to_cuda(self.header), to_cuda(self.source, body=True)
                content = hashlib.sha256((header + source).encode()).hexdigest()[:12]
                made = maker(name=f"{self.name}_{content}", source=source, header=header, **names)
            else:
                extra = {"atomic_outputs": True} if self.atomic_outputs else {}
                made = maker(name=self.name, source=self.source, header=self.header, **names, **extra)
            self._launchers[maker] = made
        return self._launchers[maker]
