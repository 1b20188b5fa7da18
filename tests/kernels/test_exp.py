"""The exp kernel: what MLX makes of its bodies, and how they are tied into gradients. What the bodies compute, on the
CPU model of a GPU, is held by its cases (tests/msl/test_kernel_cases.py)."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from metal_model.capture import Kernel, generated_source
from metal_model.simulated import simulated_metal
from mlxgpt.kernels import dispatch
from mlxgpt.kernels.exp import exp, op

GOLDEN = Path(__file__).parents[1] / "golden"
KERNELS = {"forward": op.FORWARD, "backward": op.BACKWARD}


@pytest.mark.parametrize("direction", KERNELS)
def test_generated_metal_is_the_golden_one(direction):
    """The golden files are what MLX 0.32.4 generates for the three types, read before they were kept."""
    kernel = KERNELS[direction]
    made = Kernel(kernel.name, kernel.inputs, kernel.outputs, kernel.source, kernel.header)
    sources = []
    for dtype in op.DTYPES:
        arrays = [mx.zeros((3, 100), dtype)] * (len(kernel.inputs) - 1) + [mx.array([300], mx.uint32)]
        source = generated_source(made, arrays, [("T", dtype)], [dtype])
        sources.append(f"Generated source code for `{kernel.name}`:\n```\n{source}\n```\n")
    assert "".join(sources) == (GOLDEN / f"exp_{direction}.metal").read_text()


def test_the_gradient_reads_the_output_and_not_the_input():
    x, dy = mx.array([0.0, 1.0, -2.0]), mx.array([3.0, 5.0, 7.0])
    with simulated_metal() as simulation:
        (y,), (dx,) = mx.vjp(exp, [x], [dy])
    np.testing.assert_allclose(np.array(dx), np.array(dy) * np.exp(np.array(x)), rtol=1e-6)
    forward, backward = simulation.launches
    assert (forward.kernel.name, backward.kernel.name) == ("exp_forward", "exp_backward")
    assert mx.array_equal(forward.inputs[0], x)
    assert mx.array_equal(backward.inputs[0], dy)
    assert mx.array_equal(backward.inputs[1], y)


@pytest.mark.parametrize("shape", [(0,), (2, 0, 3)])
def test_nothing_is_not_launched(shape):
    with simulated_metal() as simulation:
        assert exp(mx.zeros(shape)).shape == shape
    assert simulation.launches == []


def test_an_array_that_is_not_contiguous_is_itself():
    x = mx.random.normal((6, 50))[::2, ::-1].T
    with simulated_metal():
        np.testing.assert_allclose(np.array(exp(x, form="kernel")), np.exp(np.array(x)), rtol=1e-6)


def test_on_a_cpu_it_is_the_reference_and_the_kernel_cannot_be_had():
    x = mx.random.normal((300,))
    assert mx.array_equal(exp(x), op.reference(x))
    with mx.stream(mx.cpu), pytest.raises(dispatch.Unsupported, match="exp: the kernel needs a GPU"):
        exp(x, form="kernel")


def test_half_precision_is_rounded_once():
    x = mx.linspace(-8, 8, 1000)
    for dtype in (mx.float16, mx.bfloat16):
        expected = mx.exp(x.astype(dtype).astype(mx.float32)).astype(dtype)
        assert mx.array_equal(exp(x.astype(dtype)), expected)


@pytest.mark.parametrize("dtype", ["int32", "bool_", "complex64", "float64"])
def test_other_types_are_refused(dtype):
    with mx.stream(mx.cpu), pytest.raises(TypeError, match="exp takes float32, float16 or bfloat16, not"):
        exp(mx.zeros(3, getattr(mx, dtype)))
