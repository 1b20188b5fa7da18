"""A model that was trained to fill in the middle: its prompt has the suffix, and its folder says so to other tools."""

import json
import shutil

import pytest
import tokenizers as hub

from mlxgpt import tokenizer as its_tokenizer
from mlxgpt import weights
from mlxgpt.completion.opening import open_suggester
from mlxgpt.completion.prompt import SUFFIX_SHARE, build, build_infilling
from mlxgpt.completion.settings import Settings
from mlxgpt.completion.suggest import Suggester
from mlxgpt.data import fim
from mlxgpt.errors import Error
from mlxgpt.tokenizer import FIM


@pytest.fixture(scope="module")
def infilling(tmp_path_factory, small, code, spawn):
    """A run of three steps with fill-in-the-middle."""
    out = tmp_path_factory.mktemp("runs") / "infilling"
    keys = ("data.fim_rate=0.5", "train.evaluations=1", "train.sample_tokens=0")
    settings = [part for key in keys for part in ("--set", key)]
    done = spawn("train", code, "--config", small, "--steps", 3, *settings, "--out", out)
    assert done.status == 0, done.err
    return out


@pytest.fixture(scope="module")
def bpe(infilling):
    return weights.load_with_tokenizer(infilling)[1]


@pytest.fixture(scope="module")
def source(code) -> bytes:
    return (code / "shlex.py").read_bytes()


def test_the_folder_names_its_tokens_as_others_know_them(infilling, bpe):
    theirs = hub.Tokenizer.from_file(str(infilling / "tokenizer.json"))
    assert [theirs.token_to_id(name) for name in FIM] == list(bpe.fim)
    added = json.loads((infilling / "tokenizer.json").read_text())["added_tokens"]
    assert {t["content"] for t in added if t["special"]} >= set(FIM)
    assert json.loads((infilling / "config.json").read_text())["vocab_size"] == bpe.vocab_size == 512
    text = f"a {FIM[0]} b"
    assert bpe.decode(bpe.encode(text)) == text.encode()
    assert not set(bpe.encode(text)) & set(bpe.fim), "what a text spells stays text"
    assert Settings.load(infilling).fim == "spm"


@pytest.mark.parametrize("order", ["spm", "psm"])
@pytest.mark.parametrize("budget", [60, 200, 5000])
def test_the_prompt_is_what_training_showed(bpe, source, order, budget):
    for cut in range(300, 4000, 371):
        prefix, suffix = source[:cut], source[cut:]
        prompt = build_infilling(bpe, prefix, suffix, budget, order)
        assert len(prompt.ids) <= budget
        ids = prompt.ids
        before, after, middle = (ids.index(i) for i in bpe.fim)
        assert ids[:2] == [bpe.bos_id, bpe.fim.prefix]
        assert (before, after) == (1, 2) if order == "spm" else before < after < middle == len(ids) - 1
        left = ids[middle + 1 :] if order == "spm" else ids[before + 1 : after]
        right = ids[after + 1 : middle]
        assert prefix.endswith(bpe.decode(left) + prompt.remainder)
        assert prompt.before == [bpe.bos_id, *left]
        assert suffix.startswith(bpe.decode(right))
        assert len(right) <= budget // SUFFIX_SHARE
        assert len(right) > budget // SUFFIX_SHARE // 2 - 1 or bpe.decode(right) == suffix
        if budget == 5000:
            trained, parts = fim.arrange(bpe, (prefix.decode(), "", suffix.decode()), order)
            held = [i for i, part in zip(trained, parts, strict=True) if part == fim.SUFFIX]
            assert right == held[: len(right)]


def test_typing_leaves_the_prompt_as_it_is_but_for_its_end(bpe, source):
    """So that the model's state for it is kept; in PSM it is not, behind the cursor."""
    before, after = source[:900], source[900:]
    one = build_infilling(bpe, before, after, 400, "spm").ids
    two = build_infilling(bpe, before + b"x", after, 400, "spm").ids
    shared = next(i for i, (a, b) in enumerate(zip([*one, -1], [*two, -2], strict=False)) if a != b)
    assert shared >= len(one) - 8


