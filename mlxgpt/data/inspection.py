"""What a recipe makes of a corpus, to look at: its batches as text with their masks, and what it leaves out."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from mlxgpt.data import fim
from mlxgpt.data.batches import Batches, Row
from mlxgpt.data.shards import Shards
from mlxgpt.data.skipped import Skipped
from mlxgpt.tokenizer import Tokenizer


def describe(batches: Batches, shards: Shards, step: int) -> dict[str, Any]:
    """Batch number `step`: its rows, each with its token ids [length + 1], of which all but the last are inputs and all
    but the first are targets, the piece and the part of a document that each is of, and the runs of one piece and part
    as text."""
    each = [shards, *(other for other, _ in shards.mixed)]
    names = [[s["name"] for s in one.manifest["sources"] if s["split"] == "train"] for one in each]
    rows = [batches.row(step * batches.batch_size + i) for i in range(batches.batch_size)]
    return {"step": step, "rows": [_row(row, shards.tokenizer, names[row.stream]) for row in rows]}


def _row(row: Row, tokenizer: Tokenizer, names: Sequence[str]) -> dict[str, Any]:
    return {
        "corpus": row.stream, "tokens": row.tokens.tolist(), "targets": len(row.tokens) - 1,
        "documents": row.pieces.tolist(), "parts": row.parts.tolist(),
        "runs": [
            {"document": names[row.documents[piece]], "piece": piece, "part": fim.PARTS[part], "tokens": len(ids),
             "text": spell(tokenizer, ids)}
            for piece, part, ids in _runs(row)
        ],
    }  # fmt: skip


def _runs(row: Row) -> Iterator[tuple[int, int, list[int]]]:
    """Neighbouring tokens of one piece and part: piece, part, ids."""
    labelled = zip(row.pieces.tolist(), row.parts.tolist(), row.tokens.tolist(), strict=True)
    for (piece, part), run in groupby(labelled, key=lambda token: token[:2]):
        yield piece, part, [token for _, _, token in run]


def spell(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Ids as text, control tokens by their names."""
    names = {i: name for name, i in tokenizer.control.items()}
    return "".join(
        "".join(names.get(i, "") for i in run) if control else tokenizer.decode(run).decode("utf-8", "replace")
        for control, run in ((control, list(run)) for control, run in groupby(ids, key=names.__contains__))
    )


def as_text(batch: dict[str, Any]) -> str:
    """`describe`'s batch for people: a heading a document, a margin with the part that each line is of."""
    lines = []
    for number, row in enumerate(batch["rows"]):
        mixed = f", from corpus {row['corpus']} of --mix" if row["corpus"] else ""
        lines.append(f"=== batch {batch['step']}, row {number}: {row['targets']} targets{mixed}")
        for piece, runs in groupby(row["runs"], key=lambda run: run["piece"]):
            held = list(runs)
            lines.append(f"--- {held[0]['document']} (piece {piece}, {sum(run['tokens'] for run in held)} tokens)")
            for run in held:
                lines += [f"{run['part']:>7} | {line}" for line in run["text"].split("\n")]
    return "\n".join(lines)


def left_out(skipped: Skipped, kept: int) -> dict[str, Any]:
    """How many files are kept and left out, and which of these and why."""
    return {
        "kept": kept,
        "left_out": sum(skipped.values()),
        "reasons": dict(skipped.most_common()),
        "files": [
            {"path": path, "reason": reason, "more": more}
            for reason in skipped
            for path, more in sorted(skipped.files.get(reason, []))
        ],
    }
