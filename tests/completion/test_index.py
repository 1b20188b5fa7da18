"""A project's index: what is in it, that updates are as good as building anew, and what is kept on disk."""

import random
import shutil

import numpy as np
import pytest

from mlxgpt import weights
from mlxgpt.completion import project, suggest
from mlxgpt.completion.index import Index
from mlxgpt.completion.lexer import Lexer
from mlxgpt.completion.ngram import UNKNOWN, Interpolation
from mlxgpt.completion.suggest import Suggester
from mlxgpt.errors import Error, UsageError


def index_of(*documents: tuple[str, bytes], limit: int = 1 << 20) -> Index:
    index = Index(Lexer(), limit)
    index.build(documents)
    return index


def known(index: Index, prefix: bytes) -> dict[bytes, float]:
    """What an index says follows a text, and how probable."""
    assert isinstance(index.tokenizer, Lexer)
    found = Interpolation([(s, 1.0) for s in index.segments]).predict(index.tokenizer.encode(prefix))
    pairs = zip(found.ids, found.probabilities, strict=True)
    return {index.tokenizer.token_bytes[i]: round(p, 6) for i, p in pairs if i >= 0}


def test_updates_come_to_the_same_as_building_anew():
    draw = random.Random(0)
    words = [b"alpha", b"beta", b"gamma", b" ", b"(", b")", b"\n"]

    def text() -> bytes:
        return b"".join(draw.choices(words, k=draw.randrange(5, 30)))

    files = {f"f{i}": text() for i in range(12)}
    index = index_of(*files.items())
    for _ in range(60):
        name = f"f{draw.randrange(14)}"
        if draw.random() < 0.2:
            files.pop(name, None)
            index.update(name, None)
        else:
            files[name] = text()
            index.update(name, files[name])
        assert index.documents == files.keys()
    assert len(index.segments) <= 8
    fresh = index_of(*files.items())
    assert len(index) == len(fresh)
    for prefix in (b"alpha", b"alpha(", b"beta gamma", b")\n", b"gamma"):
        assert known(index, prefix) == pytest.approx(known(fresh, prefix))


def test_a_hidden_document_does_not_count_until_another_is():
    index = index_of(("a", b"x one"), ("b", b"x two"))
    index.hide("a")
    assert b"one" not in known(index, b"x ")
    index.hide("b")
    assert (b"one" in known(index, b"x "), b"two" in known(index, b"x ")) == (True, False)
    index.hide("none such")
    assert {b"one", b"two"} <= known(index, b"x ").keys()
    index.hide("a")
    index.update("a", b"x three")  # saved while it is open
    index.hide(None)
    assert b"three" in known(index, b"x ")
    assert b"one" not in known(index, b"x ")


def test_what_finds_no_room_is_left_out_and_counted():
    index = index_of(("a", b"one two three"), ("b", b" ".join([b"long"] * 50)), ("c", b"four"), limit=20)
    assert index.documents == {"a", "c"}
    assert index.left_out == 1
    assert len(index) <= 20


@pytest.fixture
def bpe(trained):
    return weights.load_with_tokenizer(trained)[1]


def test_it_comes_back_from_disk_as_it_was(tmp_path, code, bpe):
    documents = [(p.name, p.read_bytes()) for p in sorted(code.iterdir())]
    for tokenizer in (None, bpe):
        index = Index(tokenizer or Lexer())
        index.build(documents)
        index.update("cmd.py", b"import nothing_else\n")
        index.update("glob.py", None)
        index.hide("bisect.py")
        index.save(tmp_path / "i.npz", {"a": [1, 2]})
        again, notes = Index.load(tmp_path / "i.npz", tokenizer)
        assert notes == {"a": [1, 2]}
        assert again.documents == index.documents == {name for name, _ in documents} - {"glob.py"}
        prefix, suffix = b"import nothing", b"\n"
        answers = [Suggester(None, tokenizer, i, "ngrams").suggest(prefix, suffix) for i in (index, again)]
        assert answers[0].completion == answers[1].completion == "_else"
        assert answers[0].confidence == answers[1].confidence


