"""What runs where: the BLAS under MLX on Linux, the device, compute types, memory.

MLX's Linux CPU wheel is linked against the reference BLAS (about 7 GFLOP/s on two cores where OpenBLAS reaches 200).
`prepare` puts a fast one in its place before mlx is loaded; on macOS there is nothing to do (Accelerate).
"""

import ctypes
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mlxgpt import files
from mlxgpt.errors import Error, UsageError

PREAMBLE = "mlx/backend/cpu/compiled_preamble.h"  # what each of MLX's kernels for the CPU includes
# Not -ffast-math: it flushes denormals in the whole process and gains nothing.
NATIVE = ("-march=native", "-fno-math-errno", "-fno-trapping-math")
SHIM_SOURCE = Path(__file__).with_name("blas.c")
# MLX ends a kernel's command with its library. Another process may load that as soon as it is there, so it is put
# there whole; of two -o the last counts.
WRAPPER = """#!/bin/sh
set -- -I"${0%/*}/../pch" -w FLAGS "$@"
for last; do :; done
case "$last" in
*.so) COMPILER "$@" -o "$last.$$" && mv -f "$last.$$" "$last" ;;
*) exec COMPILER "$@" ;;
esac
"""


@dataclass(frozen=True)
class Blas:
    """The BLAS that MLX's CPU matrix products use: its name, its file, and why it was chosen.

    `refused` says what is wrong with the environment's wishes; `start` raises it, so that importing never fails.
    """

    name: str
    path: str
    reason: str
    fast: bool = True
    refused: str = ""


@cache
def prepare() -> Blas:
    """Put a fast BLAS under MLX, and say which one. Idempotent; must run before mlx is imported.

    Order: `MLXGPT_BLAS` (a library's path, or "stock"), numpy's own OpenBLAS through a small compiled shim,
    the system's OpenBLAS, and the one MLX was linked against.
    """
    if sys.platform != "linux":
        return Blas("Accelerate", "", "macOS's own, as MLX was built")
    native_jit()
    wanted = os.environ.get("MLXGPT_BLAS", "")
    if wanted == "stock":
        return _reference("MLXGPT_BLAS=stock")
    if "mlx.core" in sys.modules:  # its symbols are bound
        return _reference("mlx was imported before mlxgpt")
    if wanted:
        try:
            ctypes.CDLL(wanted, ctypes.RTLD_GLOBAL).cblas_sgemm  # noqa: B018 (the look-up is the check)
        except (OSError, AttributeError) as error:
            return _reference("", refused=f"MLXGPT_BLAS={wanted}: no BLAS with cblas_sgemm there ({error})")
        return Blas(Path(wanted).name, wanted, "MLXGPT_BLAS")
    # OpenBLAS takes newer CPUs for a Haswell; with AVX-512 its SkylakeX kernels are up to 1.8 times faster.
    if {"avx512f", "avx512dq", "avx512bw", "avx512vl"} <= cpu_flags():
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")
    why_not = []
    for attempt in (_numpy_openblas, _system_openblas):
        try:
            return attempt()
        except (OSError, Error) as error:
            why_not.append(" ".join(str(error).split()))
    return _reference("; ".join(why_not))


def _reference(reason: str, refused: str = "") -> Blas:
    return Blas("reference BLAS", "", reason or refused, fast=False, refused=refused)


def _numpy_openblas() -> Blas:
    """numpy's bundled OpenBLAS behind `blas.c`, compiled once into the cache. Raises OSError, Error."""
    spec = importlib.util.find_spec("numpy")
    wheel = Path(spec.origin).parent.parent / "numpy.libs" if spec and spec.origin else Path("numpy.libs")
    library = next(iter(sorted(wheel.glob("libscipy_openblas64_*.so"))), None)
    if library is None:
        raise Error("numpy was installed without its own OpenBLAS (no numpy.libs folder)")
    texts = SHIM_SOURCE.read_text() + (_kernels() / "cpu" / "pool.h").read_text()
    identity = f"{os.uname().machine}:{sorted(cpu_flags())}:{library}:{library.stat().st_mtime_ns}:{texts}"
    shim = cache_dir() / f"blas-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    if not is_whole(shim):
        _compile_shim(library, shim)
    ctypes.CDLL(str(shim), ctypes.RTLD_GLOBAL)
    return Blas("OpenBLAS (numpy's)", str(library), "came with numpy")


