"""Files and folders are there whole or not at all, and nothing else is left behind."""

import json
import os
import resource
import stat
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlxgpt import files
from mlxgpt.errors import Error


@contextmanager
def full_disk(limit: int = 1000) -> Iterator[None]:
    """No file grows beyond `limit` bytes: a write fails half-way, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def everything(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): p.read_text() if p.is_file() else "" for p in root.rglob("*")}


def fail(error: BaseException):
    def save(path: Path) -> None:
        path.write_text("half")
        raise error

    return save


def test_a_file_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def save(partial: Path) -> None:
        partial.write_text("new")
        assert partial.suffix == ".txt", "mlx goes by the suffix"
        assert path.read_text() == "old"

    files.write(path, save)
    assert everything(tmp_path) == {"a.txt": "new"}


def test_permissions_are_what_the_umask_leaves(tmp_path):
    for umask in (0o022, 0o077):
        before = os.umask(umask)
        try:
            files.write(tmp_path / "file", lambda p: p.write_text("x"))
            with files.folder(tmp_path / f"folder-{umask}") as partial:
                (partial / "inside").write_text("x")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask
        assert stat.S_IMODE((tmp_path / f"folder-{umask}").stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("[save] failed")])
def test_a_failed_write_is_one_error_and_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    message = "No space left on device|failed"
    with pytest.raises(Error, match=rf"a\.txt could not be written \(.*({message})\); what was there before is whole"):
        files.write(path, fail(error))
    with pytest.raises(Error, match=r"b could not be written"), files.folder(tmp_path / "b") as partial:
        fail(error)(partial / "inside")
    assert everything(tmp_path) == {"a.txt": "old"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Error("mine"), TypeError("a bug")])
def test_other_exceptions_pass_and_leave_nothing(tmp_path, error):
    with pytest.raises(type(error)) as caught:
        files.write(tmp_path / "a", fail(error))
    assert caught.value is error
    with pytest.raises(type(error)) as caught, files.folder(tmp_path / "b") as partial:
        fail(error)(partial / "inside")
    assert caught.value is error
    assert everything(tmp_path) == {}


def test_a_full_disk_leaves_the_previous_file_whole(tmp_path):
    path = tmp_path / "table.json"
    files.write_json(path, {"old": 1})
    with full_disk(), pytest.raises(Error, match="File too large"):
        files.write_json(path, list(range(10_000)))
    with full_disk(), pytest.raises(Error, match="File too large"), files.folder(tmp_path / "run") as partial:
        (partial / "large").write_bytes(b"x" * 5000)
    assert files.read_json(path) == {"old": 1}
    assert everything(tmp_path).keys() == {"table.json"}


def test_a_disk_without_room_is_named_as_such(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda place: usage(1 << 30, 1 << 30, 4096))
    with pytest.raises(Error, match=r"\(the disk is full: \[save\] failed\)"):
        files.write(tmp_path / "a", fail(RuntimeError("[save] failed\n")))


def test_a_folder_appears_whole(tmp_path):
    path = tmp_path / "run.v1"
    with files.folder(path) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "a").write_text("a")
        assert not path.exists()
        assert partial.name.startswith("."), "globs of the folder's own name do not meet it"
    assert everything(tmp_path) == {"run.v1": "", "run.v1/deep": "", "run.v1/deep/a": "a"}


def test_a_folder_does_not_replace_what_is_there(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "a").write_text("old")
    (tmp_path / "file").write_text("old")
    before = everything(tmp_path)
    for name in ("taken", "file"):
        with pytest.raises(Error, match=f"{name} could not be written"), files.folder(tmp_path / name) as partial:
            (partial / "a").write_text("new")
    assert everything(tmp_path) == before


def test_no_place_to_write_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for parent in ("missing", "file"):
        with pytest.raises(Error, match="could not be written"):
            files.write(tmp_path / parent / "a", lambda p: p.write_text("x"))
        with pytest.raises(Error, match="could not be written"), files.folder(tmp_path / parent / "a"):
            pass
    with pytest.raises(Error, match="could not be written"):
        files.write(tmp_path, lambda p: p.write_text("x"))
    assert everything(tmp_path) == {"file": ""}


def test_discard_removes_whatever_is_there(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a").write_text("a")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    for name in ("link", "file", "folder", "missing"):
        files.discard(tmp_path / name)
    assert everything(tmp_path) == {"kept": "", "kept/a": "a"}


def test_json_comes_back(tmp_path):
    table = {"text": "é▁😀\n\0", "name of bytes": "\udcff\ud800", "list": [1, 2.5, None, True]}
    files.write_json(tmp_path / "t.json", table)
    assert files.read_json(tmp_path / "t.json") == table
    assert "é▁😀" in (tmp_path / "t.json").read_text(encoding="utf-8"), "readable"
    assert json.loads((tmp_path / "t.json").read_bytes()) == table


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"t\.json is missing$"),
        (b"", r"t\.json cannot be read as JSON: "),
        (b'{"a": 1', r"t\.json cannot be read as JSON: "),
        (b'"\xff"', r"t\.json cannot be read as JSON: .*utf-8"),
        (b"[" * 100_000, r"t\.json cannot be read as JSON: .*recursion"),
    ],
)
def test_json_that_cannot_be_read_is_one_error(tmp_path, content, message):
    if content is not None:
        (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(Error, match=message) as caught:
        files.read_json(tmp_path / "t.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(Error, match="cannot be read as JSON"):
        files.read_json(tmp_path)


def test_a_lock_keeps_a_second_process_out_and_goes_with_its_holder(tmp_path):
    path = tmp_path / ".lock"
    hold = "import sys, time; from pathlib import Path; from mlxgpt import files\n"
    hold += "with files.lock(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", hold, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Error, match=f"in use by another mlxgpt \\(process {holder.pid}\\)"), files.lock(path):
            pass
    finally:
        holder.kill()
        holder.communicate()
    assert path.exists()
    with files.lock(path), pytest.raises(Error, match="in use"), files.lock(path):
        pass
    assert not path.exists()
