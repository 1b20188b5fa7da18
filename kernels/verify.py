"""Cases that hold a kernel to its reference: the same ones on a Mac's GPU, on CUDA, and on the CPU model of a GPU.

Each op that has a kernel has a `cases.py` with `CASES`; `check` runs one of them in one dtype.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from mlxgpt import kernels

DTYPES = (mx.float32, mx.float16, mx.bfloat16)
# Rounding to 24, 11 and 8 bits of a result of order 1, and some steps of such rounding on the way.
TOLERANCE = {mx.float32: 1e-5, mx.float16: 2e-3, mx.bfloat16: 1.6e-2}
STEP = 1e-4  # of finite differences in float64

Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Case:
    """One shape, and what an op must make of it.

    make: a generator to the inputs; floating ones are rounded to the dtype under test, integers stay as they are.
    run: the op over mlx arrays, its kernel insisted on. expected: the same in numpy, in float64. reference: the same
    in plain MLX, for its gradient; needed where `gradients` names inputs by their position. mutants: whether planted
    bugs are tried on this case; large ones need not be.
    """

    op: str
    name: str
    make: Callable[[np.random.Generator], Arrays]
    run: Callable[..., Any]
    expected: Callable[..., Any]
    reference: Callable[..., Any] | None = None
    gradients: tuple[int, ...] = ()
    dtypes: tuple[mx.Dtype, ...] = DTYPES
    tolerance: Mapping[mx.Dtype, float] = field(default_factory=lambda: TOLERANCE)
    gradient_tolerance: Mapping[mx.Dtype, float] = field(default_factory=lambda: TOLERANCE)
    mutants: bool = True


@dataclass(frozen=True)
class Benchmark:
    """A size that matters. make: a generator to the inputs; run: the op, its kernel insisted on; plain: the best that
    plain MLX has for it; bytes_moved: what must be read and written at least, from the inputs; gradients: the inputs to
    differentiate by, for a training step's worth."""

    op: str
    name: str
    make: Callable[[np.random.Generator], Arrays]
    run: Callable[..., Any]
    plain: Callable[..., Any]
    bytes_moved: Callable[..., int]
    dtype: mx.Dtype = mx.bfloat16
    gradients: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """Errors are absolute up to values of 1 and relative above; backward ones are None where nothing is differentiated.
    `slope` compares the gradients with finite differences along one direction."""

    op: str
    case: str
    dtype: str
    forward: float
    backward: float | None
    slope: float | None
    passed: bool


def check(case: Case, dtype: mx.Dtype, seed: int = 0) -> Outcome:
    """Run one case in one dtype, forward and, where it has gradients, backward."""
    rng = np.random.default_rng(seed)
    arrays = [_rounded(x, dtype) for x in case.make(rng)]
    exact = [_widened(x) for x in arrays]
    outputs = _tuple(case.run(*arrays))
    expected = _tuple(case.expected(*exact))
    forward = max(error(a, b) for a, b in _pairs(outputs, expected))
    passed = forward <= case.tolerance[dtype]
    backward = slope = None
    if case.gradients:
        weights = [rng.standard_normal(x.shape) for x in outputs]
        backward, slope = _check_gradients(case, arrays, exact, outputs, weights, rng)
        passed = passed and max(backward, slope) <= case.gradient_tolerance[dtype]
    return Outcome(case.op, case.name, dtype_name(dtype), forward, backward, slope, bool(passed))


