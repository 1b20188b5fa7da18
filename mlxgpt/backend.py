"""What runs where: the BLAS under MLX on Linux, the device, compute types, memory.

MLX's Linux CPU wheel is linked against the reference BLAS (about 7 GFLOP/s on two cores where OpenBLAS reaches 200).
`prepare` puts a fast one in its place before mlx is loaded; on macOS there is nothing to do (Accelerate).
"""

import ctypes
import hashlib
import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mlxgpt.errors import UsageError

PREAMBLE = "mlx/backend/cpu/compiled_preamble.h"  # what each of MLX's kernels for the CPU includes
# Not -ffast-math: it flushes denormals in the whole process and gains nothing.
NATIVE = ("-march=native", "-fno-math-errno", "-fno-trapping-math")
SHIM_SOURCE = Path(__file__).with_name("blas.c")


@dataclass(frozen=True)
class Blas:
    """The BLAS that MLX's CPU matrix products use: its name, its file, and why it was chosen."""

    name: str
    path: str
    reason: str
    fast: bool = True


@cache
def prepare() -> Blas:
    """Put a fast BLAS under MLX, and say which one. Idempotent; must run before mlx is imported.

    Order: `MLXGPT_BLAS` (a library's path, or "stock"), numpy's own OpenBLAS through a small compiled shim,
    the system's OpenBLAS, and the one MLX was linked against.
    """
    if sys.platform != "linux":
        return Blas("Accelerate", "", "macOS's own, as MLX was built")
    native_jit()
    forced = os.environ.get("MLXGPT_BLAS", "")
    if forced == "stock":
        return Blas("reference BLAS", "", "MLXGPT_BLAS=stock", fast=False)
    if forced:
        try:
            ctypes.CDLL(forced, ctypes.RTLD_GLOBAL).cblas_sgemm  # noqa: B018 (the look-up is the check)
        except (OSError, AttributeError) as error:
            raise UsageError(f"MLXGPT_BLAS={forced}: no BLAS with cblas_sgemm there ({error})") from None
        return Blas(Path(forced).name, forced, "MLXGPT_BLAS")
    # OpenBLAS takes newer CPUs for a Haswell; with AVX-512 its SkylakeX kernels are up to 1.8 times faster.
    if {"avx512f", "avx512dq", "avx512bw", "avx512vl"} <= cpu_flags():
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")
    why_not = []
    for attempt in (_numpy_openblas, _system_openblas):
        try:
            return attempt()
        except OSError as error:
            why_not.append(" ".join(str(error).split()))
    return Blas("reference BLAS", "", "; ".join(why_not), fast=False)


def _numpy_openblas() -> Blas:
    """numpy's bundled OpenBLAS behind `blas.c`, compiled once into the cache. Raises OSError."""
    spec = importlib.util.find_spec("numpy")
    wheel = Path(spec.origin).parent.parent / "numpy.libs" if spec and spec.origin else Path("numpy.libs")
    library = next(iter(sorted(wheel.glob("libscipy_openblas64_*.so"))), None)
    if library is None:
        raise OSError("numpy was installed without its own OpenBLAS (no numpy.libs folder)")
    identity = f"{library}:{library.stat().st_mtime_ns}:{SHIM_SOURCE.read_text()}"
    shim = cache_dir() / f"blas-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    if not shim.exists():
        _compile_shim(library, shim)
    try:
        ctypes.CDLL(str(shim), ctypes.RTLD_GLOBAL)
    except OSError:  # cut short, or built for another machine that shares this home folder
        shim.unlink()
        _compile_shim(library, shim)
        ctypes.CDLL(str(shim), ctypes.RTLD_GLOBAL)
    return Blas("OpenBLAS (numpy's)", str(library), "came with numpy")


