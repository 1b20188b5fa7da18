"""`mlxgpt eval`: which text, and that loss and completions are those of that text."""

import json
import shutil

import pytest

from mlxgpt import files, weights
from mlxgpt.completion import session, views
from mlxgpt.completion.cursors import Cursor

KEYS = [
    "val_loss", "val_bpb", "cursors", "exact_match", "edit_similarity", "completed_ratio", "latency_ms", "using", "at",
    "gated", "acceptance", "warm_latency_ms", "kinds",
]  # fmt: skip


def last(text: str) -> dict:
    return json.loads(text.splitlines()[-1])


@pytest.fixture(scope="module")
def held_out(trained) -> list[str]:
    """Names of the files that the run held out."""
    sources = files.read_json(trained / "training" / "data.json")["sources"]
    return [s["name"] for s in sources if s["split"] == "validation"]


def test_json(trained, cli):
    done = cli("eval", "--model", trained, "--cursors", 12, "--json")
    table = last(done.out)
    assert list(table) == KEYS
    assert list(table["latency_ms"]) == ["p50", "p95"]
    assert table["cursors"] == 12
    for ratio in ("exact_match", "edit_similarity", "completed_ratio"):
        assert 0 <= table[ratio] <= 1
    for latency in ("latency_ms", "warm_latency_ms"):
        assert 0 < table[latency]["p50"] <= table[latency]["p95"]
    assert len(done.out.splitlines()) == 1
    assert done.err == ""


def test_the_loss_is_the_one_training_reached(trained, cli):
    records = [json.loads(line) for line in (trained / "training" / "metrics.jsonl").read_text().splitlines()]
    best = min((r for r in records if r["kind"] == "evaluation"), key=lambda r: r["val_loss"])
    table = last(cli("eval", "--model", trained, "--cursors", 0, "--json").out)
    assert table["val_loss"] == pytest.approx(best["val_loss"], rel=1e-4)
    assert table["val_bpb"] == pytest.approx(best["val_bpb"], rel=1e-4)
    assert table["cursors"] == 0


def test_the_same_files_by_name_give_the_same(trained, code, cli, held_out):
    """Token for token: documents are read back from the run's own tokens, or from the files."""
    paths = [code.parent / name for name in held_out]
    own = last(cli("eval", "--model", trained, "--cursors", 30, "--json").out)
    named = cli("eval", "--model", trained, *paths, "--cursors", 30, "--json")
    table = last(named.out)
    assert "trained on" not in named.err
    for name in ("val_loss", "val_bpb"):
        assert table.pop(name) == pytest.approx(own.pop(name), rel=1e-6)
    for each in (own, table):
        each.pop("latency_ms")
        each.pop("warm_latency_ms")
        each["gated"]["threshold"] = round(each["gated"]["threshold"], 4)
    assert table == own


def test_the_documents_of_the_run_are_the_files_byte_for_byte(trained, code, held_out):
    found = session.from_run(trained, weights.load_with_tokenizer(trained)[1])
    assert [name for name, _ in found.documents] == held_out
    for name, data in found.documents:
        assert data == (code.parent / name).read_bytes()


def test_files_that_were_trained_on_are_told(trained, code, cli, held_out):
    done = cli("eval", "--model", trained, code, "--cursors", 0, "--json")
    assert done.status == 0
    assert f"{10 - len(held_out)} of 10 files were trained on" in done.err
    assert list(last(done.out)) == KEYS


def test_the_model_is_shown_other_files_where_it_is_asked_for(trained, cli, monkeypatch):
    """Those that were trained on, and only with --context."""
    shown = []
    real = views.context.fill
    monkeypatch.setattr(views.context, "fill", lambda *arguments: (shown.append(real(*arguments)), shown[-1])[1])
    plain = cli("eval", "--model", trained, "--using", "model", "--cursors", 12, "--json")
    assert (plain.status, shown) == (0, [])
    with_context = cli("eval", "--model", trained, "--using", "model", "--cursors", 12, "--context", "--json")
    assert list(last(with_context.out)) == KEYS
    sources = files.read_json(trained / "training" / "data.json")["sources"]
    trained_on = {source["path"] for source in sources if source["split"] == "train"}
    names = set().union(*(each.names for each in shown))
    assert names
    assert names <= trained_on


