"""The global norm of gradients, and AdamW, over many tensors in few launches.

In plain MLX, compiled, n tensors take 3n + 12 launches or more (126 for 38 tensors, 466 for GPT-2's 148): the squares
of each, written and read again; their sum; the fused update. That is 40 bytes a parameter in float32. Here it is n/24
launches for the squares, n/4 for the update and some twenty for scalars (about 30 and 70), and 32 bytes: a launch binds
at most 31 buffers, and an output is never an input's memory, so a tensor's update takes seven of them.
"""

from collections.abc import Sequence
from types import ModuleType

import mlx.core as mx
from mlxgpt.kernels import compiled, dispatch

DTYPES = (mx.float32, mx.float16, mx.bfloat16)
FORMS = {"metal": "kernel", "cuda": "kernel", "cpu": "C++"}
THREADS = 256
CHUNK = 16 * THREADS  # elements of one tensor that a threadgroup takes
SUMMED, UPDATED = 24, 4  # tensors a launch

NORM = dispatch.Kernel(
    __file__, "norm", (*(f"x{i}" for i in range(SUMMED)), "table"), ("sums",), ("squares",)
)  # fmt: skip
UPDATE = dispatch.Kernel(
    __file__, "update", (*(f"{x}{i}" for i in range(UPDATED) for x in "pgmv"), "table", "settings"),
    tuple(f"new_{x}{i}" for i in range(UPDATED) for x in "pmv"), ("adamw",),
)  # fmt: skip

Updated = tuple[mx.array, mx.array, mx.array]  # a parameter and its two moments


def reference_norm(gradients: Sequence[mx.array]) -> mx.array:
    """`global_norm` in plain MLX."""
    return mx.sqrt(sum((g.astype(mx.float32).square().sum() for g in gradients), mx.array(0.0)))


def global_norm(gradients: Sequence[mx.array], form: str = "auto") -> mx.array:
    """√ of the sum of all squares over gradients of any shapes: float32, 0-d.

    Float32, float16 or bfloat16, summed in float32. form: see `dispatch.use_kernel`. Raises TypeError for another
    dtype, dispatch.Unsupported where form="kernel" and there is no GPU.
    """
    for i, g in enumerate(gradients):
        _check_dtype("global_norm", f"gradients[{i}]", g)
    kernel = dispatch.use_kernel("adamw_multi", _too_large("gradients", gradients), form)
    gradients = [g for g in gradients if g.size]
    if cpu := _in_cpp(gradients, form):
        return cpu.norm(gradients)
    if not kernel or not gradients:
        return reference_norm(gradients)
    sums = []
    for start in range(0, len(gradients), SUMMED):
        some = gradients[start : start + SUMMED]
        table, groups = _table(some, SUMMED)
        sums += NORM(
            *some, *[some[0]] * (SUMMED - len(some)), table, template=[("CHUNK", CHUNK)], grid=(groups * THREADS, 1, 1),
            threadgroup=(THREADS, 1, 1), output_shapes=[(groups,)], output_dtypes=[mx.float32],
        )  # fmt: skip
    return mx.sqrt((sums[0] if len(sums) == 1 else mx.concatenate(sums)).sum())


