"""The CPU model computes what Metal's library is documented to: simdgroups, matrices, types, vectors, indices."""

import os

import mlx.core as mx
import numpy as np
import pytest
from metal_model import toolchain
from metal_model.capture import Kernel, generated_source
from metal_model.execute import run
from metal_model.simulated import KernelFault, simulated_metal
from metal_model.syntax import blank_comments, parse_generated, tokens

LANES = np.arange(64, dtype=np.float32).reshape(2, 32)
VALUES = np.random.default_rng(0).normal(size=(2, 32)).astype(np.float32)


def evaluate(expression: str, x: np.ndarray | mx.array, dtype: mx.Dtype = mx.float32, **options) -> np.ndarray:
    """`expression` of `v`, this thread's element of x, in each of 64 threads."""
    source = f"uint i = thread_position_in_grid.x;\nT v = x[i];\ny[i] = O({expression});"
    kinds = [("T", mx.array(x).dtype), ("O", dtype)]
    kernel = Kernel("evaluate", ("x",), ("y",), source, options.pop("header", ""))
    sizes = {"grid": (64, 1, 1), "threadgroup": (64, 1, 1)}
    result = run(kernel, [x], template=kinds, outputs=[((2, 32), dtype)], **sizes)
    assert result.findings == []
    return result.outputs[0]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("simd_sum(v)", LANES * 0 + LANES.sum(1, keepdims=True)),
        ("simd_max(v)", LANES * 0 + LANES.max(1, keepdims=True)),
        ("simd_min(v)", LANES * 0 + LANES.min(1, keepdims=True)),
        ("simd_product(1.0f + v * 0.001f)", LANES * 0 + (1 + LANES * 0.001).prod(1, keepdims=True)),
        ("simd_shuffle(v, ushort(31 - thread_index_in_simdgroup))", LANES[:, ::-1]),
        ("simd_shuffle_xor(v, 5)", LANES[:, np.arange(32) ^ 5]),
        # Lanes beyond the last keep their own value here; Metal leaves them undefined.
        ("simd_shuffle_down(v, 3)", LANES[:, [*range(3, 32), 29, 30, 31]]),
        ("simd_shuffle_up(v, 2)", LANES[:, [0, 1, *range(30)]]),
        ("simd_broadcast(v, 7)", LANES * 0 + LANES[:, 7:8]),
        ("simd_broadcast_first(v)", LANES * 0 + LANES[:, :1]),
        ("simd_prefix_inclusive_sum(v)", LANES.cumsum(1)),
        ("simd_prefix_exclusive_sum(v)", LANES.cumsum(1) - LANES),
        ("simd_all(v > 0.0f)", np.repeat([[0.0], [1.0]], 32, 1)),
        ("simd_any(v > 31.0f)", np.repeat([[0.0], [1.0]], 32, 1)),
        ("float(simdgroup_index_in_threadgroup * 100 + thread_index_in_simdgroup)", LANES % 32 + 100 * (LANES // 32)),
        ("float(thread_index_in_threadgroup + threads_per_threadgroup.x)", LANES + 64),
    ],
)
def test_simdgroups_and_indices(expression, expected):
    np.testing.assert_allclose(evaluate(expression, LANES), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("expression", "function"),
    [
        ("metal::exp(v)", np.exp),
        ("precise::exp(v)", np.exp),
        ("fast::exp(v)", np.exp),
        ("log(abs(v))", lambda x: np.log(np.abs(x))),
        ("rsqrt(fabs(v))", lambda x: np.abs(x) ** -0.5),
        ("tanh(v)", np.tanh),
        ("pow(fabs(v), 1.5f)", lambda x: np.abs(x) ** 1.5),
        ("fma(v, v, 1.0f)", lambda x: x * x + 1),
        ("clamp(v, -0.5f, 0.5f)", lambda x: np.clip(x, -0.5, 0.5)),
        ("max(v, 0.0f) + min(v, 0.0f)", lambda x: x),
        ("select(v, -v, v < 0.0f)", np.abs),
        ("float4(v, 2.0f * v, 3.0f, 4.0f).y + dot(float2(v, 1.0f), float2(2.0f, v))", lambda x: 5 * x),
        ("(float4(half4(half(v))) * 2.0f).w", lambda x: 2 * x.astype(np.float16).astype(np.float64)),
        ("as_type<float>(as_type<uint>(v) ^ 0x80000000u)", np.negative),
        ("floor(v) + ceil(v) + rint(v) + trunc(v)", lambda x: np.floor(x) + np.ceil(x) + np.rint(x) + np.trunc(x)),
        ("isnan(v / 0.0f - v / 0.0f) ? 1.0f : 0.0f", np.ones_like),
        ("isinf(numeric_limits<float>::infinity()) ? v : 0.0f", lambda x: x),
    ],
)
def test_mathematics(expression, function):
    np.testing.assert_allclose(evaluate(expression, VALUES), function(VALUES.astype(np.float64)), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_rounding_to_half_precision_is_mlx_s(dtype):
    edges = [0.0, -0.0, 1.0, 65504.0, 65519.9, 65520.0, 1e-8, 5.96e-8, 3e-8, 6.1e-5, np.inf, -np.inf, 3e38, 1 + 2**-11]
    x = np.array([*edges, *(1 + 2.0**-8 * k for k in range(25)), *(-(2.0**-24) * k for k in range(25))], np.float32)
    x = x.reshape(2, 32)
    rounded = mx.array(x).astype(dtype)
    np.testing.assert_array_equal(evaluate("v", x, dtype), np.array(rounded.astype(mx.float32)))
    np.testing.assert_array_equal(evaluate("float(v)", rounded), np.array(rounded.astype(mx.float32)))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_matrices(dtype, transposed):
    rng = np.random.default_rng(1)
    a, b = (mx.array(rng.normal(size=(8, 12)).astype(np.float32)).astype(dtype) for _ in range(2))
    source = f"""
vec<ulong, 2> origin = 0;
simdgroup_matrix<T, 8, 8> left, right;
simdgroup_float8x8 sum = simdgroup_float8x8(1.0f);
simdgroup_load(right, b + 1, 12, origin, {"true" if transposed else "false"});
origin.x = 2;
simdgroup_load(left, a, 12, origin);
simdgroup_multiply_accumulate(sum, left, right, sum);
sum.thread_elements()[0] *= 2.0f;
sum.thread_elements()[1] *= 2.0f;
simdgroup_store(sum, y, 8);
"""
    result = run(
        Kernel("matrices", ("a", "b"), ("y",), source), [a, b], template=[("T", dtype)], grid=(32, 1, 1),
        threadgroup=(32, 1, 1), outputs=[((8, 8), mx.float32)],
    )  # fmt: skip
    assert result.findings == []
    left, right = (np.array(m.astype(mx.float32)).astype(np.float64) for m in (a, b))
    right = right[:, 1:9].T if transposed else right[:, 1:9]
    np.testing.assert_allclose(result.outputs[0], 2 * (left[:, 2:10] @ right + 1), rtol=1e-5, atol=1e-5)


def test_grids_of_three_dimensions_and_shapes():
    source = """
uint3 p = thread_position_in_grid;
uint3 n = threads_per_grid;
uint3 g = threadgroup_position_in_grid * threads_per_threadgroup + thread_position_in_threadgroup;
uint at = (p.z * n.y + p.y) * n.x + p.x;
y[at] = float(p.x) + 100.0f * float(g.y) + 10000.0f * float(p.z) + x[0] + w;
y[at] += float(x_shape[1] + x_ndim) + float(x_strides[0]);
"""
    x, w = np.full((2, 3), 0.25, np.float32), np.float32(0.5)
    result = run(
        Kernel("grid", ("x", "w"), ("y",), source), [x, mx.array(w)], grid=(64, 4, 3), threadgroup=(32, 2, 1),
        outputs=[((3, 4, 64), mx.float32)],
    )  # fmt: skip
    assert result.findings == []
    z, y, x = np.mgrid[0:3, 0:4, 0:64]
    np.testing.assert_array_equal(result.outputs[0], x + 100 * y + 10000 * z + 0.75 + 3 + 2 + 3)


BODY = "uint i = thread_position_in_grid.x;\ny[i] = x[i] * x[i] * float(SCALE);"


def square(x: mx.array, scale: int, body: str = BODY) -> mx.array:
    kernel = mx.fast.metal_kernel(name="square", input_names=["x"], output_names=["y"], source=body)
    return kernel(
        inputs=[x], template=[("SCALE", scale)], grid=(x.size, 1, 1), threadgroup=(32, 1, 1), output_shapes=[x.shape],
        output_dtypes=[x.dtype],
    )[0]  # fmt: skip


@mx.custom_function
def cube(x):
    return x * square(x, 1)


@cube.vjp
def cube_vjp(x, cotangent, output):
    return cotangent * square(x, 3)


def test_a_kernel_of_a_custom_function_runs_under_grad():
    x = mx.random.normal((64,), key=mx.random.key(0))
    with simulated_metal() as simulation:
        value, gradient = mx.value_and_grad(lambda x: mx.compile(cube)(x).sum())(x)
        np.testing.assert_allclose(np.array(gradient), 3 * np.array(x) ** 2, rtol=1e-5)
        np.testing.assert_allclose(value.item(), (np.array(x) ** 3).sum(), rtol=1e-4)
    assert [launch.template for launch in simulation.launches] == [(("SCALE", 1),), (("SCALE", 3),)]


def test_a_fault_ends_the_simulation_and_leaves_mlx_as_it_was():
    real = mx.fast.metal_kernel
    with simulated_metal(), pytest.raises(KernelFault, match=r"body:2: out of bounds: .*x\[64\]"):
        square(mx.zeros((64,)), 1, BODY.replace("x[i] * x[i]", "x[i + 1]"))
    assert mx.fast.metal_kernel is real


def test_inputs_that_are_not_contiguous_are_as_mlx_makes_them():
    x = mx.arange(128, dtype=mx.float32).reshape(2, 64)[:, ::2].T
    kernel = Kernel("copy", ("x",), ("y",), "uint i = thread_position_in_grid.x;\ny[i] = x[i];")
    result = run(kernel, [x], grid=(64, 1, 1), threadgroup=(32, 1, 1), outputs=[((64,), mx.float32)])
    np.testing.assert_array_equal(result.outputs[0], np.array(x).reshape(-1))


def test_the_parts_of_what_mlx_generates():
    kernel = Kernel(
        "parts",
        ("x", "n", "w"),
        ("y",),
        "y[0] = T(x[0] + n[0]) + w * N;\nuint i = thread_position_in_grid.x;",
        "// top\n",
    )
    inputs = [mx.zeros((64,)), mx.zeros((3,), mx.int32), mx.array(True)]
    generated = parse_generated(generated_source(kernel, inputs, [("T", mx.bfloat16), ("N", 3)], [mx.bfloat16]))
    assert (generated.header, generated.body) == ("// top\n", kernel.source)
    assert generated.template == (("typename T", "bfloat16_t"), ("int N", "3"))
    assert [(p.type, p.reference, p.name) for p in generated.parameters] == [
        ("const device float", "*", "x"),
        ("const constant int32_t", "*", "n"),
        ("const constant bool", "&", "w"),
        ("device bfloat16_t", "*", "y"),
        ("uint3", "", "thread_position_in_grid"),
    ]
    with pytest.raises(ValueError, match="not known here"):
        parse_generated("void f() {}\n")


def test_a_variant_is_compiled_once_and_forgotten_when_it_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setattr(toolchain, "cache_folder", lambda: tmp_path)
    made = []

    def make(path):
        made.append(path)
        path.write_text("compiled")

    first = toolchain.cached("kind", "source", make)
    assert toolchain.cached("kind", "source", make) == first
    other = toolchain.cached("kind", "another source", make)
    assert len(made) == 2
    os.utime(first, (0, 0))
    toolchain.forget(days=30)
    assert [path.name for path in tmp_path.iterdir()] == [other.name]


def test_words_and_comments():
    text = 'a /* b\n"*/ += 1.5e-3f; // c\n#define d e\n"/*f*/"'
    assert len(blank_comments(text)) == len(text)
    assert [(w.text, w.kind, w.line) for w in tokens(text)] == [
        ("a", "name", 1), ("+=", "mark", 2), ("1.5e-3f", "number", 2), (";", "mark", 2), ('"/*f*/"', "string", 4),
    ]  # fmt: skip
