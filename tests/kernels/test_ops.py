"""Every op, in the form of each kind of machine: equal to the formula in float64, its gradient to central differences.

The two forms differ in code, not in place: `form` says which one the op is told to take, and either runs on the
device that is there.
"""

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import pytest
from mlxgpt.kernels import attention, compiled, cross_entropy, exp, gelu, swiglu

TARGETS = np.array([[0, 6, 3], [2, 2, 5]])
MASK = np.tril(np.ones((3, 5), bool), k=2) & ~np.eye(3, 5, dtype=bool)


def exact_gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def exact_cross_entropy(logits):
    top = logits.max(-1, keepdims=True)
    total = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
    return total - np.take_along_axis(logits, TARGETS[..., None], -1)[..., 0]


def exact_attention(q, k, v, mask):
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = np.where(mask, q @ k.swapaxes(-1, -2) * 0.4, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


@dataclass(frozen=True)
class Case:
    """An op as a function of the arrays it is differentiable in, the same in float64 numpy, their shapes."""

    op: Callable
    reference: Callable
    exact: Callable
    shapes: tuple[tuple[int, ...], ...]


QKV = ((2, 4, 3, 6), (2, 2, 5, 6), (2, 2, 5, 6))  # two query heads to a key head, 3 queries to 5 keys
WINDOWED = np.array([[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]], bool)
CASES = {
    "exp": Case(exp.exp, exp.reference, np.exp, ((3, 5),)),
    "gelu": Case(gelu.gelu, gelu.reference, exact_gelu, ((3, 5),)),
    "swiglu": Case(swiglu.swiglu, swiglu.reference, lambda g, u: g / (1 + np.exp(-g)) * u, ((3, 5), (3, 5))),
    "cross_entropy": Case(
        lambda x: cross_entropy.cross_entropy(x, mx.array(TARGETS)),
        lambda x: cross_entropy.reference(x, mx.array(TARGETS)),
        exact_cross_entropy,
        ((2, 3, 7),),
    ),
    "causal": Case(
        lambda q, k, v: attention.causal_attention(q, k, v, 0.4),
        lambda q, k, v: attention.reference(q, k, v, 0.4, attention.visible(3, 5, None)),
        lambda q, k, v: exact_attention(q, k, v, np.tril(np.ones((3, 5), bool), k=2)),
        QKV,
    ),
    "windowed": Case(
        lambda q, k, v: attention.causal_attention(q, k, v, 0.4, window=2),
        lambda q, k, v: attention.reference(q, k, v, 0.4, attention.visible(3, 5, 2)),
        lambda q, k, v: exact_attention(q, k, v, WINDOWED),
        QKV,
    ),
    "masked": Case(
        lambda q, k, v: attention.masked_attention(q, k, v, 0.4, mx.array(MASK)),
        lambda q, k, v: attention.reference(q, k, v, 0.4, mx.array(MASK)),
        lambda q, k, v: exact_attention(q, k, v, MASK),
        QKV,
    ),
}


@pytest.fixture(params=["cpu", "cpu in plain MLX", "gpu"])
def form(request, monkeypatch):
    """Has the ops take the form that they have for this kind of device."""
    kind = request.param[:3]
    if kind != request.param:
        monkeypatch.setenv("MLXGPT_KERNELS", "reference")
    device = mx.Device(getattr(mx, kind))
    monkeypatch.setattr(mx, "default_device", lambda: device)
    return kind


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


def draw(case: Case, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(0, 1, shape).astype(np.float32).astype(np.float64) for shape in case.shapes]


def weigh(out: np.ndarray) -> np.ndarray:
    """Weights of the outputs in the scalar that is differentiated: all different, none zero."""
    return np.random.default_rng(1).uniform(0.5, 1.5, out.shape)


def central_differences(f: Callable, inputs: list[np.ndarray], step: float = 1e-5) -> list[np.ndarray]:
    """d f / d input for every element of every input, f scalar."""
    gradients = []
    for x in inputs:
        gradient = np.empty_like(x)
        for i in np.ndindex(x.shape):
            there = x[i]
            x[i] = there + step
            up = f(*inputs)
            x[i] = there - step
            gradient[i] = (up - f(*inputs)) / (2 * step)
            x[i] = there
        gradients.append(gradient)
    return gradients


def value_and_gradients(op: Callable, inputs: list[mx.array], weights: np.ndarray) -> tuple[mx.array, list[mx.array]]:
    def loss(*xs):
        out = op(*xs)
        return (out.astype(mx.float32) * mx.array(weights.astype(np.float32))).sum(), out

    (_, out), gradients = mx.value_and_grad(loss, argnums=tuple(range(len(inputs))))(*inputs)
    return out, gradients if len(inputs) > 1 else [gradients]


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_value_and_gradient_are_those_of_the_formula(case, form, compile):
    inputs = draw(case)
    expected = case.exact(*inputs)
    weights = weigh(expected)
    gradients = central_differences(lambda *xs: (case.exact(*xs) * weights).sum(), inputs)

    def run(*xs):
        return value_and_gradients(case.op, list(xs), weights)

    out, got = (mx.compile(run) if compile else run)(*[mx.array(x.astype(np.float32)) for x in inputs])
    np.testing.assert_allclose(np.array(out), expected, rtol=2e-6, atol=2e-6)
    for mine, true in zip(got, gradients, strict=True):
        np.testing.assert_allclose(np.array(mine), true, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=["bfloat16", "float16"])
def test_half_precision_costs_no_more_than_its_rounding(case, form, dtype):
    inputs = [mx.array(x).astype(dtype) for x in draw(case)]
    exact = [np.array(x.astype(mx.float32)).astype(np.float64) for x in inputs]
    value = case.exact(*exact)
    weights = weigh(value)
    truth = [value, *central_differences(lambda *xs: (case.exact(*xs) * weights).sum(), exact)]
    out, gradients = value_and_gradients(case.op, inputs, weights)
    assert out.dtype == (mx.float32 if case is CASES["cross_entropy"] else dtype)
    assert [g.dtype for g in gradients] == [dtype] * len(inputs)
    epsilon = 2.0**-8 if dtype == mx.bfloat16 else 2.0**-11
    for mine, true in zip([out, *gradients], truth, strict=True):
        error = np.linalg.norm(np.array(mine.astype(mx.float32)) - true) / np.linalg.norm(true)
        assert error < 5 * epsilon


@pytest.mark.parametrize("name", ["exp", "gelu", "swiglu"])
@pytest.mark.parametrize("shape", [(), (1,), (0, 4), (7, 1, 3), (2, 1025)], ids=str)
def test_elementwise_ops_take_any_shape(name, shape, form):
    case = CASES[name]
    inputs = [mx.random.normal(shape, key=mx.random.key(i)) for i in range(len(case.shapes))]
    out, gradients = value_and_gradients(case.op, inputs, np.ones(shape))
    like, alike = value_and_gradients(case.reference, inputs, np.ones(shape))
    for mine, its in zip([out, *gradients], [like, *alike], strict=True):
        assert mine.shape == shape
        np.testing.assert_allclose(np.array(mine), np.array(its), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(compiled.load("swiglu") is None, reason="nothing is compiled here: a GPU, macOS, no compiler")
@pytest.mark.parametrize("name", ["gelu", "swiglu"])
def test_activations_in_cpp_are_the_plain_ones(name, monkeypatch):
    """Over the borders of vectors and of pieces, and for arrays that lie otherwise in memory than in order."""
    case = CASES[name]
    for shape in [(1,), (15,), (17, 3), (2, 16384), (3, 16411)]:
        inputs = [4 * mx.random.normal(shape, key=mx.random.key(i)).T for i in range(len(case.shapes))]
        weights = np.random.default_rng(0).normal(size=inputs[0].shape)
        monkeypatch.setenv("MLXGPT_KERNELS", "auto")
        out, gradients = value_and_gradients(case.op, inputs, weights)
        monkeypatch.setenv("MLXGPT_KERNELS", "reference")
        like, alike = value_and_gradients(case.op, inputs, weights)
        for mine, its in zip([out, *gradients], [like, *alike], strict=True):
            np.testing.assert_allclose(np.array(mine), np.array(its), rtol=2e-6, atol=2e-6)


EXTREMES = np.array([-1e4, -200.0, -100.0, 0.0, 100.0, 200.0, 1e4])


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["gelu", "swiglu"])
def test_activations_stay_finite_far_out(name, dtype, form):
    case = CASES[name]
    inputs = [mx.array(EXTREMES).astype(dtype), mx.full(EXTREMES.shape, 3, dtype)][: len(case.shapes)]
    out, gradients = value_and_gradients(case.op, inputs, np.ones(EXTREMES.shape))
    one = 3.0 if name == "swiglu" else 1.0  # what a large positive x is multiplied by
    np.testing.assert_allclose(np.array(out[-3:].astype(mx.float32)), one * EXTREMES[-3:], rtol=1e-2)
    np.testing.assert_allclose(np.array(out[:4].astype(mx.float32)), 0, atol=1e-35)
    np.testing.assert_allclose(np.array(gradients[0][-3:].astype(mx.float32)), one, rtol=1e-2)
    np.testing.assert_allclose(np.array(gradients[0][:3].astype(mx.float32)), 0, atol=1e-35)


def test_cross_entropy_of_extreme_logits(form):
    logits = 1e4 * mx.array([[1, -1, 0], [1, 1, -1], [-1, -1, -1], [1, -1, -1]])
    targets = mx.array([0, 1, 2, 2])
    (loss,), (gradient,) = mx.vjp(lambda x: cross_entropy.cross_entropy(x, targets), [logits], [mx.ones(4)])
    # MLX's fused loss subtracts a logit from a log-sum-exp near it, and rounds as they do
    np.testing.assert_allclose(np.array(loss), [0, np.log(2), np.log(3), 2e4], atol=1e-6 if form == "cpu" else 1e-3)
    expected = [[0, 0, 0], [1 / 2, -1 / 2, 0], [1 / 3, 1 / 3, -2 / 3], [1, 0, -1]]
    np.testing.assert_allclose(np.array(gradient), expected, atol=1e-6 if form == "cpu" else 1e-3)


@pytest.mark.parametrize("dtype", [mx.int32, mx.uint16, mx.int64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5), (2, 1, 301)], ids=str)
def test_cross_entropy_takes_any_shape_and_type_of_id(shape, dtype, form):
    logits = 5 * mx.random.normal(shape, key=mx.random.key(0))
    targets = mx.full(shape[:-1], shape[-1] - 1, dtype)
    weights = weigh(np.empty(shape[:-1]))
    out, (gradient,) = value_and_gradients(lambda x: cross_entropy.cross_entropy(x, targets), [logits], weights)
    like, (its,) = value_and_gradients(lambda x: cross_entropy.reference(x, targets), [logits], weights)
    assert out.shape == shape[:-1]
    np.testing.assert_allclose(np.array(out), np.array(like), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.array(gradient), np.array(its), rtol=1e-5, atol=1e-6)