def _table(tensors: Sequence[mx.array], room: int) -> tuple[mx.array, int]:
    """The first group of each tensor, the number of groups, each one's size: uint32 [2 room + 1]; and that number."""
    starts = [0]
    for x in tensors:
        starts.append(starts[-1] + -(-x.size // CHUNK))
    spare = room - len(tensors)
    return mx.array([*starts, *starts[-1:] * spare, *(x.size for x in tensors), *[0] * spare], mx.uint32), starts[-1]


def _settings(
    factor: mx.array, rate: mx.array, step: mx.array, betas: Sequence[float], eps: float, decay: float
) -> list[mx.array | float]:
    """What the update is made of, in the kernel's order; PyTorch's bias correction (arXiv 1412.6980, section 3)."""
    beta1, beta2 = betas
    rate = rate.astype(mx.float32)
    first, second = rate / (1 - beta1**step), mx.rsqrt(1 - beta2**step)
    return [factor, beta1, 1 - beta1, beta2, 1 - beta2, first, second, eps, 1 - rate * decay]


def _in_one_array(values: Sequence[mx.array | float]) -> mx.array:
    """0-d values as one float32 array. Elementwise, so that `mx.compile` makes it one launch; stacking is one each."""
    place = mx.arange(len(values))
    result = mx.zeros(place.shape)
    for i, value in enumerate(values):
        result = mx.where(place == i, value, result)
    return result


def reference_adamw(
    parameters: Sequence[mx.array], gradients: Sequence[mx.array], firsts: Sequence[mx.array],
    seconds: Sequence[mx.array], factor: mx.array, rate: mx.array, step: mx.array,
    betas: Sequence[float] = (0.9, 0.999), eps: float = 1e-8, decay: float = 0.0,
) -> list[Updated]:  # fmt: skip
    """`adamw` in plain MLX."""
    scale, beta1, rest1, beta2, rest2, c1, c2, epsilon, shrink = _settings(factor, rate, step, betas, eps, decay)
    results = []
    for parameter, gradient, first, second in zip(parameters, gradients, firsts, seconds, strict=True):
        p, g, m, v = (x.astype(mx.float32) for x in (parameter, gradient, first, second))
        g = g * scale
        m = beta1 * m + rest1 * g
        v = beta2 * v + rest2 * g * g
        updated = (p * shrink - c1 * m / (mx.sqrt(v) * c2 + epsilon), m, v)
        results.append(tuple(x.astype(parameter.dtype) for x in updated))
    return results  # type: ignore[return-value]


def adamw(
    parameters: Sequence[mx.array], gradients: Sequence[mx.array], firsts: Sequence[mx.array],
    seconds: Sequence[mx.array], factor: mx.array, rate: mx.array, step: mx.array,
    betas: Sequence[float] = (0.9, 0.999), eps: float = 1e-8, decay: float = 0.0, form: str = "auto",
) -> list[Updated]:  # fmt: skip
    """One step of AdamW (arXiv 1711.05101, as PyTorch runs it) for many tensors: bias-corrected, decoupled decay.

    Tensor i has parameters[i], its gradient, and its moments firsts[i] and seconds[i], all of one shape and, but for
    the gradient, one of float32, float16 and bfloat16; computed in float32. factor (what the gradients are multiplied
    by first, for clipping), rate and step (from 1) are 0-d arrays. Returns the new parameter and moments of each.

    form: see `dispatch.use_kernel`. Raises TypeError for another dtype, ValueError for lengths or shapes that differ,
    dispatch.Unsupported where form="kernel" and there is no GPU.
    """
    groups = {"parameters": parameters, "gradients": gradients, "firsts": firsts, "seconds": seconds}
    _check(groups)
    for name, value in (("factor", factor), ("rate", rate), ("step", step)):
        if value.ndim:
            raise ValueError(f"adamw: {name} must be 0-d, not {list(value.shape)}")
    problem = _too_large("parameters", parameters)
    if cpu := _in_cpp([*parameters, *gradients], form):
        settings = _in_one_array(_settings(factor, rate, step, betas, eps, decay))
        new = cpu.adamw([*parameters, *firsts, *seconds], list(gradients), settings)
        n = len(parameters)
        return list(zip(new[:n], new[n : 2 * n], new[2 * n :], strict=True))
    if not dispatch.use_kernel("adamw_multi", problem, form):
        return reference_adamw(parameters, gradients, firsts, seconds, factor, rate, step, betas, eps, decay)
    settings = _in_one_array(_settings(factor, rate, step, betas, eps, decay))
    whole = [i for i, p in enumerate(parameters) if p.size]
    results: list[Updated] = list(zip(parameters, firsts, seconds, strict=True))
    whole, rest = whole[: len(whole) // UPDATED * UPDATED], whole[len(whole) // UPDATED * UPDATED :]
    for start in range(0, len(whole), UPDATED):
        some = whole[start : start + UPDATED]
        table, count = _table([parameters[i] for i in some], UPDATED)
        new = UPDATE(
            *(group[i] for i in some for group in groups.values()), table, settings, template=[("CHUNK", CHUNK)],
            grid=(count * THREADS, 1, 1), threadgroup=(THREADS, 1, 1),
            output_shapes=[parameters[i].shape for i in some for _ in range(3)],
            output_dtypes=[parameters[i].dtype for i in some for _ in range(3)],
        )  # fmt: skip
        for n, i in enumerate(some):
            results[i] = tuple(new[3 * n : 3 * n + 3])
    for i in rest:  # fewer than a launch holds: one fused launch each
        one = [parameters[i]], [gradients[i]], [firsts[i]], [seconds[i]]
        results[i] = reference_adamw(one[0], one[1], one[2], one[3], factor, rate, step, betas, eps, decay)[0]
    return results


def _check_dtype(op: str, name: str, x: mx.array) -> None:
    if x.dtype not in DTYPES:
        raise TypeError(f"{op}: {name} must be float32, float16 or bfloat16, not {x.dtype}")


def _in_cpp(tensors: Sequence[mx.array], form: str) -> ModuleType | None:
    """The module in C++, on a CPU that it serves, for tensors of float32."""
    float32 = len(tensors) > 0 and all(x.dtype == mx.float32 for x in tensors)
    return compiled.load("adamw_multi") if form == "auto" and float32 else None


def _too_large(name: str, tensors: Sequence[mx.array]) -> str:
    large = next((i for i, x in enumerate(tensors) if x.size >= 1 << 31), None)
    return "" if large is None else f"{name}[{large}] has 2^31 elements or more"


def _check(groups: dict[str, Sequence[mx.array]]) -> None:
    parameters = groups["parameters"]
    for name, tensors in groups.items():
        if len(tensors) != len(parameters):
            raise ValueError(f"adamw: {name} has {len(tensors)} tensors and parameters {len(parameters)}")
        for i, (x, p) in enumerate(zip(tensors, parameters, strict=True)):
            _check_dtype("adamw", f"{name}[{i}]", x)
            if x.shape != p.shape:
                raise ValueError(f"adamw: {name}[{i}] has the shape {list(x.shape)}, its parameter {list(p.shape)}")
            if x.dtype != p.dtype and name != "gradients":
                raise TypeError(f"adamw: {name}[{i}] is {x.dtype}, its parameter {p.dtype}")