def _compile_shim(library: Path, shim: Path) -> None:
    compiler = find_compiler()
    if compiler is None:
        raise OSError("no C compiler to link numpy's OpenBLAS with (install gcc or clang)")
    with tempfile.NamedTemporaryFile(dir=shim.parent, suffix=".so", delete=False) as file:
        built = Path(file.name)
    command = [compiler, "-x", "c", "-O2", "-shared", "-fPIC", str(SHIM_SOURCE), "-x", "none", str(library),
               f"-Wl,-rpath,{library.parent}", "-o", str(built)]  # fmt: skip
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if result.returncode != 0:
            raise OSError(f"{compiler} failed: {(result.stderr.strip() or 'no message').splitlines()[-1]}")
        os.replace(built, shim)
    except subprocess.SubprocessError as error:
        raise OSError(f"{compiler} failed: {error}") from None
    finally:
        built.unlink(missing_ok=True)


def _system_openblas() -> Blas:
    library = ctypes.CDLL("libopenblas.so.0", ctypes.RTLD_GLOBAL)
    if not hasattr(library, "cblas_sgemm"):
        raise OSError("libopenblas.so.0 has no cblas_sgemm")
    return Blas("OpenBLAS (the system's)", "libopenblas.so.0", "found by the dynamic linker")


@cache
def native_jit() -> str:
    """Have MLX's CPU kernels, which it compiles with `g++` as they are met, built for this very CPU; returns how.

    A `g++` earlier on PATH adds the flags and a precompiled header (0.5 s -> 0.1 s a kernel). MLX caches kernels
    under TMPDIR by name alone, so this CPU, compiler and MLX get a TMPDIR of their own.
    """
    compiler = shutil.which("g++")
    spec = importlib.util.find_spec("mlx")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    header = next((p for r in roots if (p := Path(r) / "include" / PREAMBLE).is_file()), None)
    if compiler is None:
        return "no g++ on PATH: mx.compile does nothing on the CPU"
    if header is None:
        return "plain g++: MLX's headers were not found"
    status = Path(compiler).resolve().stat()
    stamps = f"{status.st_size}:{status.st_mtime_ns}:{header.stat().st_mtime_ns}"
    identity = f"{sorted(cpu_flags())}:{compiler}:{header}:{stamps}"
    folder = cache_dir() / f"jit-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    if not (folder / "bin" / "g++").exists():
        try:
            _build_jit(folder, compiler, header)
        except (OSError, subprocess.SubprocessError) as error:
            return f"plain g++: {' '.join(str(error).split())}"
    tempfile.gettempdir()  # Python keeps the place it finds now
    os.environ["TMPDIR"] = str(folder / "tmp")
    os.environ["PATH"] = f"{folder / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    return "g++ " + " ".join(NATIVE)


