"""Token shards: made once for each corpus and recipe, whole or not there, never larger in memory than a few pieces."""

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tracemalloc
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from mlxgpt import tokenizer as tokenizers
from mlxgpt.config import DataConfig, TokenizerConfig
from mlxgpt.data import corpus, shards
from mlxgpt.data.shards import Shards, prepare
from mlxgpt.errors import Error, UsageError

DATA = DataConfig(near_duplicates=0.0, validation_fraction=0.2)
BYTES = TokenizerConfig(kind="byte")
CODE = "def add(first, second):\n    return first + second  # {} ▁ é 😀\r\n\n"


@pytest.fixture
def sources(tmp_path) -> Path:
    """A folder of thirty small files."""
    folder = tmp_path / "code"
    folder.mkdir()
    for i in range(30):
        (folder / f"f{i:02}.py").write_bytes(CODE.format(i).encode() * (i + 1))
    return folder


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def corpora(cache: Path) -> list[str]:
    """Everything in the cache's folder of corpora, half-written folders too."""
    return sorted(p.name for p in (cache / "corpora").iterdir()) if (cache / "corpora").is_dir() else []


def texts(made: Shards, split: str) -> list[bytes]:
    """The documents of a split, decoded from its tokens by the counts in the manifest."""
    tokens, start, found = made.tokens(split), 0, []
    for source in (s for s in made.manifest["sources"] if s["split"] == split):
        ids = tokens[start : start + source["tokens"]].tolist()
        assert (ids[0], ids[-1]) == (made.tokenizer.bos_id, made.tokenizer.eos_id)
        found.append(made.tokenizer.decode(ids))
        start += source["tokens"]
    assert start == len(tokens)
    return found


# ------------------------------------------------------------------------------------------------ contents


@pytest.mark.parametrize("config", [BYTES, TokenizerConfig(kind="char"), TokenizerConfig(vocab_size=300)])
def test_the_tokens_are_the_documents(sources, cache, config):
    made, cached = prepare([sources], DATA, config, cache)
    assert not cached
    documents = corpus.collect(*corpus.find([sources], DATA), DATA)
    assert len(documents.documents) == 30
    for split in shards.SPLITS:
        expected = [document.path.read_bytes() for document in documents.split(split)]
        assert 0 < len(expected) < 30
        assert texts(made, split) == expected
        assert made.bytes_in(split) == made.manifest["bytes"][split] == sum(map(len, expected))
        assert made.manifest["documents"][split] == len(expected)
        assert made.manifest["tokens"][split] == len(made.tokens(split))


def test_the_manifest_says_what_the_shards_were_made_from(sources, cache):
    (sources / "blob.bin").write_bytes(b"\0")
    made, _ = prepare([sources], DATA, BYTES, cache)
    manifest = json.loads((made.folder / "manifest.json").read_text())
    assert manifest == made.manifest
    assert manifest["tokenizer"] == tokenizers.CharTokenizer("").fingerprint()
    assert manifest["skipped"] == {"binary": 1}
    assert len(manifest["sources"]) == 30
    for source in manifest["sources"]:
        content = Path(source["path"]).read_bytes()
        assert source["sha256"] == hashlib.sha256(content).hexdigest()
        assert source["bytes"] == len(content)
        assert source["name"] == f"code/{Path(source['path']).name}"


