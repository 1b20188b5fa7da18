"""`mlxgpt train`: what may be trained where, what is refused, and what an earlier run in the folder has to fear."""

import json
import shutil
from pathlib import Path

import pytest

from mlxgpt import tokenizer, weights
from mlxgpt.data import shards
from mlxgpt.training import checkpoint, loop

QUICK = ("--set", "train.steps=2", "--set", "train.evaluations=1", "--set", "train.sample_tokens=0")


def snapshot(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_is_a_model_folder_and_its_own_state(trained, code):
    names = {str(p.relative_to(trained)) for p in trained.rglob("*") if p.is_file()}
    assert names == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.model", "tokenizer.json",
        "tokenizer_config.json", "completion.json", "report.html", "training/metrics.jsonl", "training/recipe.json",
        "training/data.json", "training/validation.bin", "training/checkpoint-00000300/model.safetensors",
        "training/checkpoint-00000300/optimizer.safetensors", "training/checkpoint-00000300/state.json",
            "training/checkpoint-00000300/manifest.json",
    }  # fmt: skip
    recipe = json.loads((trained / "training" / "recipe.json").read_text())
    model = weights.load(trained)
    assert recipe["paths"] == [str(code)]
    assert recipe["train"]["steps"] == 300
    assert recipe["parameters"] == sum(p.size for p in weights.to_disk(model).values())


def test_a_second_run_is_refused_and_the_first_left_alone(trained, code, small, cli):
    before = snapshot(trained)
    done = cli("train", code, "--config", small, "--out", trained)
    assert done.status == 2
    assert str(trained) in done.error
    assert "--resume" in done.error
    assert "--force" in done.error
    assert snapshot(trained) == before


def test_a_folder_with_a_model_that_is_no_run_is_not_written_over(trained, code, small, cli, tmp_path):
    out = tmp_path / "downloaded"
    shutil.copytree(trained, out, ignore=shutil.ignore_patterns("training"))
    before = snapshot(out)
    done = cli("train", code, "--config", small, "--out", out)
    assert done.status == 2
    assert "already holds a model: --force replaces it" in done.error
    assert snapshot(out) == before


