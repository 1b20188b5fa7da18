"""The BLAS and the kernels under MLX on Linux: fast, right, and what happens where they cannot be."""

import ctypes
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxgpt import backend
from mlxgpt.errors import Error, UsageError

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="macOS has Accelerate, and Metal compiles its own kernels")
FAKE_BLAS = """
void cblas_sgemm(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b,
                 int ldb, float beta, float *c, int ldc) {
  for (int i = 0; i < m; i++) for (int j = 0; j < n; j++) c[i * ldc + j] = 42;
}
"""
# Compiles anything at once: what follows -o, half of it first.
FAKE_COMPILER = """#!/bin/sh
for last; do :; done
case "$*" in *--version*) echo fake; exit 0 ;; esac
printf half > "$last"
if [ -e "$0.pause" ]; then while [ -e "$0.pause" ]; do sleep 0.01; done; fi
if [ -e "$0.fail" ]; then echo "first line" >&2; echo "the fake failed" >&2; exit 3; fi
printf whole >> "$last"
"""


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def environment(cache: Path | None, **changes: str) -> dict[str, str]:
    """This process's environment as it was before mlxgpt was imported, with a cache of its own."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("MLXGPT_", "OPENBLAS_CORETYPE", "TMPDIR"))}
    mine["PATH"] = backend.path_without_wrapper()
    return mine | ({} if cache is None else {"MLXGPT_CACHE": str(cache)}) | changes


def python(code: str, env: dict[str, str], umask: int = 0o022) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=env, umask=umask, capture_output=True, text=True, timeout=120, check=False)


def answer(code: str, env: dict[str, str], umask: int = 0o022) -> str:
    """What a Python of its own prints; it must neither fail nor say a word on stderr."""
    done = python(code, env, umask)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A cache in which the real compiler has built everything."""
    cache = tmp_path_factory.mktemp("built") / "cache"
    out = answer("from mlxgpt import backend as b; print(b.native_jit(), b.prepare().fast)", environment(cache))
    assert out == f"g++ {' '.join(backend.NATIVE)} True"
    return cache


# ----------------------------------------------------------------------------------------- the shim's sgemm

ROW, COLUMN, AS_IS, TRANSPOSED = 101, 102, 111, 112
SGEMM = Callable[..., None]


@pytest.fixture(scope="module")
def sgemm(tmp_path_factory) -> SGEMM:
    """cblas_sgemm of a freshly compiled shim, on flat float32 arrays."""
    numpy = importlib.util.find_spec("numpy")
    assert numpy
    assert numpy.origin
    [library] = (Path(numpy.origin).parent.parent / "numpy.libs").glob("libscipy_openblas64_*.so")
    shim = tmp_path_factory.mktemp("shim") / "blas.so"
    backend._compile_shim(library, shim)
    function = ctypes.CDLL(str(shim)).cblas_sgemm
    whole, real, array = ctypes.c_int, ctypes.c_float, ctypes.POINTER(ctypes.c_float)
    function.argtypes = [whole] * 6 + [real, array, whole, array, whole, real, array, whole]
    function.restype = None

    def call(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc) -> None:
        a, b, c = (x.ctypes.data_as(array) for x in (a, b, c))
        function(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)

    return call


size = st.sampled_from([1, 1, 2, 3, 7, 16, 33, 100])
padding = st.sampled_from([0, 0, 1, 5])


@LINUX
@settings(deadline=None, max_examples=400)
@given(
    shape=st.tuples(size, size, st.sampled_from([0, 1, 2, 8, 33, 257])),
    transposed=st.tuples(st.booleans(), st.booleans()),
    padded=st.tuples(padding, padding, padding),
    factors=st.sampled_from([(1.0, 0.0), (1.0, 1.0), (-0.5, 2.0), (0.0, 1.0), (3.0, 0.0)]),
    column_major=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_sgemm_is_the_product(sgemm, shape, transposed, padded, factors, column_major, seed):
    (m, n, k), (ta, tb), (alpha, beta) = shape, transposed, factors
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, extra: int) -> tuple[np.ndarray, np.ndarray, int]:
        """A matrix inside a larger block: the block, the part of it that counts, the leading dimension."""
        if column_major:
            rows, columns = columns, rows
        block = rng.standard_normal((rows, max(1, columns) + extra)).astype(np.float32)
        part = block[:, :columns]
        return block, part.T if column_major else part, block.shape[1]

    a, op_a, lda = matrix(*((k, m) if ta else (m, k)), padded[0])
    b, op_b, ldb = matrix(*((n, k) if tb else (k, n)), padded[1])
    c, out, ldc = matrix(m, n, padded[2])
    if beta == 0:
        c[:] = np.nan  # MLX hands over memory that was never written: 0 times it is 0
    op_a, op_b = op_a.T if ta else op_a, op_b.T if tb else op_b
    expected = alpha * (op_a.astype(np.float64) @ op_b.astype(np.float64))
    expected = expected + (beta * out.astype(np.float64) if beta else 0)
    around = c.copy()
    trans = [TRANSPOSED if t else AS_IS for t in (ta, tb)]
    sgemm(COLUMN if column_major else ROW, *trans, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5 * (k + 1))
    np.testing.assert_array_equal(c[:, c.shape[1] - padded[2] :], around[:, c.shape[1] - padded[2] :])