def test_token_files_are_read_only_memory_maps(sources, cache):
    made, _ = prepare([sources], DATA, BYTES, cache)
    tokens = made.tokens("train")
    assert isinstance(tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


def test_large_vocabularies_take_four_bytes_a_token(sources, cache, tmp_path):
    for size, dtype in ((1 << 16, "<u2"), ((1 << 16) + 1, "<u4")):
        vocabulary = {f"<0x{b:02X}>": b for b in range(256)} | {f"token{i}": i for i in range(256, size)}
        model = {"type": "BPE", "vocab": vocabulary, "merges": [], "byte_fallback": True}
        path = tmp_path / f"{size}.json"
        path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
        made, _ = prepare([sources], DATA, TokenizerConfig(kind="file", path=str(path)), cache)
        assert (made.tokenizer.vocab_size, made.manifest["dtype"]) == (size, dtype)
        assert made.tokens("train").dtype == np.dtype(dtype)
        data = made.tokenizer.decode(made.tokens("validation").tolist())
        held_out = [Path(s["path"]) for s in made.manifest["sources"] if s["split"] == "validation"]
        assert data == b"".join(path.read_bytes() for path in held_out)


def test_documents_without_marks_are_one_text(tmp_path, cache):
    text = "".join(f"line {i}\n" for i in range(500))
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name + "\n" + text)
    config = TokenizerConfig(kind="char", byte_fallback=False)
    data = replace(DATA, split="tail", validation_fraction=0.1)
    made, _ = prepare([tmp_path / "a.txt", tmp_path / "b.txt"], data, config, cache)
    whole = [(tmp_path / name).read_text() for name in ("a.txt", "b.txt")]
    cut = [int(len(t) * 0.9) for t in whole]
    assert made.tokenizer.vocab_size == len(set(whole[0][: cut[0]] + whole[1][: cut[1]]))
    decoded = {split: made.tokenizer.decode(made.tokens(split).tolist()).decode() for split in shards.SPLITS}
    assert decoded["train"] == "".join(t[:c] for t, c in zip(whole, cut, strict=True))
    assert decoded["validation"] == "".join(t[c:] for t, c in zip(whole, cut, strict=True))


def test_a_character_that_only_the_validation_text_has(tmp_path, cache):
    (tmp_path / "a.txt").write_text("plain text\n" * 100 + "é\n")
    data = replace(DATA, split="tail", validation_fraction=0.1)
    with pytest.raises(Error, match="no token for 'é'"):
        prepare([tmp_path / "a.txt"], data, TokenizerConfig(kind="char", byte_fallback=False), cache)
    assert corpora(cache) == []
    made, _ = prepare([tmp_path / "a.txt"], data, TokenizerConfig(kind="char"), cache)
    assert made.tokenizer.decode(made.tokens("validation").tolist()).endswith("é\n".encode())


def test_the_validation_split_may_be_empty(sources, cache):
    config = replace(DATA, validation_fraction=0.0)
    for cached in (False, True):
        made, was = prepare([sources], config, BYTES, cache)
        assert was == cached
        assert (len(made.tokens("validation")), made.bytes_in("validation")) == (0, 0)
        assert made.tokens("validation").dtype == np.dtype("<u2")
        assert len(texts(made, "train")) == 30


def test_the_tokenizer_learns_from_the_training_text_alone_and_from_no_more_than_it_should(sources):
    documents = corpus.collect(*corpus.find([sources], DATA), DATA)
    train = sorted(documents.split("train"), key=lambda d: d.sha256)
    whole = "".join(d.path.read_bytes().decode() for d in train)
    assert "".join(shards.sample(documents, TokenizerConfig(kind="char"))) == whole
    config = TokenizerConfig(kind="bpe", sample_bytes=1000)
    assert "".join(shards.sample(documents, config)) == whole[:1000]


def test_a_name_that_is_not_utf8(sources, cache):
    os.rename(os.fsencode(sources / "f00.py"), os.fsencode(sources) + b"/caf\xe9.py")
    for cached in (False, True):
        made, was = prepare([sources], DATA, BYTES, cache)
        assert was == cached
        [source] = [s for s in made.manifest["sources"] if "caf" in s["name"]]
        assert os.fsencode(source["path"]).endswith(b"/caf\xe9.py")


# ------------------------------------------------------------------------------------------- the second run


def test_a_second_run_reads_no_source(sources, cache, monkeypatch):
    first, _ = prepare([sources], DATA, BYTES, cache)
    monkeypatch.setattr(corpus, "collect", lambda *_: pytest.fail("the corpus was read again"))
    monkeypatch.setattr(tokenizers, "make", lambda *_: pytest.fail("the tokenizer was made again"))
    second, cached = prepare([sources], DATA, BYTES, cache)
    assert cached
    assert second.manifest == first.manifest
    assert second.folder == first.folder
    assert second.tokenizer.fingerprint() == first.tokenizer.fingerprint()
    for split in shards.SPLITS:
        assert np.array_equal(second.tokens(split), first.tokens(split))