def test_force_replaces_a_run_and_all_of_its_files(trained, code, small, cli, tmp_path):
    """The run before had SentencePiece's tokenizer.model, which would be found first."""
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    (out / "notes.txt").write_text("mine")
    done = cli("train", code, "--config", small, "--out", out, "--force", *QUICK, "--set", "tokenizer.kind=byte")
    assert done.status == 0, done.err
    model, its_tokenizer = weights.load_with_tokenizer(out)
    assert isinstance(its_tokenizer, tokenizer.CharTokenizer)
    assert model.config.vocab_size == its_tokenizer.vocab_size == 258
    assert (out / "notes.txt").read_text() == "mine"
    assert [p.name for p in (out / "training").glob("checkpoint-*")] == ["checkpoint-00000002"]
    assert len((out / "training" / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("setting", "status", "words"),
    [
        ("train.batch_size=100000", 1, "too small"),
        ("train.sequence_length=129", 2, "longer than the model's context"),
        ("model.vocab_size=300", 2, "smaller than the tokenizer's vocabulary"),
        ("model.num_attention_heads=5", 2, "multiple"),
    ],
)
def test_a_run_that_cannot_begin_takes_nothing_away(trained, code, small, cli, tmp_path, setting, status, words):
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    done = cli("train", code, "--config", small, "--out", out, "--force", "--set", setting)
    assert done.status == status
    assert words in done.error
    assert snapshot(out) == snapshot(trained)
    fresh = cli("train", code, "--config", small, "--out", tmp_path / "fresh", "--set", setting)
    assert fresh.status == status
    assert not (tmp_path / "fresh").exists()


@pytest.fixture
def stopped(code, small, cli, tmp_path):
    """A run of two steps and its corpus, both free to be changed."""
    corpus, out = tmp_path / "code", tmp_path / "run"
    shutil.copytree(code, corpus)
    done = cli("train", corpus, "--config", small, "--out", out, *QUICK)
    assert done.status == 0, done.err
    return corpus, out


@pytest.mark.parametrize("change", ["edit", "remove", "add"])
def test_resume_refuses_another_corpus_and_names_a_file(stopped, cli, change):
    corpus, out = stopped
    if change == "edit":
        name = "glob.py"
        (corpus / name).write_text((corpus / name).read_text() + "\n# more\n")
    elif change == "remove":
        name = "cmd.py"
        (corpus / name).unlink()
    else:
        name = "new.py"
        (corpus / name).write_text("def new():\n    return 'something that was not there before'\n" * 3)
    before = snapshot(out)
    done = cli("train", "--out", out, "--resume")
    assert done.status == 1
    kind = {"edit": "changed", "remove": "removed", "add": "added"}[change]
    assert f"is not the one this run began with: 1 file {kind} ({corpus / name}); start a new run" in done.error
    assert "--allow-changed-data" in done.error
    assert snapshot(out) == before


def test_what_changed_is_counted_and_three_of_each_are_named(stopped, cli):
    corpus, out = stopped
    for n in range(5):
        (corpus / f"new{n}.py").write_text(
            f"def new{n}():\n    return 'something that was not there before', {n}\n" * 3
        )
    for name in ("cmd.py", "queue.py"):
        (corpus / name).unlink()
    with open(corpus / "glob.py", "a") as file:
        file.write("# more\n")
    done = cli("train", "--out", out, "--resume")
    assert done.status == 1
    new = ", ".join(str(corpus / f"new{n}.py") for n in range(3))
    assert f"5 files added ({new} and 2 more), 2 files removed ({corpus / 'cmd.py'}, " in done.error
    assert f"1 file changed ({corpus / 'glob.py'})" in done.error


def test_a_changed_corpus_can_be_allowed_and_is_then_the_runs_own(stopped, cli):
    """In the tokens that the model knows, though the files would make other ones now; and `eval` reads what is held
    out now."""
    corpus, out = stopped
    recipe = json.loads((out / "training" / "recipe.json").read_text())
    recipe["train"]["steps"] = 4
    (out / "training" / "recipe.json").write_text(json.dumps(recipe))
    then = json.loads((out / "training" / "data.json").read_text())
    held_out = [s["path"] for s in then["sources"] if s["split"] == "validation"]
    kept = tokenizer.load(out).fingerprint()
    for n in range(12):
        (corpus / f"new{n}.py").write_text(f"def words{n * n}():\n    return {n**9}, 'zzqx zzqx vvrk'\n" * 30)
    Path(held_out[0]).unlink()
    assert cli("train", "--out", out, "--resume").status == 1
    done = cli("train", "--out", out, "--resume", "--allow-changed-data")
    assert done.status == 0, done.err
    assert "the corpus has changed since: 12 files added" in done.err
    now = json.loads((out / "training" / "data.json").read_text())
    assert tokenizer.load(out).fingerprint() == kept == now["tokenizer"]
    [change] = now["changes"]
    assert (change["step"], change["added"], change["removed"], change["changed"]) == (2, 12, 1, 0)
    assert held_out[0] not in [s["path"] for s in now["sources"]]
    assert (out / "training" / "validation.bin").stat().st_size == 2 * now["tokens"]["validation"]
    assert cli("train", "--out", out, "--resume").status == 0, "what was allowed once is what is expected"
    assert cli("eval", "--model", out, "--cursors", 3, "--json").status == 0


def test_losses_on_what_was_held_out_before_are_not_compared_with_even_after_a_kill(stopped, cli, monkeypatch):
    """Killed after the change was allowed, before another checkpoint: the one there has the old split's best loss."""
    _, out = stopped
    recipe = json.loads((out / "training" / "recipe.json").read_text())
    recipe["train"] |= {"steps": 4, "evaluations": 2}
    (out / "training" / "recipe.json").write_text(json.dumps(recipe))
    kept = checkpoint.newest(out)
    state = json.loads((kept / "state.json").read_text())
    (kept / "state.json").write_text(json.dumps(state | {"best_loss": 0.001}))
    hashes = json.loads((kept / "manifest.json").read_text())
    (kept / "manifest.json").write_text(json.dumps(hashes | {"state.json": checkpoint.digest(kept / "state.json")}))
    then = json.loads((out / "training" / "data.json").read_text())
    Path(next(s["path"] for s in then["sources"] if s["split"] == "validation")).unlink()
    monkeypatch.setattr(loop.Run, "train", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli("train", "--out", out, "--resume", "--allow-changed-data").status == 130
    monkeypatch.undo()
    assert cli("train", "--out", out, "--resume").status == 0
    *_, evaluation = map(json.loads, (out / "training" / "metrics.jsonl").read_text().splitlines())
    assert (evaluation["step"], evaluation["best"]) == (4, True)


def test_allowing_changed_data_goes_with_resume(code, cli, tmp_path):
    done = cli("train", code, "--out", tmp_path / "run", "--allow-changed-data")
    assert done.status == 2
    assert "--allow-changed-data goes with --resume" in done.error


def test_a_second_corpus_is_mixed_in_recorded_and_expected_again(code, small, cli, tmp_path):
    other, out = tmp_path / "prose", tmp_path / "run"
    other.mkdir()
    (other / "a.txt").write_text("".join(f"The {n} quick brown foxes jump over {n * n} dogs.\n" for n in range(300)))
    shutil.copy(code / "glob.py", other)
    done = cli("train", code, "--config", small, "--out", out, "--mix", f"{other}=0.25", *QUICK)
    assert done.status == 0, done.err
    assert "mixed in, 25% of what is trained on: 1 files" in done.err
    record = json.loads((out / "training" / "data.json").read_text())
    assert [m["share"] for m in record["mix"]] == ["1/4"]
    assert [s["path"] for s in record["mix"][0]["sources"]] == [str(other / "a.txt")], "glob.py is known already"
    assert record["mix"][0]["skipped"] == {"duplicate": 1}
    assert {s["split"] for s in record["mix"][0]["sources"]} == {"train"}
    assert cli("train", "--out", out, "--resume").status == 0
    (other / "a.txt").write_text("The other text is another.\n" * 300)
    done = cli("train", "--out", out, "--resume")
    assert done.status == 1
    assert f"1 file changed ({other / 'a.txt'})" in done.error
    done = cli("train", code, "--config", small, "--out", tmp_path / "none", "--mix", f"{code}=0.5")
    assert done.status == 1
    assert f"--mix {code}: no text to learn from: left out 10 duplicate" in done.error


@pytest.mark.parametrize("mix", [["x"], ["=0.5"], ["p=0"], ["p=1"], ["p=1/0"], ["p=many"], ["p=0.5", "q=0.5"]])
def test_shares_that_make_no_sense(code, cli, tmp_path, mix):
    done = cli("train", code, "--out", tmp_path / "run", *(part for each in mix for part in ("--mix", each)))
    assert done.status == 2
    assert "--mix" in done.error
    assert not (tmp_path / "run").exists()


def test_a_run_within_the_folder_it_learns_from_does_not_learn_from_itself(code, small, cli, tmp_path, monkeypatch):
    """`mlxgpt train . --out runs/a`: what runs write is no change of the corpus, so they can be resumed."""
    corpus = tmp_path / "code"
    shutil.copytree(code, corpus)
    monkeypatch.chdir(corpus)
    options = ("--config", small, *QUICK, "--set", "data.validation_fraction=0")
    for name in ("a", "b"):
        done = cli("train", ".", *options, "--out", f"runs/{name}")
        assert done.status == 0, done.err
    assert "from the cache: 10 files" in done.err
    assert "skipped: 1 model folder" in done.err
    shutil.copy("runs/a/report.html", corpus / "report.html")
    done = cli("train", "--out", "runs/a", "--resume")
    assert done.status == 0, done.err
    done = cli("train", ".", "--config", small, "--out", ".", *QUICK)
    assert done.status == 2
    assert "--out . is what is trained on: name a folder in it, or elsewhere" in done.error


def test_resume_takes_a_touched_corpus_that_reads_the_same(stopped, cli):
    corpus, out = stopped
    (corpus / "glob.py").touch()
    assert cli("train", "--out", out, "--resume").status == 0


@pytest.mark.parametrize(
    "option",
    ["code", "--config=tiny", "--set=train.steps=9", "--steps=9", "--minutes=1", "--seed=9", "--force", "--mix=a=0.1"],
)
def test_resume_takes_nothing_but_the_folder(trained, cli, option):
    done = cli("train", option, "--out", trained, "--resume")
    assert done.status == 2
    assert "--resume goes on with the run as it began" in done.error


def test_resume_needs_a_run(cli, tmp_path):
    done = cli("train", "--out", tmp_path, "--resume")
    assert done.status == 2
    assert f"there is no run in {tmp_path}" in done.error


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"train": {"steps": "x"}}'])
def test_resume_with_a_damaged_recipe_is_one_clear_line(stopped, cli, content):
    _, out = stopped
    (out / "training" / "recipe.json").write_text(content)
    done = cli("train", "--out", out, "--resume")
    assert done.status == 1
    assert str(out / "training" / "recipe.json") in done.error


def test_the_corpus_is_read_once(stopped, small, cli, tmp_path):
    corpus, _ = stopped
    done = cli("train", corpus, "--config", small, "--out", tmp_path / "again", *QUICK)
    assert done.status == 0
    assert "corpus, from the cache: 10 files" in done.err


def test_out_must_be_a_place_for_a_folder(code, small, cli, tmp_path):
    (tmp_path / "file").write_text("")
    done = cli("train", code, "--config", small, "--out", tmp_path / "file", *QUICK)
    assert done.status == 2
    assert "is a file" in done.error
    done = cli("train", code, "--config", small, "--out", tmp_path / "file" / "run", *QUICK)
    assert done.status == 1
    assert str(tmp_path / "file" / "run") in done.error
    assert (tmp_path / "file").read_text() == ""


def test_ctrl_c_before_the_first_step_leaves_nothing(code, small, cli, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "prepare", interrupt)
    done = cli("train", code, "--config", small, "--out", tmp_path / "run")
    assert done.status == 130
    assert done.error == "aborted"
    assert not (tmp_path / "run").exists()


def test_what_is_shown(stopped, small, cli, tmp_path):
    """Progress on stderr in the order it happens; where the results are on stdout."""
    corpus, _ = stopped
    done = cli("train", corpus, "--config", small, "--out", tmp_path / "r", *QUICK)
    assert done.out == f"model {tmp_path / 'r'}\nreport {tmp_path / 'r' / 'report.html'}\n"
    lines = done.err.splitlines()
    starts = (
        "mlxgpt train",
        "reading the corpus",
        "corpus",
        "model: mistral, ",
        "memory: about ",
        "step 1 ",
        "step 2 ",
        "step 2 ",
        "calibrating its completions",
        "done at step 2 ",
    )
    assert [line.startswith(start) for line, start in zip(lines, starts, strict=True)] == [True] * len(starts), lines
    assert "val_loss" in lines[-3]
    assert "val_loss" in lines[-1]
