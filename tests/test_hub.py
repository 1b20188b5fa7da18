"""mlxgpt.hub against a Hub of our own on 127.0.0.1, each download in a process with the real environment variables."""

import functools
import hashlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mlxgpt import hub
from mlxgpt.errors import Error, UsageError

REPO = "someone/model"
SMALL = {"config.json": b"{}", "tokenizer.json": b'{"t": 1}', "generation_config.json": b"{ }"}
SHARDS = {f"model-0000{i}-of-00002.safetensors": random.Random(i).randbytes(5000 + i) for i in (1, 2)}
INDEX = json.dumps({"weight_map": {f"tensor{i}": name for i, name in enumerate(SHARDS)}}).encode()
SHARDED = SMALL | {"model.safetensors.index.json": INDEX} | SHARDS
RELEASE = {"params.json": b"{}", "consolidated.safetensors": bytes(9000), "tokenizer.model.v3": b"\x0a\x0b"}
UNWANTED = {
    "README.md": b"#", "pytorch_model.bin": b"pickle", "model.py": b"import os", "onnx/model.onnx": b"onnx",
    "vocab.json": b"[]", "merges.txt": b"a b", "sub/config.json": b"[1]",
    "model-00001-of-00001.safetensors": b"left over from a re-sharding: the index does not name it",
}  # fmt: skip


UNSOUND = (
    b'{"id": "x", "sha": "../../x", "siblings": [{"rfilename": "config.json"}, {"rfilename": "model.safetensors"}]}'
)


@functools.cache
def digest(kind: str, content: bytes) -> str:
    return hashlib.new(kind, content).hexdigest()


class Request(NamedTuple):
    method: str
    path: str
    range: str | None
    authorization: str | None


