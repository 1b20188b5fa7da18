"""The compiler: clang 22 out of the `ziglang` wheel, the same on every machine, and a cache of what it made."""

import ctypes
import ctypes.util
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from mlxgpt import backend, files

NATIVE = Path(__file__).with_name("native")
STDLIB = NATIVE / "metal_stdlib.h"
LINES = 20  # bits of a line in a place; above it, the number of the file


class CompileError(Exception):
    """The compiler refused a source; the message is its own."""


@cache
def zig() -> str:
    """Path of the zig program. Raises ImportError where `ziglang` is not installed."""
    spec = importlib.util.find_spec("ziglang")
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise ImportError('the kernels\' CPU model needs the `ziglang` package: pip install "mlxgpt[test]"')
    return str(Path(folders[0]) / "zig")


def clang(*arguments: str, source: str = "") -> str:
    """Run clang with `source` on stdin; what it printed to stdout. Raises CompileError."""
    return _run([zig(), "clang", *arguments], source)


def _run(command: list[str], source: str = "") -> str:
    folder = str(cache_folder() / "zig")
    environment = os.environ | {"ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder}
    done = subprocess.run(command, input=source, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise CompileError(done.stderr.strip() or f"{command[1]} failed with status {done.returncode}")
    return done.stdout


def cache_folder() -> Path:
    """Where compiled variants are kept."""
    folder = backend.cache_dir() / "msl"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@cache
def identity() -> str:
    """What a compiled variant depends on besides its source: compiler, flags, library, runtime, MLX, the machine."""
    here = Path(__file__).parent
    own = [*NATIVE.iterdir(), *(here / f"{name}.py" for name in ("build", "check", "syntax", "toolchain"))]
    versions = [importlib.metadata.version(name) for name in ("ziglang", "mlx")]
    parts = [*versions, sys.platform, platform.machine(), *(p.read_text() for p in sorted(own))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def cached(kind: str, source: str, make: Callable[[Path], None]) -> Path:
    """The file that `make` writes for `source`, made once for this compiler, model and machine."""
    name = hashlib.sha256(f"{identity()}\0{kind}\0{source}".encode()).hexdigest()[:32]
    path = cache_folder() / f"{name}.{kind}"
    if path.exists():
        os.utime(path)
    else:
        files.write(path, make)
    return path


def forget(days: float = 30) -> None:
    """Remove from the cache what has not been used for so long."""
    for path in cache_folder().glob("*.*"):
        if path.stat().st_mtime < time.time() - days * 86400:
            path.unlink(missing_ok=True)


def link(objects: list[Path], library: Path) -> None:
    """A shared library whose undefined names are found in the process that loads it."""
    names = [str(o) for o in objects]
    if sys.platform == "darwin":
        _run([zig(), "cc", "-shared", "-Wl,-undefined,dynamic_lookup", *names, "-o", str(library)])
    else:
        _run([zig(), "ld.lld", "-shared", *names, "-o", str(library)])


@cache
def runtime() -> ctypes.CDLL:
    """The GPU model's runtime, its names visible to the kernels loaded after it."""

    def build(path: Path) -> None:
        forget()
        with tempfile.TemporaryDirectory() as folder:
            compiled = Path(folder) / "runtime.o"
            clang(
                "-x", "c++", "-std=c++20", "-nostdinc", "-O2", "-fPIC", "-fno-exceptions", "-fno-rtti",
                "-fno-stack-protector", "-c", str(NATIVE / "runtime.cpp"), "-o", str(compiled),
            )  # fmt: skip
            link([compiled], path)

    ctypes.CDLL(ctypes.util.find_library("m"), ctypes.RTLD_GLOBAL)  # what expf and its like are found in
    return ctypes.CDLL(str(cached("runtime", "", build)), ctypes.RTLD_GLOBAL)
