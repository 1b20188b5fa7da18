"""The CPU model itself: kernels with one planted bug each, and what is said of it. None of them passes unseen."""

import mlx.core as mx
import numpy as np
import pytest
from metal_model.capture import Kernel
from metal_model.execute import Finding, Result, run

HALVES = """
threadgroup float half_sums[2];
uint t = thread_position_in_threadgroup.x;
uint g = threadgroup_position_in_grid.x;
float total = simd_sum(x[g * 64 + t]);
if (thread_index_in_simdgroup == 0) {
    half_sums[simdgroup_index_in_threadgroup] = total;
}
threadgroup_barrier(mem_flags::mem_threadgroup);
if (t == 0) {
    y[g] = half_sums[0] + half_sums[1];
}
"""
COPY = "uint i = thread_position_in_grid.x;\n"


def launch(source: str, size: int = 128, out: int | None = None, header: str = "", **options) -> Result:
    """`source` from float32 x[size], two groups of 64 threads, to float32 y[out]."""
    kernel = Kernel("planted", ("x",), ("y",), source, header, options.pop("atomic_outputs", False))
    x = np.arange(size, dtype=np.float32)
    shape = (size if out is None else out,)
    sizes = {"grid": (128, 1, 1), "threadgroup": (64, 1, 1)} | options
    return run(kernel, [x], outputs=[(shape, mx.float32)], **sizes)


def only(result: Result) -> Finding:
    assert len({f.kind for f in result.findings}) == 1, result.findings
    return result.findings[0]


def test_a_right_kernel_has_no_findings():
    result = launch(HALVES, out=2)
    assert result.findings == []
    np.testing.assert_array_equal(result.outputs[0], np.arange(128).reshape(2, 64).sum(1))
    assert result.threadgroup_bytes == 16


@pytest.mark.parametrize(
    "barrier", ["", "threadgroup_barrier(mem_flags::mem_device);", "simdgroup_barrier(mem_flags::mem_threadgroup);"]
)
def test_a_missing_or_weaker_barrier_is_a_race(barrier):
    """In either order of the two lines: with no barrier at all the reader comes first, and finds nothing written."""
    result = launch(HALVES.replace("threadgroup_barrier(mem_flags::mem_threadgroup);", barrier), out=2)
    (race,) = [f for f in result.findings if f.kind == "race"]
    lines = {
        "body:7": "half_sums[simdgroup_index_in_threadgroup] = total;",
        "body:11": "y[g] = half_sums[0] + half_sums[1];",
    }
    assert race.source == lines.pop(race.place)
    (other,) = lines.items()
    assert ": ".join(other) in race.message
    assert "half_sums[1]" in race.message


def test_every_threadgroup_variable_is_seen():
    names = "abcdef"
    declared = "\n".join(f"threadgroup float {name}{'[2]' * (i % 3)};" for i, name in enumerate(names))
    for i, name in enumerate(names):
        read = f"{name}{'[1]' * (i % 3)}"
        finding = only(launch(f"{declared}\ny[thread_position_in_grid.x] = x[0] + {read};"))
        assert finding.kind == "uninitialised read"
        assert f"{name}[{(0, 1, 3)[i % 3]}]" in finding.message


def test_one_thread_may_set_a_single_variable_for_all():
    source = COPY + (
        "threadgroup float a;\nif (thread_index_in_threadgroup == 0) { a = x[i]; }\n"
        "threadgroup_barrier(mem_flags::mem_threadgroup);\ny[i] = a;"
    )
    result = launch(source)
    assert result.findings == []
    np.testing.assert_array_equal(result.outputs[0], np.repeat([0, 64], 64))


def test_a_write_before_all_have_read_is_a_race():
    source = COPY + (
        "threadgroup float a[64]; uint t = thread_position_in_threadgroup.x;\n"
        "a[t] = x[i];\nthreadgroup_barrier(mem_flags::mem_threadgroup);\n"
        "float v = a[63 - t];\na[t] = v;\n"
        "threadgroup_barrier(mem_flags::mem_threadgroup);\ny[i] = a[t];"
    )
    assert only(launch(source)).kind == "race"
    fixed = source.replace(
        "float v = a[63 - t];\n", "float v = a[63 - t];\nthreadgroup_barrier(mem_flags::mem_threadgroup);\n"
    )
    result = launch(fixed)
    assert result.findings == []
    np.testing.assert_array_equal(result.outputs[0].reshape(2, 64), np.arange(128).reshape(2, 64)[:, ::-1])


