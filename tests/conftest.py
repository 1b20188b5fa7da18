"""What the tests share: a cache folder of their own, the command line, and one small run trained through it."""

import io
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# Before OpenBLAS is loaded, with mlxgpt: its threads make products this small slower, 50 times so on a busy machine.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from mlxgpt import backend
from mlxgpt.cli import main

# A shell lets its background jobs, and so what they start, ignore Ctrl-C, which the tests press.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
LEARNED_FROM = ("bisect", "cmd", "colorsys", "fnmatch", "glob", "graphlib", "queue", "sched", "shlex", "textwrap")

SMALL = """# A model for tests: seconds to train.
[model]
type = "mistral"
hidden_size = 64
intermediate_size = 128
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = 128
tie_word_embeddings = true

[tokenizer]
vocab_size = 512

[data]
validation_fraction = 0.15

[optimizer]
lr = 5e-3
warmup_steps = 5
beta2 = 0.95

[train]
steps = 300
batch_size = 8
sequence_length = 64
evaluations = 2
sample_tokens = 8
"""

# Runs the command line, and `sys.argv[2]` after step `sys.argv[1]` of its training.
AT_STEP = """
import os, resource, signal, sys
from pathlib import Path
from mlxgpt.training import panel

class Panel(panel.Panel):
    def train(self, record):
        super().train(record)
        if record["step"] == int(sys.argv[1]):
            exec(sys.argv[2])

panel.Panel = Panel
from mlxgpt.cli import main
main.main(sys.argv[3:])
"""


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory) -> Iterator[Path]:
    """A cache folder without the user's corpora, in this process and its children, but with the compiled code."""
    folder = tmp_path_factory.mktemp("cache")
    folder.chmod(0o700)
    (backend.cache_dir() / "msl").mkdir(mode=0o700, exist_ok=True)
    for pattern in ("jit-*", "*-*.so", "msl"):
        for compiled in backend.cache_dir().glob(pattern):
            (folder / compiled.name).symlink_to(compiled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLXGPT_CACHE", str(folder))
        backend._cache.cache_clear()
        yield folder
    backend._cache.cache_clear()


@dataclass(frozen=True)
class Done:
    """How a command ended: its exit status and what it wrote."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The line that says what went wrong; there must be one, at the end of stderr, and no traceback."""
        *before, last = self.err.splitlines()
        assert last.startswith("mlxgpt: error: "), self.err
        assert not [line for line in before if "error" in line.lower() or "Traceback" in line], self.err
        return last.removeprefix("mlxgpt: error: ")


Cli = Callable[..., Done]


@pytest.fixture
def cli(capsys, monkeypatch) -> Cli:
    """`mlxgpt` in this process: arguments, and bytes for stdin, to how it ended."""

    def call(*arguments: object, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main.main([str(a) for a in arguments])
        return Done(int(caught.value.code or 0), *capsys.readouterr())

    return call


def _run(command: list[object], stdin: bytes = b"", **environment: str) -> Done:
    done = subprocess.run(
        [sys.executable, *map(str, command)], input=stdin, capture_output=True, timeout=120,
        env=os.environ | environment, check=False,
    )  # fmt: skip
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture(scope="session")
def spawn() -> Cli:
    """`mlxgpt` in a process of its own: arguments, bytes for stdin and environment variables, to how it ended."""
    return lambda *arguments, stdin=b"", **environment: _run(["-m", "mlxgpt.cli", *arguments], stdin, **environment)


@pytest.fixture(scope="session")
def at_step() -> Cli:
    """`mlxgpt` in a process of its own that executes a piece of Python after a step: step, code, arguments."""
    return lambda step, code, *arguments: _run(["-c", AT_STEP, step, code, *arguments])


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    """A recipe that trains in seconds."""
    path = tmp_path_factory.mktemp("recipe") / "small.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="session")
def code(tmp_path_factory) -> Path:
    """A folder with ten files of real code."""
    folder = tmp_path_factory.mktemp("corpus") / "code"
    folder.mkdir()
    for name in LEARNED_FROM:
        shutil.copy(Path(sysconfig.get_path("stdlib")) / f"{name}.py", folder)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory, small, code, spawn) -> Path:
    """A finished run: a model folder with its `training`. Not to be written to."""
    out = tmp_path_factory.mktemp("runs") / "small"
    done = spawn("train", code, "--config", small, "--out", out)
    assert done.status == 0, done.err
    return out
