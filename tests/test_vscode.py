"""The extension for VS Code: what its manifest says is what its code reads, and it works with the real `mlxgpt lsp`."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from msgspec.structs import fields

from mlxgpt.lsp.preferences import Preferences

ROOT = Path(__file__).parents[1]
EXTENSION = ROOT / "editors" / "vscode"
MANIFEST = json.loads((EXTENSION / "package.json").read_text())
SOURCE = "\n".join(path.read_text() for path in sorted((EXTENSION / "src").glob("*.js")))
SETTINGS = {key.removeprefix("mlxgpt.") for key in MANIFEST["contributes"]["configuration"]["properties"]}


def test_the_manifest_and_the_code_agree():
    assert MANIFEST["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    commands = {row["command"] for row in MANIFEST["contributes"]["commands"]}
    assert commands == set(re.findall(r'registerCommand\("([\w.]+)"', SOURCE))
    assert set(re.findall(r'get\("(\w+)"\)', SOURCE)) == SETTINGS
    asked = re.findall(r"about\(([^)]*)\)\)", SOURCE)
    assert {
        name for names in asked for name in re.findall(r'"(\w+)"', names)
    } == SETTINGS  # none is read at start alone
    assert {field.name for field in fields(Preferences)} <= SETTINGS
    for name in MANIFEST["capabilities"]["untrustedWorkspaces"]["restrictedConfigurations"]:
        assert name.removeprefix("mlxgpt.") in SETTINGS


def test_its_page_links_to_nothing_beside_it():
    """`vsce package` refuses a relative link, unless the clone has a remote at GitHub or GitLab."""
    page = (EXTENSION / "README.md").read_text()
    assert not re.search(r"\]\((?!https?://|#)", page)


def test_its_default_arguments_are_options_of_lsp(cli):
    described = cli("lsp", "--help").out
    given = MANIFEST["contributes"]["configuration"]["properties"]["mlxgpt.arguments"]["default"]
    options = [word for word in given if word.startswith("--")]
    assert options
    assert all(f"{option} " in described for option in options)


def test_the_lock_file_names_no_registry():
    text = (EXTENSION / "package-lock.json").read_text()
    lock = json.loads(text)
    assert "resolved" not in text
    assert "://registry" not in text
    packages = {name: row for name, row in lock["packages"].items() if name}
    assert all(row["integrity"].startswith("sha512-") for row in packages.values())
    wanted = MANIFEST["dependencies"] | MANIFEST["devDependencies"]
    for name, version in wanted.items():
        assert packages[f"node_modules/{name}"]["version"] == version


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node here")
@pytest.mark.skipif(not (EXTENSION / "node_modules").is_dir(), reason="`npm ci` was not run in editors/vscode")
def test_it_works_with_the_real_server():
    """In a part of VS Code that serves as the whole: editors/vscode/test."""
    command = json.dumps([sys.executable, "-m", "mlxgpt.cli"])
    tests = sorted(str(path) for path in (EXTENSION / "test").glob("*.test.js"))
    done = subprocess.run(
        ["node", "--test", *tests], cwd=EXTENSION, capture_output=True, text=True, timeout=240, check=False,
        env=os.environ | {"MLXGPT": command},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^(#|ℹ) pass [1-9]", done.stdout, re.MULTILINE)
