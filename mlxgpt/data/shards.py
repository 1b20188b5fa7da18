"""Documents -> memory-mapped token files: one a split, and a manifest that says what they were made from.

A corpus is tokenized once for each (sources, recipe) and kept in the cache folder; the next run on it starts at once.
Text is read in pieces and tokens are appended to the file, so that neither has to fit in memory.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mlxgpt import files
from mlxgpt import tokenizer as tokenizers
from mlxgpt.config import DataConfig, TokenizerConfig, require
from mlxgpt.data import corpus
from mlxgpt.errors import Error

# Keys that say what is done with the tokens: whatever they are, the files are the same.
WHEN_READ: dict[str, Any] = {"fim_spm": 0.0, "isolate_documents": False}
FORMAT = 1  # raise it when the files or what goes into them change
KEEP = 16  # corpora kept in the cache, the least recently used go first
ABANDONED = 7 * 86400  # seconds after which a folder that is still being written is taken for a leftover
SPLITS: tuple[corpus.Split, ...] = ("train", "validation")
Mix = tuple[Path, Fraction]  # another corpus, and its share of what is trained on


@dataclass(frozen=True)
class Shards:
    """Tokens of both splits on disk, `manifest` (plain tables) and the tokenizer that made them.

    `mixed`: other corpora in the same tokens, each with its share of what is trained on.
    """

    folder: Path
    manifest: dict[str, Any]
    tokenizer: tokenizers.Tokenizer
    mixed: tuple[tuple["Shards", Fraction], ...] = ()
    _opened: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def tokens(self, split: str) -> np.ndarray:
        """All tokens of a split, one after the other: a read-only memory map, uint16 or uint32 [n].

        It is opened once and lasts: a run goes on where its corpus has meanwhile been removed from the cache.
        """
        if split not in self._opened:
            self._opened[split] = read_tokens(self.folder / f"{split}.bin", self.manifest["dtype"])
        return self._opened[split]

    def starts(self, split: str) -> np.ndarray:
        """Where each document of a split begins among its tokens: int64 [documents]."""
        counts = [d["tokens"] for d in self.manifest["sources"] if d["split"] == split]
        return np.cumsum([0, *counts[:-1]], dtype=np.int64)

    def record(self) -> dict[str, Any]:
        """What a run keeps of its data: the manifest, and those of what is mixed in."""
        return self.manifest | {"mix": [{"share": str(share)} | other.manifest for other, share in self.mixed]}

    def bytes_in(self, split: str) -> int:
        """Bytes of text behind a split's tokens."""
        return sum(d["bytes"] for d in self.manifest["sources"] if d["split"] == split)


def read_tokens(path: Path, dtype: str) -> np.ndarray:
    """A token file as a read-only memory map [n]; empty where the file is."""
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)


def shares(mix: Sequence[str]) -> list[Mix]:
    """Paths and shares of what `--mix PATH=SHARE` asks for. Raises UsageError."""
    mixed = []
    for each in mix:
        path, _, text = each.rpartition("=")
        try:
            share = Fraction(text)
        except (ValueError, ZeroDivisionError):
            share = Fraction(0)
        require(bool(path) and 0 < share < 1, f"--mix takes PATH=SHARE, a share between 0 and 1, not '{each}'")
        mixed.append((Path(path), share))
    require(sum(share for _, share in mixed) < 1, "--mix: the shares leave nothing for the corpus itself")
    return mixed


def prepare(
    paths: Sequence[Path], data: DataConfig, tokenizer: TokenizerConfig, cache: Path, mix: Sequence[Mix] = (),
    ready: tokenizers.Tokenizer | None = None,
) -> tuple[Shards, bool]:  # fmt: skip
    """The shards of `paths`, with those of `mix`, and whether they were there already. Raises Error, UsageError.

    The key is every source's path, size and modification time with the recipe's two sections: a second run stats
    the files and reads none. A `ready` tokenizer takes the place of the one that the recipe asks for. What is mixed in
    has no text that is among `paths`, so that none is learned that is held out, and is all trained on.
    """
    shards, cached = _prepare(paths, data, ready or tokenizer, cache, [])
    known = [(d["sha256"], Path(d["path"])) for d in shards.manifest["sources"]]
    mixed = []
    for path, share in mix:
        whole = dataclasses.replace(data, validation_fraction=0.0)
        try:
            other, its = _prepare([path], whole, shards.tokenizer, cache, known)
        except Error as error:
            raise type(error)(f"--mix {path}: {error}") from None
        mixed.append((other, share))
        cached = cached and its
    return dataclasses.replace(shards, mixed=tuple(mixed)), cached


def _prepare(
    paths: Sequence[Path], data: DataConfig, tokenizer: TokenizerConfig | tokenizers.Tokenizer, cache: Path,
    known: Sequence[tuple[str, Path]],
) -> tuple[Shards, bool]:  # fmt: skip
    """One corpus, without the texts `known` (their hashes and files) and what is nearly one of them."""
    sources, skipped = corpus.find(paths, data)
    identity = [[str(s.path), s.size, s.mtime_ns, s.explicit] for s in sources]
    if isinstance(tokenizer, TokenizerConfig):
        its: Any = dataclasses.asdict(tokenizer)
        if tokenizer.path:
            identity += [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in _files(Path(tokenizer.path))]
    else:
        its = tokenizer.fingerprint()
    rules = dataclasses.asdict(dataclasses.replace(data, fim_rate=float(data.fim_rate > 0), **WHEN_READ))
    recipe = [FORMAT, rules, its, identity, *([[sha256 for sha256, _ in known]] if known else [])]
    folder = cache / "corpora" / hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:20]
    if shards := _open(folder):
        return shards, True
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with files.turn(folder.with_name(f".{folder.name}.lock")):
            if shards := _open(folder):  # another process, whose turn it was, has made them
                return shards, True
            shards = build(corpus.collect(sources, skipped, data, known), tokenizer, folder, fim=data.fim_rate > 0)
    except OSError as error:
        raise _no_cache(folder, error) from None
    _prune(folder.parent)
    return shards, False