def test_the_seed_moves_the_cursors(trained, cli):
    def places(seed: int) -> list[str]:
        done = cli("eval", "--model", trained, "--cursors", 10, "--examples", 10, "--seed", seed)
        return [line for line in done.out.splitlines() if line.strip().startswith("cursor ")]

    assert places(0) == places(0)
    assert places(0) != places(1)
    assert len(places(0)) == 10


def test_the_table_and_the_examples(trained, cli):
    done = cli("eval", "--model", trained, "--cursors", 5, "--examples", 2)
    assert done.out.count("truth ") == 2
    names = ["val_loss", "val_bpb", "cursors", "exact match", "edit similarity", "completed", "gated", "latency"]
    assert [line for line, name in zip(done.out.splitlines()[-8:], names, strict=True) if line.startswith(name)] == (
        done.out.splitlines()[-8:]
    )


def test_an_example_shows_the_truth_beside_the_completion():
    cursor = Cursor("a/b.py", 3, b"import os\n\nx = f", "oo(1)")
    assert session.example(cursor, "oo(1)").splitlines() == [
        "= a/b.py:3",
        "    cursor     x = f|",
        "    completed  x = foo(1)",
        "    truth      x = foo(1)",
    ]
    assert session.example(cursor, "oo").startswith("  a/b.py:3\n")


def test_a_model_without_a_run_needs_paths(trained, code, cli, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(trained, bare, ignore=shutil.ignore_patterns("training"))
    done = cli("eval", "--model", bare)
    assert done.status == 1
    assert "keeps no validation split: name files or folders" in done.error
    done = cli("eval", "--model", bare, code / "glob.py", "--cursors", 1, "--json")
    assert done.status == 0
    assert last(done.out)["cursors"] == 1


def test_too_little_text(trained, cli, tmp_path):
    (tmp_path / "blank.py").write_text("x")
    done = cli("eval", "--model", trained, tmp_path / "blank.py", "--cursors", 1, "--json")
    assert done.status == 0  # one character between its opening and closing tokens: two to predict, no line to finish
    assert last(done.out)["cursors"] == 0


@pytest.mark.parametrize("using", ["model", "ngrams", "both"])
def test_what_suggests_can_be_chosen(trained, cli, using):
    done = cli("eval", "--model", trained, "--cursors", 25, "--using", using, "--at", "token", "--json")
    table = last(done.out)
    assert (table["using"], table["at"], done.err) == (using, "token", "")
    assert table["val_loss"] > 0
    assert set(table["gated"]) == {"false_show", "threshold", "shown", "completed_ratio"}
    assert [point["threshold"] for point in table["acceptance"]] == [i / 20 for i in range(20)]
    assert sum(kind["cursors"] for kind in table["kinds"].values()) == 25
    assert table["kinds"].keys() == {".py"}


def test_the_ngrams_do_not_know_what_they_are_tried_on(trained, code, cli, tmp_path):
    """Files of --root that are evaluated on are taken out of the index; a copy under another name gives them away."""
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(code / "glob.py", alone)
    arguments = (alone / "glob.py", "--cursors", 40, "--json")
    with_itself = last(cli("eval", *arguments, "--root", alone).out)
    shutil.copy(code / "glob.py", alone / "copy.py")
    with_a_copy = last(cli("eval", *arguments, "--root", alone).out)
    assert with_itself["val_loss"] is None
    assert with_itself["using"] == "ngrams"
    assert with_itself["exact_match"] < 0.5 < 0.8 < with_a_copy["exact_match"]


def test_without_a_model_it_is_said_what_is_needed(code, cli):
    assert "name files to evaluate on and --root" in cli("eval").error
    assert "name files to evaluate on and --root" in cli("eval", code / "glob.py").error
    done = cli("eval", code / "glob.py", "--using", "both")
    assert (done.status, done.error) == (2, "--using both needs a model: give --model, or --using ngrams")


def test_training_files_that_are_gone_are_told(trained, code, cli, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(trained, moved)
    manifest = files.read_json(moved / "training" / "data.json")
    first = next(d for d in manifest["sources"] if d["split"] == "train")
    first["path"] += ".gone"
    files.write_json(moved / "training" / "data.json", manifest)
    done = cli("eval", "--model", moved, "--cursors", 2, "--json")
    assert done.status == 0
    assert "1 of " in done.err
    assert "the n-grams lack them" in done.err
