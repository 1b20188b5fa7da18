"""`mlxgpt setup`: nothing without consent, then a model, a verdict and a file that the other verbs go by."""

import json
import shutil

import pytest

from mlxgpt import files
from mlxgpt.completion import defaults, session
from mlxgpt.completion.defaults import Defaults
from mlxgpt.config import load_recipe
from mlxgpt.errors import Error, UsageError
from mlxgpt.setup import proposal
from mlxgpt.setup.proposal import Size
from mlxgpt.setup.session import MODEL, Talk, setup
from mlxgpt.training import session as training


def last(text: str) -> dict:
    return json.loads(text.splitlines()[-1])


@pytest.fixture
def project(tmp_path, code):
    """A copy of the code."""
    shutil.copytree(code, tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def ready(project, trained):
    """The project with a finished run in its place."""
    shutil.copytree(trained, project / MODEL)
    return project


def user(*answers: bool) -> tuple[Talk, list[str]]:
    """One who gives these answers (none: who cannot be asked), and what was said to them."""
    lines: list[str] = []
    left = list(answers)
    if not answers:
        return Talk(lines.append), lines
    return Talk(lines.append, lambda default: default, lambda question, default: left.pop(0)), lines


def test_without_consent_nothing_is_trained_and_it_is_said_how(project, cli):
    done = cli("setup", project, "--minutes", 0.5, "--json")
    table = last(done.out)
    assert done.status == 0
    assert not table["trained"]
    assert (table["files"], table["minutes"], table["recipe"]) == (10, 0.5, "tiny")
    assert table["parameters"] == proposal.parameters(proposal.SIZES[0])
    assert "proposed: 1.1M parameters (tiny)" in done.err
    assert "nothing was trained: `mlxgpt setup --yes` does it" in done.err
    assert [path.name for path in project.iterdir() if path.name.startswith(".")] == []


def test_a_project_is_set_up_and_then_completes_without_options(project, small, cli, monkeypatch):
    """The run is that of `train` with the recipe proposed; here a smaller one, for seconds."""
    monkeypatch.setattr(proposal, "SIZES", (Size(str(small), ("train.steps=40", "train.evaluations=1")),))
    monkeypatch.setattr("mlxgpt.setup.session.CURSORS", 10)
    done = cli("setup", project, "--minutes", 0.05, "--yes", "--json")
    table = last(done.out)
    assert done.status == 0, done.err
    assert table["trained"]
    assert set(table["both"]) == set(table["ngrams"]) == {"exact_match", "completed_ratio"}
    better = tuple(table["both"].values()) > tuple(table["ngrams"].values())
    assert table["using"] == ("both" if better else "ngrams")
    assert ("does not beat the n-grams" in done.err) is not better
    assert files.read_json(project / MODEL / "training" / "recipe.json")["paths"] == [str(project.resolve())]
    assert (project / ".mlxgpt" / ".gitignore").read_text() == "*\n"
    found = defaults.read(project / defaults.NAME)
    assert found == Defaults(str(project.resolve() / MODEL), str(project.resolve()), table["using"], None, 0.3)
    monkeypatch.chdir(project)
    completed = cli("complete", "--json", stdin=b"import ")
    assert completed.status == 0, completed.err
    again = cli("setup", "--yes", "--json")
    assert last(again.out)["trained"] is False
    assert last(again.out)["config"] == table["config"]
    assert "`mlxgpt setup --again`" in again.err


def test_the_verdict_is_the_evaluations(ready, monkeypatch):
    """Where the n-grams alone are as good, they suggest alone, and it is said."""

    exact = {"ngrams": 0.5}

    def evaluate(folder, paths, options):
        scores = session.evaluation.Scores(1, exact[options.using], 0, 0.2, 0, 0, 0, 0)
        return session.Result(options.using, "anywhere", None, scores)

    monkeypatch.setattr("mlxgpt.setup.session.evaluation.evaluate", evaluate)
    for exact["both"], using in ((0.6, "both"), (0.5, "ngrams"), (0.4, "ngrams")):
        (ready / defaults.NAME).unlink(missing_ok=True)
        talk, lines = user()
        table = setup(ready, talk)  # it was trained, and not compared
        assert not table["trained"]
        assert table["using"] == defaults.read(ready / defaults.NAME).using == using
        assert any("does not beat the n-grams" in line for line in lines) is (using == "ngrams")


def test_who_is_asked_decides(ready, monkeypatch):
    defaults.write(ready / defaults.NAME, Defaults(MODEL, "."))
    calls = []
    monkeypatch.setattr("mlxgpt.setup.session._compare", lambda *a, **k: {"compared": True})
    monkeypatch.setattr("mlxgpt.setup.session._train", lambda *arguments: calls.append(arguments))
    talk, _ = user(False)
    assert setup(ready, talk)["trained"] is False
    talk, _ = user(True, False)
    assert setup(ready, talk)["trained"] is False
    assert calls == []
    talk, _ = user(True, True)
    assert setup(ready, talk)["compared"]
    assert [(arguments[2].minutes, arguments[3]) for arguments in calls] == [(10.0, True)]


def test_a_run_that_was_stopped_goes_on(ready, monkeypatch):
    path = ready / MODEL / "training" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line | {"progress": 0.5}) + "\n" for line in lines))
    calls = []
    summary = type("Summary", (), {"interrupted": True})()
    monkeypatch.setattr(training, "run", lambda *a, **k: (calls.append((a, k)), summary)[1])
    talk, _ = user()
    with pytest.raises(Error, match="`mlxgpt setup` goes on"):
        setup(ready, talk, yes=True)
    assert calls == [(([], None, [], ready.resolve() / MODEL), {"resume": True, "allow_changed_data": True})]
    assert not (ready / defaults.NAME).exists()


def test_a_project_of_a_few_lines_gets_the_ngrams(tmp_path, cli):
    (tmp_path / "a.py").write_text("def compute_area(width, height):\n    return width * height\n")
    done = cli("setup", tmp_path, "--yes", "--json")
    assert last(done.out)["using"] == "ngrams"
    assert "too little text" in done.err
    assert defaults.read(tmp_path / defaults.NAME).model is None


def test_what_is_no_project(tmp_path, cli):
    assert "there is no folder" in cli("setup", tmp_path / "gone").error
    talk, _ = user()
    with pytest.raises(UsageError):
        setup(tmp_path / "gone", talk)


def test_the_recipe_for_completion():
    recipe = load_recipe("autocomplete")
    assert recipe.model["max_position_embeddings"] >= 1024
    assert recipe.optimizer.kind == "muon"
