"""Files and folders that are there whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlxgpt.errors import Error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write(path: Path, save: Callable[[Path], Any]) -> None:
    """Have `save(temporary path)` write a file, sync it, and put it at `path` in one step.

    Raises Error naming `path` when it cannot be written; what was there before is then untouched.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        save(partial)
        _sync(partial)
        partial.chmod(0o644)
        os.replace(partial, path)
        _sync(path.parent)
    except (OSError, RuntimeError) as error:  # mlx reports a failed write as RuntimeError
        raise Error(
            f"{path} could not be written ({reason(error, path.parent)}); what was there before is whole"
        ) from None
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; on leaving the block its files are synced and it becomes `path`, which must not
    exist, in one step. Raises Error naming `path` when it cannot be written."""
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield partial
        for file in partial.rglob("*"):
            _sync(file)
        partial.chmod(0o755)
        os.rename(partial, path)
        _sync(path.parent)
    except (OSError, RuntimeError) as error:
        raise Error(
            f"{path} could not be written ({reason(error, path.parent)}); what was there before is whole"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def reason(error: Exception, place: Path) -> str:
    """Why a write failed, in words: a full disk is named as such, also where mlx only says that it failed."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip()
    try:
        full = shutil.disk_usage(place).free < 1 << 20
    except OSError:
        full = False
    return f"the disk is full: {text}" if full else text


def to_json(table: Any) -> str:
    """`table` as readable JSON."""
    return json.dumps(table, indent=1, ensure_ascii=False) + "\n"


def write_json(path: Path, table: Any) -> None:
    """`table` as JSON at `path`, whole or not at all. Raises Error."""
    write(path, lambda p: p.write_text(to_json(table), encoding="utf-8"))


def read_json(path: Path) -> Any:
    """The JSON at `path`. Raises Error naming it when it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Error(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise Error(f"{path} cannot be read as JSON: {error}") from None
