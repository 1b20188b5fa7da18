"""`.mlxgpt.toml`: where it is found, what it stands for, what wins over it, and what is wrong with a bad one."""

import json
import shutil
from pathlib import Path

import pytest

from mlxgpt.completion import defaults
from mlxgpt.completion.defaults import Defaults, find, read, settle, write
from mlxgpt.completion.opening import Names
from mlxgpt.errors import UsageError


@pytest.fixture
def project(tmp_path, trained) -> Path:
    """A folder with a model and a `.mlxgpt.toml`, and a folder in it."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "area.py").write_text("def compute_area(width, height):\n    return width * height\n")
    (tmp_path / "model").symlink_to(trained)
    write(tmp_path / defaults.NAME, Defaults("model", ".", "both", None, 0.5, True))
    return tmp_path


def test_it_is_found_from_below(project, tmp_path_factory):
    assert find(project / "src") == find(project) == project / defaults.NAME
    assert find(tmp_path_factory.mktemp("elsewhere")) is None


def test_what_is_written_is_read_back_with_absolute_paths(project):
    found = read(project / defaults.NAME)
    assert found == Defaults(str(project / "model"), str(project.resolve()), "both", None, 0.5, True)
    assert found.names("4") == Names(str(project / "model"), project.resolve(), "both", "4", True)
    text = (project / defaults.NAME).read_text()
    assert 'model = "model"' in text
    assert "threshold" not in text


def test_options_win(project):
    its = read(project / defaults.NAME)
    assert settle(Defaults(), project / "src") == its
    assert settle(Defaults(threshold=0.9), project).false_show is None
    assert settle(Defaults(model="other"), project) == Defaults("other", its.root, None, None, 0.5, True)
    assert settle(Defaults(using="ngrams", context=False), project) == Defaults(
        its.model, its.root, "ngrams", None, 0.5, False
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[complete]\nmodle = 'x'", r"unknown key 'complete.modle'; did you mean 'complete.model'\?"),
        ("[completion]\nmodel = 'x'", r"unknown section or key 'completion'; did you mean 'complete'\?"),
        ("complete = 3", "complete must be a table"),
        ("[complete]\nusing = 'magic'", "complete.using must be one of"),
        ("[complete]\nfalse_show = 3", "complete.false_show must be from 0 to 1"),
        ("[complete]\nthreshold = 0.1\nfalse_show = 0.3", "exclude each other"),
        ("[complete]\nmodel = './gone'", "complete.model: there is no folder .*gone; `mlxgpt setup --again`"),
        ("[complete]\nroot = 'gone'", "complete.root: there is no folder"),
        ("[complete", "cannot be read"),
        ("\udcff", "cannot be read"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, cli, monkeypatch, text, says):
    path = tmp_path / defaults.NAME
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=says) as caught:
        read(path)
    assert str(path) in str(caught.value)
    monkeypatch.chdir(tmp_path)
    for verb in ("complete", "lsp", "serve"):
        done = cli(verb, stdin=b"x = ")
        assert done.status == 2
        assert str(path) in done.error


def test_a_model_that_does_not_suggest_need_not_be_there(tmp_path):
    write(tmp_path / defaults.NAME, Defaults(".mlxgpt/model", ".", "ngrams"))
    assert read(tmp_path / defaults.NAME).using == "ngrams"


def test_complete_needs_no_options(project, cli, monkeypatch):
    """Its model, its text, and what is shown are those of the file."""
    monkeypatch.chdir(project / "src")
    stdin = b"print(compute_area(wid"
    bare = json.loads(cli("complete", "--json", "--threshold", 0, stdin=stdin).out)
    said = cli(
        "complete", "--json", "--threshold", 0, "--model", project / "model", "--root", project, "--context",
        stdin=stdin,
    )  # fmt: skip
    told = json.loads(said.out)
    for table in (bare, told):
        table.pop("latency_ms")
    assert bare == told
    assert bare["completion"].startswith("th")
    shutil.copy(project / defaults.NAME, project / "src" / defaults.NAME)  # the nearest one counts
    assert "complete.model" in cli("complete", stdin=stdin).error or not (project / "src" / "model").exists()


def test_eval_measures_what_the_project_completes_with(project, cli, monkeypatch):
    """Its model, its `using` and context, on what the run held out; the n-grams alone know the project's text."""
    monkeypatch.chdir(project / "src")

    def table(*arguments: object) -> dict:
        done = cli("eval", "--cursors", 3, "--json", *arguments)
        assert done.status == 0, done.err
        found = json.loads(done.out.splitlines()[-1])
        return {name: value for name, value in found.items() if "latency" not in name}

    assert table() == table("--model", project / "model", "--using", "both", "--context")
    assert table("--using", "model", "--no-context") == table("--model", project / "model", "--using", "model")
    write(project / defaults.NAME, Defaults(root=".", using="ngrams"))
    (project / "b.py").write_text("def volume(width, height, depth):\n    return width * height * depth\n")
    alone = table(project / "b.py")
    assert (alone["using"], alone["val_loss"]) == ("ngrams", None)
    assert alone == table(project / "b.py", "--root", project)
