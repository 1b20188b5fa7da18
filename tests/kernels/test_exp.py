"""The exp kernel: what MLX makes of its bodies, what the bodies compute, and how they are tied into gradients."""

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlxgpt.kernels.exp import exp, op

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = {"forward": (("x",), "y"), "backward": (("dy", "y"), "dx")}


def generated_source(direction: str, dtype: mx.Dtype, monkeypatch, folder: Path) -> str:
    """The Metal source MLX makes for one launch: it prints it, to file descriptor 1, while a function is exported."""
    kernel = op._kernel
    names, output = NAMES[direction]
    with monkeypatch.context() as patch, tempfile.TemporaryFile() as captured:
        patch.setattr(op, "_kernel", lambda *args: partial(kernel(*args), verbose=True))
        launch = partial(op.run_kernel, direction, names, output)
        stdout = os.dup(1)
        os.dup2(captured.fileno(), 1)
        try:
            mx.export_function(str(folder / "launch.mlxfn"), launch, *[mx.zeros((3, 100), dtype)] * len(names))
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
        captured.seek(0)
        return captured.read().decode()


@pytest.mark.parametrize("direction", NAMES)
def test_generated_metal_is_the_golden_one(direction, monkeypatch, tmp_path):
    """The golden files are what MLX 0.32.4 generates for the three types, read before they were kept."""
    sources = [generated_source(direction, dtype, monkeypatch, tmp_path) for dtype in op.DTYPES]
    assert "".join(sources) == (GOLDEN / f"exp_{direction}.metal").read_text()


@pytest.fixture(scope="module")
def bodies(tmp_path_factory):
    """The bodies of the kernels as C++ functions of pointers, one call a thread."""
    compiler = shutil.which("c++") or shutil.which("g++")
    assert compiler, "a C++ compiler is needed: mx.compile on a CPU needs one as well"
    folder = tmp_path_factory.mktemp("bodies")
    source = "#include <cmath>\nnamespace metal { using std::exp; }\ntypedef unsigned uint;\ntypedef float T;\n"
    for direction, (inputs, output) in NAMES.items():
        parameters = ", ".join([*(f"const T* {name}" for name in inputs), "const uint* size", f"T* {output}"])
        body = Path(op.__file__).with_name(f"{direction}.metal").read_text()
        source += f'extern "C" void {direction}({parameters}, uint at) {{\n'
        source += f"struct {{ uint x; }} thread_position_in_grid{{at}};\n{body}}}\n"
    (folder / "bodies.cpp").write_text(source)
    library = folder / "bodies.so"
    command = [compiler, "-std=c++17", "-Wall", "-Werror", "-shared", "-fPIC", folder / "bodies.cpp", "-o", library]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_bodies_compute_exp_and_stay_within_their_arrays(bodies, direction):
    size, threads = 300, 512  # as `run_kernel` launches: whole groups of 256 threads
    rng = np.random.default_rng(0)
    inputs = [rng.normal(0, 3, threads).astype(np.float32) for _ in NAMES[direction][0]]
    out = np.full(threads, -7, np.float32)
    body = getattr(bodies, direction)
    for thread in range(threads):
        body(*(x.ctypes.data_as(ctypes.c_void_p) for x in inputs), ctypes.byref(ctypes.c_uint32(size)),
             out.ctypes.data_as(ctypes.c_void_p), ctypes.c_uint32(thread))  # fmt: skip
    expected = np.exp(inputs[0]) if direction == "forward" else inputs[0] * inputs[1]
    np.testing.assert_allclose(out[:size], expected[:size], rtol=1e-6)
    assert (out[size:] == -7).all()


def test_gradient_is_the_backward_body_of_the_cotangent_and_the_output(monkeypatch):
    def run(direction, names, output, *arrays):
        assert (names, output) == NAMES[direction]
        return mx.exp(arrays[0]) if direction == "forward" else arrays[0] - 2 * arrays[1]

    monkeypatch.setattr(op, "run_kernel", run)
    x, dy = mx.array([0.0, 1.0, -2.0]), mx.array([3.0, 5.0, 7.0])
    (y,), (dx,) = mx.vjp(op._exp_metal, [x], [dy])
    np.testing.assert_allclose(np.array(y), np.exp(np.array(x)), rtol=1e-6)
    np.testing.assert_allclose(np.array(dx), np.array(dy - 2 * mx.exp(x)), rtol=1e-6)


def test_half_precision_is_rounded_once():
    x = mx.linspace(-8, 8, 1000)
    for dtype in (mx.float16, mx.bfloat16):
        expected = mx.exp(x.astype(dtype).astype(mx.float32)).astype(dtype)
        assert mx.array_equal(exp(x.astype(dtype)), expected)


@pytest.mark.parametrize("dtype", ["int32", "bool_", "complex64", "float64"])
def test_other_types_are_refused(dtype):
    with mx.stream(mx.cpu), pytest.raises(TypeError, match="exp takes float32, float16 or bfloat16, not"):
        exp(mx.zeros(3, getattr(mx, dtype)))