def test_device_memory_between_threads_of_a_group_needs_its_own_flag():
    source = (
        COPY + "y[i] = x[i];\nthreadgroup_barrier(mem_flags::FLAG);\nfloat v = y[i ^ 1];\nif (v < 0.0f) { y[i] = v; }"
    )
    assert only(launch(source.replace("FLAG", "mem_threadgroup"))).kind == "race"
    assert launch(source.replace("FLAG", "mem_device")).findings == []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (COPY + "y[i] = x[i + 1];", "thread 63 of group 1, x[128]"),
        (COPY + "y[i + 1] = x[i];", "thread 63 of group 1, y[128]"),
        (COPY + "y[i] = x[int(i) - 1];", "thread 0 of group 0, x[-1]"),
        (COPY + "threadgroup float a[64]; a[i] = 1.0f; y[i] = x[i];", "thread 0 of group 1, a[64]"),
        (COPY + "y[i] = x[i * 1000000];", "thread 1 of group 0"),
    ],
)
def test_out_of_bounds(source, said):
    finding = only(launch(source))
    assert finding.kind == "out of bounds"
    assert said in finding.message
    assert finding.place == "body:2"


def test_a_helper_s_own_line_is_named():
    helper = "inline float get(const device float* p, uint i) {\n    return p[i + 1];\n}\n"
    finding = only(launch(COPY + "y[i] = get(x, i);", header=helper))
    assert (finding.kind, finding.place, finding.source) == ("out of bounds", "header:2", "return p[i + 1];")


@pytest.mark.parametrize(
    "source",
    [
        COPY + "if (i % 64 < 40) { threadgroup_barrier(mem_flags::mem_none); }\ny[i] = x[i];",
        COPY + "y[i] = x[i];\nif (i % 64 >= 32) { return; }\nthreadgroup_barrier(mem_flags::mem_none);",
        COPY + "if (i % 64 < 32) { threadgroup_barrier(mem_flags::mem_none); }\n"
        "else { threadgroup_barrier(mem_flags::mem_none); }\ny[i] = x[i];",
        COPY + "float v = x[i];\nif (i % 2 == 0) { v = simd_sum(v); }\ny[i] = v;",
        COPY + "for (uint j = 0; j < 1 + i / 100; ++j) { threadgroup_barrier(mem_flags::mem_none); }\ny[i] = x[i];",
        COPY + "float v = x[i];\nif (i % 2 == 0) { v = simd_max(v); }\nelse { v = simd_max(v + 1.0f); }\ny[i] = v;",
    ],
    ids=["branch", "return", "two barriers", "simd_sum", "loop", "two simd_max"],
)
def test_divergence(source):
    finding = only(launch(source))
    assert finding.kind == "divergent barrier"
    assert finding.place.startswith("body:")


@pytest.mark.parametrize(
    ("source", "element"),
    [
        (COPY + "y[i] += x[i];", "y[0]"),
        (COPY + "threadgroup float a[64]; y[i] = x[i] + a[i % 64];", "a[0]"),
    ],
)
def test_uninitialised_memory(source, element):
    finding = only(launch(source))
    assert finding.kind == "uninitialised read"
    assert element in finding.message


def test_a_variable_without_a_value():
    assert only(launch(COPY + "float v;\nif (i > 3) { v = 1.0f; }\ny[i] = x[i] + v;")).kind == "compile"


def test_an_array_without_values():
    """Private memory has no shadow; it begins as NaN, which the values show."""
    result = launch(COPY + "float a[4];\nfor (uint j = 0; j < 3; ++j) { a[j] = x[i]; }\ny[i] = a[i % 4];")
    assert result.findings == []
    np.testing.assert_array_equal(np.isnan(result.outputs[0]), np.arange(128) % 4 == 3)