PRODUCTS = """
import mlxgpt
import mlx.core as mx, numpy as np
from mlxgpt import backend
rng = np.random.default_rng(0)

def same(got, *expected):
    np.testing.assert_allclose(np.array(got), sum(expected), rtol=1e-5, atol=2e-4)

def pair(*shape):
    x = rng.standard_normal(shape).astype(np.float32)
    return mx.array(x), x.astype(np.float64)

for m, k, n in [(1, 1, 1), (1, 64, 1), (1, 300, 70), (70, 300, 1), (5, 1, 9), (1, 1, 33), (33, 1, 1), (64, 65, 66),
                (130, 90, 121), (17, 333, 500), (700, 40, 50), (1, 1200, 700), (700, 1200, 1)]:
    for ta in (False, True):
        for tb in (False, True):
            a, A = pair(*((k, m) if ta else (m, k)))
            b, B = pair(*((n, k) if tb else (k, n)))
            a, A, b, B = a.T if ta else a, A.T if ta else A, b.T if tb else b, B.T if tb else B
            c, C = pair(m, n)
            same(a @ b, A @ B)
            same(mx.addmm(c, a, b), A @ B, C)
            same(mx.addmm(c, a, b, alpha=0.5, beta=-2.0), 0.5 * (A @ B), -2.0 * C)
            same(mx.addmm(c[0], a, b, beta=3.0), A @ B, 3.0 * C[0] * np.ones((m, 1)))
    batch, BATCH = pair(3, 2, m, k)
    other, OTHER = pair(3, 2, k, n)
    same(batch @ other, BATCH @ OTHER)
    same(batch @ other[:1, :1], BATCH @ OTHER[:1, :1])
    same(batch[:, 1] @ other[0, 0], BATCH[:, 1] @ OTHER[0, 0])
    wide, WIDE = pair(2 * m, 3 * k)
    same(wide[::2, ::3] @ other[1, 1], WIDE[::2, ::3] @ OTHER[1, 1])
    same(wide[m:, k:2 * k] @ other[1, 1], WIDE[m:, k:2 * k] @ OTHER[1, 1])
    same(wide[:m, :k] @ mx.swapaxes(batch, -1, -2)[2, 1], WIDE[:m, :k] @ BATCH[2, 1].T)
heads, HEADS = pair(2, 9, 4, 16)
q, Q = heads.swapaxes(1, 2), HEADS.swapaxes(1, 2)
same(q @ q.swapaxes(-1, -2), Q @ Q.swapaxes(-1, -2))
vector, VECTOR = pair(16)
same(q @ vector, Q @ VECTOR)
assert (mx.zeros((3, 0)) @ mx.zeros((0, 4))).tolist() == [[0.0] * 4] * 3
print(backend.prepare().name)
"""


@LINUX
@pytest.mark.parametrize("threads", ["1", "3"])
def test_mlx_products_on_it_are_right(built, threads):
    """On one thread, and in parts on a pool of more than there are CPUs."""
    assert answer(PRODUCTS, environment(built, MLXGPT_THREADS=threads)) == "OpenBLAS (numpy's)"


CALLERS = """
import mlxgpt
import os, threading
import mlx.core as mx, numpy as np

def threads():
    return len(os.listdir("/proc/self/task"))

def products(found, seed):
    stream = mx.new_stream(mx.cpu)
    a, b = (np.random.default_rng(seed + i).standard_normal((300, 300)).astype(np.float32) for i in range(2))
    with mx.stream(stream):
        for _ in range(20):
            found.append(np.abs(np.array(mx.array(a) @ mx.array(b)) - a.astype(np.float64) @ b).max())

found = []
running = [threading.Thread(target=products, args=(found, seed)) for seed in range(3)]
before = threads()
mx.eval(mx.ones((300, 300)) @ mx.ones((300, 300)))
assert threads() >= before + 3, "the pool's"
for thread in running:
    thread.start()
for thread in running:
    thread.join()
assert len(found) == 60 and max(found) < 1e-3, max(found)
print("right")
"""