class FakeHub:
    """The routes of huggingface.co that a download uses, and a CDN of another origin that has the large files."""

    large = (".safetensors", ".bin", ".v3")

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.requests: list[Request] = []
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}  # to what has this in its path
        self.lfs: dict[str, dict[str, Any]] = {}  # by file name: what the file list says otherwise
        self.cut: dict[str, int] = {}  # by file name: break off after so many bytes, and then answer 503
        self.damaged: set[str] = set()  # names of files that arrive with other bytes
        self.then: dict[str, Callable[[], Any]] = {}  # by file name: what happens when it is asked for
        self.sent = 0  # bytes, by the CDN

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            log_message = staticmethod(lambda *_: None)
            do_GET = do_HEAD = lambda http: self.answer(http)

        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in self.servers)
        for server in self.servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def sha(self, repo: str) -> str:
        state = [(name, digest("sha1", content)) for name, content in sorted(self.repos[repo].items())]
        return digest("sha1", repr(state).encode())

    def downloads(self) -> list[str]:
        """Names of the files whose content was asked for, in alphabetical order, as often as it was."""
        wanted = [r.path for r in self.requests if r.method == "GET" and ("/resolve/" in r.path or "/cdn/" in r.path)]
        return sorted(path.split("/", 5)[-1] for path in wanted if "/cdn/" in path or not path.endswith(self.large))

    def describe(self, repo: str, name: str) -> tuple[str, dict[str, Any]]:
        """A file's git hash, and its entry in the file list."""
        content = self.repos[repo][name]
        entry: dict[str, Any] = {"size": len(content)}
        if name.endswith(self.large):
            sha256 = digest("sha256", content)
            entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130} | self.lfs.get(name, {})
            entry["lfs"]["oid"] = entry["lfs"]["sha256"]  # its name where the tree is listed
        return digest("sha1", content), entry

    def answer(self, http: BaseHTTPRequestHandler) -> None:
        path = http.path.partition("?")[0]
        if path.startswith("/api/") and not path.startswith("/api/models/"):
            return send(http, 404, b"{}")  # some versions of the library ask for things of their own
        self.requests.append(Request(http.command, path, http.headers["Range"], http.headers["Authorization"]))
        for part, (status, headers, body) in self.answers.items():
            if part in path:
                return send(http, status, body, headers)
        _, kind, *rest = path.split("/", 6)
        if kind == "api":
            return self.answer_api(http, "/".join(rest[1:3]), rest[3:])
        if kind == "cdn":
            return self.answer_cdn(http, "/".join(rest[:2]), rest[3])
        repo, name = f"{kind}/{rest[0]}", path.split("/", 5)[-1]
        git, entry = self.describe(repo, name)
        headers = {"X-Repo-Commit": self.sha(repo), "ETag": f'"{git}"'}
        if "lfs" not in entry:
            return send(http, 200, self.repos[repo][name], headers)
        sha256 = digest("sha256", self.repos[repo][name])
        headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(entry["size"])}
        return send(http, 302, b"", headers | {"Location": f"{self.cdn}/cdn/{repo}/-/{name}"})

    def answer_api(self, http: BaseHTTPRequestHandler, repo: str, rest: list[str]) -> None:
        what, revision = rest or ("revision", "main")
        if repo not in self.repos:
            return send(http, 404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", "v1", self.sha(repo)):
            return send(http, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        described = {name: self.describe(repo, name) for name in self.repos[repo]}
        if what == "tree":
            rows = [{"type": "file", "path": name, "oid": git, **entry} for name, (git, entry) in described.items()]
            return send(http, 200, json.dumps(rows).encode())
        files = [{"rfilename": name, "blobId": git, **entry} for name, (git, entry) in described.items()]
        about = {"id": repo, "sha": self.sha(repo), "private": False, "tags": [], "siblings": files}
        return send(http, 200, json.dumps(about).encode())

    def answer_cdn(self, http: BaseHTTPRequestHandler, repo: str, name: str) -> None:
        content = self.repos[repo][name]
        ranged = None if "gzip" in http.headers["Accept-Encoding"] else http.headers["Range"]  # as CloudFront has it
        start = int((ranged or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        end = self.cut.pop(name, len(content))
        if end < len(content):
            self.answers[f"/cdn/{repo}/-/{name}"] = (503, {}, b"")
            http.close_connection = True
        self.then.pop(name, lambda: None)()
        self.sent += max(0, end - start)
        part = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if ranged else {}
        body = bytes(len(content)) if name in self.damaged else content
        send(http, 206 if ranged else 200, body[start:], part, end)


def send(
    http: BaseHTTPRequestHandler,
    status: int,
    body: bytes,
    headers: dict[str, str] | None = None,
    end: int | None = None,  # breaks off there
) -> None:
    http.send_response(status)
    for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
        http.send_header(key, value)
    http.end_headers()
    if http.command == "GET":
        http.wfile.write(body[:end])


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    fake = FakeHub()
    yield fake
    fake.close()


class Outcome(NamedTuple):
    folder: Path | None
    stderr: str

    @property
    def last_line(self) -> str:
        return self.stderr.splitlines()[-1] if self.stderr else ""

    def files(self) -> dict[str, bytes]:
        assert self.folder, self.stderr
        return {str(p.relative_to(self.folder)): p.read_bytes() for p in self.folder.rglob("*") if p.is_file()}


SCRIPT = """
import os, sys
from mlxgpt import hub
from mlxgpt.errors import Error
assert "huggingface_hub" not in sys.modules, "start-up pays for huggingface_hub"
def check(folder):
    if "REFUSE" in os.environ:
        raise Error(f"refused {sorted(os.listdir(folder))}")
try:
    print(hub.resolve(sys.argv[1], check))
except Error as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def start(fake: FakeHub, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start a process that resolves a name, its HF_HOME in this test's folder."""
    clean = {k: v for k, v in os.environ.items() if not re.match(r"(?i)(HF_|HUGGING|TRANSFORMERS_|.*_proxy$)", k)}

    def start(name: str = REPO, **env: str) -> subprocess.Popen[str]:
        env = clean | {"HF_ENDPOINT": fake.url, "HF_HOME": str(tmp_path / "home")} | env
        command = [sys.executable, "-c", SCRIPT, name]
        return subprocess.Popen(
            command, env=env, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    return start


@pytest.fixture
def resolve(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., Outcome]:
    def resolve(name: str = REPO, **env: str) -> Outcome:
        process = start(name, **env)
        out, err = process.communicate(timeout=60)
        return Outcome(Path(out.strip()) if process.returncode == 0 else None, err)

    return resolve


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_downloads_each_needed_file_once_and_one_layout_only(fake, resolve, tmp_path):
    fake.repos[REPO] = SHARDED | RELEASE | UNWANTED
    wanted = SHARDED | {"tokenizer.model.v3": RELEASE["tokenizer.model.v3"]}
    first = resolve(HF_TOKEN="hf_secret", TQDM_POSITION="-1")
    assert first.files() == wanted
    assert fake.downloads() == sorted(wanted)
    assert first.folder.is_relative_to(tmp_path / "home")
    assert "model-00001-of-00002.safetensors: 100%" in first.stderr, "no progress bar"
    authorized = {(request.path.startswith("/cdn/"), request.authorization) for request in fake.requests}
    assert authorized == {(False, "Bearer hf_secret"), (True, None)}, "the token is the Hub's, not the CDN's"

    fake.requests.clear()
    assert resolve() == Outcome(first.folder, "")
    assert [request.path for request in fake.requests] == [f"/api/models/{REPO}"]

    fake.requests.clear()
    assert resolve(f"{REPO}@{first.folder.name}") == Outcome(first.folder, ""), "a commit in the cache asks nobody"
    assert resolve(HF_HUB_OFFLINE="1") == Outcome(first.folder, "")
    assert fake.requests == []


@pytest.mark.parametrize(
    "files",
    [
        RELEASE,
        SMALL | {"model.safetensors": b"whole"},
        {"config.json": b"{}", "model.safetensors": b"whole", "vocab.json": b"[]", "merges.txt": b"a b"},
    ],
    ids=["release", "single file", "vocab and merges"],
)
def test_other_layouts(fake, resolve, files):
    fake.repos[REPO] = files | {"README.md": b"#", "consolidated.00.pth": b"pickle"}
    assert resolve(f"{REPO}@v1").files() == files
    assert fake.downloads() == sorted(files)


@pytest.mark.parametrize(
    ("part", "answer", "says"),
    [
        ("/resolve/", (403, {"X-Error-Code": "GatedRepo"}, b""), ["https://huggingface.co/someone/model", "hf auth"]),
        ("/api/", (401, {"X-Error-Code": "GatedRepo"}, b"{}"), ["is gated", "HF_TOKEN"]),
        ("/api/", (404, {"X-Error-Code": "RepoNotFound"}, b"{}"), ["the Hub has no someone/model", "private"]),
        ("/api/", (401, {}, b'{"error": "Invalid username or password."}'), ["the Hub has no someone/model"]),
        ("/api/", (401, {}, b'{"error": "Invalid credentials in Authorization header"}'), ["your token"]),
        ("/api/", (429, {}, b"{}"), ["rate limit", "HTTP 429", "no whole copy of someone/model"]),
        ("/api/", (503, {}, b"down"), ["out of order", "HTTP 503", "no whole copy of someone/model"]),
        ("/cdn/", (503, {}, b"down"), ["HTTP 503", "no whole copy of someone/model"]),
        ("/resolve/", (403, {}, b""), ["HTTP 403", "hf auth login"]),
        ("/api/", (200, {}, UNSOUND), ["the Hub is broken: '../../x'"]),
        ("/api/", (200, {}, b"<html>Log in to the Wi-Fi</html>"), ["not the Hub", "no whole copy of someone/model"]),
    ],
)  # fmt: skip
def test_refusals_are_one_line_that_says_what_to_do(fake, resolve, part, answer, says):
    fake.repos[REPO] = SHARDED
    fake.answers[part] = answer
    outcome = resolve()
    assert outcome.folder is None
    assert outcome.stderr.count("\n") == 1
    assert outcome.stderr.startswith("Error: ")
    assert ("whole copy" in outcome.stderr) == ("whole copy" in says[-1]), "a refusal has nothing to do with the cache"
    for words in says:
        assert words in outcome.stderr


def test_what_the_hub_does_not_have(fake, resolve):
    fake.repos[REPO] = SHARDED
    assert resolve(f"{REPO}@v9").stderr.startswith(f"Error: {REPO} has no revision 'v9'")
    assert "did you mean mistral-7b-v0.1?" in resolve("mistralai/Mistral-7B-v0.11").stderr
    fake.repos[REPO] = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    assert "its weights are pickles (pytorch_model.bin)" in resolve().stderr
    assert fake.downloads() == []


def test_without_the_hub_a_whole_copy_serves_and_a_part_does_not(fake, resolve):
    fake.repos[REPO] = SHARDED
    for outcome in (resolve(HF_HUB_OFFLINE="1"), resolve(HF_ENDPOINT=closed_port())):
        assert re.fullmatch(r"Error: .*no whole copy of someone/model: run this again when connected\n", outcome.stderr)
    assert fake.requests == []

    folder = resolve().folder
    unreachable = resolve(HF_ENDPOINT=closed_port())
    assert unreachable.folder == folder
    assert re.fullmatch(r"mlxgpt: the Hub could not be reached \(.*\); using the copy .*\n", unreachable.stderr)
    fake.answers["/api/"] = (503, {}, b"")
    assert "using the copy" in resolve().stderr

    fake.answers.clear()
    lost = "model-00002-of-00002.safetensors"
    for path in (folder / "tokenizer.json", (folder / lost).resolve(), folder / lost):
        path.unlink()
    assert f"({lost}, tokenizer missing)" in resolve(HF_HUB_OFFLINE="1").stderr
    fake.requests.clear()
    assert resolve().files() == SHARDED
    assert fake.downloads() == [lost]


def test_an_older_copy_serves_until_the_newer_one_is_whole(fake, resolve):
    fake.repos[REPO] = SHARDED
    old = resolve().folder
    fake.repos[REPO] = SHARDED | {"model-00002-of-00002.safetensors": b"newer"}
    fake.answers["/cdn/"] = (503, {}, b"")
    interrupted = resolve()
    assert interrupted.folder == old
    assert "using the copy of someone/model in the cache" in interrupted.last_line
    assert interrupted.files() == SHARDED
    fake.answers.clear()
    fake.then["model-00002-of-00002.safetensors"] = lambda: fake.answers.update({"/api/": (503, {}, b"")})
    assert "the Hub went away, while it was downloaded: run this again" in resolve().last_line
    fake.answers.clear()
    assert resolve().files() == fake.repos[REPO]
    assert resolve(HF_HUB_OFFLINE="1").files() == fake.repos[REPO]
    assert fake.downloads() == sorted([*SHARDED, *["model-00002-of-00002.safetensors"] * 2]), (
        "what did not change is kept"
    )


def test_an_interrupted_download_goes_on_where_it_stopped(fake, resolve):
    weights = random.Random(5).randbytes(25 << 20)
    fake.repos[REPO] = SMALL | {"model.safetensors": weights}
    fake.cut["model.safetensors"] = 15 << 20
    assert "no whole copy of someone/model" in resolve().last_line
    fake.answers.clear()
    fake.requests.clear()
    fake.sent = 0
    assert resolve().files()["model.safetensors"] == weights
    assert 10 << 20 <= fake.sent <= 15 << 20


def test_damaged_weights_are_refused_and_not_kept(fake, resolve, tmp_path):
    fake.repos[REPO] = SHARDED
    first, second = SHARDS
    blobs = tmp_path / "home/hub/models--someone--model/blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{digest('sha256', SHARDS[first])}.mlxgpt.incomplete").write_bytes(bytes(9000))  # more than there is
    fake.damaged = {second}
    assert f"{second} of someone/model arrived damaged" in resolve().last_line
    fake.damaged.clear()
    assert resolve().files() == SHARDED
    assert fake.downloads().count(first) == 1
    assert not list(blobs.glob("*.incomplete"))


def test_two_processes_share_one_download(fake, start):
    fake.repos[REPO] = SMALL | {"model.safetensors": random.Random(6).randbytes(30 << 20)}
    processes = [start(), start()]
    folders = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(folders) == 1
    assert fake.downloads().count("model.safetensors") == 1


def test_a_full_disk_is_seen_before_the_download(fake, resolve):
    fake.repos[REPO] = SHARDED
    fake.lfs["model-00001-of-00002.safetensors"] = {"size": 10**18}
    assert re.search(r"needs 1000000000\.00 GB of disk and .* has [\d.]+ GB free", resolve().stderr)
    assert not set(SHARDS) & set(fake.downloads())


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (SMALL | {"model.safetensors.index.json": b'{"weight_map": {"a": "../../x"}}'}, "names ../../x"),
        (SMALL | {"../../model.safetensors": b"x", "/etc/model.safetensors": b"x"}, "no weights"),
    ],
)
def test_a_hostile_repository_is_refused(fake, resolve, files, says, tmp_path):
    fake.repos[REPO] = files
    assert says in resolve().stderr
    assert set(fake.downloads()) <= set(SMALL | {"model.safetensors.index.json": b""})
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == []


@pytest.mark.parametrize("text", ['{"weight_map": {"a": ["x"]}}', '{"weight_map": {}}', '{"weight_map": []}', "[]"])
def test_an_index_that_is_none(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(Error, match="is not an index"):
        hub._indexed(tmp_path, ["config.json", "model.safetensors.index.json"], [])


def test_a_cache_that_cannot_be_used(fake, resolve, tmp_path):
    fake.repos[REPO] = SHARDED
    (tmp_path / "home/hub/models--someone--model").mkdir(parents=True)
    (tmp_path / "home/hub/models--someone--model/snapshots").touch()
    assert re.fullmatch("Error: someone/model could not be downloaded: .*\n", resolve().stderr)


def test_hostile_names_beside_good_ones_are_left_alone(fake, resolve, tmp_path):
    hostile = {"../../../evil.json": b"x", "/tmp/config.json": b"x", "a/../tokenizer.json": b"x", "config.json\n": b"x"}
    fake.repos[REPO] = SHARDED | hostile
    fake.lfs["model-00001-of-00002.safetensors"] = {"sha256": "../../../../evil"}  # would name a file of the cache
    assert resolve().files() == SHARDED
    assert fake.downloads() == sorted(SHARDED)
    assert {path.name for path in tmp_path.rglob("*evil*")} == set()


def test_check_can_refuse_before_the_weights_come(fake, resolve):
    fake.repos[REPO] = SHARDED
    assert resolve(REFUSE="1").stderr == f"Error: refused {sorted(SHARDED.keys() - SHARDS)}\n"
    assert not set(SHARDS) & set(fake.downloads())


HUB = ["config.json", "model.safetensors"]
BPE = ["vocab.json", "merges.txt"]
MANY = ["params.json", "consolidated-00001-of-00002.safetensors", "consolidated.safetensors.index.json", "tekken.json"]
OTHER = ["model.fp16.safetensors", "adapter.safetensors", "x.gguf", "x/merges.txt", "model.safetensors.bak"]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ([*SHARDED, *RELEASE, *UNWANTED], [*SHARDED, "model-00001-of-00001.safetensors", "tokenizer.model.v3"]),
        ([*HUB, *SHARDS, "model.safetensors.index.json"], HUB),
        (["config.json", *SHARDS], ["config.json", *SHARDS]),
        (["config.json", *RELEASE], [*RELEASE]),
        (MANY, MANY),
        ([*HUB, *BPE, "chat_template.jinja"], [*HUB, *BPE, "chat_template.jinja"]),
        ([*HUB, *BPE, "tokenizer.json"], [*HUB, "tokenizer.json"]),
        ([*HUB, *OTHER], HUB),
    ],
)
def test_choose(names, chosen):
    small, weights = hub.choose(names)
    assert sorted(small + weights) == sorted(chosen)
    assert all(name.endswith(".safetensors") for name in weights)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["config.json", "pytorch_model-00001-of-00002.bin"], "pickles"),
        (["params.json", "consolidated.00.pth"], "pickles"),
        (["config.json", "model.gguf"], "no weights"),
        (["model.safetensors"], "no weights"),
        (["consolidated.safetensors"], "no weights"),
        ([], "no weights"),
    ],
)
def test_choose_refuses(names, says):
    with pytest.raises(Error, match=says):
        hub.choose(names)


