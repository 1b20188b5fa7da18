"""What is different between two corpora, by their manifests."""

from dataclasses import dataclass
from typing import Any

NAMED = 3  # files that a message names, of each kind


@dataclass(frozen=True)
class Changes:
    """Paths of files, sorted. `moved`: unchanged files that were held out and no longer are, or the other way about.

    `trained_before`: those that are held out now and were trained on. `tokenizer`: whether the tokens are others;
    `held_out`: whether what is evaluated on is.
    """

    added: list[str]
    removed: list[str]
    changed: list[str]
    moved: list[str]
    trained_before: list[str]
    tokenizer: bool = False
    held_out: bool = False

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def describe(self) -> str:
        """In words: how many of each, and the first of them."""
        kinds = {
            "added": self.added, "removed": self.removed, "changed": self.changed,
            "moved between training and held-out files": self.moved,
        }  # fmt: skip
        words = [_count(paths, kind) for kind, paths in kinds.items() if paths]
        return ", ".join(words or ["the same files make another tokenizer"])

    def counts(self) -> dict[str, int]:
        """How many of each."""
        return {name: len(paths) for name, paths in vars(self).items() if isinstance(paths, list)}


def _count(paths: list[str], kind: str) -> str:
    rest = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return f"{len(paths)} {'file' if len(paths) == 1 else 'files'} {kind} ({', '.join(paths[:NAMED])}{rest})"


def compare(then: dict[str, Any], now: dict[str, Any]) -> Changes:
    """From one record (`Shards.record`) to another, what is mixed in included."""
    before, after = _files(then), _files(now)
    apart = {path for path, parts in before.items() if {split for _, split, _ in parts} == {"train"}}
    held = {path for path, parts in after.items() if any(split == "validation" for _, split, _ in parts)}
    both = before.keys() & after.keys()
    changed = {path for path in both if _texts(before[path]) != _texts(after[path])}
    return Changes(
        sorted(after.keys() - before.keys()),
        sorted(before.keys() - after.keys()),
        sorted(changed),
        sorted(path for path in both - changed if before[path] != after[path]),
        sorted(apart & held),
        then["tokenizer"] != now["tokenizer"],
        _held_out(then) != _held_out(now),
    )


def _files(record: dict[str, Any]) -> dict[str, list[tuple[str, str, int]]]:
    """Each file's parts: hash, split and bytes."""
    found: dict[str, list[tuple[str, str, int]]] = {}
    for each in (record, *record.get("mix", [])):
        for source in each["sources"]:
            found.setdefault(source["path"], []).append((source["sha256"], source["split"], source["bytes"]))
    return {path: sorted(parts) for path, parts in found.items()}


def _texts(parts: list[tuple[str, str, int]]) -> set[str]:
    return {sha256 for sha256, _, _ in parts}


def _held_out(record: dict[str, Any]) -> list[str]:
    return [source["sha256"] for source in record["sources"] if source["split"] == "validation"]
