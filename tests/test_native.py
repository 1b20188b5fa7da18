"""Compiling operations for the CPU: what is built, what is reused, and that whatever goes wrong costs speed alone."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import mlx.core as mx
import pytest
from mlxgpt.kernels import compiled
from mlxgpt.kernels.quantized_matmul import quantized_matmul, reference

from mlxgpt import backend, native

pytestmark = pytest.mark.skipif(
    compiled.load("quantized_matmul") is None, reason="nothing is compiled on this machine: a GPU, macOS, no compiler"
)
SOURCE = Path(compiled.__file__).parent / "quantized_matmul" / "cpu.cpp"
# A module `cpu` whose `check` says what nanobind does of another one's objects.
FOREIGN = """
#include <Python.h>
static PyObject *check(PyObject *, PyObject *) { PyErr_SetString(PyExc_TypeError, "check(): incompatible"); return 0; }
static PyMethodDef methods[] = {{"check", check, METH_O, 0}, {0, 0, 0, 0}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "cpu", 0, -1, methods};
PyMODINIT_FUNC PyInit_cpu() { return PyModule_Create(&module); }
"""


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MLXGPT_CACHE", str(folder))
    backend._cache.cache_clear()
    yield folder
    monkeypatch.undo()
    backend._cache.cache_clear()


@pytest.fixture
def compiler(tmp_path, monkeypatch, cache):
    """Put a g++ in place that makes nanobind, and for an operation runs a line of shell; in it $last is what to make
    and $real a library that works."""
    real = Path(str(compiled.load("quantized_matmul").__file__))  # type: ignore[union-attr]
    nanobind = next(real.parent.glob("nanobind-*.so"))

    def put(line: str) -> Path:
        program = tmp_path / "bin" / "g++"
        program.parent.mkdir(exist_ok=True)
        head = f"""#!/bin/sh
for last; do :; done
case "$*" in *nb_combined.cpp*) cp {shlex.quote(str(nanobind))} "$last"; exit ;; esac
real={shlex.quote(str(real))}
echo run >> "$0.runs"
"""
        program.write_text(head + line + "\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
        return program

    return put


def load():
    return native._load.__wrapped__(SOURCE)


def why_not(capsys) -> str:
    """The one line that says why there is no module; the operation works all the same."""
    backend.say.cache_clear()
    capsys.readouterr()
    assert load() is None
    lines = [line for line in capsys.readouterr().err.splitlines() if "compiling" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("mlxgpt: slow: quantized_matmul runs as MLX has it")
    return lines[0]


def works(module) -> bool:
    x, packed = mx.ones((2, 64)), mx.quantize(mx.random.normal((8, 64)), 64, 4)
    return bool(mx.allclose(module.quantized_matmul(x, *packed, 64, 4), reference(x, *packed, 64, 4), atol=1e-3))


def test_it_is_compiled_once_and_then_found(compiler, cache, capsys):
    program = compiler('cp "$real" "$last"')
    assert works(load())
    said = [f"mlxgpt: compiling {name} for this CPU, once\n" for name in ("nanobind", "quantized_matmul")]
    assert capsys.readouterr().err == "".join(said)
    assert works(load())
    assert capsys.readouterr().err == ""
    assert Path(f"{program}.runs").read_text() == "run\n"
    [library] = cache.glob("quantized_matmul-*.so")
    assert library.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("harm", ["truncated", "empty", "another's", "changed"])
def test_a_library_that_is_not_as_it_was_built_is_built_again(harm, compiler, cache):
    program = compiler('cp "$real" "$last"')
    load()
    [library] = cache.glob("quantized_matmul-*.so")
    content = library.read_bytes()
    library.unlink()
    library.write_bytes({"truncated": content[:70000], "empty": b"", "changed": content[:-1] + b"?"}.get(harm, content))
    library.chmod(0o666 if harm == "another's" else 0o600)
    assert works(load())
    assert library.read_bytes() == content
    assert Path(f"{program}.runs").read_text() == "run\n" * 2


def test_no_compiler(cache, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(cache))
    assert "no g++ on PATH" in why_not(capsys)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("echo no such instruction >&2; exit 1", "failed: no such instruction"),
        ('head -c 99999 /dev/zero > "$last"', "invalid ELF header"),
        ("exit 0", "No such file"),
        ("kill -9 $$", "failed: no message"),
    ],
)
def test_a_broken_compiler(line, reason, compiler, capsys):
    compiler(line)
    assert reason in why_not(capsys)


def test_headers_that_are_not_there(cache, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
        assert f"Python's headers are not in {tmp_path} (install python3-dev" in why_not(capsys)
    monkeypatch.setattr(native.importlib.util, "find_spec", lambda name: None)
    assert "mlx is not installed with its mlx.h" in why_not(capsys)


def test_a_cache_that_cannot_be_written(tmp_path, cache, compiler, monkeypatch, capsys):
    compiler('cp "$real" "$last"')
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLXGPT_CACHE", str(tmp_path / "file" / "cache"))
    backend._cache.cache_clear()
    assert "cannot be used: Not a directory" in why_not(capsys)
    monkeypatch.setenv("MLXGPT_CACHE", str(cache))
    backend._cache.cache_clear()
    backend.cache_dir()
    monkeypatch.setattr(backend.files, "write", lambda path, save: save(tmp_path / "file" / path.name))
    assert "Not a directory" in why_not(capsys)


def test_another_nanobind_than_mlx_has(tmp_path, compiler, capsys):
    source, foreign = tmp_path / "foreign.cpp", tmp_path / "foreign.so"
    source.write_text(FOREIGN)
    include = sysconfig.get_path("include")
    real = shutil.which("g++", path=backend.path_without_wrapper())
    subprocess.run([str(real), "-shared", "-fPIC", f"-I{include}", str(source), "-o", str(foreign)], check=True)
    compiler(f'cp {shlex.quote(str(foreign))} "$last"')
    assert "nanobind that is installed is not the one that mlx was built with" in why_not(capsys)


def test_a_cpu_that_is_none(cache, monkeypatch, capsys):
    monkeypatch.setenv("MLXGPT_CPU", "quantum")
    assert "MLXGPT_CPU=quantum: it is one of native, avx512, avx2, baseline" in why_not(capsys)
    monkeypatch.setattr(backend, "cpu_flags", lambda: frozenset({"sse2", "fp"}))
    monkeypatch.setenv("MLXGPT_CPU", "avx2")
    assert "MLXGPT_CPU=avx2: this CPU has less" in why_not(capsys)


def test_two_processes_at_once(compiler, cache):
    """Both compile, into files of their own, and both load what is then in the cache."""
    program = compiler("""case "$*" in *.cpp*) ;; *) exit 1 ;; esac
