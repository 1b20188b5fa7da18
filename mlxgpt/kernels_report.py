"""`mlxgpt kernels`: what each operation runs as here and why, and the kernels held to their references on this GPU."""

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlxgpt.errors import Error, UsageError
from mlxgpt.kernels import dispatch, verify
from mlxgpt.measure import seconds_of

MODEL = Path(__file__).resolve().parents[1] / "tests" / "msl"  # in a checkout; the wheel has no tests
REPEATS, WARM_UP = 20, 3
STREAMED = 1 << 28  # bytes of the array that measures the bandwidth

Row = dict[str, Any]


def forms() -> list[Row]:
    """For each op: its name, what it would run as here, and the reason. Raises UsageError for a wrong
    `MLXGPT_KERNELS`."""
    here, setting = dispatch.platform(), _setting()
    rows = []
    for op in verify.op_names():
        module = importlib.import_module(f"mlxgpt.kernels.{op}.op")
        form = module.FORMS[here]
        why = f"MLX computes on {'the CPU' if here == 'cpu' else here}"
        if form == "kernel" and setting == "reference":
            form, why = "reference", "MLXGPT_KERNELS=reference"
        rows.append({"op": op, "form": form, "reason": why})
    return rows


def _setting() -> str:
    try:
        return dispatch.setting()
    except ValueError as error:
        raise UsageError(str(error)) from None


def verified(simulate: bool) -> list[Row]:
    """Every case of every kernel in every dtype, on this GPU or on the CPU model: errors forward and backward, and the
    error of a slope against finite differences; `problem` where one could not be run. Raises Error where there is no
    GPU, or no model."""
    context = _model() if simulate else _gpu("verified")
    rows: list[Row] = []
    with context:
        for op in verify.op_names():
            for case in verify.cases(op):
                rows += [_verify(case, dtype) for dtype in case.dtypes]
    return rows


def _verify(case: verify.Case, dtype: mx.Dtype) -> Row:
    """An error that is infinite, or of what could not be run, is None: JSON has no word for it."""
    try:
        outcome, problem = verify.check(case, dtype), ""
    except (RuntimeError, ValueError) as error:  # of MLX's compiler, of the model, or of the op itself
        outcome = verify.Outcome(case.op, case.name, verify.dtype_name(dtype), math.inf, None, None, False)
        problem = str(error)
    row = {name: None if value in (math.inf, -math.inf) else value for name, value in asdict(outcome).items()}
    return row | {"problem": problem}


def _gpu(what: str) -> AbstractContextManager[Any]:
    if dispatch.platform() == "cpu":
        more = "; --simulate runs them on a CPU model of a GPU" if what == "verified" else ""
        raise Error(f"MLX has no GPU here, so no kernel was {what}{more}")
    return nullcontext()


def _model() -> AbstractContextManager[Any]:
    """The CPU model, out of the checkout's tests."""
    if importlib.util.find_spec("ziglang") is None or not MODEL.is_dir():
        raise Error("the CPU model of a GPU is in a checkout's tests/msl and needs its test extra: "
                    'pip install -e ".[test]"')  # fmt: skip
    if str(MODEL) not in sys.path:
        sys.path.insert(0, str(MODEL))
    return importlib.import_module("metal_model.simulated").simulated_metal()


def benchmarked() -> list[Row]:
    """Each benchmark of each kernel on this GPU beside plain MLX. Raises Error where there is no GPU."""
    with _gpu("measured"):
        bandwidth = measure_bandwidth()
        return [measure(b, bandwidth) for op in verify.op_names() for b in verify.benchmarks(op)]


def measure_bandwidth(size: int = STREAMED) -> float:
    """Bytes a second that a pass over an array of `size` bytes reads and writes, on the default device."""
    x = mx.zeros((size // 4,), mx.float32)
    return 2 * size / seconds_of(lambda: mx.eval(x + 1), REPEATS, WARM_UP)


def measure(benchmark: verify.Benchmark, bandwidth: float) -> Row:
    """Milliseconds, peak bytes and gain of a kernel beside plain MLX, forward and, where there are gradients, backward
    as well; the bytes it must move at least, and which share of `bandwidth` [bytes/s] that is."""
    rng = np.random.default_rng(0)
    arrays = [mx.array(x).astype(benchmark.dtype) if x.dtype.kind == "f" else mx.array(x) for x in benchmark.make(rng)]
    mx.eval(arrays)
    kernel, plain = (_step(f, arrays, benchmark.gradients) for f in (benchmark.run, benchmark.plain))
    moved = benchmark.bytes_moved(*arrays)
    row: Row = {"op": benchmark.op, "case": benchmark.name, "dtype": verify.dtype_name(benchmark.dtype)}
    for name, step in (("kernel", kernel), ("plain", plain)):
        mx.reset_peak_memory()
        row[f"{name}_ms"] = 1e3 * seconds_of(step, REPEATS, WARM_UP)
        row[f"{name}_peak_bytes"] = mx.get_peak_memory()
    seconds = row["kernel_ms"] / 1e3
    return row | {"speedup": row["plain_ms"] / row["kernel_ms"], "bytes_moved": moved,
                  "bandwidth_share": moved / seconds / bandwidth}  # fmt: skip


def _step(function: Callable[..., Any], arrays: list[mx.array], gradients: tuple[int, ...]) -> Callable[[], Any]:
    if not gradients:
        return lambda: mx.eval(function(*arrays))

    def total(*inputs: mx.array) -> mx.array:
        out = function(*inputs)
        every = out if isinstance(out, tuple | list) else (out,)
        return sum((x.astype(mx.float32).sum() for x in every), mx.array(0.0))

    with_gradients = mx.value_and_grad(total, argnums=gradients)
    return lambda: mx.eval(with_gradients(*arrays))


def table(rows: list[Row]) -> str:
    """Rows of one form as columns; numbers in three digits, problems below."""
    if not rows:
        return "nothing to show: no kernel has any"
    names = [n for n in rows[0] if n != "problem"]
    cells = [names, *([_cell(row[n]) for n in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]
    problems = [f"{r['op']} {r['case']} {r['dtype']}: {r['problem']}" for r in rows if r.get("problem")]
    return "\n".join(lines + problems)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.3g}"
    return "-" if value is None else str(value)
