"""The corpus: what is found, what is kept, what is held out, and that text comes back byte for byte."""

import os
import random
import shutil
import subprocess
import sysconfig
import tracemalloc
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxgpt import files
from mlxgpt.config import DataConfig
from mlxgpt.data import corpus
from mlxgpt.data.corpus import Corpus, Document, NearDuplicates, collect, default_paths, find
from mlxgpt.errors import Error, UsageError

STDLIB = Path(sysconfig.get_path("stdlib"))
CONFIG = DataConfig()
WHOLE = replace(CONFIG, validation_fraction=0.0)
AS_ROOT = pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the superuser")


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def gather(*paths: Path, config: DataConfig = WHOLE) -> Corpus:
    return collect(*find(paths, config), config)


def names(found: Corpus) -> list[str]:
    return [document.name for document in found.documents]


def text(document: Document) -> str:
    return "".join(document.pieces())


def found_below(root: Path) -> tuple[list[str], Counter[str]]:
    sources, skipped = find([root], CONFIG)
    return [source.path.relative_to(root).as_posix() for source in sources], skipped


# ------------------------------------------------------------------------------------------------ finding


def test_find_lists_files_by_name_with_their_stat(tmp_path):
    root = write(tmp_path / "project", {"b.py": "b = 1\n", "a/z.txt": "z", "a.md": "# A\n", "Makefile": "all:\n"})
    sources, skipped = find([root], CONFIG)
    assert [s.name for s in sources] == [
        "project/Makefile",
        "project/a.md",
        "project/a/z.txt",
        "project/b.py",
    ]
    assert not skipped
    for source in sources:
        info = source.path.stat()
        assert source.path.is_absolute()
        assert (source.size, source.mtime_ns, source.explicit) == (info.st_size, info.st_mtime_ns, False)


def test_relative_paths_are_named_after_the_folder_they_are(tmp_path, monkeypatch):
    write(tmp_path / "project", {"src/a.py": "a"})
    monkeypatch.chdir(tmp_path / "project")
    assert [s.name for s in find([Path(".")], CONFIG)[0]] == ["project/src/a.py"]
    assert [s.name for s in find(["src"], CONFIG)[0]] == ["src/a.py"]
    monkeypatch.chdir(tmp_path / "project" / "src")
    assert [s.name for s in find([".."], CONFIG)[0]] == ["project/src/a.py"]
    [source] = find(["a.py"], CONFIG)[0]
    assert (source.name, source.explicit) == ("a.py", True)


def test_names_grow_until_they_are_unique(tmp_path):
    write(
        tmp_path,
        {"one/src/a.py": "1", "two/src/a.py": "2", "three/lib/a.py": "3", "a.py": "4", "x/a.py": "5"},
    )
    paths = ["one/src", "two/src", "three/lib", "a.py", "x/a.py"]
    sources, _ = find([tmp_path / path for path in paths], CONFIG)
    got = {s.path.relative_to(tmp_path).as_posix(): s.name for s in sources}
    assert got == {
        "one/src/a.py": "one/src/a.py",
        "two/src/a.py": "two/src/a.py",
        "three/lib/a.py": "lib/a.py",
        "a.py": f"{tmp_path.name}/a.py",
        "x/a.py": "x/a.py",
    }


def test_a_file_reached_twice_is_one_source(tmp_path):
    root = write(tmp_path / "p", {"a.py": "a", "sub/b.py": "b", "sub/c.map": "{}"})
    (tmp_path / "link").symlink_to(root)
    for paths in ([root, root / "sub"], [root / "sub", root], [root, root, tmp_path / "link"]):
        sources, skipped = find(paths, CONFIG)
        assert len(sources) == 2
        assert skipped == {"generated": 1}
    sources, _ = find([root, root / "a.py"], CONFIG)
    assert {s.path.name: s.explicit for s in sources} == {"a.py": True, "b.py": False}