echo run >> "$0.both"
while [ "$(wc -l < "$0.both")" -lt 2 ]; do sleep 0.02; done
cp "$real" "$last"
""")
    code = """
import mlx.core as mx
from mlxgpt.kernels import compiled
cpu = compiled.load("quantized_matmul")
print(cpu.quantized_matmul(mx.ones((2, 64)), *mx.quantize(mx.ones((8, 64)), 64, 4), 64, 4).sum().item())
"""
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=100)[0] for process in both] == ["1024.0\n"] * 2
    assert Path(f"{program}.both").read_text() == "run\n" * 2
    assert len(list(cache.glob("quantized_matmul-*"))) == 1


def test_what_changes_the_library_changes_its_name(tmp_path):
    operation = tmp_path / "quantized_matmul"
    shutil.copytree(SOURCE.parent, operation)
    shutil.copytree(SOURCE.parents[1] / "cpu", tmp_path / "cpu")
    source, stamped = operation / "cpu.cpp", tmp_path / "stamped"
    stamped.touch()
    names = [native._identity(source, ["g++"], [stamped])]
    for change in (source, tmp_path / "cpu" / "pool.h", stamped):
        change.write_text(change.read_text() + "\n")
        names.append(native._identity(source, ["g++"], [stamped]))
    names.append(native._identity(source, ["g++", "-O1"], [stamped]))
    assert len(set(names)) == 5


def test_reference_builds_nothing_and_macos_neither(monkeypatch):
    monkeypatch.setenv("MLXGPT_KERNELS", "reference")
    monkeypatch.setattr(compiled, "_module", lambda op: pytest.fail("asked for"))
    x, packed = mx.ones((2, 64)), mx.quantize(mx.random.normal((8, 64)), 64, 4)
    assert mx.array_equal(quantized_matmul(x, *packed, 64, 4), reference(x, *packed, 64, 4))
    monkeypatch.setattr(native, "_load", lambda source: pytest.fail("asked for"))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert native.load(SOURCE) is None


def test_doctor_says_what_is_compiled_and_for_what(compiler, cache, monkeypatch):
    compiler('cp "$real" "$last"')
    count = len(list(SOURCE.parents[1].glob("*/cpu.cpp")))
    assert native.examine()["native"].endswith(f"; 0 of {count} operations compiled")
    load()
    found = native.examine()
    assert found["native"].startswith("C++ for ")
    assert found["native"].endswith(f"; 1 of {count} operations compiled")
    assert int(found["threads"]) > 0
    monkeypatch.setenv("PATH", str(cache))
    assert native.examine() == {"native": "none: no g++ on PATH to compile it with"}
