"""Muon over many matrices in one launch: momentum, orthogonalization, decay and update.

In MLX's graph a matrix takes some forty nodes a step, most of them products of a size that a core does in microseconds
and two cores no sooner: for the 28 matrices of a model of 1M parameters 40 of a step's 95 ms on two cores of Zen 4. In
C++ each matrix is one core's work from beginning to end, and all of them are one node.
"""

from collections.abc import Sequence

import mlx.core as mx
from mlxgpt.kernels import compiled

FORMS = {"metal": "MLX's graph", "cuda": "MLX's graph", "cpu": "C++"}
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al., kellerjordan.github.io/posts/muon (2024)
STEPS = 5  # of the iteration

Updated = tuple[mx.array, mx.array]  # a matrix and its momentum


def orthogonalize(gradient: mx.array) -> mx.array:
    """Nearly the closest matrix with orthonormal rows or columns: float [..., M, N], singular values in 0.7 to 1.2.

    The quintic Newton–Schulz iteration with `COEFFICIENTS`, in float32.
    """
    a, b, c = COEFFICIENTS
    tall = gradient.shape[-2] > gradient.shape[-1]
    x = gradient.astype(mx.float32)
    x = x.swapaxes(-1, -2) if tall else x
    x = x / (mx.sqrt(x.square().sum((-2, -1), keepdims=True)) + 1e-7)
    for _ in range(STEPS):
        square = x @ x.swapaxes(-1, -2)
        x = a * x + (b * square + c * (square @ square)) @ x
    return x.swapaxes(-1, -2) if tall else x


def reference(
    parameters: Sequence[mx.array], gradients: Sequence[mx.array], momenta: Sequence[mx.array], rate: mx.array,
    momentum: float, weight_decay: float, parts: int = 1,
) -> list[Updated]:  # fmt: skip
    """`muon` in plain MLX."""
    results = []
    for parameter, gradient, before in zip(parameters, gradients, momenta, strict=True):
        after = momentum * before + (1 - momentum) * gradient
        look_ahead = momentum * after + (1 - momentum) * gradient
        rows, columns = parameter.shape
        height = rows // parts
        update = orthogonalize(look_ahead.reshape(parts, height, columns)).reshape(rows, columns)
        scale = max(1.0, height / columns) ** 0.5
        results.append((parameter * (1 - rate * weight_decay) - rate * scale * update, after))
    return results


def muon(
    parameters: Sequence[mx.array], gradients: Sequence[mx.array], momenta: Sequence[mx.array], rate: mx.array,
    momentum: float, weight_decay: float, parts: int = 1,
) -> list[Updated]:  # fmt: skip
    """One step of Muon for many matrices: Nesterov momentum, orthogonalized (Jordan et al., 2024), with decoupled decay
    (arXiv 2502.16982). Returns each new matrix and its momentum.

    Matrix i, [M, N], has its gradient and its momentum in the same shape, and is `parts` matrices of the same size, one
    above the other; the step is `rate` (0-d) times the orthogonalized momentum times √max(1, M / N) of a part. In
    float32 on a CPU this is C++ where that can be had, else `reference`. Raises ValueError for another shape, or rows
    that are no multiple of `parts`.
    """
    for p, g, m in zip(parameters, gradients, momenta, strict=True):
        if p.ndim != 2 or p.shape != g.shape or p.shape != m.shape or p.shape[0] % parts:
            raise ValueError(f"muon: a matrix of {list(p.shape)}, {list(g.shape)}, {list(m.shape)} in {parts} parts")
    tensors = [*parameters, *momenta, *gradients]
    cpu = compiled.load("muon_multi") if tensors and all(t.dtype == mx.float32 and t.size for t in tensors) else None
    if cpu is None:
        return reference(parameters, gradients, momenta, rate, momentum, weight_decay, parts)
    settings = rate.astype(mx.float32).reshape(1)
    new = cpu.muon(
        [*parameters, *momenta], list(gradients), settings, [momentum, weight_decay, parts, *COEFFICIENTS, STEPS]
    )
    n = len(parameters)
    return list(zip(new[:n], new[n:], strict=True))