@pytest.mark.parametrize("change", ["touch", "edit", "add", "remove", "data", "tokenizer", "explicit"])
def test_what_changes_the_corpus_makes_another(sources, cache, change):
    first, _ = prepare([sources], DATA, BYTES, cache)
    file, paths, data, config = sources / "f05.py", [sources], DATA, BYTES
    if change == "touch":
        os.utime(file, ns=(1, file.stat().st_mtime_ns + 1))
    elif change == "edit":
        before = file.stat().st_mtime_ns
        file.write_text("changed = True\n")
        os.utime(file, ns=(before, before))
    elif change == "add":
        (sources / "new.py").write_text("new = True\n")
    elif change == "remove":
        file.unlink()
    elif change == "data":
        data = replace(DATA, validation_fraction=0.3)
    elif change == "tokenizer":
        config = TokenizerConfig(kind="char")
    else:
        paths = [sources, sources / "f29.py"]  # which is the last either way
    second, cached = prepare(paths, data, config, cache)
    assert not cached
    assert second.folder != first.folder
    assert prepare(paths, data, config, cache)[1]


def test_another_ready_tokenizer_in_the_same_place_makes_another(sources, cache, tmp_path):
    config = TokenizerConfig(kind="file", path=str(tmp_path / "ready"))
    (tmp_path / "ready").mkdir()
    for characters in ("abc", "abcd"):
        tokenizers.CharTokenizer(characters).save(tmp_path / "ready")
        made, cached = prepare([sources], DATA, config, cache)
        assert not cached
        assert made.tokenizer.characters == characters
    assert prepare([sources], DATA, config, cache)[1]
    with pytest.raises(UsageError, match=r"tokenizer\.path: no such file or folder"):
        prepare([sources], DATA, replace(config, path=str(tmp_path / "gone")), cache)