def _check_gradients(
    case: Case, arrays: list[mx.array], exact: list[np.ndarray], outputs: tuple[mx.array, ...],
    weights: list[np.ndarray], rng: np.random.Generator,
) -> tuple[float, float]:  # fmt: skip
    assert case.reference is not None, "a case with gradients has a reference"
    cotangents = [mx.array(w.astype(np.float32)).astype(x.dtype) for w, x in zip(weights, outputs, strict=True)]
    gradients = _gradients(case.run, arrays, case.gradients, cotangents)
    with mx.stream(mx.cpu):
        wide = [x.astype(mx.float32) if mx.issubdtype(x.dtype, mx.floating) else x for x in arrays]
        wanted = _gradients(case.reference, wide, case.gradients, [c.astype(mx.float32) for c in cotangents])
        backward = max(error(g, _widened(w)) for g, w in _pairs(gradients, wanted))
    directions = {i: rng.standard_normal(exact[i].shape) for i in case.gradients}
    exact_cotangents = [_widened(c) for c in cotangents]

    def along(step: float) -> float:
        moved = [x + step * directions[i] if i in directions else x for i, x in enumerate(exact)]
        return sum(float((c * y).sum()) for c, y in _pairs(exact_cotangents, _tuple(case.expected(*moved))))

    measured = (along(STEP) - along(-STEP)) / (2 * STEP)
    mine = [_widened(g) for g in gradients]
    claimed = sum(float((g * directions[i]).sum()) for i, g in zip(case.gradients, mine, strict=True))
    length = sum(np.linalg.norm(g) * np.linalg.norm(directions[i]) for i, g in zip(case.gradients, mine, strict=True))
    return backward, abs(measured - claimed) / max(1.0, float(length))


def _gradients(
    function: Callable[..., Any], arrays: list[mx.array], which: tuple[int, ...], cotangents: list[mx.array]
) -> list[mx.array]:
    def of(*chosen: mx.array) -> list[mx.array]:
        every = list(arrays)
        for i, x in zip(which, chosen, strict=True):
            every[i] = x
        return list(_tuple(function(*every)))

    return mx.vjp(of, [arrays[i] for i in which], cotangents)[1]


def error(actual: mx.array, expected: np.ndarray) -> float:
    """The largest |actual - expected| / max(1, |expected|); infinite where a shape or a NaN differs."""
    value = _widened(actual)
    if value.shape != np.shape(expected):
        return float("inf")
    with np.errstate(invalid="ignore"):
        gap = np.abs(value - expected) / np.maximum(1, np.abs(expected))
    gap = np.where((value == expected) | (np.isnan(value) & np.isnan(expected)), 0, gap)
    return float(np.nan_to_num(gap, nan=np.inf).max(initial=0))


def dtype_name(dtype: mx.Dtype) -> str:
    """ "float32" for mx.float32."""
    return str(dtype).rpartition(".")[2]


def _rounded(x: np.ndarray, dtype: mx.Dtype) -> mx.array:
    return mx.array(x.astype(np.float32)).astype(dtype) if np.issubdtype(x.dtype, np.floating) else mx.array(x)


def _widened(x: mx.array) -> np.ndarray:
    if mx.issubdtype(x.dtype, mx.floating):
        with mx.stream(mx.cpu):
            return np.array(x.astype(mx.float32)).astype(np.float64)
    return np.array(x)


def _tuple(x: Any) -> tuple:
    return tuple(x) if isinstance(x, tuple | list) else (x,)


def _pairs(a: Any, b: Any) -> list[tuple]:
    return list(zip(a, b, strict=True))


def op_names() -> list[str]:
    """Every operation: the folders of this package that have an op."""
    found = pkgutil.iter_modules(kernels.__path__)
    return sorted(m.name for m in found if m.ispkg and _has(m.name, "op"))


def cases(op: str) -> list[Case]:
    """The cases of an op; none where it has no kernel."""
    return list(importlib.import_module(f"mlxgpt.kernels.{op}.cases").CASES) if _has(op, "cases") else []


def benchmarks(op: str) -> list[Benchmark]:
    """The benchmarks of an op; none where it has no kernel."""
    return list(getattr(importlib.import_module(f"mlxgpt.kernels.{op}.cases"), "BENCHMARKS", [])) if cases(op) else []


def equivalent_mutants(op: str) -> dict[str, str]:
    """The mutants of an op's kernels that change nothing that can be seen, each with its reason."""
    return dict(getattr(importlib.import_module(f"mlxgpt.kernels.{op}.cases"), "EQUIVALENT", {}))


def _has(op: str, module: str) -> bool:
    return importlib.util.find_spec(f"mlxgpt.kernels.{op}.{module}") is not None
