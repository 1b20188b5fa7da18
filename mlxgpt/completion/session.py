"""`mlxgpt eval`, whole: a model folder and held-out text in, loss and completion figures out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from mlxgpt import adapters, backend, files, weights
from mlxgpt.completion import evaluation, project
from mlxgpt.completion.cursors import At, Cursor, pick_cursors
from mlxgpt.completion.index import Index
from mlxgpt.completion.opening import of_model
from mlxgpt.completion.settings import Settings
from mlxgpt.completion.suggest import Suggester, Using, chosen
from mlxgpt.config import DataConfig
from mlxgpt.data import corpus
from mlxgpt.data.shards import read_tokens
from mlxgpt.errors import Error, UsageError
from mlxgpt.evaluation import Evaluation, Evaluator
from mlxgpt.tokenizer import Tokenizer

LENGTH = 512  # tokens a sequence where no run says how long its own were


@dataclass(frozen=True)
class HeldOut:
    """Text to evaluate on: documents as (name, bytes), all their tokens, uint [n], and their files by their names."""

    documents: list[tuple[str, bytes]]
    tokens: np.ndarray
    paths: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """How completions are evaluated; names are the command's."""

    cursors: int = 200
    seed: int = 0
    examples: int = 0
    using: Using | None = None
    at: At = "anywhere"
    root: Path | None = None
    base: str | None = None  # the model of an adapter that another one than its own is to carry
    context: bool = False  # show the model what its files import and what is like them, of the text that is known


@dataclass(frozen=True)
class Result:
    """Everything `mlxgpt eval` reports; no loss where no model took part."""

    using: str
    at: str
    loss: Evaluation | None
    scores: evaluation.Scores

    def as_json(self) -> dict[str, Any]:
        """The command's JSON object."""
        s = self.scores
        return {
            "val_loss": self.loss.val_loss if self.loss else None, "val_bpb": self.loss.val_bpb if self.loss else None,
            "cursors": s.cursors, "exact_match": s.exact_match, "edit_similarity": s.edit_similarity,
            "completed_ratio": s.completed_ratio, "latency_ms": {"p50": s.p50, "p95": s.p95}, "using": self.using,
            "at": self.at, "gated": vars(s.gated), "acceptance": [vars(point) for point in s.acceptance],
            "warm_latency_ms": {"p50": s.warm_p50, "p95": s.warm_p95},
            "kinds": {name: vars(kind) for name, kind in s.kinds.items()},
        }  # fmt: skip

    def as_table(self) -> str:
        """The same for people."""
        s, g = self.scores, self.scores.gated
        loss = (
            f"val_loss         {self.loss.val_loss:.4f} nats a token\n"
            f"val_bpb          {self.loss.val_bpb:.4f} bits a byte\n"
            if self.loss
            else ""
        )
        kinds = [
            f"    {name:12} {k.cursors:5} cursors, {k.exact_match:.1%} exact, {k.completed_ratio:.1%} completed\n"
            for name, k in s.kinds.items()
        ]
        return (
            loss + f"cursors          {s.cursors}, using {self.using}\n"
            f"exact match      {s.exact_match:.1%} of lines finished as they were\n"
            f"edit similarity  {s.edit_similarity:.1%}\n"
            f"completed        {s.completed_ratio:.1%} of the characters that were left to type\n"
            + ("".join(kinds) if len(kinds) > 1 else "")
            + f"gated            {g.completed_ratio:.1%} completed where {g.shown:.1%} are shown, of which "
            f"{g.false_show:.0%} wrong\n"
            f"latency          {s.p50:.0f} ms p50, {s.p95:.0f} ms p95; one more character typed {s.warm_p50:.0f} and "
            f"{s.warm_p95:.0f} ms"
        )