@LINUX
def test_several_callers_share_the_pool(built):
    assert answer(CALLERS, environment(built, MLXGPT_THREADS="4")) == "right"


FORKED = """
import mlxgpt
import ctypes, glob, os
import numpy as np
[shim] = glob.glob(os.environ["MLXGPT_CACHE"] + "/blas-*.so")
sgemm, array = ctypes.CDLL(shim).cblas_sgemm, ctypes.POINTER(ctypes.c_float)

def product():
    a, c = np.ones((300, 300), np.float32), np.zeros((300, 300), np.float32)
    p, q, one = a.ctypes.data_as(array), c.ctypes.data_as(array), ctypes.c_float(1)
    sgemm(101, 111, 111, 300, 300, 300, one, p, 300, p, 300, ctypes.c_float(0), q, 300)
    return bool((c == 300).all())

assert product()
child = os.fork()
if child == 0:
    os._exit(0 if product() else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print(product())
"""


@LINUX
def test_a_forked_child_has_no_helpers_and_needs_none(built):
    assert answer(FORKED, environment(built, MLXGPT_THREADS="3")) == "True"


# --------------------------------------------------------------------------------------- which BLAS, and why

ONES = """
from mlxgpt import backend
backend.start()
import mlx.core as mx
backend.start()
blas = backend.prepare()
print(blas.name, "|", blas.reason, "|", blas.fast, "|", int((mx.ones((8, 8)) @ mx.ones((8, 8))).sum()))
"""


def slow(reason: str) -> str:
    return f"mlxgpt: slow: MLX runs on the reference BLAS here, about 30 times slower than OpenBLAS ({reason}); "


@LINUX
def test_numpys_openblas_is_the_default(built):
    assert answer(ONES, environment(built)) == "OpenBLAS (numpy's) | came with numpy | True | 512"


@LINUX
def test_the_stock_blas_warns_once_and_works(built):
    done = python(ONES, environment(built, MLXGPT_BLAS="stock"))
    assert done.stdout.strip() == "reference BLAS | MLXGPT_BLAS=stock | False | 512"
    assert done.stderr.splitlines() == [slow("MLXGPT_BLAS=stock") + "see `mlxgpt doctor`"]


@LINUX
def test_a_library_that_was_named_is_what_mlx_uses(built, tmp_path):
    (tmp_path / "fake.c").write_text(FAKE_BLAS)
    compiler = backend.find_compiler()
    library = tmp_path / "fake.so"
    subprocess.run([compiler, "-shared", "-fPIC", tmp_path / "fake.c", "-o", library], check=True)
    env = environment(built, MLXGPT_BLAS=str(library))
    assert answer(ONES, env) == f"fake.so | MLXGPT_BLAS | True | {64 * 42}"


@LINUX
def test_mlx_imported_first_is_told_as_it_is(built):
    done = python("import mlx.core\n" + textwrap.dedent(ONES), environment(built))
    assert done.stdout.strip() == "reference BLAS | mlx was imported before mlxgpt | False | 512"
    assert done.stderr.startswith(slow("mlx was imported before mlxgpt"))