def test_a_file_that_is_no_index_is_refused(tmp_path, bpe):
    index = index_of(("a", b"x = 1\n"))
    index.save(tmp_path / "good.npz", {})
    data = (tmp_path / "good.npz").read_bytes()
    for broken in (b"", b"PK", data[: len(data) // 2], b"\x80\x04" + data, bytes(len(data))):
        (tmp_path / "bad.npz").write_bytes(broken)
        with pytest.raises(Error, match=r"bad\.npz is"):
            Index.load(tmp_path / "bad.npz", None)
    with pytest.raises(Error, match="another tokenizer"):
        Index.load(tmp_path / "good.npz", bpe)
    with pytest.raises(Error, match=r"none\.npz"):
        Index.load(tmp_path / "none.npz", None)
    arrays = dict(np.load(tmp_path / "good.npz"))
    arrays["order0"] = arrays["order0"] + 1000
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(Error, match="do not fit"):
        Index.load(tmp_path / "bad.npz", None)


@pytest.fixture
def folder(tmp_path, code):
    root = tmp_path / "project"
    shutil.copytree(code, root)
    (root / ".git").mkdir()
    (root / ".gitignore").write_text("ignored.py\n")
    (root / "ignored.py").write_text("secret_name = 1\n")
    (root / "data.bin").write_bytes(b"\0\1\2")
    return root


def test_a_project_is_read_as_training_reads_it_and_kept(folder, tmp_path, code, monkeypatch):
    cache = tmp_path / "cache"
    index = project.open_index(folder, None, cache)
    assert index.documents == {str(folder / p.name) for p in code.iterdir()} | {str(folder / ".gitignore")}
    assert index.tokenizer.completions(b"secret_name") == []
    monkeypatch.setattr(Index, "build", lambda *a: 1 / 0)  # from here on nothing is built anew
    assert project.open_index(folder, None, cache).documents == index.documents
    (folder / "cmd.py").write_text("changed_name = 1\n")
    (folder / "glob.py").unlink()
    (folder / "new.py").write_text("another_name = 2\n")
    later = project.open_index(folder, None, cache)
    assert later.documents == (index.documents | {str(folder / "new.py")}) - {str(folder / "glob.py")}
    for name in (b"changed_name", b"another_name"):
        assert later.tokenizer.completions(name)
    monkeypatch.setattr(Index, "update", lambda *a: 1 / 0)
    assert project.open_index(folder, None, cache).documents == later.documents


def test_a_saved_file_is_taken_over_as_it_is_now(folder, tmp_path):
    index = project.open_index(folder, None, tmp_path / "cache")
    before = index.documents
    for name, content in (("cmd.py", b"first_word = 1\n"), ("new.py", b"second_word = 2\n")):
        (folder / name).write_bytes(content)
        project.update(index, folder / name, folder)
        assert known(index, content[:10])
    assert index.documents == before | {str(folder / "new.py")}
    project.update(index, folder / "ignored.py", folder)
    (folder / "cmd.py").unlink()
    project.update(index, folder / "cmd.py", folder)
    (folder / "new.py").write_bytes(b"\0\1")  # text no more
    project.update(index, folder / "new.py", folder)
    assert index.documents == before - {str(folder / "cmd.py")}


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        project.open_index(tmp_path / "none", None, tmp_path)
    (tmp_path / "empty").mkdir()
    index = project.open_index(tmp_path / "empty", None, tmp_path / "cache")
    assert index.documents == set()


def test_a_lexers_words_are_bounded_by_the_texts_that_are_there(monkeypatch):
    """What clients send goes again, and so do its words; what the project has stays, under its ids."""
    monkeypatch.setattr(suggest, "WORDS", 40_000)
    own = ("a.py", b"compute_area(width, height)\n")
    index = index_of(own)
    suggester = Suggester(index=index)
    most = 0
    for i in range(200):
        buffer = b"".join(b"name_%d_%d = value_%d\n" % (i, j, j) for j in range(20))
        extra = b"other_%d = compute(alpha_%d, beta)\n" % (i, i)
        suggester.suggest(buffer + b"compute_a", extra=[extra], document="b.py")
        most = max(most, index.tokenizer.nbytes)
    assert len(index.tokenizer.token_bytes) < 600  # of over 4,000 words that were met
    assert most < 120_000
    fresh = Suggester(index=index_of(own))
    for prefix in (b"compute_area(wi", b"other_199 = compute(al", buffer + b"name_199_7 = val"):
        answer = suggester.suggest(prefix, extra=[extra])
        assert answer.completion == fresh.suggest(prefix, extra=[extra]).completion
        assert answer.completion
    known = index.tokenizer.token_bytes
    assert all(known[i] == data for data, i in index.tokenizer._id_of.items())
    assert index.tokenizer.encode("other_0 compute_area") == [UNKNOWN, *index.tokenizer.encode(" compute_area")]


def test_an_index_that_forgot_words_is_saved_and_loaded(tmp_path):
    index = index_of(("a.py", b"first = 1\n"), ("b.py", b"second = 2\n"))
    index.update("a.py", None)
    index._merge()
    index.tokenizer.keep(segment.tokens for segment in index.segments)
    index.save(tmp_path / "index.npz", {})
    loaded, _ = Index.load(tmp_path / "index.npz", None)
    assert loaded.tokenizer.encode("first second") == [UNKNOWN, *index.tokenizer.encode(" second")]
    assert Suggester(index=loaded).suggest(b"sec").completion == "ond = 2"
