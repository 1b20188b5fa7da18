"""The wheel: everything the program needs is in it, nothing else is, and it works where the sources are not."""

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("mlxgpt", "kernels", "configs")


def installed(path: Path) -> str:
    """Where a file of the repository lies in the wheel."""
    name = path.relative_to(ROOT).as_posix()
    return name if name.startswith("mlxgpt/") else f"mlxgpt/{name}"


SHIPPED = {
    installed(path): path
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".metal", ".cuh", ".toml", ".c", ".cpp", ".h", ".html")
}


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that no build folder appears among the sources."""
    copy = tmp_path_factory.mktemp("wheel") / "copy"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", copy / "dist", copy, cwd=copy)
    (built,) = (copy / "dist").iterdir()
    return built


def test_the_wheel_has_every_file_and_one_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if not n.split("/")[0].endswith(".dist-info")}
        assert names == SHIPPED.keys()
        for name, path in SHIPPED.items():
            assert archive.read(name) == path.read_bytes()
    assert {name.split("/")[0] for name in names} == {"mlxgpt"}
    assert {"mlxgpt/blas.c", "mlxgpt/configs/tiny.toml", "mlxgpt/kernels/exp/forward.metal"} <= names


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory) -> Path:
    """An empty environment's bin folder: the wheel is installed there, and what it depends on lent, not mlxgpt."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n" + sysconfig.get_path("platlib") + "\n")
    return folder / "bin"


def test_it_works_where_the_sources_are_not(elsewhere, tmp_path):
    assert run(elsewhere / "mlxgpt", "configs", cwd=tmp_path).startswith("autocomplete ")
    doctor = json.loads(run(elsewhere / "mlxgpt", "doctor", "--json", cwd=tmp_path))
    here = json.loads(run(sys.executable, "-m", "mlxgpt.cli", "doctor", "--json", cwd=tmp_path))
    assert (doctor["mlxgpt"], doctor["blas"]) == (here["mlxgpt"], here["blas"])
    code = (
        "import json, pathlib, mlxgpt, mlxgpt.kernels.exp as exp, mlx.core as mx;"
        "place = pathlib.Path(exp.__file__).parent;"
        "print(json.dumps([mlxgpt.__file__, (place / 'forward.metal').read_text(), exp.exp(mx.zeros(3)).tolist()]))"
    )
    file, metal, ones = json.loads(run(elsewhere / "python", "-c", code, cwd=tmp_path))
    assert Path(file).is_relative_to(elsewhere.parent)
    assert metal == (ROOT / "kernels" / "exp" / "forward.metal").read_text()
    assert ones == [1, 1, 1]
