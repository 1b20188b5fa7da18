"""linear_cross_entropy over its edges: a vocabulary of one, rows beside the threadgroup's size, ignored targets, soft
caps and z-losses, and fewer than the eight elements below which MLX binds inputs otherwise."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlxgpt.kernels.linear_cross_entropy.op import linear_cross_entropy, reference
from mlxgpt.kernels.verify import Benchmark, Case


def exact(
    x: np.ndarray, weight: np.ndarray, targets: np.ndarray, ignore_index: int = -100, softcap: float | None = None,
    z_loss: float = 0.0,
) -> np.ndarray:  # fmt: skip
    """The op in float64."""
    logits = x @ weight.T
    if softcap is not None:
        logits = softcap * np.tanh(logits / softcap)
    top = logits.max(axis=-1)
    lse = top + np.log(np.exp(logits - top[..., None]).sum(axis=-1))
    counted = targets != ignore_index
    exists = (targets >= 0) & (targets < len(weight))
    chosen = np.take_along_axis(logits, np.where(exists, targets, 0)[..., None], axis=-1)[..., 0]
    return np.where(counted, lse - np.where(exists, chosen, np.nan) + z_loss * lse**2, 0).sum() / max(1, counted.sum())


def _case(shape: tuple[int, ...], C: int, V: int, ignored: float = 0.0, **options: Any) -> Case:
    """`ignored`: the share of targets that do not count."""

    def make(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        targets = rng.integers(0, V, shape)
        targets = np.where(rng.random(shape) < ignored, options.get("ignore_index", -100), targets)
        return rng.standard_normal((*shape, C)), rng.standard_normal((V, C)) * 2 / C**0.5, targets.astype(np.int32)

    def bound(function: Callable[..., Any], **more: Any) -> Callable[..., Any]:
        return lambda x, weight, targets: function(x, weight, targets, **options, **more)

    name = f"{'x'.join(map(str, shape))} of {C} into {V}" + "".join(f" {k} {v}" for k, v in options.items())
    name += " some ignored" * (ignored > 0)
    run = bound(linear_cross_entropy, form="kernel")
    return Case("linear_cross_entropy", name, make, run, bound(exact), bound(reference), (0, 1))


def _impossible(target: int) -> Case:
    """One of three targets is no token: the mean is NaN, in the op as in float64."""
    case = _case((3,), 8, 40)

    def make(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        x, weight, targets = case.make(rng)
        return x, weight, np.array([targets[0], target, targets[2]], np.int32)

    return replace(case, name=f"target {target} of 40", make=make, gradients=())


CASES = [
    _case((1,), 4, 1),
    _case((2,), 2, 3),
    _case((3,), 16, 7, 0.5),
    _case((2, 5), 8, 255),
    _case((2, 5), 8, 256, 0.3, ignore_index=3),
    _case((11,), 8, 257, softcap=3.0),
    _case((4,), 8, 1000, 0.3, softcap=10.0, z_loss=1e-2),
    _case((5,), 8, 600, z_loss=1e-1),
    _case((4,), 8, 40, 1.1),  # nothing counts
    *(_impossible(target) for target in (-1, 40)),
]


def _large(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    x, weight = (rng.standard_normal((n, 768), np.float32) for n in (8192, 50257))
    return x, weight * np.float32(0.02), rng.integers(0, 50257, 8192).astype(np.int32)


BENCHMARKS = [
    Benchmark(
        "linear_cross_entropy", "8192 tokens of 768 into 50257", _large,
        lambda x, weight, targets: linear_cross_entropy(x, weight, targets, form="kernel"),
        lambda x, weight, targets: nn.losses.cross_entropy((x @ weight.T).astype(mx.float32), targets).mean(),
        lambda x, weight, targets: 2 * (x.nbytes + weight.nbytes), gradients=(0, 1),
    )
]  # fmt: skip