@pytest.fixture
def asked(monkeypatch, tmp_path) -> list[tuple[str, str | None]]:
    """What would be asked of the Hub, in a folder that has a few others."""
    asked: list[tuple[str, str | None]] = []
    monkeypatch.setattr(hub, "_fetch", lambda repo, revision, _: asked.append((repo, revision)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("gpt2", "gpt2-xl", "runs/demo", "bare"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "gpt2-xl/config.json").touch()
    return asked


@pytest.mark.parametrize("name", ["runs/demo", "./gpt2", "gpt2/", "gpt2-xl", "bare", "~/runs/demo", ".", "runs/demo/"])
def test_folders(asked, name):
    assert hub.resolve(name) == Path(name).expanduser()
    assert asked == []


@pytest.mark.parametrize(
    ("name", "repo", "revision"),
    [
        ("gpt2", "openai-community/gpt2", None),  # the folder gpt2 holds no model
        ("mistral-7b", "mistralai/Mistral-7B-v0.3", None),
        ("mistral-7b-instruct@refs/pr/3", "mistralai/Mistral-7B-Instruct-v0.3", "refs/pr/3"),
        ("someone/model", "someone/model", None),
        ("someone/model@v1.0", "someone/model", "v1.0"),
        ("runs/other@main", "runs/other", "main"),
    ],
)
def test_names_of_the_hub(asked, name, repo, revision):
    hub.resolve(name)
    assert asked == [(repo, revision)]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mistral7b", "did you mean mistral-7b?"),
        ("runs/dmeo", "did you mean runs/demo/?"),
        ("mlx/a/b", "`mlxgpt models` lists"),
        ("", "give a folder, an alias, or ORG/NAME"),
        ("a" * 300, "there is no model"),
        ("a\0/b", "there is no model"),
        ("~nobody/x", "there is no model"),
        ("https://huggingface.co/a/b", "there is no model"),
        ("someone/model@", "'' is not a revision"),
        ("someone/model@../../x", "is not a revision"),
        ("someone/model@a/../../x", "is not a revision"),
        ("someone/model@a b", "is not a revision"),
        ("gpt2@", "is not a revision"),
    ],
)
def test_names_of_nothing(asked, name, says):
    with pytest.raises(UsageError) as error:
        hub.resolve(name)
    assert says in str(error.value)
    assert asked == []


