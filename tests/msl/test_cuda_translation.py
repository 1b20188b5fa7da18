"""The translation to CUDA: every kernel of every op compiles with NVRTC for sm_90a, and what the words become."""

import sys

import mlx.core as mx
import pytest
from metal_model import cuda
from metal_model.capture import Kernel
from metal_model.execute import run
from metal_model.simulated import Launch, simulated_metal
from mlxgpt.kernels import dispatch, translate, verify

NVRTC = pytest.mark.skipif(sys.platform != "linux", reason="NVIDIA has no NVRTC for macOS")
# One of each thing that a body or a header may hold.
HEADER = """
#define TWICE(x) ((x) + (x))  // float4(
struct Pair { float m; float l; float sum() const thread { return m + l; } };  // thread device
constant float table[4] = {1.0f, 2.0f, 3.0f, 4.0f};
template <typename T> inline float4 load4(const device T* p, uint i) {
    return float4(float(p[i]), float(p[i + 1]), float(p[i + 2]), float(p[i + 3]));
}
inline float add(threadgroup float* a, thread const Pair& pair) { return a[0] + pair.m * table[1] + pair.sum(); }
"""
BODY = """
threadgroup float tile[8][8];   // device threadgroup
threadgroup atomic_uint count[1];
threadgroup T row[64];
threadgroup float4 quad;
uint t = thread_position_in_threadgroup.x;
uint i = thread_position_in_grid.x;
if (t == 0) { atomic_store_explicit(&count[0], 0u, memory_order_relaxed); }
threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
Pair pair;
pair.m = 1.0f;
pair.l = simd_sum(float(x[i]));
tile[t / 8][t % 8] = TWICE(pair.m);
row[t] = T(pair.m);
if (t == 0) { quad = float4(1.0f); }
threadgroup_barrier(mem_flags::mem_threadgroup);
simdgroup_float8x8 a, b(1.0f), c = simdgroup_float8x8(0.0f);
simdgroup_load(a, &tile[0][0], 8);
simdgroup_multiply_accumulate(c, a, b, c);
float4 v = load4(x, i) * 2.0f + float4(1.0f);
v.x += metal::precise::exp(v.y) + metal::max(v.z, v.w) + float(half(2.0f)) + metal::float2(3.0f, 1.0f).x;
v.y = exp(v.y) + max(v.z, 1.0f) + as_type<float>(as_type<uint>(v.x) & 0x7fffffffu);
v.z += float(row[63 - t]) + quad.y + float(uint8_t(7)) + float(int64_t(1));
uint old = atomic_fetch_add_explicit(&count[0], 1u, memory_order_relaxed);
float2 e = c.thread_elements();
const device T* p = x + x_shape[0] - 128;
const threadgroup float* q = &tile[0][0];
#pragma unroll
for (int k = 0; k < N; ++k) { v.x += float(p[k]) + q[k]; }
v.x += add(&tile[0][0], pair) + e.x + simd_shuffle_down(v.y, 1) + float(old * 0u);
y[i] = T(v.x + numeric_limits<float>::lowest() * 0.0f + 1.0f / INFINITY);
"""


def kit(dtype: mx.Dtype) -> Launch:
    kernel = Kernel("kit", ("x",), ("y",), BODY, HEADER)
    template = (("T", dtype), ("N", 3), ("B", True))
    return Launch(kernel, [mx.zeros((131,), dtype)], template, (128, 1, 1), (64, 1, 1), [(128,)], [dtype], None)


@NVRTC
@pytest.mark.parametrize("dtype", verify.DTYPES, ids=lambda d: str(d).rpartition(".")[2])
def test_a_kernel_of_everything_compiles(dtype):
    assert cuda.available(), "install the test extra"
    assert cuda.compile_source(cuda.cuda_source(kit(dtype))) == ""


