"""Operations in C++ for a Linux CPU: kernels/<op>/cpu.cpp, compiled for this very CPU when first needed, then cached.

MLX's own extension mechanism: a `mlx::core::Primitive`, bound by nanobind, that is one more node of the lazy graph.
The compiler knows the CPU it compiles for, so the instruction set is chosen here. On macOS there is Metal.
"""

import hashlib
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
import threading
from functools import cache
from pathlib import Path
from types import ModuleType

from mlxgpt import backend
from mlxgpt.errors import Error, UsageError

# What MLXGPT_CPU may name: less than this CPU has, to see what a lesser one would do. g++'s name, and what it needs.
CPUS: dict[str, tuple[str, set[str]]] = {
    "native": ("native", set()),
    "avx512": ("x86-64-v4", {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd", "avx2", "fma", "bmi2", "f16c"}),
    "avx2": ("x86-64-v3", {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"}),
    "baseline": ("x86-64" if platform.machine() == "x86_64" else "armv8-a", set()),
}
FLAGS = ("-std=c++20", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fno-strict-aliasing", "-fPIC", "-shared", "-w",
         "-fvisibility=hidden", "-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections", "-Wl,-s",
         "-DNDEBUG", "-DNB_COMPACT_ASSERTIONS", "-DNB_SHARED", "-DNB_DOMAIN=mlx")  # fmt: skip
_building = threading.Lock()


def load(source: Path) -> ModuleType | None:
    """The Python module that `source` defines (as `cpu`), compiled now if the cache has none.

    None where there is no such thing: on macOS; and, after one line on stderr, where it cannot be built or loaded.
    """
    if sys.platform != "linux":
        return None
    with _building:
        return _load(source)


@cache
def _load(source: Path) -> ModuleType | None:
    name = source.parent.name
    try:
        library = _built(source)
        spec = importlib.util.spec_from_file_location(f"mlxgpt.kernels.{name}.cpu", library)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        import mlx.core as mx

        module.check(mx.array(0))
    except TypeError:
        why = "the nanobind that is installed is not the one that mlx was built with"
    except (OSError, Error, ImportError) as error:
        why = " ".join(str(error).split())
    else:
        return module
    backend.say(f"slow: {name} runs as MLX has it, which on a CPU is 2 to 20 times slower than mlxgpt's own ({why})")
    return None


def examine() -> dict[str, str]:
    """What `mlxgpt doctor` says of the operations in C++: for which instructions, and how many are compiled already."""
    if sys.platform != "linux":
        return {"native": "none: MLX's own kernels"}
    kernels = Path(sys.modules["mlxgpt.kernels"].__file__ or "").parent  # `import mlxgpt` has loaded it
    sources = sorted(kernels.glob("*/cpu.cpp"))
    try:
        plans = [_plan(source) for source in sources]
    except (OSError, Error) as error:
        return {"native": f"none: {' '.join(str(error).split())}"}
    flags, wanted = backend.cpu_flags(), os.environ.get("MLXGPT_CPU") or "native"
    sets = [name for name in ("avx512_bf16", "avx512_vnni", "avx512f", "avx2", "asimd", "sse2") if name in flags]
    there = sum(backend.is_whole(plan[0]) for plan in plans)
    text = f"C++ for {', '.join(sets) if wanted == 'native' else wanted}; {there} of {len(plans)} operations compiled"
    return {"native": text, "threads": os.environ.get("MLXGPT_THREADS") or str(len(os.sched_getaffinity(0)))}


def _built(source: Path) -> Path:
    """The library in the cache, made now if need be. Raises OSError, Error, UsageError."""
    library, command, binding, shared = _plan(source)
    _make(shared, "nanobind", binding)
    _make(library, source.parent.name, command)
    return library


def _make(library: Path, name: str, command: list[str]) -> None:
    if not backend.is_whole(library):
        print(f"mlxgpt: compiling {name} for this CPU, once", file=sys.stderr)
        backend.build_library(library, command)


def _plan(source: Path) -> tuple[Path, list[str], list[str], Path]:
    """The library, the command that makes it, and the command that makes nanobind's, which it is linked with: half of
    the time that an operation would take to compile, and the same for all; and that library. Raises as `_built`."""
    wanted = os.environ.get("MLXGPT_CPU") or "native"
    if wanted not in CPUS:
        raise UsageError(f"MLXGPT_CPU={wanted}: it is one of {', '.join(CPUS)}")
    march, needed = CPUS[wanted]
    if not needed <= backend.cpu_flags():
        raise UsageError(f"MLXGPT_CPU={wanted}: this CPU has less")
    compiler = shutil.which("g++", path=backend.path_without_wrapper())
    if compiler is None:
        raise Error("no g++ on PATH to compile it with")
    mlx, nanobind = _package("mlx", "include/mlx/mlx.h"), _package("nanobind", "src/nb_combined.cpp")
    python = sysconfig.get_path("include")
    if not Path(python, "Python.h").is_file():
        raise Error(f"Python's headers are not in {python} (install python3-dev or your system's like of it)")
    includes = [source.parents[1], mlx / "include", python, nanobind / "include", nanobind / "ext/robin_map/include"]
    common = [compiler, *FLAGS, f"-march={march}", *(f"-I{folder}" for folder in includes)]
    source_of_nanobind = nanobind / "src/nb_combined.cpp"
    binding = [*common, "-DNB_BUILD", str(source_of_nanobind)]
    stamped = [Path(compiler), source_of_nanobind]
    shared = backend.cache_dir() / f"nanobind-{_identity(source_of_nanobind, binding, stamped)}.so"
    rest = [f"-L{mlx / 'lib'}", "-lmlx", "-Xlinker", "-rpath", "-Xlinker", str(mlx / "lib")]
    identity = _identity(source, [*common, shared.name, *rest], [*stamped, mlx / "lib/libmlx.so"])
    command = [*common, str(source), str(shared), *rest]
    return backend.cache_dir() / f"{source.parent.name}-{identity}.so", command, binding, shared


def _package(name: str, file: str) -> Path:
    """The folder of an installed package that has `file` in it. Imports nothing. Raises Error."""
    spec = importlib.util.find_spec(name)
    roots = [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []
    found = next((root for root in roots if (root / file).is_file()), None)
    if found is None:
        raise Error(f"{name} is not installed with its {Path(file).name}")
    return found


def _identity(source: Path, command: list[str], files: list[Path]) -> str:
    """A hash of all that the library depends on: its sources, the command, Python, the CPU, and `files`, by their
    size and age."""
    headers = sorted((source.parents[1] / "cpu").glob("*.h"))
    texts = [p.read_text(encoding="utf-8") for p in (source, *headers)]
    stamps = [(s.st_size, s.st_mtime_ns) for s in (Path(p).resolve().stat() for p in files)]
    parts = (command, texts, stamps, sys.version, platform.machine(), sorted(backend.cpu_flags()))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