@LINUX
@pytest.mark.parametrize("named", ["/nonexistent/blas.so", "text", "libm.so.6"])
def test_a_library_that_is_no_blas_is_one_line(built, tmp_path, named):
    if named == "text":
        (tmp_path / "text").write_text("no library")
        named = str(tmp_path / "text")
    env = environment(built, MLXGPT_BLAS=named)
    done = subprocess.run([sys.executable, "-m", "mlxgpt.cli", "doctor"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"mlxgpt: error: MLXGPT_BLAS={named}: no BLAS with cblas_sgemm there (")
    assert done.stderr.count("\n") == 1
    assert answer("import mlxgpt; print(mlxgpt.__version__)", env), "importing and --help work all the same"


@LINUX
@pytest.mark.parametrize("compiler", ["none", "broken"])
def test_without_a_working_compiler_the_reason_is_told(tmp_path, compiler):
    env = environment(tmp_path / "cache", PATH=str(tmp_path / "bin"), CC="")
    reason = "no C compiler to link numpy's OpenBLAS with (install gcc or clang)"
    if compiler == "broken":
        program(tmp_path / "bin" / "cc", "#!/bin/sh\necho useless >&2\necho cannot do it >&2\nexit 1\n")
        reason = f"{tmp_path}/bin/cc failed: cannot do it"
    done = python(ONES, env)
    name, why, fast, total = done.stdout.strip().split(" | ")
    assert (done.returncode, int(total)) == (0, 512)
    if fast == "True":  # a system that has an OpenBLAS of its own
        assert (name, done.stderr) == ("OpenBLAS (the system's)", "")
    else:
        assert why.startswith(reason + "; libopenblas.so.0: ")
        assert done.stderr.startswith(slow(why))
    assert [p.name for p in (tmp_path / "cache").iterdir()] == []


@LINUX
def test_a_shim_that_was_cut_short_or_is_not_private_is_made_again(sgemm, built, tmp_path):
    cache = tmp_path / "cache"
    shutil.copytree(built, cache)
    cache.chmod(0o700)
    [shim] = cache.glob("blas-*.so")
    content = shim.read_bytes()
    assert backend.is_whole(shim)
    for length in range(0, len(content), 97):
        shim.write_bytes(content[:length])
        assert not backend.is_whole(shim)
    shim.write_bytes(content[:-40] + b"?" + content[-39:])
    assert not backend.is_whole(shim)
    shim.write_bytes(content)
    shim.chmod(0o666)
    assert not backend.is_whole(shim)
    shim.chmod(0o600)
    shim.write_bytes(content[:5000])  # enough of it to be loaded, and to kill the process with SIGBUS
    assert answer(ONES, environment(cache), umask=0).startswith("OpenBLAS (numpy's)")
    assert backend.is_whole(shim)
    assert not shim.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)


TWO = """
import sys
sys.stdin.read(1)
from mlxgpt import backend
backend.start()
import mlx.core as mx
f = mx.compile(lambda x: mx.exp(-x) * 2 + 1)
print(backend.prepare().fast, backend.native_jit(), round(f(mx.zeros(9)).sum().item()))
"""


@LINUX
def test_two_processes_at_once_with_an_empty_cache(tmp_path):
    cache = tmp_path / "cache"
    pipe = subprocess.PIPE
    running = [
        subprocess.Popen([sys.executable, "-c", TWO], env=environment(cache), stdin=pipe, stdout=pipe, stderr=pipe)
        for _ in range(2)
    ]
    for process in running:
        process.stdin.write(b"x")
        process.stdin.flush()
    told = [process.communicate(timeout=120) for process in running]
    assert told == [(f"True g++ {' '.join(backend.NATIVE)} 27\n".encode(), b"")] * 2
    assert [re.sub("[0-9a-f]{16}", "*", p.name) for p in sorted(cache.iterdir())] == ["blas-*.so", "jit-*"]


@LINUX
def test_importing_is_cheap(built):
    code = """
    import sys, mlxgpt
    heavy = {"numpy", "mlx", "mlx.core", "click", "sentencepiece", "tokenizers", "rich", "matplotlib", "transformers"}
    print(sorted(heavy & sys.modules.keys()))
    """
    assert answer(code, environment(built)) == "[]"


# ------------------------------------------------------------------------------------------- the cache folder


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """`backend` without its memory, with a home and a temporary folder of its own; the environment comes back."""
    for name in ("MLXGPT_CACHE", "XDG_CACHE_HOME", "TMPDIR"):
        monkeypatch.setenv(name, "x")  # so that they are put back whatever happens
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", backend.path_without_wrapper())
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(backend.tempfile, "tempdir", str(tmp_path / "tmp"))
    backend._cache.cache_clear()
    yield monkeypatch
    backend._cache.cache_clear()


def test_the_cache_is_where_the_platform_keeps_caches(fresh, tmp_path):
    home = tmp_path / "home"
    for platform, xdg, expected in (
        ("linux", "", home / ".cache/mlxgpt"),
        ("linux", str(tmp_path / "xdg"), tmp_path / "xdg/mlxgpt"),
        ("linux", "relative/paths/are/to/be/ignored", home / ".cache/mlxgpt"),
        ("darwin", str(tmp_path / "xdg"), home / "Library/Caches/mlxgpt"),
    ):
        fresh.setattr(backend.sys, "platform", platform)
        fresh.setenv("XDG_CACHE_HOME", xdg)
        backend._cache.cache_clear()
        assert backend._cache() == (expected, "")
        assert stat.S_IMODE(expected.stat().st_mode) == 0o700