def test_folders_that_are_not_the_users_code_are_left_out(tmp_path):
    junk = [".git/x", ".hg/x", ".svn/x", ".cache/x", "node_modules/x", "__pycache__/x", "lib/site-packages/x"]
    junk += ["lib/dist-packages/x", "env/pyvenv.cfg", "env/lib/x", "deep/.venv/x", "gitlink/.git"]
    root = write(tmp_path, {**dict.fromkeys(junk, "x"), "lib/a.py": "a", ".editorconfig": "root = true"})
    assert found_below(root) == ([".editorconfig", "lib/a.py"], Counter())
    assert found_below(root / "node_modules")[0] == ["x"], "a folder the user names is read"


def test_models_and_runs_in_a_project_are_no_text_to_learn_from(tmp_path):
    begun = {"begun/training/recipe.json": "{}", "begun/tokenizer.json": "{}", "begun/config.json": "{}"}
    beginning = {f"beginning/{files.LOCK}": "123"}
    models = {f"{kind}/{name}": "x" for kind, described in (("hub", "config.json"), ("lora", "adapter_config.json"))
              for name in (described, "a.safetensors", "tokenizer.json")}  # fmt: skip
    code = {"training/train.py": "a", "web/config.json": "{}", "tensors/a.safetensors": "x", "tensors/b.py": "b"}
    root = write(tmp_path / "p", begun | beginning | models | code)
    assert found_below(root) == (sorted(code), Counter({"model folder": 4}))
    assert found_below(root / "hub")[0] == ["a.safetensors", "config.json", "tokenizer.json"], "unless it is named"


def test_symbolic_links_are_counted_and_never_followed(tmp_path):
    root = write(tmp_path / "p", {"a.py": "a", "sub/b.py": "b"})
    (root / "sub" / "up").symlink_to(root)
    (root / "again.py").symlink_to(root / "a.py")
    (root / "broken").symlink_to(root / "nowhere")
    assert found_below(root) == (["a.py", "sub/b.py"], Counter({"symbolic link": 3}))
    os.mkfifo(root / "pipe")
    assert found_below(root)[0] == ["a.py", "sub/b.py"]
    [named] = find([root / "again.py"], CONFIG)[0]
    assert (named.name, named.explicit) == ("again.py", True), "a link the user names is followed"


def test_paths_that_cannot_be_used_are_named_in_one_line(tmp_path):
    write(tmp_path, {"a.py": "a"})
    os.mkfifo(tmp_path / "pipe")
    for bad, word in (("nowhere", "no such"), ("a.py/b", "no such"), ("pipe", "neither")):
        with pytest.raises(UsageError, match=word) as caught:
            find([tmp_path / "a.py", tmp_path / bad], CONFIG)
        assert str(tmp_path / bad) in str(caught.value)
        assert "\n" not in str(caught.value)


@AS_ROOT
def test_what_may_not_be_read(tmp_path):
    root = write(tmp_path / "p", {"a.py": "a = 1\n", "no.py": "no", "shut/b.py": "b"})
    (root / "no.py").chmod(0)
    (root / "shut").chmod(0)
    try:
        kept = gather(root)
        assert (names(kept), kept.skipped) == (["p/a.py"], {"unreadable": 2})
        for named in ("no.py", "shut", "shut/b.py"):
            with pytest.raises(Error, match=named):
                gather(root / named)
    finally:
        (root / "shut").chmod(0o700)


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    root = write(tmp_path / "p", {"a.py": "a = 1\n", "shut/b.py": "b"})
    listing = os.scandir

    def scandir(path):
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", path)
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert found_below(root) == (["a.py"], Counter(unreadable=1))
    with pytest.raises(Error, match="shut"):
        find([root / "shut"], CONFIG)


def test_a_file_that_is_gone_when_it_is_read(tmp_path):
    root = write(tmp_path / "p", {"a.py": "a = 1\n", "b.py": "b = 2\n"})
    in_folder, by_name = find([root], CONFIG), find([root / "b.py"], CONFIG)
    (root / "b.py").unlink()
    assert collect(*in_folder, CONFIG).skipped == {"unreadable": 1}
    with pytest.raises(Error, match=r"cannot read .*b\.py: No such file") as caught:
        collect(*by_name, CONFIG)
    assert not isinstance(caught.value, UsageError)