def _no_cache(folder: Path, error: OSError) -> Error:
    return Error(f"{folder.parent} cannot be made: {error.strerror}; MLXGPT_CACHE names another cache")


def _open(folder: Path) -> Shards | None:
    """The shards in `folder`, now the most recently used; None where there are none or they are not whole."""
    try:
        os.utime(folder)
        manifest = files.read_json(folder / "manifest.json")
        shards = Shards(folder, manifest, tokenizers.load(folder))
        size = np.dtype(manifest["dtype"]).itemsize
        whole = manifest["tokenizer"] == shards.tokenizer.fingerprint() and all(
            (folder / f"{split}.bin").stat().st_size == size * manifest["tokens"][split] for split in SPLITS
        )
    except (OSError, Error, KeyError, TypeError):
        return None
    return shards if whole else None


def _files(path: Path) -> list[Path]:
    """What a ready tokenizer is read from."""
    held = tokenizers.candidates(path) if path.is_dir() else [path]
    folder = path if path.is_dir() else path.parent
    places = [*held, folder / "tokenizer_config.json", folder / "config.json"]
    return [place for place in places if place.is_file()]


def build(
    documents: corpus.Corpus, config: TokenizerConfig | tokenizers.Tokenizer, folder: Path, fim: bool = False
) -> Shards:  # fmt: skip
    """Train the tokenizer, with control tokens for `fim`, or take a ready one, and write both splits and the manifest;
    `folder` appears whole or not at all. Raises Error.

    What else was at `folder` goes, but for the same shards, when another process was quicker to write them.
    """
    if isinstance(config, TokenizerConfig):
        tokenizer = tokenizers.make(config, sample(documents, config), fim)
    else:
        tokenizer = config
    dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        files.discard(folder)
        with files.folder(folder) as partial:
            tokenizer.save(partial)
            manifest = _write(documents, tokenizer, dtype, partial)
            (partial / "manifest.json").write_text(files.to_json(manifest), encoding="utf-8")
    except OSError as error:
        raise _no_cache(folder, error) from None
    except Error:
        if not (shards := _open(folder)):
            raise
        return shards
    return Shards(folder, manifest, tokenizers.load(folder))


def _write(documents: corpus.Corpus, tokenizer: tokenizers.Tokenizer, dtype: str, folder: Path) -> dict[str, Any]:
    """Write both splits' tokens into `folder`; returns the manifest."""
    sources: list[dict[str, Any]] = []
    for split in SPLITS:
        with open(folder / f"{split}.bin", "wb") as file:
            for document in documents.split(split):
                start = file.tell()
                size = _write_document(document, tokenizer, dtype, file)
                count = (file.tell() - start) // np.dtype(dtype).itemsize
                sources.append({"name": document.name, "path": str(document.path), "sha256": document.sha256,
                                "split": split, "bytes": size, "tokens": count})  # fmt: skip
    return {
        "format": FORMAT, "dtype": dtype, "tokenizer": tokenizer.fingerprint(),
        "documents": {s: len(documents.split(s)) for s in SPLITS},
        "bytes": {s: sum(d["bytes"] for d in sources if d["split"] == s) for s in SPLITS},
        "tokens": {s: sum(d["tokens"] for d in sources if d["split"] == s) for s in SPLITS},
        "skipped": documents.skipped, "sources": sources,
    }  # fmt: skip


def _write_document(document: corpus.Document, tokenizer: tokenizers.Tokenizer, dtype: str, file) -> int:
    """Append a document's tokens, opened and closed by its control tokens; returns its bytes of text."""
    size = 0
    if tokenizer.bos_id is not None and tokenizer.opens:
        file.write(np.array([tokenizer.bos_id], dtype).tobytes())
    for piece in document.pieces():
        size += len(piece.encode())
        file.write(np.asarray(tokenizer.encode(piece), dtype).tobytes())
    if tokenizer.eos_id is not None:
        file.write(np.array([tokenizer.eos_id], dtype).tobytes())
    return size


def sample(documents: corpus.Corpus, config: TokenizerConfig) -> Iterator[str]:
    """Training text for the tokenizer: all of it for "char"; for "bpe" documents in the order of their hashes,
    about `sample_bytes` in all."""
    left = config.sample_bytes if config.kind == "bpe" else None
    for document in sorted(documents.split("train"), key=lambda d: d.sha256):
        for piece in document.pieces():
            if left is not None and left <= 0:
                return
            yield piece if left is None else piece[:left]
            left = None if left is None else left - len(piece)


def _prune(folder: Path) -> None:
    """Remove the corpora that were used longest ago, and what a process that was killed left half-written."""
    used = sorted(((_used(p), p) for p in folder.iterdir()), reverse=True)
    kept = [path for _, path in used if not path.name.startswith(".")][:KEEP]
    for when, path in used:
        half_written = path.name.startswith(".") and when > time.time() - ABANDONED
        if path not in kept and not half_written:
            shutil.rmtree(path, ignore_errors=True)


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # removed by another process meanwhile
        return 0.0