def test_a_cache_that_was_named_is_used_or_refused(fresh, tmp_path):
    fresh.chdir(tmp_path)
    fresh.setenv("MLXGPT_CACHE", "here")
    assert backend.cache_dir() == tmp_path / "here"
    (tmp_path / "file").write_text("")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for name, why in (("file", "File exists"), ("file/x", "Not a directory"), ("open", "another user owns it or may")):
        backend._cache.cache_clear()
        fresh.setenv("MLXGPT_CACHE", name)
        with pytest.raises(UsageError, match=f"MLXGPT_CACHE={name} cannot be used: {why}"):
            backend.cache_dir()
    assert list((tmp_path / "open").iterdir()) == []


def test_a_folder_of_another_user_is_refused(fresh, tmp_path):
    fresh.setattr(backend.os, "getuid", lambda: os.stat("/").st_uid + 12345)
    assert backend._unfit(tmp_path) == "another user owns it or may write to it"


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_home_cache_that_others_may_write_to_is_not_used(fresh, tmp_path, mode):
    usual = tmp_path / "home/.cache/mlxgpt"
    usual.mkdir(parents=True)
    usual.chmod(mode)
    fresh.setattr(backend.sys, "platform", "linux")
    spare = tmp_path / "tmp" / f"mlxgpt-{os.getuid()}"
    folder, said = backend._cache()
    assert folder == spare
    assert said == f"the cache is in {spare}, because {usual} cannot be used: another user owns it or may write to it"
    assert stat.S_IMODE(spare.stat().st_mode) == 0o700
    backend._cache.cache_clear()
    assert backend.cache_dir() == spare, "the next process finds it again"


def test_what_another_user_put_in_the_spare_place_is_not_used(fresh, tmp_path):
    (tmp_path / "home/.cache").write_text("no folder")
    fresh.setattr(backend.sys, "platform", "linux")
    spare = tmp_path / "tmp" / f"mlxgpt-{os.getuid()}"
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    spare.symlink_to(tmp_path / "elsewhere")
    folder = backend.cache_dir()
    assert folder.parent == tmp_path / "tmp"
    assert folder != spare
    spare.unlink()
    spare.mkdir()
    spare.chmod(0o777)
    backend._cache.cache_clear()
    assert backend.cache_dir() not in (spare, folder)
    fresh.setattr(backend.tempfile, "tempdir", str(tmp_path / "home/.cache/x"))
    backend._cache.cache_clear()
    with pytest.raises(Error, match=r"no folder for the cache: .*: Not a directory; .*; set MLXGPT_CACHE"):
        backend.cache_dir()