def test_names_that_are_not_unicode_can_be_printed(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.py")).write_text("x = 1\n")
    except OSError:
        pytest.skip("this file system takes only Unicode names")
    [document] = gather(tmp_path).documents
    assert document.name.endswith("/caf\\xe9.py")
    assert document.name.encode("utf-8")
    assert text(document) == "x = 1\n"


# -------------------------------------------------------------------------------------------- .gitignore


@pytest.fixture
def git(tmp_path, monkeypatch):
    """Run git in a folder, blind to this machine's configuration; returns the NUL-ended names it prints."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))

    def run(folder: Path, *words: str) -> list[str]:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, check=True, timeout=60)
        return sorted(os.fsdecode(name) for name in done.stdout.split(b"\0") if name)

    return run


UNTRACKED = ("ls-files", "-o", "--exclude-standard", "-z")
TRICKY = {
    ".gitignore": "\ufeff*.log\n!keep.log\n# comment\n\\#hash\n!\\!bang\n/top.txt\nbuild/\ntrail   \nesc\\ \n"
    "doc/*.txt\n**/deep/x\nfoo/**\n!foo/keep\na/**/z\nlist/*\n!list/*/\nlist/in/*\n!list/in/ok\n[Tt]mp[0-9]\n"
    "crlf.txt\r\ngone/\n!gone/back\nbad\\\n[[:digit:]].d\nq?\n*.q\n!#a.q\n!!b.q\n",
    ".git/info/exclude": "excluded\n!over.log\n",
    **dict.fromkeys(["a.log", "keep.log", "over.log", "#hash", "!bang", "top.txt", "sub/top.txt", "trail"], "x"),
    **dict.fromkeys(["sub/build/x", "sub/x/build", "esc ", "doc/a.txt", "doc/b/a.txt", "deep/x", "p/deep/x"], "x"),
    **dict.fromkeys(["foo/lose", "foo/keep/x", "a/z", "a/b/z", "a/b/c/z", "a/b/y", "list/f"], "x"),
    **dict.fromkeys(["list/in/ok", "list/in/no", "tmp1", "Tmp2", "tmpx", "crlf.txt", "gone/back", "bad"], "x"),
    **dict.fromkeys(["1.d", "x.d", "excluded", "sub/excluded", "qé", "qe", "sub/n.log", "sub/keep.log"], "x"),
    **dict.fromkeys(["sub/anchored", "sub/s/anchored", "sub/s/t.log", "white/a.py", "white/b/c.py"], "x"),
    **dict.fromkeys(["white/b/c.txt", "white/d", "linked/top.txt", "#a.q", "!b.q", "c.q"], "x"),
    "sub/.gitignore": "!n.log\n/anchored\nkeep.log\n",
    "sub/s/.gitignore": "!*.log\n",
    "white/.gitignore": "*\n!*/\n!*.py\n!.gitignore\n",
}


def test_gitignore_on_a_tricky_tree(tmp_path, git):
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "-q")
    write(root, TRICKY)
    (root / "linked" / ".gitignore").symlink_to(root / ".gitignore")  # git does not read through a link
    wanted = [name for name in git(root, *UNTRACKED) if not (root / name).is_symlink()]
    assert found_below(root)[0] == wanted
    odd = {"keep.log", "a/b/y", "list/in/ok", "white/b/c.py", "#a.q", "linked/top.txt"}
    assert odd <= set(wanted) < set(TRICKY), "the tree is tricky"
    for folder in ("sub", "sub/s", "white", "white/b", "list", "doc", "a"):
        assert found_below(root / folder)[0] == git(root / folder, *UNTRACKED), "parents' rules reach down"
    for name in found_below(root)[0]:
        assert subprocess.run(["git", "check-ignore", "-q", name], cwd=root, check=False).returncode == 1, name


SEGMENTS = [
    "a",
    "b",
    "ab",
    "foo",
    "*",
    "*.py",
    "a*",
    "?",
    "**",
    "[ab]",
    "[!a]*",
    "*o*",
    "[a-c]",
    "f?o",
    "*.txt",
]
SEGMENTS += [
    "\\a",
    "\\#c",
    "\\!d",
    "x\\ y",
    "keep",
    "é",
    "[^a]",
    "a\\",
    "[a",
    "b ",
    "[]a]",
    "[[:alpha:]]",
    "{a,b}",
]
FILES = ["a", "b", "ab", "foo", "a.py", "b.txt", "foo.py", "[x]", "#c", "!d", "x y", "keep", "é", "b "]


def random_pattern(rng: random.Random) -> str:
    glob = "/".join(rng.choice(SEGMENTS) for _ in range(rng.choice([1, 1, 1, 2, 3])))
    return f"{rng.choice(['', '', '!'])}{rng.choice(['', '', '/'])}{glob}{rng.choice(['', '', '/', ' '])}"


@pytest.mark.parametrize("seed", range(40))
def test_gitignore_on_random_trees(tmp_path, git, seed):
    rng = random.Random(seed)
    root = write(tmp_path / "r", {".git/HEAD": "ref: refs/heads/main\n", ".git/objects/x": "", ".git/refs/x": ""})
    folders = [root]
    for _ in range(8):
        folder = rng.choice(folders) / rng.choice(FILES)
        if not folder.exists():
            folder.mkdir()
            folders.append(folder)
    for path in (rng.choice(folders) / rng.choice(FILES) for _ in range(30)):
        if not path.exists():
            path.write_text("x")
    for ignore in [".git/info/exclude", *(folder / ".gitignore" for folder in folders if rng.random() < 0.6)]:
        write(root, {str(ignore): "\n".join(random_pattern(rng) for _ in range(rng.randint(1, 5)))})
    assert found_below(root)[0] == git(root, *UNTRACKED)


def test_a_repository_inside_another_follows_its_own_rules(tmp_path):
    write(tmp_path, {".git/HEAD": "", ".gitignore": "*.txt\nvendored/\n", "a.txt": "a", "vendored/v.py": "v"})
    write(tmp_path, {"inner/.git/info/exclude": "no.py\n", "inner/b.txt": "b", "inner/no.py": "n"})
    assert found_below(tmp_path) == ([".gitignore", "inner/b.txt"], Counter({"ignored by .gitignore": 3}))
    assert found_below(tmp_path / "inner")[0] == ["b.txt"]
    assert found_below(tmp_path / "vendored")[0] == ["v.py"], "a folder the user names is read"
    [source] = find([tmp_path / "a.txt"], CONFIG)[0]
    assert source.explicit, "and so is a file"


def test_gitignore_counts_outside_a_repository_but_not_above_the_folder(tmp_path):
    write(tmp_path, {".gitignore": "*.py\n", "p/a.py": "a", "p/b.o": "b", "p/.gitignore": "*.o\n"})
    assert found_below(tmp_path / "p")[0] == [".gitignore", "a.py"]


# --------------------------------------------------------------------------------------- the default corpus


def test_the_default_corpus_is_library_code():
    assert default_paths() == [STDLIB]
    found = gather(config=CONFIG)
    parts = {part for name in names(found) for part in name.split("/")}
    assert all(name.startswith(STDLIB.name) and name.endswith(".py") for name in names(found))
    assert not parts & {"test", "tests", "idlelib", "site-packages", "encodings", "pydoc_data"}
    assert {"os.py", "argparse.py", "asyncio", "json", "tokenize.py"} <= parts
    assert len(found.documents) > 350
    assert sum(document.end - document.start for document in found.documents) > 6e6
    held = sum(document.end - document.start for document in found.split("validation"))
    assert 1e5 < held < 2 * CONFIG.max_validation_bytes
    assert found.skipped["near duplicate"] < 10, "library files differ from each other"


def test_the_same_folder_given_by_hand_is_any_other_folder(tmp_path, monkeypatch):
    library = write(tmp_path / "python", {"os.py": "a", "test/t.py": "b", "notes.txt": "c", ".gitignore": "*\n"})
    monkeypatch.setattr(corpus, "default_paths", lambda: [library])
    assert [s.name for s in find([], CONFIG)[0]] == ["python/os.py"], "whatever git thinks of that place"
    (library / ".gitignore").unlink()
    assert [s.name for s in find([library], CONFIG)[0]] == [
        "python/notes.txt",
        "python/os.py",
        "python/test/t.py",
    ]


# ------------------------------------------------------------------------------------------ what is kept

CODE = "def add(a, b):\n    return a + b\n"
DATA_LINE = "TABLE = '" + "0123456789" * 600 + "'\n"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.py", CODE, None),
        ("a.py", "\ufeff" + CODE, None),
        ("a.bin", b"text\0more", "binary"),
        ("late.bin", b"x = 1\n" * 200_000 + b"\0", "too large"),
        ("utf16.txt", CODE.encode("utf-16"), "binary"),
        ("latin.py", "# café\n".encode("latin-1"), "not UTF-8"),
        ("cut.py", "# café".encode()[:-1], "not UTF-8"),
        ("none.py", b"", "empty"),
        ("blank.py", " \n\t\r\n\u3000\n", "empty"),
        ("yarn.lock", CODE, "generated"),
        ("Cargo.lock", CODE, "generated"),
        ("app.js.map", CODE, "generated"),
        ("app.min.js", CODE, "minified"),
        ("g.go", "// Code generated by protoc-gen-go. DO NOT EDIT.\n\npackage a\n", "generated"),
        (
            "g.py",
            '#!/usr/bin/env python3\n"""Tables.\n\nThis file is automatically generated; ..."""\n',
            "generated",
        ),
        ("g.h", "/*\n * @generated SignedSource<<x>>\n */\n", "generated"),
        ("g.c", "/* Automatically generated file, do not edit! */\n", "generated"),
        ("g.sql", "-- autogenerated\n", "generated"),
        ("g.html", "<!-- Generated by Doxygen 1.9 -->\n<p>", "generated"),
        ("g.zig", "//! This file is generated, do not edit manually!\n", "generated"),
        ("ok.py", "# Reads the logs that are generated by make.\n" + CODE, None),
        ("ok.c", "// All field names here were\n// generated with care by hand.\n" + CODE, None),
        ("ok.zig", 'const header = "This file was generated by me. DO NOT EDIT";\n', None),
        ("ok.md", "You should do not edit twice.\n", None),
        ("late.py", CODE * 40 + "# DO NOT EDIT\n", None),
        ("bundle.js", "var a=1;" * 2000, "minified"),
        ("data.py", DATA_LINE + CODE * 300, None),
        ("data2.py", DATA_LINE + CODE, "minified"),
        ("prose.txt", ("All work and no play makes Jack a dull boy. " * 12 + "\n\n") * 30, None),
        ("old-mac.txt", (CODE * 100).replace("\n", "\r"), None),
    ],
)
def test_what_a_folder_gives(tmp_path, name, content, reason):
    root = write(tmp_path / "p", {name: content, "other.py": "class Other:\n    kept = True\n"})
    found = gather(root)
    assert found.skipped == ({reason: 1} if reason else {})
    assert (f"p/{name}" in names(found)) == (reason is None)
    if reason is None:
        assert text(next(d for d in found.documents if d.name == f"p/{name}")).encode() == (root / name).read_bytes()


def test_files_named_by_the_user_are_kept_whatever_they_look_like(tmp_path):
    config = replace(WHOLE, max_file_bytes=1000)
    root = write(tmp_path, {"yarn.lock": CODE, "g.py": "# DO NOT EDIT\n", "a.min.js": "var a=1;" * 500})
    write(root, {"big.txt": "".join(f"line {i}\n" for i in range(1000))})
    assert gather(*root.iterdir(), config=config).skipped == {}
    with pytest.raises(Error, match=r"no text to learn from.*(?=.*1 too large)(?=.*2 generated)(?=.*1 minified)"):
        gather(root, config=config)


@pytest.mark.parametrize(
    ("content", "why"), [(b"a\0b", "binary"), (b"\xff", "not UTF-8"), (b" \n", "empty"), (b"", "empty")]
)
def test_a_named_file_that_is_not_text_is_an_error(tmp_path, content, why):
    write(tmp_path, {"bad.txt": content, "good.txt": CODE})
    with pytest.raises(Error, match=rf"bad\.txt: it is {why}; give") as caught:
        gather(tmp_path / "bad.txt", tmp_path / "good.txt")
    assert "\n" not in str(caught.value)


def test_nothing_to_learn_from_says_what_was_left_out(tmp_path):
    write(tmp_path, {"a.bin": b"\0", "b.bin": b"\0\0", "c.txt": b""})
    with pytest.raises(Error, match="2 binary, 1 empty"):
        gather(tmp_path)
    (tmp_path / "void").mkdir()
    with pytest.raises(Error, match="no file was found"):
        gather(tmp_path / "void")


# --------------------------------------------------------------------------------------------- duplicates


def test_exact_duplicates_keep_the_first_name(tmp_path):
    root = write(tmp_path / "p", {"b.py": CODE, "a.py": CODE, "c/d.py": CODE})
    assert (names(gather(root)), gather(root).skipped) == (["p/a.py"], {"duplicate": 2})
    found = gather(root / "a.py", root / "b.py", config=replace(WHOLE, near_duplicates=0.0))
    assert (names(found), found.skipped) == (["a.py"], {"duplicate": 1})


def edited(content: str, lines: int) -> str:
    parts = content.splitlines(keepends=True)
    for i in range(lines):
        parts[(i + 1) * len(parts) // (lines + 1)] = f"    changed_{i} = other_{i}(line)\n"
    return "".join(parts)


def test_near_duplicates_of_real_code(tmp_path):
    argparse = (STDLIB / "argparse.py").read_text(encoding="utf-8")
    root = write(tmp_path / "p", {"a.py": argparse, "b.py": edited(argparse, 3), "c.py": edited(argparse, 900)})
    write(root, {"d.py": (STDLIB / "optparse.py").read_bytes(), "e.py": argparse.replace("\n", "  \n")})
    found = gather(root)
    assert (names(found), found.skipped) == (["p/a.py", "p/c.py", "p/d.py"], {"near duplicate": 2})
    assert len(gather(root, config=replace(WHOLE, near_duplicates=0.0)).documents) == 5, "0 keeps them all"
    (root / "a.py").unlink()
    assert names(gather(root))[0] == "p/b.py", "the first by name is kept"
    assert names(gather(root / "e.py", root)) == ["e.py", "p/c.py", "p/d.py"], "like a file that was named"
    assert gather(root / "b.py", root / "e.py").skipped == {}, "named files are not dropped for likeness"


def jaccard(one: bytes, two: bytes) -> float:
    a, b = (
        {tuple(tokens[i : i + 5]) for i in range(len(tokens) - 4)}
        for tokens in (corpus.TOKEN.findall(one), corpus.TOKEN.findall(two))
    )
    return len(a & b) / len(a | b)


def test_the_estimate_is_close_to_the_exact_jaccard_and_finds_every_pair():
    real = [(STDLIB / name).read_bytes() for name in ("ast.py", "bdb.py", "calendar.py", "cmd.py", "csv.py")]
    rng, errors, clear = random.Random(0), [], 0
    for content in real:
        for share in (0.005, 0.01, 0.02, 0.03, 0.05, 0.08):
            lines = content.split(b"\n")
            for i in rng.sample(range(len(lines)), int(len(lines) * share) + 1):
                lines[i] = b"changed %d = thing(%d)" % (i, rng.randrange(10**6))
            exact = jaccard(content, b"\n".join(lines))
            near = NearDuplicates(0.85)
            one, two = near.sketch(content), near.sketch(b"\n".join(lines))
            near.keep(one, "one")
            errors.append(one.jaccard(two) - exact)
            if abs(exact - 0.85) > 0.07:
                clear += 1
                assert (near.like(two) == "one") == (exact > 0.85)
    assert clear > 15
    assert max(map(abs, errors)) < 0.08
    assert abs(sum(errors) / len(errors)) < 0.015, "no bias"


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.85, 0.95, 1.0])
def test_the_bands_suit_the_threshold(threshold):
    near = NearDuplicates(threshold)
    rows = near.index.get_num_perm() / near.index.get_num_bands()
    assert (1 - threshold**rows) ** near.index.get_num_bands() < 1e-3


def test_tiny_files_are_compared_whole(tmp_path):
    root = write(tmp_path / "p", {"a.py": "x = 1\n", "b.py": "x  =  1\n", "c.py": "x = 2\n", "d.py": "y\n"})
    found = gather(root)
    assert (names(found), found.skipped) == (["p/a.py", "p/c.py", "p/d.py"], {"near duplicate": 1})


def test_the_order_of_the_sources_does_not_matter(tmp_path):
    for path in sorted(STDLIB.glob("a*.py")):
        write(
            tmp_path,
            {f"one/{path.name}": path.read_bytes(), f"two/{path.name}": path.read_bytes() + b"# end\n"},
        )
    sources, skipped = find([tmp_path], CONFIG)
    assert collect(sources, skipped, CONFIG) == collect(sources[::-1], skipped, CONFIG)
    assert collect(sources, skipped, CONFIG).skipped["near duplicate"] == len(sources) // 2
    assert not skipped, "the counts that were handed in are not changed"


# ------------------------------------------------------------------------------------------------- splits

SPLIT = replace(CONFIG, near_duplicates=0.0, validation_fraction=0.2, max_validation_bytes=0)


def many(root: Path, count: int) -> Path:
    return write(root, {f"f{i:03}.py": f"value_{i} = {i}\n" * 5 for i in range(count)})


def position(document: Document) -> float:
    return int(document.sha256[:16], 16) / 2**64


def test_whole_files_are_held_out_by_their_content(tmp_path):
    found = gather(many(tmp_path, 300), config=SPLIT)
    assert len(found.documents) == 300
    assert all((d.split == "validation") == (position(d) < 0.2) for d in found.documents)
    assert 40 < len(found.split("validation")) < 80
    assert sorted(found.split("train") + found.split("validation"), key=lambda d: d.name) == found.documents
    for document in found.documents:
        content = document.path.read_bytes()
        assert (document.start, document.end, document.sha256) == (
            0,
            len(content),
            sha256(content).hexdigest(),
        )


def test_a_new_file_moves_no_other(tmp_path):
    before = {d.name: d.split for d in gather(many(tmp_path, 100), config=SPLIT).documents}
    after = {d.name: d.split for d in gather(many(tmp_path, 120), config=SPLIT).documents}
    assert before.items() < after.items()


def test_the_bytes_held_out_are_bounded(tmp_path):
    root = many(tmp_path, 300)
    total = sum(path.stat().st_size for path in root.iterdir())
    held = {d.name for d in gather(root, config=SPLIT).split("validation")}
    config = replace(SPLIT, max_validation_bytes=total // 20)
    fewer = gather(root, config=config).split("validation")
    assert all(position(d) < 0.0501 for d in fewer)
    assert {d.name for d in fewer} < held
    assert 0.5 < sum(d.end for d in fewer) / config.max_validation_bytes < 2


@pytest.mark.parametrize("fraction", [1e-9, 0.2, 0.999999])
def test_each_side_has_a_document(tmp_path, fraction):
    found = gather(many(tmp_path, 2), config=replace(SPLIT, validation_fraction=fraction))
    [train], [validation] = found.split("train"), found.split("validation")
    assert validation.sha256 < train.sha256


@pytest.mark.parametrize("split", ["file", "tail"])
def test_no_fraction_no_validation(tmp_path, split):
    config = replace(SPLIT, validation_fraction=0.0, split=split)
    for count in (1, 5):
        found = gather(many(tmp_path, count), config=config)
        assert len(found.split("train")) == count
        assert found.split("validation") == []


@pytest.mark.parametrize("split", ["file", "tail"])
def test_one_document_gives_its_tail(tmp_path, split):
    path = write(tmp_path, {"input.txt": "".join(f"line {i}\n" for i in range(1000))}) / "input.txt"
    size = path.stat().st_size
    config = replace(SPLIT, split=split, validation_fraction=0.1)
    [train, validation] = gather(path, config=config).documents
    assert (train.name, train.split, train.start, train.end) == ("input.txt", "train", 0, int(size * 0.9))
    assert (validation.name, validation.split) == ("input.txt", "validation")
    assert (validation.start, validation.end) == (train.end, size)
    assert text(train) + text(validation) == path.read_text()


def test_the_tail_starts_at_a_character(tmp_path):
    for i, extra in enumerate(["", "a", "bc", "def"]):
        root = write(tmp_path / str(i), {"e.txt": extra + "é" * 50, "j.txt": extra + "語😀" * 30})
        found = gather(root, config=replace(SPLIT, split="tail"))
        assert len(found.split("train")) == len(found.split("validation")) == 2
        for name in ("e.txt", "j.txt"):
            train, validation = (d for d in found.documents if d.name.endswith(name))
            assert text(train) + text(validation) == (root / name).read_text(encoding="utf-8")
            assert 0 <= train.end - 0.8 * validation.end < 4


def test_a_file_that_goes_before_it_is_cut_is_an_error(tmp_path):
    path = tmp_path / "gone.txt"
    with pytest.raises(Error, match=rf"cannot read {path}: No such file"):
        corpus._tail(Document("gone.txt", path, "", 0, 100, "train"), 0.1)


def test_a_text_too_short_to_cut_is_trained_on_whole(tmp_path):
    for content in ("a", "é", "語"):
        path = write(tmp_path, {"t.txt": content}) / "t.txt"
        [document] = gather(path, config=replace(SPLIT, split="tail")).documents
        assert (document.split, text(document)) == ("train", content)


# ------------------------------------------------------------------------------------------------- pieces


@settings(max_examples=150, deadline=None)
@given(
    content=st.text(alphabet=st.sampled_from("ab \n\r\té語😀"), min_size=1, max_size=120),
    limit=st.integers(4, 40),
    ends=st.tuples(st.integers(0, 120), st.integers(0, 120)),
)
def test_pieces_are_the_exact_text_in_bounded_parts(tmp_path_factory, content, limit, ends):
    path = tmp_path_factory.mktemp("pieces") / "t.txt"
    path.write_bytes(content.encode())
    first, last = sorted(min(end, len(content)) for end in ends)
    start, end = len(content[:first].encode()), len(content[:last].encode())
    document = Document("t.txt", path, "", start, end, "train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PIECE_BYTES", limit)
        pieces = list(document.pieces())
    assert "".join(pieces) == content[first:last]
    assert all(0 < len(piece.encode()) <= limit for piece in pieces)
    for piece, after in pairwise(pieces):
        assert piece.endswith("\n") or "\n" not in piece
        more = after.partition("\n")[0] + "\n" if piece.endswith("\n") and "\n" in after else after[0]
        assert (piece.endswith("\n") and "\n" not in after) or len((piece + more).encode()) > limit, "full pieces"


@pytest.mark.parametrize("change", ["short", "gone", "bytes"])
def test_a_file_that_changed_since_is_an_error(tmp_path, change):
    path = write(tmp_path, {"a.txt": CODE * 10}) / "a.txt"
    [document] = gather(path).documents
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(CODE.encode() if change == "short" else b"\xff" * 400)
    with pytest.raises(Error, match=r"a\.txt changed while it was being read") as caught:
        list(document.pieces())
    assert "\n" not in str(caught.value)


def test_memory_stays_bounded(tmp_path):
    line = "def function(argument):  # Überschrift\n    return argument\n".encode()
    path = tmp_path / "huge.py"
    with open(path, "wb") as file:
        for _ in range(60):
            file.write(line * ((1 << 20) // len(line)))
    size = path.stat().st_size
    tracemalloc.start()
    try:
        found = gather(path, config=CONFIG)
        collecting = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        digest, read = sha256(), 0
        for document in found.documents:
            for piece in document.pieces():
                digest.update(piece.encode())
                read += 1
        streaming = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read >= size // corpus.PIECE_BYTES
    assert digest.hexdigest() == found.documents[0].sha256
    assert found.split("validation")[0].start > size * 0.9
    assert collecting < 24 << 20
    assert streaming < 7 * corpus.PIECE_BYTES, "a few pieces: the bytes read, the bytes held, the text"
