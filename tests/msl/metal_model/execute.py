"""Pass B, second half: launch a compiled kernel over arrays, under the runtime's shadow, and read what it found."""

import ctypes
import random
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from typing import Any

import mlx.core as mx
import numpy as np
from metal_model import build, check, toolchain
from metal_model.capture import Kernel, generated_source
from metal_model.syntax import Generated, Parameter, parse_generated

KINDS = {
    1: "race", 2: "out of bounds", 3: "uninitialised read", 4: "unwritten output", 5: "write to an input",
    6: "misaligned access", 7: "divergent barrier", 8: "too much threadgroup memory", 9: "stack overflow",
    10: "endless", 11: "out of bounds",
}  # fmt: skip
INPUT, OUTPUT, THREADGROUP = range(3)
_COMPILER = ThreadPoolExecutor(1)
MAX_FINDINGS, MAX_THREADS, SIMD = 16, 1024, 32


@dataclass(frozen=True)
class Finding:
    """Something a kernel did that it must not: its kind (KINDS, or "compile" or "launch"), what it did, and where:
    "body:3" or "header:12", with that line's text."""

    kind: str
    message: str
    place: str = ""
    source: str = ""

    def __str__(self) -> str:
        line = f"\n    {self.source}" if self.source else ""
        return f"{self.place or 'launch'}: {self.kind}: {self.message}{line}"


@dataclass(frozen=True)
class Result:
    """What a launch wrote, bfloat16 widened to float32, and what was found; no outputs where it could not be run."""

    outputs: list[np.ndarray]
    findings: list[Finding]
    threadgroup_bytes: int = 0


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p), ("bytes", ctypes.c_long), ("scalar", ctypes.c_int), ("memory", ctypes.c_int),
        ("offset", ctypes.c_int), ("initialised", ctypes.c_int),
    )  # fmt: skip


class _Finding(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int), ("place", ctypes.c_int), ("other_place", ctypes.c_int), ("memory", ctypes.c_int),
        ("id", ctypes.c_int), ("thread", ctypes.c_uint), ("other", ctypes.c_uint), ("index", ctypes.c_long),
        ("type", ctypes.c_char_p),
    )  # fmt: skip


def run(
    kernel: Kernel, inputs: Sequence[np.ndarray | mx.array], *, template: Sequence[tuple[str, Any]] = (),
    grid: tuple[int, int, int], threadgroup: tuple[int, int, int], outputs: Sequence[tuple[tuple[int, ...], mx.Dtype]],
    init_value: float | None = None,
) -> Result:  # fmt: skip
    """Type-check, compile and run one launch, with threads first to last and last to first.

    inputs: numpy arrays, or mlx ones where numpy lacks the type; outputs: shape and mlx dtype of each. The second run
    places the inputs where only their elements are aligned, as a slice of an array may be.
    """
    arrays = [x if isinstance(x, mx.array) else mx.array(x) for x in inputs]
    shapes, dtypes = [tuple(s) for s, _ in outputs], [d for _, d in outputs]
    made, findings, used = launch(kernel, arrays, template, grid, threadgroup, shapes, dtypes, init_value)
    return Result([widened(x) for x in made], findings, used)


def widened(x: mx.array) -> np.ndarray:
    """As a numpy array; bfloat16, which numpy lacks, as float32."""
    return np.array(x.astype(mx.float32) if x.dtype == mx.bfloat16 else x)


def launch(
    kernel: Kernel, inputs: Sequence[mx.array], template: Sequence[tuple[str, Any]], grid: Sequence[int],
    threadgroup: Sequence[int], shapes: Sequence[tuple[int, ...]], dtypes: Sequence[mx.Dtype],
    init_value: float | None = None,
) -> tuple[list[mx.array], list[Finding], int]:  # fmt: skip
    """`run` from and to mlx arrays; the outputs are empty where the launch could not be run. Both orders run, and a
    difference between them is a finding."""
    if problem := launch_problem(grid, threadgroup):
        return [], [Finding("launch", problem)], 0
    generated = parse_generated(generated_source(kernel, inputs, template, dtypes))
    compiling = _COMPILER.submit(_load, generated)  # on the other core
    if complaints := check.check(generated):
        return [], [Finding("compile", c.message, c.place, _line(generated, c.place)) for c in complaints], 0
    try:
        entry, size = compiling.result()
    except toolchain.CompileError as error:
        return [], [Finding("compile", str(error))], 0
    once = partial(_launch, generated, kernel, entry, size, inputs, grid, threadgroup, shapes, dtypes, init_value)
    results, findings, used = once(False)
    if findings:
        return results, findings, used
    again, findings, _ = once(True)
    for name, one, other in zip(kernel.output_names, results, again, strict=True):
        if not findings and not kernel.atomic_outputs and not _same(one, other):
            findings = [Finding("order", f"{name} depends on the order in which the threads run")]
    return results, findings, used


def launch_problem(grid: Sequence[int], threadgroup: Sequence[int]) -> str:
    """What is wrong with the shape of a launch, for Metal or for CUDA; empty where nothing is."""
    threads = prod(threadgroup)
    if min(*grid, *threadgroup) < 1:
        return f"grid {tuple(grid)} and threadgroup {tuple(threadgroup)} must be positive"
    if threads > MAX_THREADS or threads % SIMD:
        return f"a threadgroup of {threads} threads; a multiple of {SIMD} up to {MAX_THREADS} is needed"
    if any(g % t for g, t in zip(grid, threadgroup, strict=True)):
        return f"the grid {tuple(grid)} is no multiple of the threadgroup {tuple(threadgroup)}"
    return ""