@LINUX
def test_a_refused_cache_is_one_line_and_a_moved_one_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "bin").mkdir()
    for changes in ({"MLXGPT_CACHE": str(tmp_path / "file")}, {"MLXGPT_CACHE": str(tmp_path / "file"), "CC": "/no"}):
        env = environment(None, PATH=str(tmp_path / "bin"), **changes)
        done = subprocess.run([sys.executable, "-m", "mlxgpt.cli", "doctor"], env=env, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"mlxgpt: error: MLXGPT_CACHE={tmp_path}/file cannot be used: File exists\n"
    env = environment(None, PATH=str(tmp_path / "bin"), MLXGPT_BLAS="stock", TMPDIR=str(tmp_path), HOME="/dev/null")
    env.pop("XDG_CACHE_HOME", None)
    done = python("from mlxgpt import backend as b; b.start(warn=False); b.start(warn=False)", env)
    usual = "/dev/null/.cache/mlxgpt"
    spare = tmp_path / f"mlxgpt-{os.getuid()}"
    warning = f"mlxgpt: the cache is in {spare}, because {usual} cannot be used: Not a directory"
    assert (done.returncode, done.stderr.splitlines()) == (0, [warning])


# ------------------------------------------------------------------------------------------ the JIT's compiler


@pytest.fixture
def fake(fresh, tmp_path):
    """A g++ that is quick, first on PATH, and an empty cache; returns it. The real sh, mv and sleep stay."""
    compiler = program(tmp_path / "tools" / "g++", FAKE_COMPILER)
    fresh.setenv("PATH", f"{compiler.parent}{os.pathsep}{os.environ['PATH']}")
    fresh.setenv("MLXGPT_CACHE", str(tmp_path / "cache"))
    return compiler


def jit() -> str:
    return backend.native_jit.__wrapped__()


HOW = "g++ " + " ".join(backend.NATIVE)


@LINUX
def test_the_environment_points_mlx_to_the_wrapper(fake, tmp_path, monkeypatch):
    before = os.environ["PATH"]
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(backend.tempfile, "tempdir", None)
    assert jit() == HOW
    [folder] = (tmp_path / "cache").glob("jit-*")
    assert os.environ["TMPDIR"] == str(folder / "tmp")
    assert os.environ["PATH"] == f"{folder}/bin{os.pathsep}{before}"
    assert shutil.which("g++") == str(folder / "bin" / "g++")
    assert backend.tempfile.gettempdir() == str(tmp_path / "tmp"), "Python's own temporary files stay where they were"
    for place in ("", "bin", "pch", "tmp"):
        assert stat.S_IMODE((folder / place).stat().st_mode) == 0o700
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [folder.name]


@LINUX
def test_a_process_started_by_this_one_has_the_same_folder(fake, tmp_path):
    jit()
    path, places = os.environ["PATH"], list((tmp_path / "cache").iterdir())
    assert jit() == HOW
    assert os.environ["PATH"] == path, "no wrapper around the wrapper"
    assert list((tmp_path / "cache").iterdir()) == places


@LINUX
@pytest.mark.parametrize("change", ["cpu", "compiler", "header", "flags"])
def test_another_cpu_compiler_or_mlx_has_another_folder(fake, tmp_path, monkeypatch, change):
    jit()
    if change == "cpu":
        monkeypatch.setattr(backend, "cpu_flags", lambda: frozenset({"sse2"}))
    elif change == "compiler":
        os.utime(fake, ns=(1, 1))
    elif change == "flags":
        monkeypatch.setattr(backend, "NATIVE", ("-O1",))
    else:
        header = tmp_path / "mlx" / "include" / backend.PREAMBLE
        header.parent.mkdir(parents=True)
        header.write_text("")
        spec = importlib.util.spec_from_loader("mlx", None, is_package=True)
        spec.submodule_search_locations = [str(tmp_path / "mlx")]
        monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: spec)
    assert jit().startswith("g++ ")
    assert len(list((tmp_path / "cache").glob("jit-*"))) == 2


def damage(folder: Path, what: str) -> None:
    wrapper, header = folder / "bin" / "g++", folder / "pch" / f"{backend.PREAMBLE}.gch"
    if what in ("bin", "pch", "tmp"):
        shutil.rmtree(folder / what)
    elif what == "wrapper gone":
        wrapper.unlink()
    elif what == "wrapper empty":
        os.truncate(wrapper, 0)
    elif what == "wrapper hostile":
        wrapper.write_text("#!/bin/sh\nexit 0\n")
    elif what == "wrapper not executable":
        wrapper.chmod(0o600)
    elif what == "wrapper binary":
        wrapper.write_bytes(b"\xff\xfe")
    elif what == "header empty":
        os.truncate(header, 0)
    elif what == "tmp a file":
        shutil.rmtree(folder / "tmp")
        (folder / "tmp").write_text("")
    elif what.startswith("open "):
        (folder / what.removeprefix("open ").removesuffix("folder")).chmod(0o777)
    else:
        shutil.rmtree(folder)
        if what == "a file":
            folder.write_text("")
        elif what == "a link to nothing":
            folder.symlink_to("nothing")


DAMAGES = [
    *("bin", "pch", "tmp", "wrapper gone", "wrapper empty", "wrapper hostile", "wrapper not executable"),
    *("wrapper binary", "header empty", "tmp a file", "open folder", "open bin", "open tmp", "open pch"),
    *("a file", "a link to nothing"),
]


@LINUX
@pytest.mark.parametrize("what", DAMAGES)
def test_a_folder_that_is_not_whole_or_not_private_is_made_again(fake, tmp_path, what):
    jit()
    [folder] = (tmp_path / "cache").glob("jit-*")
    wrapper = (folder / "bin" / "g++").read_text()
    damage(folder, what)
    assert not backend._jit_is_whole(folder, wrapper)
    assert jit() == HOW
    assert backend._jit_is_whole(folder, wrapper)
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [folder.name]


