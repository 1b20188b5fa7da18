"""A project's index, from the cache where it is there, brought up to date with the files as they are now."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mlxgpt.completion.index import MOST_TOKENS, Index
from mlxgpt.completion.lexer import Lexer
from mlxgpt.config import DataConfig
from mlxgpt.data import corpus
from mlxgpt.errors import Error, UsageError
from mlxgpt.tokenizer import Tokenizer

KEEP = 16  # indexes kept in the cache, the oldest go first
RULES = DataConfig(validation_fraction=0.0)  # what is read of a project is what training would read


def _say(text: str) -> None:
    print(f"mlxgpt: {text}", file=sys.stderr)


def open_index(
    root: Path, tokenizer: Tokenizer | None, cache: Path, limit: int = MOST_TOKENS,
    note: Callable[[str], object] = _say,
) -> Index:  # fmt: skip
    """The index of the files under `root` that training would read, in the tokens of `tokenizer` (None: a `Lexer`'s).

    The name of a document is its path. Kept in `cache`: a second call reads only the files that changed since. Raises
    UsageError for a folder that is not there, Error for one that cannot be read.
    """
    root = root.resolve()
    path = _place(cache, [str(root), limit], tokenizer)
    sources, now = _look(root)
    try:
        index, then = Index.load(path, tokenizer, limit)
    except Error:
        index, then = Index(tokenizer or Lexer(), limit), {}
    changed = [s for s in sources if then.get(str(s.path)) != now[str(s.path)]]
    gone = then.keys() - now.keys()
    if not changed and not gone:
        return index
    if len(changed) > max(8, len(sources) // 4):
        index.build(_texts(sources))
    else:
        for source in changed:
            texts = list(_texts([source]))
            index.update(str(source.path), texts[0][1] if texts else None)
        for name in gone:
            index.update(name, None)
    _keep(index, path, now, note)
    if index.left_out:
        note(f"{index.left_out} files of {root} are not in the index: it is full")
    return index


def of_run(
    manifest: dict[str, Any], tokenizer: Tokenizer | None, cache: Path,
    note: Callable[[str], object] = _say,
) -> Index:  # fmt: skip
    """The index of the files that a run was trained on (`manifest`: its data.json), of those that are still as they
    were. Kept in `cache`."""
    wanted = {d["path"]: d["sha256"] for d in manifest["sources"] if d["split"] == "train"}
    path = _place(cache, sorted(wanted.items()), tokenizer)
    try:
        return Index.load(path, tokenizer)[0]
    except Error:
        index = Index(tokenizer or Lexer())
    texts = []
    for name, sha256 in wanted.items():
        try:
            data = Path(name).read_bytes()
        except OSError:
            continue
        if hashlib.sha256(data).hexdigest() == sha256:
            texts.append((name, data))
    index.build(texts)
    if missing := len(wanted) - len(texts):
        note(f"{missing} of {len(wanted)} files that the run was trained on have changed: the n-grams lack them")
    else:
        _keep(index, path, {}, note)
    return index


def _place(cache: Path, identity: object, tokenizer: Tokenizer | None) -> Path:
    """Where an index of this identity is kept."""
    whole = json.dumps([identity, "lexer" if tokenizer is None else tokenizer.fingerprint()])
    return cache / "ngrams" / f"{hashlib.sha256(whole.encode()).hexdigest()[:20]}.npz"


def _keep(index: Index, path: Path, notes: dict, note: Callable[[str], object]) -> None:
    """Save the index, and no more than `KEEP` of them in all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        index.save(path, notes)
        kept = sorted(path.parent.glob("*.npz"), key=lambda p: p.stat().st_mtime, reverse=True)
        for old in kept[KEEP:]:
            old.unlink(missing_ok=True)
    except (OSError, Error) as error:
        note(f"the index could not be kept: {error}")


def update(index: Index, path: Path, root: Path) -> None:
    """Have the index hold the file at `path`, under `root`, as it was saved; not at all where it is gone, or training
    would not read it. A file that is not indexed yet is looked for in the whole of `root`."""
    name = str(path.absolute())
    index.update(name, read(name, path if name in index.documents else root))


def read(name: str, within: Path) -> bytes | None:
    """The text of the file with this absolute path, found `within` a folder or as itself: None where it is gone, or
    training would not read it."""
    try:
        sources, _ = corpus.find([within], RULES)
    except (Error, UsageError):
        return None
    return next((text for _, text in _texts([s for s in sources if str(s.path) == name])), None)


State = dict[str, list[int]]  # size in bytes and time of change (ns) of each file, by its path


def state(root: Path) -> State:
    """The files under `root` that training would read, as they are now. Raises UsageError, Error."""
    return _look(root.resolve())[1]


def changes(root: Path, then: State) -> tuple[State, list[tuple[str, bytes | None]]]:
    """The files under `root` as they are now, and path and text of each that has changed since `then`: None where it is
    gone, or no longer worth learning from. Raises UsageError, Error."""
    sources, now = _look(root.resolve())
    changed = [s for s in sources if then.get(str(s.path)) != now[str(s.path)]]
    texts = [(str(s.path), next((text for _, text in _texts([s])), None)) for s in changed]
    return now, texts + [(name, None) for name in then.keys() - now.keys()]


def _look(root: Path) -> tuple[list[corpus.Source], State]:
    sources, _ = corpus.find([root], RULES)
    return sources, {str(s.path): [s.size, s.mtime_ns] for s in sources}


def _texts(sources: Iterable[corpus.Source]) -> Iterator[tuple[str, bytes]]:
    """Path and text of each file that is worth learning from."""
    try:
        documents = corpus.collect(sources, {}, RULES).documents
    except Error:  # none of them is
        return
    for document in documents:
        yield str(document.path), "".join(document.pieces()).encode()