def damage(folder: Path, what: str) -> None:
    if what == "manifest cut":
        content = (folder / "manifest.json").read_bytes()
        (folder / "manifest.json").write_bytes(content[: len(content) // 2])
    elif what == "manifest of another format":
        (folder / "manifest.json").write_text("{}")
    elif what == "tokens cut":
        os.truncate(folder / "train.bin", (folder / "train.bin").stat().st_size - 2)
    elif what == "odd byte":
        os.truncate(folder / "validation.bin", (folder / "validation.bin").stat().st_size - 1)
    elif what == "another tokenizer":
        tokenizers.CharTokenizer("abc").save(folder)
    elif what == "tokenizer cut":
        os.truncate(folder / "tokenizer.json", 100)
    else:
        (folder / what).unlink()


@pytest.mark.parametrize(
    "what",
    ["manifest cut", "manifest of another format", "tokens cut", "odd byte", "another tokenizer", "tokenizer cut",
     "manifest.json", "train.bin", "validation.bin", "tokenizer.json"],
)  # fmt: skip
def test_damaged_shards_are_made_again(sources, cache, what):
    first, _ = prepare([sources], DATA, BYTES, cache)
    tokens = {split: first.tokens(split).tolist() for split in shards.SPLITS}
    damage(first.folder, what)
    second, cached = prepare([sources], DATA, BYTES, cache)
    assert not cached
    assert {split: second.tokens(split).tolist() for split in shards.SPLITS} == tokens
    assert second.manifest == first.manifest
    assert corpora(cache) == [first.folder.name]
    assert prepare([sources], DATA, BYTES, cache)[1]


def test_a_file_where_the_shards_should_be_is_replaced(sources, cache):
    first, _ = prepare([sources], DATA, BYTES, cache)
    shards.files.discard(first.folder)
    first.folder.write_text("in the way")
    assert not prepare([sources], DATA, BYTES, cache)[1]
    assert prepare([sources], DATA, BYTES, cache)[1]


def test_another_process_that_was_quicker_wins(sources, cache, monkeypatch):
    first, _ = prepare([sources], DATA, BYTES, cache)
    stamp = (first.folder / "manifest.json").stat().st_mtime_ns
    moved = cache / "elsewhere"
    os.rename(first.folder, moved)
    write = shards._write

    def slow(*arguments):
        manifest = write(*arguments)
        os.rename(moved, first.folder)  # the other process is done
        return manifest

    monkeypatch.setattr(shards, "_write", slow)
    second, cached = prepare([sources], DATA, BYTES, cache)
    assert not cached
    assert (second.folder / "manifest.json").stat().st_mtime_ns == stamp
    assert corpora(cache) == [first.folder.name]


RUN = """
import sys
from pathlib import Path
from mlxgpt.config import DataConfig, TokenizerConfig
from mlxgpt.data.shards import prepare
sys.stdin.read(1)
data = DataConfig(near_duplicates=0.0, validation_fraction=0.2)
made, _ = prepare([Path(sys.argv[1])], data, TokenizerConfig(vocab_size=300), Path(sys.argv[2]))
print(made.tokens("train").sum(), made.tokens("validation").sum(), made.manifest["tokenizer"])
"""


def test_two_processes_at_once(sources, cache):
    command = [sys.executable, "-c", RUN, str(sources), str(cache)]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in running:
        process.stdin.write("x")
        process.stdin.flush()
    answers = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert answers[0] == answers[1] != ""
    assert len(corpora(cache)) == 1


# ------------------------------------------------------------------------------------------ room and memory


@contextmanager
def full_disk(limit: int):
    """No file grows beyond `limit` bytes: a write fails half-way, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_an_error_and_leaves_nothing(sources, cache):
    for limit in (0, 8000, 30_000):  # in the tokenizer, in the tokens, in the manifest
        with full_disk(limit), pytest.raises(Error, match="could not be written") as caught:
            prepare([sources], DATA, BYTES, cache)
        assert "\n" not in str(caught.value)
        assert corpora(cache) == []
    assert not prepare([sources], DATA, BYTES, cache)[1]


def test_a_cache_that_cannot_be_is_an_error(sources, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Error, match="cannot be made: Not a directory; MLXGPT_CACHE names another cache"):
        prepare([sources], DATA, BYTES, tmp_path / "file")


def test_a_large_corpus_passes_through_in_pieces(tmp_path, cache):
    """40 MB of text; the memory that Python and numpy take is that of a few pieces of 4 MB."""
    line = "def function(argument):\n    return argument  # something, a number of times\n"
    for i in range(2):
        with open(tmp_path / f"{i}.py", "w") as file:
            file.writelines([f"# file {i} 0123456789\n", *[line] * (20_000_000 // len(line))])
    paths = sorted(tmp_path.glob("*.py"))
    tracemalloc.start()
    try:
        made, _ = prepare(paths, replace(DATA, max_validation_bytes=0), TokenizerConfig(kind="char"), cache)
        building = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        again, cached = prepare(paths, replace(DATA, max_validation_bytes=0), TokenizerConfig(kind="char"), cache)
        assert again.tokens("train")[-1] == made.tokenizer.eos_id
        opening = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert cached
    assert sum(made.manifest["bytes"].values()) > 39_000_000
    assert building < 90 << 20, "a piece as text, as code points and as ids: 17 bytes for each of 4 MB"
    assert opening < 4 << 20


# -------------------------------------------------------------------------------------------------- pruning


def test_a_run_goes_on_where_its_corpus_is_removed_from_the_cache(sources, cache):
    """As by sixteen other corpora in a long night."""
    shards, _ = prepare([sources], DATA, BYTES, cache)
    before = shards.tokens("train").tolist()
    shutil.rmtree(shards.folder)
    assert shards.tokens("train").tolist() == before


def test_the_corpora_used_longest_ago_go(sources, cache, monkeypatch):
    monkeypatch.setattr(shards, "KEEP", 2)
    made = []
    for i, fraction in enumerate((0.1, 0.2, 0.3)):
        made.append(prepare([sources], replace(DATA, validation_fraction=fraction), BYTES, cache)[0].folder)
        os.utime(made[-1], (i, i))
    assert corpora(cache) == sorted(p.name for p in made[1:])
    assert prepare([sources], replace(DATA, validation_fraction=0.2), BYTES, cache)[1], "used again"
    last = prepare([sources], replace(DATA, validation_fraction=0.4), BYTES, cache)[0].folder
    assert corpora(cache) == sorted([made[1].name, last.name])


def test_what_a_killed_process_left_goes_in_time(sources, cache):
    (cache / "corpora" / ".old-1").mkdir(parents=True)
    (cache / "corpora" / ".old-1" / "train.bin").write_text("x")
    (cache / "corpora" / ".new-1").mkdir()
    os.utime(cache / "corpora" / ".old-1", (1, 1))
    made, _ = prepare([sources], DATA, BYTES, cache)
    assert corpora(cache) == [".new-1", made.folder.name], "the new one may still be written to"


# ------------------------------------------------------------------------------------------------ what is done with it
def test_one_corpus_serves_every_rate_of_infilling_and_isolation(sources, cache):
    plain, _ = prepare([sources], DATA, BYTES, cache)
    some, cached = prepare([sources], replace(DATA, fim_rate=0.3), BYTES, cache)
    assert not cached, "its tokenizer has more tokens"
    assert (plain.tokenizer.fim, some.tokenizer.fim is None) == (None, False)
    other = replace(DATA, fim_rate=0.9, fim_spm=0.0, isolate_documents=True)
    again, cached = prepare([sources], other, BYTES, cache)
    assert (again.folder, cached) == (some.folder, True)
    assert prepare([sources], replace(DATA, isolate_documents=True), BYTES, cache)[1]
    assert np.array_equal(plain.tokens("train"), some.tokens("train"))


def test_documents_begin_where_the_starts_say(sources, cache):
    made, _ = prepare([sources], DATA, BYTES, cache)
    for split in ("train", "validation"):
        starts, tokens = made.starts(split), made.tokens(split)
        assert np.array_equal(np.flatnonzero(tokens == made.tokenizer.bos_id), starts)


def test_what_is_mixed_in_is_new_text_in_the_same_tokens(sources, cache, tmp_path):
    """Nothing of it is in the corpus, nor nearly so, lest what is held out be trained on after all."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "new.txt").write_text("Something else altogether, in prose, that is nowhere in the code.\n" * 5)
    text = "".join(f"def f{n}(a, b):\n    return a * {n} + b\n" for n in range(60))
    (sources / "long.py").write_text(text)
    (other / "same.py").write_bytes((sources / "f03.py").read_bytes())
    (other / "nearly.py").write_text(text + "# one more line\n")
    data = replace(DATA, near_duplicates=0.85)
    mix = [(other, Fraction(1, 5))]
    made, cached = prepare([sources], data, BYTES, cache, mix)
    [(mixed, share)] = made.mixed
    assert (cached, share) == (False, Fraction(1, 5))
    assert [s["name"] for s in mixed.manifest["sources"]] == ["other/new.txt"]
    assert mixed.manifest["skipped"] == {"duplicate": 1, "near duplicate": 1}
    assert mixed.manifest["tokenizer"] == made.manifest["tokenizer"]
    assert len(mixed.tokens("validation")) == 0
    assert texts(mixed, "train") == [(other / "new.txt").read_bytes()]
    again, cached = prepare([sources], data, BYTES, cache, mix)
    assert cached
    assert again.record() == made.record()
    assert prepare([sources], data, BYTES, cache)[0].mixed == ()


def test_a_ready_tokenizer_takes_the_place_of_the_recipes(sources, cache):
    ready = tokenizers.CharTokenizer("abc")
    made, cached = prepare([sources], DATA, TokenizerConfig(vocab_size=300), cache, ready=ready)
    assert (cached, made.manifest["tokenizer"]) == (False, ready.fingerprint())
    assert prepare([sources], DATA, BYTES, cache, ready=tokenizers.CharTokenizer("abc"))[1], "whatever the recipe says"