def _build_jit(folder: Path, compiler: str, header: Path) -> None:
    """The wrapper, the precompiled header and an empty TMPDIR; `folder` appears whole or not at all."""
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        precompiled = partial / "pch" / f"{PREAMBLE}.gch"
        for place in (partial / "tmp", partial / "bin", precompiled.parent):
            place.mkdir(parents=True)
        include = str(header).removesuffix(PREAMBLE)
        flags = ["-std=c++17", "-O3", "-fPIC", "-w", *NATIVE, "-x", "c++-header", f"-I{include}"]
        command = [compiler, *flags, str(header), "-o", str(precompiled)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if result.returncode != 0:
            raise OSError(
                f"g++ could not compile MLX's header: {(result.stderr.strip() or 'no message').splitlines()[-1]}"
            )
        wrapper = partial / "bin" / "g++"
        wrapper.write_text(f'#!/bin/sh\nexec "{compiler}" -I"{folder / "pch"}" -w {" ".join(NATIVE)} "$@"\n')
        wrapper.chmod(0o755)
        os.rename(partial, folder)
    except OSError:
        if not (folder / "bin" / "g++").exists():  # else another process was quicker
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def find_compiler() -> str | None:
    """The C compiler to use: $CC, then the usual names on PATH."""
    names = [os.environ.get("CC", ""), "cc", "gcc", "clang", "c++", "g++"]
    return next((path for name in names if name and (path := shutil.which(name))), None)


def cpu_flags() -> frozenset[str]:
    """The CPU's feature flags as Linux names them; empty where /proc/cpuinfo does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), ":")
    return frozenset(line.split(":", 1)[1].split())


@cache
def cache_dir() -> Path:
    """The user's cache folder for mlxgpt, made if need be: `MLXGPT_CACHE`, else the platform's place.

    Compiled code is loaded from here, so a folder that another user owns or may write to is not used;
    a private temporary folder, kept for this process's user, takes its place.
    """
    if named := os.environ.get("MLXGPT_CACHE"):
        folder = Path(named)
    elif sys.platform == "darwin":
        folder = Path.home() / "Library/Caches/mlxgpt"
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlxgpt"
    for candidate in (folder, Path(tempfile.gettempdir()) / f"mlxgpt-{os.getuid()}"):
        try:
            candidate.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = candidate.stat()
            private = status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            if private and os.access(candidate, os.W_OK | os.X_OK):
                return candidate
        except OSError:
            continue
    return Path(tempfile.mkdtemp(prefix="mlxgpt-"))


def total_memory() -> int:
    """The machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cache_limit() -> int:
    return min(4 << 30, total_memory() // 6)


def start(warn: bool = True) -> None:
    """Load MLX for a command that computes: memory limits set, and one warning if its BLAS is the slow one."""
    blas = prepare()
    import mlx.core as mx

    if device() == "cpu":
        # The CPU allocator keeps 32 MB by default; clearing fresh pages was 14 % of a training step.
        mx.set_cache_limit(_cache_limit())
        if warn and not blas.fast:
            print(f"mlxgpt: slow: MLX runs on the reference BLAS here, about 30 times slower than OpenBLAS "
                  f"({blas.reason}); see `mlxgpt doctor`", file=sys.stderr)  # fmt: skip


def device() -> str:
    """Where MLX computes by default: "metal", "cuda" or "cpu"."""
    import mlx.core as mx

    if mx.default_device().type == mx.DeviceType.cpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def compute_dtype(name: str = "auto"):
    """The mx.Dtype to compute in: "auto" is bfloat16 on a GPU and float32 on a CPU (whose bf16 product is scalar)."""
    import mlx.core as mx

    if name == "auto":
        name = "float32" if device() == "cpu" else "bfloat16"
    return {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}[name]


def measure_matmul(n: int = 1024, repeats: int = 5) -> float:
    """GFLOP/s of an n×n×n float32 matrix product on the default device, the median of `repeats`."""
    import time

    import mlx.core as mx

    a, b = mx.random.normal((n, n)), mx.random.normal((n, n))
    mx.eval(a @ b)
    times = []
    for _ in range(repeats):
        start_time = time.perf_counter()
        mx.eval(a @ b)
        times.append(time.perf_counter() - start_time)
    return 2 * n**3 / sorted(times)[repeats // 2] / 1e9


def examine() -> dict[str, str | float | int | bool]:
    """What `mlxgpt doctor` reports; GFLOP/s are measured now."""
    import platform
    from importlib.metadata import version

    blas = prepare()
    start(warn=False)
    import mlx.core as mx

    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    info = mx.device_info() if device() != "cpu" else {}
    return {
        "mlxgpt": version("mlxgpt"), "python": platform.python_version(), "mlx": version("mlx"),
        "mlx-lm": version("mlx-lm"), "machine": machine, "memory_bytes": total_memory(),
        "device": f"{device()} {info.get('device_name', '')}".strip(),
        "blas": blas.name, "blas_path": blas.path, "blas_reason": blas.reason, "blas_is_fast": blas.fast,
        "matmul_gflops": round(measure_matmul(), 1), "compute_dtype": str(compute_dtype()).removeprefix("mlx.core."),
        "cpu_kernels": native_jit() if sys.platform == "linux" else "as MLX builds them",
        "cache": str(cache_dir()), "cache_limit_bytes": _cache_limit() if device() == "cpu" else 0,
        "peak_memory_bytes": mx.get_peak_memory(),
    }  # fmt: skip
