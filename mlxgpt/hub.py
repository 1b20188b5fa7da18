"""A model by any name -> a folder: a path, an alias of the table below, or a Hub id, fetched once into the Hub's cache.

The cache is huggingface_hub's own (HF_HOME), shared with every other program that uses it.
"""

import difflib
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxgpt import files
from mlxgpt.errors import Error, UsageError

LOGIN = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True)
class Known:
    """A model that has an alias."""

    repo: str
    licence: str
    parameters: int
    gigabytes: float  # 1e9 bytes of weights to download
    context: int  # tokens
    kind: str  # base or instruct
    note: str = ""
    quantized: bool = False  # stored in 4 bits already

    @property
    def gated(self) -> bool:
        """Whether the publisher may ask for a login and consent first: mistralai has turned this on and off."""
        return self.repo.startswith("mistralai/")

    def memory(self, bits: float) -> int:
        """Bytes to run it with weights of `bits` bits each: they, a cache of about 4,096 tokens, and the program."""
        return int(self.parameters * (bits / 8 + 0.08) + 3e8)


# Licences and contexts: the model cards on huggingface.co. Parameters: counted from each config.json. Gigabytes: the
# sizes of model*.safetensors on the Hub (GPT-2's are float32 and hold its attention masks too).
APACHE, V1, V3 = "Apache-2.0", 7_241_732_096, 7_248_023_552
WINDOW = "window of 4,096 tokens"
ALIASES = {
    "mistral-7b": Known("mistralai/Mistral-7B-v0.3", APACHE, V3, 14.50, 32768, "base"),
    "mistral-7b-v0.1": Known("mistralai/Mistral-7B-v0.1", APACHE, V1, 14.48, 8192, "base", WINDOW),
    "mistral-7b-v0.2": Known(
        "mistral-community/Mistral-7B-v0.2", APACHE, V1, 14.48, 32768, "base", "a conversion of mistralai's release"
    ),
    "mistral-7b-v0.3": Known("mistralai/Mistral-7B-v0.3", APACHE, V3, 14.50, 32768, "base"),
    "mistral-7b-instruct": Known("mistralai/Mistral-7B-Instruct-v0.3", APACHE, V3, 14.50, 32768, "instruct"),
    "mistral-7b-instruct-v0.1": Known(
        "mistralai/Mistral-7B-Instruct-v0.1", APACHE, V1, 14.48, 8192, "instruct", WINDOW
    ),
    "mistral-7b-instruct-v0.2": Known("mistralai/Mistral-7B-Instruct-v0.2", APACHE, V1, 14.48, 32768, "instruct"),
    "mistral-7b-instruct-v0.3": Known("mistralai/Mistral-7B-Instruct-v0.3", APACHE, V3, 14.50, 32768, "instruct"),
    "mistral-7b-instruct-4bit": Known(
        "mlx-community/Mistral-7B-Instruct-v0.3-4bit", APACHE, V3, 4.08, 32768, "instruct", "v0.3 in 4 bits", True
    ),
    "mathstral": Known("mistralai/Mathstral-7B-v0.1", APACHE, V3, 14.50, 32768, "instruct", "mathematics"),
    "codestral-22b": Known(
        "mistralai/Codestral-22B-v0.1", "MNPL-0.1", 22_247_282_688, 44.50, 32768, "instruct", "not for production"
    ),
    "gpt2": Known("openai-community/gpt2", "MIT", 124_439_808, 0.55, 1024, "base"),
    "gpt2-medium": Known("openai-community/gpt2-medium", "MIT", 354_823_168, 1.52, 1024, "base"),
    "gpt2-large": Known("openai-community/gpt2-large", "MIT", 774_030_080, 3.25, 1024, "base"),
    "gpt2-xl": Known("openai-community/gpt2-xl", "MIT", 1_557_611_200, 6.43, 1024, "base"),
    "distilgpt2": Known("distilbert/distilgpt2", APACHE, 81_912_576, 0.35, 1024, "base"),
}