@LINUX
def test_another_process_that_was_quicker_wins(fake, tmp_path, monkeypatch):
    jit()
    [folder] = (tmp_path / "cache").glob("jit-*")
    header = folder / "pch" / f"{backend.PREAMBLE}.gch"
    moved, run = tmp_path / "moved", backend._run
    header.write_text("the other's")
    os.rename(folder, moved)

    def slow_run(command: list[str]) -> None:
        run(command)
        os.rename(moved, folder)

    monkeypatch.setattr(backend, "_run", slow_run)
    assert jit() == HOW
    assert header.read_text() == "the other's"
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [folder.name]


def untouched(jit_says: str, expected: str, tmp_path: Path) -> None:
    """The plain compiler is left as it is, with the reason, and nothing half-made stays behind."""
    assert re.fullmatch(expected, jit_says)
    assert "TMPDIR" not in os.environ
    assert "jit-" not in os.environ["PATH"]
    assert not list((tmp_path / "cache").glob(".*"))


@LINUX
def test_without_gxx_nothing_is_touched(fresh, tmp_path):
    (tmp_path / "bin").mkdir()
    fresh.setenv("PATH", str(tmp_path / "bin"))
    untouched(jit(), r"no g\+\+ on PATH: mx.compile does nothing on the CPU", tmp_path)


@LINUX
def test_a_gxx_that_fails_on_the_header_is_left_as_it_is(fake, tmp_path):
    Path(f"{fake}.fail").touch()
    untouched(jit(), re.escape(f"plain g++: {fake} failed: the fake failed"), tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


@LINUX
def test_a_gxx_that_cannot_be_started_is_left_as_it_is(fake, tmp_path):
    fake.write_bytes(b"\x7fELF no program")
    untouched(jit(), r"plain g\+\+: .*Exec format error.*", tmp_path)


@LINUX
def test_a_gxx_that_hangs_is_given_up(fake, tmp_path, monkeypatch):
    def hang(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(backend.subprocess, "run", hang)
    untouched(jit(), r"plain g\+\+: .*g\+\+ did not finish in five minutes", tmp_path)


@LINUX
@pytest.mark.parametrize("name", ["a$b", "a:b", 'a"b', "a`b"])
def test_a_cache_whose_name_the_shell_would_read(fake, tmp_path, monkeypatch, name):
    monkeypatch.setenv("MLXGPT_CACHE", str(tmp_path / name))
    untouched(jit(), r"plain g\+\+: programs in .* cannot be run", tmp_path)


@LINUX
def test_a_refused_cache_leaves_the_compiler_as_it_is(fake, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLXGPT_CACHE", str(tmp_path / "file"))
    untouched(jit(), r"plain g\+\+: MLXGPT_CACHE=.*/file cannot be used: File exists", tmp_path)


@LINUX
def test_a_compiler_in_a_place_with_odd_characters(fresh, tmp_path):
    compiler = program(tmp_path / "it's $HOME" / "g++", FAKE_COMPILER)
    fresh.setenv("PATH", f"{compiler.parent}{os.pathsep}{os.environ['PATH']}")
    fresh.setenv("MLXGPT_CACHE", str(tmp_path / "with space"))
    assert jit() == HOW
    library = tmp_path / "libk.so"
    subprocess.run(["g++", "-shared", "k.cpp", "-o", library], check=True)
    assert library.read_text() == "halfwhole"


@LINUX
def test_a_kernel_appears_whole_or_not_at_all(fake, tmp_path):
    jit()
    library, pause = tmp_path / "libk.so", Path(f"{fake}.pause")
    command = ["g++", "-shared", "k.cpp", "-o", str(library)]
    pause.touch()
    with subprocess.Popen(command) as compiling:
        try:
            while not list(tmp_path.glob("libk.so*")):
                assert compiling.poll() is None
            assert not library.exists(), "another process would load it half-written"
        finally:
            pause.unlink()
    assert (compiling.returncode, library.read_text()) == (0, "halfwhole")
    Path(f"{fake}.fail").touch()
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "first line\nthe fake failed\n"), "MLX is told what went wrong"
    assert library.read_text() == "halfwhole", "what was there before is whole"
    assert subprocess.run(["g++", "--version"], capture_output=True, text=True).stdout == "fake\n"


KERNEL = """
import os
from pathlib import Path
from mlxgpt import backend
import mlx.core as mx
f = mx.compile(lambda x: mx.exp(-x) * 2 + 1)
print(round(f(mx.zeros(9)).sum().item()), os.environ["TMPDIR"])
"""


@LINUX
def test_mlx_compiles_its_kernels_with_it(built, tmp_path):
    total, folder = answer(KERNEL, environment(built)).split()
    assert total == "27"
    [kernel] = [p for p in Path(folder).rglob("*.so") if "Exp" in p.name]
    assert not list(Path(folder).rglob("*.so.*"))
    assert answer(KERNEL, environment(built)).split() == [total, folder]
    # MLX's command, to see what the compiler is really given: the flags, and the header it need not read.
    wrapper = Path(folder).parent / "bin" / "g++"
    command = [wrapper, "-std=c++17", "-O3", "-Wall", "-fPIC", "-shared", kernel.with_name(kernel.stem[3:] + ".cpp")]
    done = subprocess.run([*command, "-H", "-v", "-o", tmp_path / "k.so"], capture_output=True, text=True, check=True)
    assert f"! {wrapper.parent}/../pch/{backend.PREAMBLE}.gch" in done.stderr
    assert "-fno-math-errno" in done.stderr
    assert re.search(r"-march=(?!x86-64\b)", done.stderr), "native, or what it stands for: not the baseline"
    assert not list(tmp_path.glob("k.so.*"))


# ------------------------------------------------------------------------------------------------ the rest


def test_on_macos_nothing_is_touched(fresh):
    before = dict(os.environ)
    fresh.setattr(backend.sys, "platform", "darwin")
    found = backend.prepare.__wrapped__()
    assert (found.name, found.fast, found.refused) == ("Accelerate", True, "")
    assert dict(os.environ) == before


@LINUX
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx2", None),
        ("avx512f avx512dq avx512bw", None),
        ("avx512f avx512dq avx512bw avx512vl avx512_bf16", "SkylakeX"),
    ],
)
def test_openblas_is_told_what_a_new_cpu_can_do(fresh, monkeypatch, flags, expected):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "x")
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    monkeypatch.setattr(backend, "native_jit", lambda: "")
    monkeypatch.setattr(backend, "cpu_flags", lambda: frozenset(flags.split()))
    for name in ("_numpy_openblas", "_system_openblas"):
        monkeypatch.setattr(backend, name, lambda: backend.Blas("found", "", ""))
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)
    assert backend.prepare.__wrapped__().name == "found"
    assert os.environ.get("OPENBLAS_CORETYPE") == expected
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Zen")
    backend.prepare.__wrapped__()
    assert os.environ["OPENBLAS_CORETYPE"] == "Zen", "the user knows better"