@NVRTC
@pytest.mark.parametrize("op", [op for op in verify.op_names() if verify.cases(op)])
def test_every_kernel_compiles(op):
    with simulated_metal() as simulation:
        for case in verify.cases(op):
            for dtype in case.dtypes:
                verify.check(case, dtype)
    sources = {cuda.cuda_source(launch) for launch in simulation.launches}
    assert sources
    assert {complaint for source in sources if (complaint := cuda.compile_source(source))} == set()


@NVRTC
def test_what_is_no_cuda_is_refused():
    launch = kit(mx.float32)
    wrong = cuda.cuda_source(launch).replace("old * 0u", "old * undeclared")
    assert 'identifier "undeclared" is undefined' in cuda.compile_source(wrong)


@pytest.mark.parametrize(
    ("metal", "expected"),
    [
        ("threadgroup float a[4]; // device", "__shared__ float a[4];          "),
        ("const device half4* p;", "const metal::vec<metal::half, 4>* p;"),
        ("v = *(device float2*)x;", "v = *( metal::vec<float, 2>*)x;"),
        ("threadgroup T a[N * (N + 1)];", "__shared__ T a[N * (N + 1)];"),
        ("threadgroup float* p = a;", "float* p = a;"),
        ("metal::uint2 thread_device;", "metal::vec<metal::uint, 2> thread_device;"),
        ("for (;;) { y[i] = 1e-3f; }", "for (;;) { y[i] = 1e-3f; }"),
    ],
)  # fmt: skip
def test_words_of_a_body(metal, expected):
    assert " ".join(translate.to_cuda(metal, body=True).split()) == " ".join(expected.split())


def test_words_of_a_header():
    header = (
        "constant float c[1] = {1.0f};\ntemplate <typename T, int N = 3>\n"
        "inline T f(const constant T* p) { if (p) { return T(N); } return p[0]; }\n"
        "namespace n { struct S { int a; S(int b) : a(b) {} int g() { return a; } }; }\n"
    )
    assert " ".join(translate.to_cuda(header).split()) == (
        "__constant__ const float c[1] = {1.0f}; template <typename T, int N = 3> __device__ inline T f(const T* p)"
        " { if (p) { return T(N); } return p[0]; }"
        " namespace n { struct S { int a; __device__ S(int b) : a(b) {} __device__ int g() { return a; } }; }"
    )


def test_cuda_is_launched_with_the_translation_under_a_name_of_its_content(monkeypatch):
    """MLX keeps compiled CUDA on disk by name."""
    made = []

    def cuda_kernel(**options):
        made.append(options)
        return lambda **launch: [mx.zeros(launch["output_shapes"][0], launch["output_dtypes"][0])]

    monkeypatch.setattr(mx.fast, "cuda_kernel", cuda_kernel)
    monkeypatch.setattr(dispatch, "platform", lambda: "cuda")
    monkeypatch.setattr(dispatch.Kernel, "source", "threadgroup float a[2];")
    for _ in range(2):
        kernel = dispatch.Kernel(__file__, "body", ("x",), ("y",))
        sizes = {"grid": (32, 1, 1), "threadgroup": (32, 1, 1), "output_shapes": [(3,)], "output_dtypes": [mx.float32]}
        assert kernel(mx.zeros((3,)), **sizes)[0].shape == (3,)
        monkeypatch.setattr(dispatch.Kernel, "source", "threadgroup float b[2];")
    assert [options["source"] for options in made] == ["__shared__ float a[2];", "__shared__ float b[2];"]
    assert len({options["name"] for options in made}) == 2
    assert made[0]["header"] == translate.prelude()


@pytest.mark.parametrize("dtype", verify.DTYPES, ids=lambda d: str(d).rpartition(".")[2])
def test_the_kernel_of_everything_runs_on_the_model_too(dtype):
    """So both translations take one language."""
    made = kit(dtype)
    result = run(
        made.kernel, [mx.random.normal((131,)).astype(dtype)], template=made.template, grid=made.grid,
        threadgroup=made.threadgroup, outputs=[((128,), dtype)],
    )  # fmt: skip
    assert result.findings == []
    assert result.threadgroup_bytes == 256 + 16 + 64 * dtype.size + 16  # tile, count, row, quad