def table() -> list[dict[str, Any]]:
    """The aliases, one row each, and whether the cache holds them whole. Nothing is asked of the network.

    Sizes are in bytes; `memory_bf16` is None for what is stored in 4 bits.
    """
    return [
        {
            "alias": alias, "repo": known.repo, "licence": known.licence, "kind": known.kind, "gated": known.gated,
            "parameters": known.parameters, "context": known.context, "download": int(known.gigabytes * 1e9),
            "memory_bf16": None if known.quantized else known.memory(16),
            "memory_4bit": known.memory(4.5),  # a scale and a bias of 16 bits for each 64 weights
            "cached": not _cached(known.repo, None)[1], "note": known.note,
        }
        for alias, known in ALIASES.items()
    ]  # fmt: skip


def resolve(name: str, check: Callable[[Path], Any] | None = None) -> Path:
    """The folder of the model `name`: a folder, an alias, or a Hub id ORG/NAME; the latter two may end in @REVISION.

    A folder wins, except that a bare alias means a folder of that name only if it holds config.json or params.json
    (`./gpt2` is always the folder). ORG/NAME where ORG is a folder here is a mistyped path, not asked of the Hub.

    `check` is called with the folder when its small files are there and its weights are not, so that it can refuse
    (by raising Error) what cannot be run before gigabytes are downloaded.

    Raises UsageError for what is none of these, and Error for what cannot be had, saying what to do.
    """
    folder = Path(os.path.expanduser(name))
    base, at, revision = name.partition("@")
    alias = ALIASES.get(base)
    holds_model = os.path.isfile(folder / "config.json") or os.path.isfile(folder / "params.json")
    if name and os.path.isdir(folder) and (holds_model or not alias):
        return folder
    mistyped = not at and os.path.isdir(name.partition("/")[0])
    if not alias and (mistyped or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", base, re.ASCII)):
        raise UsageError(f"there is no model {name!r}: give a folder, an alias, or ORG/NAME on the Hub{_nearest(name)}")
    if at and (not re.fullmatch(r"\w[\w./-]*", revision, re.ASCII) or ".." in revision):
        raise UsageError(f"{revision!r} is not a revision: write {base}@ and a branch, a tag or a commit")
    return _fetch(alias.repo if alias else base, revision or None, check)


def choose(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Of a repository's file names, those mlxgpt reads: (small files, weights), the weights in one layout only.

    Only names in the repository's root and of known forms are ever taken. Where an index is among the small files,
    it says which of the weights are meant. Raises Error when there are no weights to read.
    """
    names = set(names)

    def matching(pattern: str) -> list[str]:
        return sorted(name for name in names if re.fullmatch(pattern, name, re.ASCII))

    shards = matching(r"model-\d+-of-\d+\.safetensors")
    release = matching(r"consolidated(-\d+-of-\d+)?\.safetensors")
    if "config.json" in names and "model.safetensors" in names:
        small, weights = ["config.json"], ["model.safetensors"]
    elif "config.json" in names and (shards or "model.safetensors.index.json" in names):
        small, weights = ["config.json", *matching(r"model\.safetensors\.index\.json")], shards
    elif "params.json" in names and release:
        small, weights = ["params.json", *matching(r"consolidated\.safetensors\.index\.json")], release
    elif pickles := matching(r"[^/]+\.(bin|pt|pth|ckpt|pkl)"):
        raise Error(f"its weights are pickles ({pickles[0]}), which can run code when opened; mlxgpt reads safetensors")
    else:
        raise Error("it has no weights to read: config.json and model*.safetensors, or params.json and consolidated*")
    tokenizer = r"(tokenizer|tekken|tokenizer_config|special_tokens_map|added_tokens)\.json|tokenizer\.model(\.v\w+)?"
    small += matching(rf"generation_config\.json|{tokenizer}|chat_template[\w.-]*\.(jinja|json)")
    if "tokenizer.json" not in names:
        small += matching(r"vocab\.json|merges\.txt")
    return small, weights


def _fetch(repo: str, revision: str | None, check: Callable[[Path], Any] | None) -> Path:
    """`repo` in the cache, downloaded if need be. A whole copy will do where the Hub cannot or need not be asked."""
    from huggingface_hub import constants
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(f"{repo!r} cannot be a Hub id: {error}") from None
    folder, lacking = _cached(repo, revision)
    commit = re.fullmatch(r"[0-9a-f]{40}", revision or "")  # never changes
    if folder and not lacking and (commit or constants.HF_HUB_OFFLINE):
        return folder
    problem = "HF_HUB_OFFLINE is set (unset it to download)"
    if not constants.HF_HUB_OFFLINE:
        try:
            return _download(repo, revision, check)
        except Error:
            raise
        except Exception as error:  # its class depends on the server, the network, the disk and the library's version
            problem, outage = _explain(repo, revision, error)
        folder, lacking = _cached(repo, revision)
        if folder and not lacking:
            print(f"mlxgpt: {problem}; using the copy of {repo} in the cache", file=sys.stderr)
            return folder
        if not outage:
            raise Error(problem)
    part = f" ({', '.join(lacking)} missing)" if folder else ""
    where = f"the cache {constants.HF_HUB_CACHE} has no whole copy of {repo}{part}"
    raise Error(f"{problem}, and {where}: run this again when connected")


def _download(repo: str, revision: str | None, check: Callable[[Path], Any] | None) -> Path:
    """Bring `repo` into the cache: the small files, then `check`, then the weights. Raises whatever goes wrong."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.utils import tqdm

    class Quiet(tqdm):  # the bar of each large file is shown, and none for the handful of files
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | {"disable": True})

    timeout = constants.HF_HUB_ETAG_TIMEOUT
    info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=timeout)
    found = {file.rfilename: file for file in info.siblings or []}
    try:
        small, weights = choose(found)
    except Error as error:
        raise Error(f"{repo} cannot be run: {error}") from None
    folder, lacking = _cached(repo, revision)
    if folder and folder.name == info.sha and not lacking and all((folder / name).is_file() for name in small):
        return folder
    if not re.fullmatch(r"[0-9a-f]{40}", info.sha or ""):
        raise Error(f"the Hub is broken: {info.sha!r}, its newest commit of {repo}, is none")
    folder = Path(snapshot_download(repo, revision=info.sha, allow_patterns=small, tqdm_class=Quiet))
    if check:
        check(folder)
    weights = _indexed(folder, small, weights)
    if absent := [name for name in weights if name not in found]:
        raise Error(f"{repo} is broken: its index names {', '.join(absent)}, which it does not have")
    blobs = folder.parent.parent / "blobs"
    large = {name: lfs for name in weights if (lfs := found[name].lfs) and re.fullmatch("[0-9a-f]{64}", lfs.sha256)}
    _require_space(repo, blobs, {lfs.sha256: lfs.size for lfs in large.values()})
    for name, lfs in large.items():
        if not (folder / name).is_file() and lfs.size <= constants.MAX_HTTP_DOWNLOAD_SIZE:
            _fetch_blob(repo, folder.name, name, blobs / lfs.sha256, lfs.size)
    # This links the blobs, fetches what is not in large-file storage, and only now makes `revision` mean this commit:
    # until then an older copy in the cache stays the one to use.
    folder = Path(snapshot_download(repo, revision=revision, allow_patterns=small + weights, tqdm_class=Quiet))
    if folder.name != info.sha or not all((folder / name).is_file() for name in small + weights):
        raise Error(f"{repo} changed on the Hub, or the Hub went away, while it was downloaded: run this again")
    return folder


