"""Documents -> memory-mapped token files: one a split, and a manifest that says what they were made from.

A corpus is tokenized once for each (sources, recipe) and kept in the cache folder; the next run on it starts at once.
Text is read in pieces and tokens are appended to the file, so that neither has to fit in memory.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlxgpt import tokenizer as tokenizers
from mlxgpt.config import DataConfig, TokenizerConfig
from mlxgpt.data import corpus
from mlxgpt.errors import Error

FORMAT = 1  # raise it when the files or what goes into them change
KEEP = 16  # corpora kept in the cache, the least recently used go first
SPLITS: tuple[corpus.Split, ...] = ("train", "validation")


@dataclass(frozen=True)
class Shards:
    """Tokens of both splits on disk, `manifest` (plain tables) and the tokenizer that made them."""

    folder: Path
    manifest: dict[str, Any]
    tokenizer: tokenizers.Tokenizer

    def tokens(self, split: str) -> np.ndarray:
        """All tokens of a split, one after the other: a read-only memory map, uint16 or uint32 [n]."""
        return read_tokens(self.folder / f"{split}.bin", self.manifest["dtype"])

    def bytes_in(self, split: str) -> int:
        """Bytes of text behind a split's tokens."""
        return sum(d["bytes"] for d in self.manifest["sources"] if d["split"] == split)


def read_tokens(path: Path, dtype: str) -> np.ndarray:
    """A token file as a read-only memory map [n]; empty where the file is."""
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)


def prepare(paths: Sequence[Path], data: DataConfig, tokenizer: TokenizerConfig, cache: Path) -> tuple[Shards, bool]:
    """The shards of `paths`, and whether they were there already. Raises Error, UsageError.

    The key is every source's path, size and modification time with the recipe's two sections: a second run stats
    the files and reads none.
    """
    sources, skipped = corpus.find(paths, data)
    identity = [[str(s.path), s.size, s.mtime_ns, s.explicit] for s in sources]
    if tokenizer.path:
        identity += [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in _files(Path(tokenizer.path))]
    recipe = [FORMAT, dataclasses.asdict(data), dataclasses.asdict(tokenizer), identity]
    folder = cache / "corpora" / hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:20]
    if (folder / "manifest.json").is_file():
        os.utime(folder)
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return Shards(folder, manifest, tokenizers.load(folder)), True
    shards = build(corpus.collect(sources, skipped, data), tokenizer, folder)
    _prune(folder.parent)
    return shards, False


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path][: path.exists()]


def build(documents: corpus.Corpus, config: TokenizerConfig, folder: Path) -> Shards:
    """Train the tokenizer, write both splits and the manifest; `folder` appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        tokenizer = tokenizers.make(config, sample(documents, config))
        tokenizer.save(partial)
        dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
        sources: list[dict[str, Any]] = []
        for split in SPLITS:
            with open(partial / f"{split}.bin", "wb") as file:
                for document in documents.split(split):
                    start = file.tell()
                    size = _write_document(document, tokenizer, dtype, file)
                    count = (file.tell() - start) // np.dtype(dtype).itemsize
                    sources.append({"name": document.name, "path": str(document.path), "sha256": document.sha256,
                                    "split": split, "bytes": size, "tokens": count})  # fmt: skip
        manifest = {
            "format": FORMAT, "dtype": dtype, "tokenizer": tokenizer.fingerprint(),
            "documents": {s: len(documents.split(s)) for s in SPLITS},
            "bytes": {s: sum(d["bytes"] for d in sources if d["split"] == s) for s in SPLITS},
            "tokens": {s: sum(d["tokens"] for d in sources if d["split"] == s) for s in SPLITS},
            "skipped": documents.skipped, "sources": sources,
        }  # fmt: skip
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        if folder.exists():  # without its manifest: cut short, or another process was quicker
            shutil.rmtree(folder)
        os.replace(partial, folder)
    except OSError as error:
        raise Error(f"the corpus could not be written to {folder.parent}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Shards(folder, manifest, tokenizers.load(folder))


def _write_document(document: corpus.Document, tokenizer: tokenizers.Tokenizer, dtype: str, file) -> int:
    """Append a document's tokens, opened and closed by its control tokens; returns its bytes of text."""
    size = 0
    if tokenizer.bos_id is not None:
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
    kept = sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: -p.stat().st_mtime)
    for old in kept[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)