def evaluate(folder: Path | None, paths: Sequence[Path], options: Options) -> Result:
    """Evaluate on `paths`, or on the validation split of the run in `folder`, a model's or an adapter's; prints
    `options.examples` completions.

    The n-grams are those of the run's training files, or of `options.root`, never of what is evaluated on. Raises
    Error, UsageError.
    """
    using = chosen(options.using, folder is not None)
    if folder is None:
        if not paths or options.root is None:
            raise UsageError("without --model, name files to evaluate on and --root, the project that is known")
        held_out, loss = _documents(paths, None), None
        suggester = Suggester(using=using, index=index_of(None, None, options.root, held_out))
    else:
        base, adapter = adapters.locate(options.base, folder) if options.base else adapters.locate(str(folder))
        dtype = backend.compute_dtype()
        model, tokenizer = weights.load_with_tokenizer(base, dtype, compact=True, adapter=adapter)
        held_out = from_paths(paths, tokenizer, folder) if paths else from_run(folder, tokenizer)
        recipe = folder / "training" / "recipe.json"
        length = files.read_json(recipe)["train"]["sequence_length"] if recipe.is_file() else LENGTH
        size = sum(len(data) for _, data in held_out.documents)
        evaluator = Evaluator(model, held_out.tokens, size, batch_size=8, length=min(length, model.config.context))
        loss = evaluator.run()
        its = None if using == "ngrams" else tokenizer
        wanted = (using != "model" or options.context) and options.cursors > 0
        index = index_of(folder, its, options.root, held_out) if wanted else None
        suggester = of_model(model, its, index, using, Settings.load(folder), options.context)
    places = pick_cursors(held_out.documents, options.cursors, options.seed, options.at)
    if places:
        suggester.suggest(places[0].prefix)  # compiles the step: no latency of a suggestion
    shown = 0

    def show(cursor: Cursor, text: str) -> None:
        nonlocal shown
        if shown < options.examples:
            shown += 1
            click.echo(example(cursor, text) + "\n")

    paths_of = held_out.paths if suggester.views.library is not None else {}
    return Result(using, options.at, loss, evaluation.evaluate(suggester, places, show, paths_of))


def index_of(folder: Path | None, tokenizer: Tokenizer | None, root: Path | None, held_out: HeldOut) -> Index | None:
    """The n-grams that may be known: of `root`, or of what the run in `folder` was trained on."""
    if root is not None:
        index = project.open_index(root, tokenizer, backend.cache_dir())
    elif folder is not None and (folder / "training" / "data.json").is_file():
        manifest = files.read_json(folder / "training" / "data.json")
        index = project.of_run(manifest, tokenizer, backend.cache_dir())
    else:
        return None
    for path in index.documents.intersection(held_out.paths.values()):
        index.update(path, None)
    return index


def example(cursor: Cursor, text: str) -> str:
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
    documents, paths, start = [], {}, 0
    for source in (d for d in manifest["sources"] if d["split"] == "validation"):
        documents.append((source["name"], tokenizer.decode(tokens[start : start + source["tokens"]].tolist())))
        paths[source["name"]] = source["path"]
        start += source["tokens"]
    if len(tokens) < 2:
        raise Error(f"{folder} was trained without a validation split: name files or folders to evaluate on")
    return HeldOut(documents, tokens, paths)


def from_paths(paths: Sequence[Path], tokenizer: Tokenizer, folder: Path) -> HeldOut:
    """Files and folders named by the user; says on stderr how many of them the model was trained on."""
    found = _found(paths)
    manifest = folder / "training" / "data.json"
    trained_on = set()
    if manifest.is_file():
        trained_on = {d["sha256"] for d in files.read_json(manifest)["sources"] if d["split"] == "train"}
    if seen := sum(d.sha256 in trained_on for d in found):
        click.echo(f"mlxgpt: {seen} of {len(found)} files were trained on: the figures flatter the model", err=True)
    held_out = _documents(paths, found)
    tokens = [t for _, data in held_out.documents for t in tokenizer.document(data)]
    if len(tokens) < 2:
        raise Error("there is too little text to evaluate on: fewer than two tokens")
    return HeldOut(held_out.documents, np.array(tokens, np.int32), held_out.paths)


def _found(paths: Sequence[Path]) -> list[corpus.Document]:
    config = DataConfig(validation_fraction=0.0, near_duplicates=0.0)
    return corpus.collect(*corpus.find(paths, config), config).documents


def _documents(paths: Sequence[Path], found: list[corpus.Document] | None) -> HeldOut:
    """Files as they are, not tokenized; `found`, where they were looked for before."""
    found = _found(paths) if found is None else found
    documents = [(d.name, "".join(d.pieces()).encode()) for d in found]
    return HeldOut(documents, np.zeros(0, np.int32), {d.name: str(d.path) for d in found})