@pytest.mark.parametrize(
    "source",
    [
        COPY + "float a[4] = {0.0f, 0.0f, 0.0f, 0.0f};\na[i] = x[i];\ny[i] = a[0];",
        COPY + "threadgroup float a[64][4];\na[0][i] = x[i];\ny[i] = 1.0f;",
    ],
    ids=["its own", "a row"],
)
def test_an_index_beyond_an_array_though_memory_goes_on(source):
    finding = only(launch(source))
    assert (finding.kind, finding.place) == ("out of bounds", "body:3")
    assert finding.message == "thread 4 of group 0, index 4 of 'float[4]'"


def test_unwritten_output():
    finding = only(launch(COPY + "if (i != 77) { y[i] = x[i]; }"))
    assert (finding.kind, finding.message) == ("unwritten output", "y[77] was never written")
    assert launch(COPY + "if (i != 77) { y[i] = x[i]; }", init_value=0).findings == []


def test_two_groups_writing_one_element():
    finding = only(launch(COPY + "y[i % 64] = x[i];", out=64))
    assert finding.kind == "race"
    assert "of group 0" in finding.message
    assert "of group 1" in finding.message


def test_lanes_writing_one_element():
    assert only(launch(COPY + "y[i] = x[i];\nif (i < 32) { y[5] = 0.0f; }")).kind == "race"


def test_a_write_to_an_input():
    finding = only(launch(COPY + "((device float*)x)[i] = 1.0f;\ny[i] = 1.0f;"))
    assert (finding.kind, finding.place) == ("write to an input", "body:2")


def test_misaligned_vectors():
    source = (
        COPY + "y[i] = 0.0f;\nif (i < 31) {\nfloat4 v = *(const device float4*)(x + 4 * i + OFFSET);\ny[i] = v.x; }"
    )
    finding = only(launch(source.replace("OFFSET", "1")))
    assert (finding.kind, finding.place) == ("misaligned access", "body:4")
    # Aligned within the array is not enough: the array may be a slice that begins anywhere.
    assert only(launch(source.replace("OFFSET", "0"))).kind == "misaligned access"


@pytest.mark.parametrize("kind", ["float3", "half3"])
def test_vectors_of_three_are_seen(kind):
    source = COPY + f"threadgroup {kind} a[64]; y[i] = x[i] + float(a[i % 64].y);"
    assert only(launch(source)).kind == "uninitialised read"


def test_too_much_threadgroup_memory():
    source = COPY + "threadgroup float a[N]; a[i % 64] = x[i]; y[i] = a[i % 64];"
    finding = only(launch(source, template=[("N", 8193)]))
    assert (finding.kind, finding.message) == ("too much threadgroup memory", "32784 bytes; a group has 32768")
    fits = launch(source, template=[("N", 8192)])
    assert (fits.findings, fits.threadgroup_bytes) == ([], 32768)


def test_atomics_are_no_race_and_plain_writes_beside_them_are():
    add = "atomic_fetch_add_explicit(&y[0], x[thread_position_in_grid.x], memory_order_relaxed);"
    result = launch(add, out=1, atomic_outputs=True, init_value=0)
    assert result.findings == []
    assert result.outputs[0][0] == np.arange(128).sum()
    plain = add + "\nif (thread_position_in_grid.x == 9) { *(device float*)&y[0] = 0.0f; }"
    assert only(launch(plain, out=1, atomic_outputs=True, init_value=0)).kind == "race"


def test_atomics_may_depend_on_the_order_of_threads():
    """A sum of floats in another order differs in its last bits."""
    result = launch(
        "float before = atomic_exchange_explicit(&y[0], x[thread_position_in_grid.x], memory_order_relaxed);\n"
        "if (before < -1.0f) { atomic_store_explicit(&y[0], before, memory_order_relaxed); }",
        out=1, atomic_outputs=True, init_value=0,
    )  # fmt: skip
    assert result.findings == []