def test_an_empty_prefix_and_a_long_suffix(bpe, source):
    prompt = build_infilling(bpe, b"", source[700:], 400, "spm")
    assert prompt.ids[-1] == bpe.fim.middle
    assert (prompt.remainder, prompt.before) == (b"", [bpe.bos_id])
    assert bpe.decode(prompt.ids).endswith(b"\n"), "whole lines, where they fit"


def test_the_suggester_shows_the_suffix_where_the_model_knows_what_it_is(infilling, bpe, source):
    suggester = open_suggester(str(infilling), using="model")
    prefix, suffix = source[:700], source[700:]
    assert suggester.source(prefix, suffix).ids[1:3] == [bpe.fim.prefix, bpe.fim.suffix]
    for nothing in (b"", b"\n \n"):
        assert suggester.source(prefix, nothing).ids == suggester.source(prefix, b"").ids
        assert bpe.fim.middle not in suggester.source(prefix, nothing).ids
    assert suggester.suggest(prefix, suffix).evidence is not None
    model, tokenizer = weights.load_with_tokenizer(infilling)
    for settings, order in ((Settings(fim=""), ""), (Settings(fim="psm"), "psm"), (Settings(), "psm")):
        assert Suggester(model, tokenizer, using="model", settings=settings).fim == order
    left_to_right = Suggester(model, tokenizer, using="model", settings=Settings(fim=""))
    budget = model.config.context // 2
    assert left_to_right.source(prefix, suffix).ids == build(tokenizer, prefix, budget).ids


def test_a_model_without_the_tokens_is_asked_left_to_right(trained, source):
    suggester = open_suggester(str(trained))
    assert suggester.fim == ""
    assert suggester.source(source[:700], source[700:]).ids == suggester.source(source[:700], b"").ids


def test_complete_and_eval_work_on_it(infilling, code, cli):
    done = cli("eval", "--model", infilling, "--cursors", 4, "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out)["val_bpb"] > 0
    done = cli("complete", "--model", infilling, code / "glob.py", "--line", 20, "--column", 3, "--json")
    assert done.status == 0, done.err


def test_settings_that_make_no_sense_are_damaged(infilling, tmp_path):
    shutil.copy(infilling / "completion.json", tmp_path)
    table = json.loads((tmp_path / "completion.json").read_text())
    (tmp_path / "completion.json").write_text(json.dumps(table | {"fim": "mps"}))
    with pytest.raises(Error, match="is damaged"):
        Settings.load(tmp_path)


def test_other_tokenizers_have_the_tokens_or_are_refused(code, small, cli, tmp_path, trained):
    rate = ("--set", "data.fim_rate=0.5", "--set", "train.steps=1", "--set", "train.sample_tokens=0")
    for kind in ("byte", "char"):
        out = tmp_path / kind
        done = cli("train", code, "--config", small, "--set", f"tokenizer.kind={kind}", *rate, "--out", out)
        assert done.status == 0, done.err
        assert its_tokenizer.load(out).fim is not None
    for settings, advice in (
        (("--set", "tokenizer.kind=char", "--set", "tokenizer.byte_fallback=false"), "tokenizer.byte_fallback = true"),
        (("--set", "tokenizer.kind=file", "--set", f"tokenizer.path={trained}"), 'tokenizer.kind = "bpe"'),
    ):
        done = cli("train", code, "--config", small, *settings, *rate, "--out", tmp_path / "none")
        assert done.status == 1
        assert "data.fim_rate above 0 needs a tokenizer with <|fim_prefix|>" in done.error
        assert advice in done.error
    ready = ("--set", "tokenizer.kind=file", "--set", f"tokenizer.path={tmp_path / 'byte'}")
    done = cli("train", code, "--config", small, *ready, *rate, "--out", tmp_path / "ready")
    assert done.status == 0, done.err
    assert its_tokenizer.load(tmp_path / "ready").fim == its_tokenizer.load(tmp_path / "byte").fim
