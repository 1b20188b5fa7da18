"""`mlxgpt eval`, whole: a model folder and held-out text in, loss and completion figures out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from mlxgpt import backend, files, weights
from mlxgpt.completion import evaluation
from mlxgpt.completion.suggest import Suggester
from mlxgpt.config import DataConfig
from mlxgpt.data import corpus
from mlxgpt.data.shards import read_tokens
from mlxgpt.errors import Error
from mlxgpt.evaluation import Evaluation, Evaluator
from mlxgpt.tokenizer import Tokenizer

LENGTH = 512  # tokens a sequence where no run says how long its own were


@dataclass(frozen=True)
class HeldOut:
    """Text to evaluate on: documents as (name, bytes) and all their tokens, uint [n]."""

    documents: list[tuple[str, bytes]]
    tokens: np.ndarray


@dataclass(frozen=True)
class Result:
    """Everything `mlxgpt eval` reports."""

    loss: Evaluation
    scores: evaluation.Scores

    def as_json(self) -> dict[str, Any]:
        """The command's JSON object."""
        s = self.scores
        return {
            "val_loss": self.loss.val_loss, "val_bpb": self.loss.val_bpb, "cursors": s.cursors,
            "exact_match": s.exact_match, "edit_similarity": s.edit_similarity, "completed_ratio": s.completed_ratio,
            "latency_ms": {"p50": s.p50, "p95": s.p95},
        }  # fmt: skip

    def as_table(self) -> str:
        """The same for people."""
        s = self.scores
        return (
            f"val_loss         {self.loss.val_loss:.4f} nats a token\n"
            f"val_bpb          {self.loss.val_bpb:.4f} bits a byte\n"
            f"cursors          {s.cursors}\n"
            f"exact match      {s.exact_match:.1%} of lines finished as they were\n"
            f"edit similarity  {s.edit_similarity:.1%}\n"
            f"completed        {s.completed_ratio:.1%} of the characters that were left to type\n"
            f"latency          {s.p50:.0f} ms p50, {s.p95:.0f} ms p95"
        )


def evaluate(folder: Path, paths: Sequence[Path], cursors: int, seed: int, examples: int) -> Result:
    """Evaluate the model in `folder` on `paths`, or on its own validation split; prints `examples` completions."""
    model, tokenizer = weights.load_with_tokenizer(folder, backend.compute_dtype(), compact=True)
    held_out = from_paths(paths, tokenizer, folder) if paths else from_run(folder, tokenizer)
    recipe = folder / "training" / "recipe.json"
    length = files.read_json(recipe)["train"]["sequence_length"] if recipe.is_file() else LENGTH
    size = sum(len(data) for _, data in held_out.documents)
    evaluator = Evaluator(model, held_out.tokens, size, batch_size=8, length=min(length, model.config.context))
    loss = evaluator.run()
    suggester = Suggester(model, tokenizer)
    places = evaluation.pick_cursors(held_out.documents, cursors, seed)
    if places:
        suggester.suggest(places[0].prefix)  # compiles the step: no latency of a suggestion
    shown = 0

    def show(cursor: evaluation.Cursor, text: str) -> None:
        nonlocal shown
        if shown < examples:
            shown += 1
            click.echo(example(cursor, text) + "\n")

    return Result(loss, evaluation.evaluate(suggester, places, show))


def example(cursor: evaluation.Cursor, text: str) -> str:
    """One completion beside the truth: the line so far, what was suggested, what the file says."""
    before = cursor.prefix.rsplit(b"\n", 1)[-1].decode("utf-8", "replace")
    mark = "=" if text == cursor.truth else " "
    rows = [f"cursor     {before}|", f"completed  {before}{text}", f"truth      {before}{cursor.truth}"]
    return "\n".join([f"{mark} {cursor.name}:{cursor.line}", *(f"    {row}" for row in rows)])


def from_run(folder: Path, tokenizer: Tokenizer) -> HeldOut:
    """The validation split that a run keeps beside its model."""
    training = folder / "training"
    if not (training / "validation.bin").is_file():
        raise Error(f"{folder} keeps no validation split: name files or folders to evaluate on")
    manifest = files.read_json(training / "data.json")
    tokens = read_tokens(training / "validation.bin", manifest["dtype"])
    documents, start = [], 0
    for source in (d for d in manifest["sources"] if d["split"] == "validation"):
        documents.append((source["name"], tokenizer.decode(tokens[start : start + source["tokens"]].tolist())))
        start += source["tokens"]
    if len(tokens) < 2:
        raise Error(f"{folder} was trained without a validation split: name files or folders to evaluate on")
    return HeldOut(documents, tokens)


def from_paths(paths: Sequence[Path], tokenizer: Tokenizer, folder: Path) -> HeldOut:
    """Files and folders named by the user; says on stderr how many of them the model was trained on."""
    config = DataConfig(validation_fraction=0.0, near_duplicates=0.0)
    sources, skipped = corpus.find(paths, config)
    found = corpus.collect(sources, skipped, config).documents
    manifest = folder / "training" / "data.json"
    trained_on = set()
    if manifest.is_file():
        trained_on = {d["sha256"] for d in files.read_json(manifest)["sources"] if d["split"] == "train"}
    if seen := sum(d.sha256 in trained_on for d in found):
        click.echo(f"mlxgpt: {seen} of {len(found)} files were trained on: the figures flatter the model", err=True)
    documents = [(d.name, "".join(d.pieces()).encode()) for d in found]
    tokens = [t for _, data in documents for t in tokenizer.document(data)]
    if len(tokens) < 2:
        raise Error("there is too little text to evaluate on: fewer than two tokens")
    return HeldOut(documents, np.array(tokens, np.int32))