def _fetch_blob(repo: str, commit: str, name: str, blob: Path, size: int) -> None:
    """Download one file of `size` bytes to `blob`, which is named by its SHA-256, going on where an earlier run was
    interrupted: huggingface_hub itself starts over since its pull request 4306, and these are gigabytes."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    blob.parent.mkdir(parents=True, exist_ok=True)
    with _partial(blob).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"mlxgpt: waiting for another process that is downloading {name}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks: the hash below finds out what two processes made of it
        if blob.exists():  # by an earlier run or another process
            _partial(blob).unlink(missing_ok=True)
            return
        if file.seek(0, os.SEEK_END) > size:
            file.truncate(0)
        start = file.seek(0, os.SEEK_END)
        url = hf_hub_url(repo, name, revision=commit)
        http_get(url, file, resume_size=start, headers=headers, expected_size=size, displayed_filename=name)
        file.flush()
        with _partial(blob).open("rb") as written:
            sha256 = hashlib.file_digest(written, "sha256").hexdigest()
        if sha256 != blob.name:
            file.truncate(0)
            raise Error(f"{name} of {repo} arrived damaged (its SHA-256 is not the Hub's): run this again")
        os.replace(_partial(blob), blob)


def _partial(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.mlxgpt.incomplete")


def _require_space(repo: str, blobs: Path, sizes: dict[str, int]) -> None:
    """Raise Error unless the disk has room for what is still missing of the blobs of these sizes, in bytes."""
    need = 0
    for name, size in sizes.items():
        here = next((path for path in (blobs / name, _partial(blobs / name)) if path.is_file()), None)
        need += max(0, size - here.stat().st_size) if here else size
    cache = blobs.parent.parent
    free = shutil.disk_usage(cache).free
    if need > free:
        raise Error(
            f"{repo} needs {need / 1e9:.2f} GB of disk and {cache} has {free / 1e9:.2f} GB free: make room, or point "
            "HF_HOME at another disk"
        )


def _indexed(folder: Path, small: list[str], weights: list[str]) -> list[str]:
    """The weights that the index among the small files names, or `weights` where there is no index. Raises Error."""
    index = next((name for name in small if name.endswith(".index.json")), None)
    if index is None:
        return weights
    document = files.read_json(folder / index)
    shards = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise Error(f"{folder / index} is not an index of weights: its weight_map must name a file for each tensor")
    return sorted(set(shards.values()))


def _cached(repo: str, revision: str | None) -> tuple[Path | None, list[str]]:
    """The snapshot of `repo` in the cache, if there is one, and what it lacks to be run."""
    from huggingface_hub import try_to_load_from_cache

    try:
        paths = [try_to_load_from_cache(repo, name, revision=revision) for name in ("config.json", "params.json")]
        folder = next(Path(path).parent for path in paths if isinstance(path, str))
        present = {path.name for path in folder.iterdir() if path.is_file()}
    except (StopIteration, OSError):
        return None, ["everything"]
    try:
        lacking = [name for name in _indexed(folder, *choose(present)) if name not in present]
    except Error:
        return folder, ["weights"]
    if not any(re.match(r"tokenizer\.(json|model)|tekken\.json|merges\.txt", name) for name in present):
        lacking.append("tokenizer")
    return folder, lacking


def _explain(repo: str, revision: str | None, error: BaseException) -> tuple[str, bool]:
    """In one line what went wrong and what to do, and whether it is that the Hub cannot be reached now."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    page = f"https://huggingface.co/{repo}"
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is gated: accept its terms at {page}, then {LOGIN}", False
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision {revision or 'main'!r}: {page}/commits lists them", False
    if status == 401 and "nvalid credentials" in str(error):
        return f"the Hub does not know your token: {LOGIN} again, or unset it", False
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        return f"the Hub has no {repo}, or it is private (then {LOGIN}){_nearest(repo)}", False
    if status == 429:
        return f"the Hub's rate limit is reached (HTTP 429): wait some minutes, or {LOGIN} for a higher one", True
    if status >= 500:
        return f"the Hub is out of order (HTTP {status})", True
    if status:
        return f"the Hub refused {repo} (HTTP {status}): see {page}, and {LOGIN}", False
    if isinstance(error, json.JSONDecodeError):
        return "what answered is not the Hub (a log-in page of this network?)", True
    if isinstance(error, errors.HTTPError):  # of the HTTP library, httpx or httpx2
        return f"the Hub could not be reached ({text})", True
    return f"{repo} could not be downloaded: {text}", False


def _nearest(name: str) -> str:
    """`; did you mean …?` with the alias and the folder closest to `name`, if any is close."""
    names = {known.repo.lower(): alias for alias, known in ALIASES.items()} | {alias: alias for alias in ALIASES}
    parent = os.path.dirname(name)
    try:
        folders = [os.path.join(parent, entry.name) for entry in os.scandir(parent or ".") if entry.is_dir()]
    except (OSError, ValueError):
        folders = []
    close = [names[match] for match in difflib.get_close_matches(name.lower(), names, 1)]
    close += [f"{match}/" for match in difflib.get_close_matches(name, folders, 1)]
    return f"; did you mean {' or '.join(close)}?" if close else "; `mlxgpt models` lists the aliases"
