"""Pass C: a kernel's translation to CUDA, compiled by NVRTC, which needs no GPU. NVRTC, as MLX calls it, is given the
architecture and where the headers are."""

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

from metal_model import toolchain
from metal_model.capture import generated_source
from metal_model.simulated import Launch
from metal_model.syntax import Generated, parse_generated
from mlxgpt.kernels.translate import prelude, to_cuda

ARCHITECTURE = "sm_90a"
# Stands for what MLX puts before a header, and for names of its own namespace that a body could run into.
MLX_HEADER = """
struct Shape { int values[8]; __device__ int operator[](int i) const { return values[i]; } };
struct Strides { long long values[8]; __device__ long long operator[](int i) const { return values[i]; } };
namespace mlx { namespace core { namespace cu {
template <typename T> __device__ T exp(T x) { return T(::expf(float(x))); }
template <typename T> __device__ T max(T x, T y) { return x > y ? x : y; }
template <typename T> struct Limits {};
} } }
"""
CUDA_TYPES = {
    "float16_t": "__half", "bfloat16_t": "__nv_bfloat16", "float": "float", "bool": "bool", "int8_t": "signed char",
    "uint8_t": "unsigned char", "int16_t": "short", "uint16_t": "unsigned short", "int32_t": "int",
    "uint32_t": "unsigned int", "int64_t": "long long", "uint64_t": "unsigned long long", "int": "int",
}  # fmt: skip


@cache
def _toolkit() -> Path | None:
    """The folder with NVRTC and CUDA's headers, out of NVIDIA's packages."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        for toolkit in sorted(Path(folder).glob("cu*")):
            if list(toolkit.glob("lib/libnvrtc.so.*")) and (toolkit / "include" / "cuda_fp16.h").exists():
                return toolkit
    return None


def available() -> bool:
    """Whether NVRTC and CUDA's headers are installed."""
    return _toolkit() is not None


@cache
def _nvrtc() -> ctypes.CDLL:
    toolkit = _toolkit()
    assert toolkit is not None, "NVRTC is not installed"
    return ctypes.CDLL(str(next(iter(sorted(toolkit.glob("lib/libnvrtc.so.*"))))))


def cuda_source(launch: Launch) -> str:
    """What `mx.fast.cuda_kernel` makes of the translated kernel of a launch: the form of MLX's generator."""
    kernel = launch.kernel
    generated = parse_generated(generated_source(kernel, launch.inputs, launch.template, launch.output_dtypes))
    parameters = []
    for p in generated.buffers:
        base, _, what = p.name.rpartition("_")
        if base in kernel.input_names and what in ("shape", "strides", "ndim"):
            kind = {"shape": "Shape", "strides": "Strides", "ndim": "int"}[what]
            parameters.append(f"const __grid_constant__ {kind} {p.name}")
        else:
            const = "" if p.name in kernel.output_names else "const "
            parameters.append(f"{const}{_type(p.type)}* {p.name}")
    return "\n".join([
        MLX_HEADER, prelude(), to_cuda(kernel.header), "namespace mlx { namespace core { namespace cu {",
        f"__global__ void {kernel.name}({', '.join(parameters)}) {{", _template(generated), '#line 1 "body"',
        to_cuda(kernel.source, body=True), "}", "} } }",
    ])  # fmt: skip


def _type(metal: str) -> str:
    word = metal.removesuffix(">").rpartition("<")[2].split()[-1]
    return CUDA_TYPES[word]


def _template(generated: Generated) -> str:
    lines = []
    for declaration, value in generated.template:
        kind, name = declaration.split()
        typed = kind == "typename"
        lines.append(f"using {name} = {CUDA_TYPES[value]};" if typed else f"constexpr {kind} {name} = {value};")
    return " ".join(lines)


def compile_source(source: str) -> str:
    """NVRTC's complaints about a source; empty where it compiles for ARCHITECTURE. Kept in the cache."""
    toolkit = _toolkit()
    identity = f"{_nvrtc()._name}\0{toolkit}\0{ARCHITECTURE}\0{source}"

    def make(path: Path) -> None:
        path.write_text(_compile(source))

    return toolchain.cached("nvrtc", identity, make).read_text()


def _compile(source: str) -> str:
    library, program = _nvrtc(), ctypes.c_void_p()
    assert library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None) == 0
    options = [f"--gpu-architecture={ARCHITECTURE}", f"--include-path={_toolkit()}/include"]
    array = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    status = library.nvrtcCompileProgram(program, len(options), array)
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    text = log.value.decode().strip()
    return "" if status == 0 else text or f"NVRTC failed with status {status}"