def test_an_id_that_the_hub_would_not_have():
    with pytest.raises(UsageError, match="'someone/a--b' cannot be a Hub id"):
        hub.resolve("someone/a--b")


def test_table(monkeypatch):
    monkeypatch.setattr(hub, "_cached", lambda repo, _: (None, [] if repo.endswith("gpt2") else ["everything"]))
    rows = {row["alias"]: row for row in hub.table()}
    assert rows.keys() == hub.ALIASES.keys()
    assert [alias for alias, row in rows.items() if row["cached"]] == ["gpt2", "distilgpt2"]
    assert rows["mistral-7b"] | {"alias": "mistral-7b-v0.3"} == rows["mistral-7b-v0.3"]
    assert rows["codestral-22b"]["licence"] == "MNPL-0.1"
    assert rows["mistral-7b-instruct-4bit"]["memory_bf16"] is None
    for row in rows.values():
        stored = 4.5 if row["memory_bf16"] is None else 32 if "gpt2" in row["alias"] else 16
        assert row["download"] == pytest.approx(row["parameters"] * stored / 8, rel=0.11, abs=0)
        assert row["parameters"] * 4.5 / 8 < row["memory_4bit"] < row["parameters"] * 0.7 + 3.1e8
        assert (
            row["memory_bf16"] is None or row["parameters"] * 2 < row["memory_bf16"] < row["parameters"] * 2.1 + 3.1e8
        )


@pytest.mark.parametrize(
    ("alias", "layers", "hidden", "inner", "key_value", "vocab"),
    [
        ("mistral-7b-v0.1", 32, 4096, 14336, 1024, 32000),
        ("mistral-7b-v0.3", 32, 4096, 14336, 1024, 32768),
        ("codestral-22b", 56, 6144, 16384, 1024, 32768),
    ],
)
def test_mistral_parameters(alias, layers, hidden, inner, key_value, vocab):
    layer = 2 * hidden * (hidden + key_value) + 3 * hidden * inner + 2 * hidden
    assert hub.ALIASES[alias].parameters == layers * layer + 2 * vocab * hidden + hidden


@pytest.mark.parametrize(
    ("alias", "layers", "width"),
    [
        ("gpt2", 12, 768),
        ("gpt2-medium", 24, 1024),
        ("gpt2-large", 36, 1280),
        ("gpt2-xl", 48, 1600),
        ("distilgpt2", 6, 768),
    ],
)
def test_gpt2_parameters(alias, layers, width):
    layer = 12 * width**2 + 13 * width
    assert hub.ALIASES[alias].parameters == layers * layer + (50257 + 1024 + 2) * width