def is_whole(library: Path) -> bool:
    """Whether the library ends with the hash of what is before it; loading one that was cut short kills a process."""
    try:
        content, private = library.read_bytes(), _is_private(library.stat())
    except OSError:
        return False
    return private and hashlib.sha256(content[:-32]).digest() == content[-32:]


def build_library(library: Path, command: list[str]) -> None:
    """Have a compiler's `command` make a library in the cache: whole, or not at all. Raises OSError, Error."""
    with tempfile.TemporaryDirectory(prefix="mlxgpt-") as folder:
        built = Path(folder) / "library.so"
        _run([*command, "-o", str(built)])
        content = built.read_bytes()

    def save(path: Path) -> None:
        path.chmod(0o600)
        path.write_bytes(content + hashlib.sha256(content).digest())

    files.write(library, save)


def _compile_shim(library: Path, shim: Path) -> None:
    compiler = find_compiler()
    if compiler is None:
        raise Error("no C compiler to link numpy's OpenBLAS with (install gcc or clang)")
    build_library(shim, [compiler, "-x", "c", "-O3", *NATIVE, "-shared", "-fPIC", "-pthread", f"-I{_kernels()}",
                         str(SHIM_SOURCE), "-x", "none", str(library),
                         "-Xlinker", "-rpath", "-Xlinker", str(library.parent)])  # fmt: skip


def _kernels() -> Path:
    return Path(sys.modules["mlxgpt.kernels"].__file__ or "").parent  # `import mlxgpt` has loaded it