def test_too_much_memory_of_its_own():
    source = COPY + "float a[40000];\nfor (uint j = 0; j < 40000; ++j) { a[j] = x[j % 128]; }\ny[i] = a[i * 300];"
    finding = only(launch(source))
    assert finding.kind == "compile"
    assert "stack frame size" in finding.message


@pytest.mark.parametrize(
    ("grid", "threadgroup", "said"),
    [
        ((100, 1, 1), (64, 1, 1), "no multiple"),
        ((48, 1, 1), (48, 1, 1), "a multiple of 32"),
        ((2048, 1, 1), (2048, 1, 1), "1024"),
        ((0, 1, 1), (32, 1, 1), "positive"),
    ],
)
def test_the_shape_of_a_launch(grid, threadgroup, said):
    finding = only(launch(COPY + "y[i] = x[i];", grid=grid, threadgroup=threadgroup))
    assert finding.kind == "launch"
    assert said in finding.message


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "threadgroup float* p = x;\ny[0] = p[0];",
            "'__local float *__private' with an lvalue of type 'const __global",
        ),
        ("const thread float* p = x;\ny[0] = p[0];", "'const __private float *__private' with"),
        ("const float* p = x;\ny[0] = p[0];", "p: a pointer or reference without an address space"),
        ("double d = 1.0f;\ny[0] = float(d);", "double"),
        ("device float* p = new float[3];\ny[0] = p[0];", "new"),
        ("int n = int(x[0]);\nfloat a[n];\ny[0] = a[0];", "array size is not a constant"),
        ("if (x[0] > 0.0f) {\nthreadgroup float a[4];\na[0] = 1.0f; }\ny[0] = 1.0f;", "kernel"),
        ("goto end;\nend:\ny[0] = 1.0f;", "goto"),
        ("auto f = [](float v) { return v; };\ny[0] = f(1.0f);", "lambdas"),
        ("y[0] = x[0] * 2.0;", "2.0f"),
        ("half h = x[0] * 0.5f;\ny[0] = float(h);", "loses floating-point precision"),
        ("static float f = 1.0f;\ny[0] = f;", "static"),
        ("uint thread_position_in_grid_ = 0;\nuint threads_per_grid = 3;\ny[0] = 1.0f;", "attribute"),
        ("float max_shape = 1.0f;\nuint my_x_shape = 3;\ny[0] = float(my_x_shape) + max_shape;", "MLX adds x_shape"),
        ("threadgroup float a[2] = {1.0f, 2.0f};\ny[0] = a[0];", "initialise"),
        ("threadgroup float a[2], b[2];\na[0] = b[0] = 1.0f;\ny[0] = a[0];", "one threadgroup variable a statement"),
        ("threadgroup unsigned int a[2];\na[0] = 1u;\ny[0] = float(a[0]);", "T of one word"),
        ("alignas(16) threadgroup float a[4];\na[0] = 1.0f;\ny[0] = a[0];", "T of one word"),
        ("int Limits = 3;\ny[0] = float(Limits);", "prelude"),
        ("y[0] = std::max(x[0], 1.0f);", "std"),
        ("y[0] = undeclared;", "undeclared"),
    ],
)
def test_what_apple_s_compiler_would_refuse(source, said):
    result = launch(source)
    assert result.outputs == []
    assert {f.kind for f in result.findings} == {"compile"}
    assert any(said in f.message for f in result.findings), result.findings
    assert all(f.place.startswith(("body:", "signature:")) for f in result.findings), result.findings


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("float level = 1.0f;\n", "constant address space"),
        ("inline float twice(float (*f)(float)) { return 2.0f; }\n", "pointers to functions"),
        ("inline float down(float v) {\n    return v < 1.0f ? v : down(v - 1.0f);\n}\n", "calls itself"),
        ("inline float sum(float* p) { return p[0]; }\n", "without an address space"),
        ("inline float sum(const thread float& p, threadgroup float& q) { return p + q + 1.0; }\n", "1.0f"),
    ],
)
def test_what_apple_s_compiler_would_refuse_in_a_helper(header, said):
    result = launch("y[thread_position_in_grid.x] = x[0];", header=header)
    assert any(said in f.message and f.place.startswith("header:") for f in result.findings), result.findings