def _same(one: mx.array, other: mx.array) -> bool:
    return np.array_equal(_bytes(one), _bytes(other))


@cache
def _load(generated: Generated) -> tuple[Any, int]:
    """The compiled kernel's entry, and an upper bound of its size in memory."""
    toolchain.runtime()
    path = build.library(generated)
    return ctypes.CDLL(str(path)).msl_entry, path.stat().st_size + (1 << 16)


def _launch(
    generated: Generated, kernel: Kernel, entry: Any, size: int, inputs: Sequence[mx.array], grid: Sequence[int],
    threadgroup: Sequence[int], shapes: Sequence[tuple[int, ...]], dtypes: Sequence[mx.Dtype], init_value: float | None,
    reverse: bool,
) -> tuple[list[mx.array], list[Finding], int]:  # fmt: skip
    rng = random.Random(0)
    named = dict(zip(kernel.input_names, inputs, strict=True))
    memory: list[np.ndarray] = []
    table = (_Buffer * len(generated.buffers))()
    for slot, parameter in zip(table, generated.buffers, strict=True):
        output = parameter.name in kernel.output_names
        if output:
            which = kernel.output_names.index(parameter.name)
            data = _filled(shapes[which], dtypes[which], init_value)
            item = dtypes[which].size
        else:
            data, item = _input(parameter, named)
        memory.append(data)
        slot.data, slot.bytes, slot.scalar = data.ctypes.data, data.nbytes, item
        slot.memory, slot.initialised = OUTPUT if output else INPUT, int(not output or init_value is not None)
        slot.offset = item * rng.randrange(1, 16) if reverse and not output else 0
    found = (_Finding * MAX_FINDINGS)()
    used = ctypes.c_long()
    groups = (ctypes.c_int * 3)(*(g // t for g, t in zip(grid, threadgroup, strict=True)))
    count = toolchain.runtime().msl_launch(
        entry, ctypes.c_long(size), table, len(table), groups, (ctypes.c_int * 3)(*threadgroup), int(reverse), found,
        MAX_FINDINGS, ctypes.byref(used),
    )  # fmt: skip
    findings = [_finding(generated, f, prod(threadgroup)) for f in found[:count]]
    made = {p.name: data for p, data in zip(generated.buffers, memory, strict=True)}
    outputs = [
        mx.array(made[name]).view(dtype).reshape(shape)
        for name, shape, dtype in zip(kernel.output_names, shapes, dtypes, strict=True)
    ]
    return outputs, findings, used.value


def _bytes(x: mx.array) -> np.ndarray:
    """The array's memory, contiguous."""
    flat = mx.contiguous(x).reshape(-1)
    return np.array(flat.view(mx.uint8)) if x.size else np.zeros(0, np.uint8)


def _filled(shape: tuple[int, ...], dtype: mx.Dtype, value: float | None) -> np.ndarray:
    if value is None:
        return np.full(prod(shape) * dtype.size, 0xFF, np.uint8)
    return _bytes(mx.full(shape, value, dtype)).copy()


def _input(parameter: Parameter, named: dict[str, mx.array]) -> tuple[np.ndarray, int]:
    """The memory behind an input, or behind its shape, strides or rank; and the size of an element."""
    name = parameter.name
    if name in named:
        return _bytes(named[name]).copy(), named[name].dtype.size
    base, _, what = name.rpartition("_")
    shape = named[base].shape
    if what == "shape":
        numbers = np.array(shape, np.int32)
    elif what == "strides":
        numbers = np.array([prod(shape[i + 1 :]) for i in range(len(shape))], np.int64)
    else:
        numbers = np.array([len(shape)], np.int32)
    return numbers.view(np.uint8).copy(), numbers.itemsize


def _place(place: int) -> str:
    file = build.FILES[place >> toolchain.LINES] if place > 0 else ""
    return f"{file}:{place & ((1 << toolchain.LINES) - 1)}" if file else ""


def _line(generated: Generated, place: str) -> str:
    file, _, line = place.partition(":")
    lines = {"body": generated.body, "header": generated.header}.get(file, "").splitlines()
    return lines[int(line) - 1].strip() if line.isdigit() and 0 < int(line) <= len(lines) else ""


def _finding(generated: Generated, f: _Finding, threads: int) -> Finding:
    kind, place, other = KINDS[f.kind], _place(f.place), _place(f.other_place)
    if f.memory == THREADGROUP:
        name = build.threadgroup_arrays(generated.body)[f.id]
    else:
        name = generated.buffers[f.id].name if f.id >= 0 else "memory outside of every buffer"
    element = f"{name}[{f.index}]" if f.id >= 0 else name
    if f.type:
        tracked = re.search(r"msl_t_(\w+)", f.type.decode())
        element = f"{tracked[1]}[{f.index}]" if tracked else f"index {f.index} of {f.type.decode()}"
    me = f"thread {f.thread % threads} of group {f.thread // threads}"
    another = f"thread {f.other % threads} of group {f.other // threads}"
    elsewhere = f"{another}, at {other}: {_line(generated, other)}" if other else another
    message = {
        "race": f"{me} and {elsewhere} use {element} with no barrier between them",
        "divergent barrier": f"{me} waits here for {another}, which "
        + ("has ended" if f.other_place == -1 else f"waits at {other}: {_line(generated, other)}"),
        "too much threadgroup memory": f"{f.index} bytes; a group has 32768",
        "stack overflow": f"{me} needs more than 128 KB of its own memory",
        "endless": f"{me} is still running after 4e9 accesses",
        "unwritten output": f"{element} was never written",
    }.get(kind, f"{me}, {element}")
    return Finding(kind, message, place, _line(generated, place))