def _run(command: list[str]) -> None:
    """Run a compiler. Raises Error with its last line when it fails, OSError when it cannot be started."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300)
    except subprocess.TimeoutExpired:
        raise Error(f"{command[0]} did not finish in five minutes") from None
    if result.returncode != 0:
        raise Error(f"{command[0]} failed: {(result.stderr.strip() or 'no message').splitlines()[-1]}")


def _system_openblas() -> Blas:
    library = ctypes.CDLL("libopenblas.so.0", ctypes.RTLD_GLOBAL)
    if not hasattr(library, "cblas_sgemm"):
        raise Error("libopenblas.so.0 has no cblas_sgemm")
    return Blas("OpenBLAS (the system's)", "libopenblas.so.0", "found by the dynamic linker")


@cache
def native_jit() -> str:
    """Have MLX's CPU kernels, which it compiles with `g++` as they are met, built for this very CPU; returns how.

    A `g++` earlier on PATH adds the flags and a precompiled header (0.5 s -> 0.1 s a kernel). MLX caches kernels
    under TMPDIR by name alone, so this CPU, compiler and MLX get a TMPDIR of their own.
    """
    path = path_without_wrapper()
    compiler = shutil.which("g++", path=path)
    spec = importlib.util.find_spec("mlx")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    header = next((p for r in roots if (p := Path(r) / "include" / PREAMBLE).is_file()), None)
    if compiler is None:
        return "no g++ on PATH: mx.compile does nothing on the CPU"
    if header is None:
        return "plain g++: MLX's headers were not found"
    try:
        folder = _jit_folder(os.path.abspath(compiler), header)
        tempfile.gettempdir()  # Python keeps the place it finds now
    except (OSError, Error) as error:
        return f"plain g++: {' '.join(str(error).split())}"
    path = f"{folder / 'bin'}{os.pathsep}{path}"
    if shutil.which("g++", path=path) != str(folder / "bin" / "g++") or set(str(folder)) & set('"$`\\'):
        return f"plain g++: programs in {folder} cannot be run"  # mounted noexec, or named what PATH or sh reads
    os.environ["TMPDIR"], os.environ["PATH"] = str(folder / "tmp"), path
    return "g++ " + " ".join(NATIVE)


def path_without_wrapper() -> str:
    """PATH without what a process that started this one put there."""
    path = os.environ.get("PATH", os.defpath)
    return os.pathsep.join(p for p in path.split(os.pathsep) if not re.search(r"/jit-[0-9a-f]{16}/bin$", p))


def _jit_folder(compiler: str, header: Path) -> Path:
    """The folder with the wrapper, the precompiled header and MLX's TMPDIR; made, or made again, where it is not
    whole. Raises OSError, Error."""
    wrapper = WRAPPER.replace("COMPILER", shlex.quote(compiler)).replace("FLAGS", " ".join(NATIVE))
    status = Path(compiler).resolve().stat()
    stamps = f"{status.st_size}:{status.st_mtime_ns}:{header.stat().st_mtime_ns}"
    identity = f"{os.uname().machine}:{sorted(cpu_flags())}:{wrapper}:{header}:{stamps}"
    folder = cache_dir() / f"jit-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    if _jit_is_whole(folder, wrapper):
        return folder
    files.discard(folder)
    try:
        with files.folder(folder) as partial:
            partial.chmod(0o700)
            for place in ("bin", "pch", "tmp"):
                (partial / place).mkdir(mode=0o700)
            precompiled = partial / "pch" / f"{PREAMBLE}.gch"
            precompiled.parent.mkdir(parents=True)
            include = str(header).removesuffix(PREAMBLE)
            flags = ["-std=c++17", "-O3", "-fPIC", "-w", *NATIVE, "-x", "c++-header", f"-I{include}"]
            _run([compiler, *flags, str(header), "-o", str(precompiled)])
            (partial / "bin" / "g++").write_text(wrapper)
            (partial / "bin" / "g++").chmod(0o700)
    except Error:
        if not _jit_is_whole(folder, wrapper):  # else another process was quicker
            raise
    return folder


def _jit_is_whole(folder: Path, wrapper: str) -> bool:
    program, header = folder / "bin" / "g++", folder / "pch" / f"{PREAMBLE}.gch"
    try:
        return (
            all(
                (folder / place).is_dir() and _is_private((folder / place).stat())
                for place in ("", "bin", "pch", "tmp")
            )
            and header.stat().st_size > 0
            and bool(program.stat().st_mode & stat.S_IXUSR)
            and program.read_text() == wrapper
        )
    except (OSError, UnicodeDecodeError):
        return False


def find_compiler() -> str | None:
    """The C compiler to use: $CC, then the usual names on PATH."""
    names = [os.environ.get("CC", ""), "cc", "gcc", "clang", "c++", "g++"]
    return next((p for name in names if name and (p := shutil.which(name, path=path_without_wrapper()))), None)


def cpu_flags() -> frozenset[str]:
    """The CPU's feature flags as Linux names them; empty where /proc/cpuinfo does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), ":")
    return frozenset(line.split(":", 1)[1].split())


def cache_dir() -> Path:
    """The user's cache folder for mlxgpt, made if need be: `MLXGPT_CACHE`, else the platform's place.

    Compiled code is loaded from here, so a folder that another user owns or may write to is not used. Where the
    platform's place cannot be, a folder under the temporary one takes its place, and `start` says so. Raises
    UsageError when `MLXGPT_CACHE` cannot be used, Error when there is no place at all.
    """
    return _cache()[0]