@LINUX
def test_numpy_without_its_own_openblas_falls_to_the_systems(fresh, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_loader("numpy", None, origin=str(tmp_path / "numpy" / "__init__.py"))
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(backend, "native_jit", lambda: "")
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)
    monkeypatch.setattr(backend, "_system_openblas", lambda: backend.Blas("the system's", "", ""))
    assert backend.prepare.__wrapped__().name == "the system's"

    def missing():
        raise OSError("libopenblas.so.0: no such file")

    monkeypatch.setattr(backend, "_system_openblas", missing)
    found = backend.prepare.__wrapped__()
    assert (found.name, found.fast, found.refused) == ("reference BLAS", False, "")
    reason = "numpy was installed without its own OpenBLAS (no numpy.libs folder); libopenblas.so.0: no such file"
    assert found.reason == reason


def test_types_to_compute_in():
    import mlx.core as mx

    from mlxgpt import measure

    assert backend.compute_dtype("float32") == mx.float32
    assert backend.compute_dtype("bfloat16") == mx.bfloat16
    assert backend.compute_dtype("auto") == (mx.float32 if backend.device() == "cpu" else mx.bfloat16)
    assert measure.matmul(64, repeats=3) > 0
    assert backend.total_memory() > 1 << 28


def test_the_memory_that_counts_with_cuda_is_the_gpus(monkeypatch):
    import mlx.core as mx

    from mlxgpt.training import memory

    monkeypatch.setattr(backend, "device", lambda: "cuda")
    monkeypatch.setattr(mx, "device_info", lambda: {"device_name": "x", "total_memory": 24 << 30})
    assert backend.total_memory() == 24 << 30
    assert memory.available(2) == 24 << 30, "each process has a GPU of its own"


def test_doctor_says_what_there_is(own_cache):
    found = backend.examine()
    blas = backend.prepare()
    assert (found["blas"], found["blas_reason"], found["blas_is_fast"]) == (blas.name, blas.reason, blas.fast)
    assert found["matmul_gflops"] > 0.1
    assert found["cache"] == str(own_cache)
