"""Files and folders that are there whole or not at all."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from mlxgpt.errors import Error

LOCK = ".mlxgpt-lock"  # in a run's folder, while a process has the run


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(path: Path) -> None:
    with suppress(OSError):  # not every file system can sync a folder, and what is in it is already in place
        _sync(path)


def _beside(path: Path) -> Path:
    """A hidden name of its own in `path`'s folder; what is made there has the permissions that the umask leaves."""
    return path.with_name(f".{path.stem[:40]}-{os.urandom(6).hex()}{path.suffix}")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn a failure to write into an Error that names `path`."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # mlx reports a failed write as RuntimeError
        raise Error(
            f"{path} could not be written ({reason(error, path.parent)}); what was there before is whole"
        ) from None


def write(path: Path, save: Callable[[Path], Any]) -> None:
    """Have `save(temporary path)` write a file, sync it, and put it at `path` in one step.

    Raises Error naming `path` when it cannot be written; what was there before is then untouched.
    """
    partial = _beside(path)
    with _named(path):
        try:
            partial.touch(exist_ok=False)
            save(partial)
            _sync(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; on leaving the block its files are synced and it becomes `path`, which must not
    exist, in one step. Raises Error naming `path` when it cannot be written."""
    partial = _beside(path)
    with _named(path):
        try:
            partial.mkdir()
            yield partial
            for inside in partial.rglob("*"):
                _sync_folder(inside) if inside.is_dir() else _sync(inside)
            os.rename(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    _sync_folder(path.parent)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a lock file while the block runs; the system frees it where the process is killed. Raises Error when
    another process holds it."""
    with _held(path, fcntl.LOCK_NB) as file:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """`lock`, once no other process holds it. Raises OSError where the file cannot be made."""
    with _held(path, 0):
        yield


@contextmanager
def _held(path: Path, how: int) -> Iterator[TextIO]:
    while True:
        with open(path, "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | how)
            except BlockingIOError:
                file.seek(0)
                raise Error(f"{path.parent} is in use by another mlxgpt (process {file.read() or '?'})") from None
            if not _is_same(file.fileno(), path):  # its last holder has just removed it
                continue
            try:
                yield file
            finally:
                path.unlink(missing_ok=True)
            return


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock file at `path`."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _is_same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def discard(path: Path) -> None:
    """Remove whatever is at `path`, if anything: out of the way in one step, and then from the disk. Raises Error."""
    away = _beside(path)
    with _named(path), suppress(FileNotFoundError):
        os.rename(path, away)
        if away.is_dir() and not away.is_symlink():
            shutil.rmtree(away, ignore_errors=True)
        else:
            away.unlink()


def read_table(path: Path) -> dict[str, Any]:
    """The JSON object at `path`, an empty one where there is no file. Raises Error."""
    table = read_json(path) if path.is_file() else {}
    if not isinstance(table, dict):
        raise Error(f"{path}: it must be a table")
    return table


def reason(error: Exception, place: Path) -> str:
    """Why a write failed, in words: a full disk is named as such, also where mlx only says that it failed."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip()
    try:
        full = shutil.disk_usage(place).free < 1 << 20
    except OSError:
        full = False
    return f"the disk is full: {text}" if full else text


def to_json(table: Any) -> str:
    """`table` as readable JSON; what is not Unicode, as a file's name may be, is escaped and read back as it was."""
    return json.dumps(table, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace").decode() + "\n"


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