@cache
def _cache() -> tuple[Path, str]:
    """The cache folder, and what was wrong with the place it should have been in, if anything."""
    if named := os.environ.get("MLXGPT_CACHE"):
        if why := _unfit(Path(named)):
            raise UsageError(f"MLXGPT_CACHE={named} cannot be used: {why}")
        return Path(named).absolute(), ""
    home = Path(os.path.expanduser("~"))  # stays "~" for a user without a home
    wanted = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if sys.platform == "darwin":
        usual = home / "Library/Caches/mlxgpt"
    else:
        usual = (wanted if wanted.is_absolute() else home / ".cache") / "mlxgpt"
    why = _unfit(usual)
    if not why:
        return usual, ""
    try:
        spare = Path(tempfile.gettempdir()) / f"mlxgpt-{os.getuid()}"
        if spare.is_symlink() or _unfit(spare):
            spare = Path(tempfile.mkdtemp(prefix="mlxgpt-"))
    except OSError as error:
        raise Error(f"no folder for the cache: {usual}: {why}; {error}; set MLXGPT_CACHE") from None
    return spare, f"the cache is in {spare}, because {usual} cannot be used: {why}"


def _unfit(folder: Path) -> str:
    """Why compiled code cannot be kept in `folder`, which is made if need be; empty where it can."""
    if folder.parts[:1] == ("~",):
        return "this user has no home folder"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        return error.strerror or str(error)
    if not _is_private(status):
        return "another user owns it or may write to it"
    return "" if os.access(folder, os.W_OK | os.X_OK) else "it cannot be written to"


def _is_private(status: os.stat_result) -> bool:
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def total_memory() -> int:
    """Bytes of the memory that models are in: with CUDA the GPU's, else the machine's, which Apple's GPUs share."""
    if device() == "cuda":
        import mlx.core as mx

        return int(mx.device_info()["total_memory"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cache_limit() -> int:
    """Bytes of freed buffers that MLX may keep."""
    return min(4 << 30, total_memory() // 6)


def start(warn: bool = True) -> None:
    """Load MLX for a command that computes: memory limits set, and one warning if its BLAS is the slow one.

    Raises UsageError when `MLXGPT_BLAS` or `MLXGPT_CACHE` names what cannot be used, or `MLXGPT_KERNELS` no choice.
    """
    blas = prepare()
    if blas.refused:
        raise UsageError(blas.refused)
    if (kernels := os.environ.get("MLXGPT_KERNELS") or "auto") not in ("auto", "reference"):
        raise UsageError(f"MLXGPT_KERNELS={kernels} is neither auto nor reference")
    if moved := _cache()[1]:
        say(moved)
    import mlx.core as mx

    if device() == "cpu":
        # The CPU allocator keeps 32 MB by default; clearing fresh pages was 14 % of a training step.
        mx.set_cache_limit(cache_limit())
        if warn and not blas.fast:
            say(f"slow: MLX runs on the reference BLAS here, about 30 times slower than OpenBLAS ({blas.reason}); "
                 "see `mlxgpt doctor`")  # fmt: skip


@cache
def say(message: str) -> None:
    """A warning, once a process."""
    print(f"mlxgpt: {message}", file=sys.stderr)


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


def examine() -> dict[str, str | float | int | bool]:
    """What `mlxgpt doctor` reports; GFLOP/s are measured now."""
    import platform
    from importlib.metadata import version

    blas = prepare()
    start(warn=False)
    import mlx.core as mx

    from mlxgpt import measure

    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    info = mx.device_info() if device() != "cpu" else {}
    return {
        "mlxgpt": version("mlxgpt"), "python": platform.python_version(), "mlx": version("mlx"),
        "mlx-lm": version("mlx-lm"), "machine": machine, "memory_bytes": total_memory(),
        "device": f"{device()} {info.get('device_name', '')}".strip(),
        "blas": blas.name, "blas_path": blas.path, "blas_reason": blas.reason, "blas_is_fast": blas.fast,
        "matmul_gflops": round(measure.matmul() / 1e9, 1),
        "compute_dtype": str(compute_dtype()).removeprefix("mlx.core."),
        "cpu_kernels": native_jit() if sys.platform == "linux" else "as MLX builds them",
        "cache": str(cache_dir()), "cache_limit_bytes": cache_limit() if device() == "cpu" else 0,
        "peak_memory_bytes": mx.get_peak_memory(),
    }  # fmt: skip
