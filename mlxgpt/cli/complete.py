"""The verbs of completion: complete, eval."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxgpt.cli.base import ADAPTER, PATH, QUANTIZE, SEED, print_json
from mlxgpt.errors import UsageError

if TYPE_CHECKING:
    from mlxgpt.completion.defaults import Defaults

USING = click.option(
    "--using",
    type=click.Choice(["model", "ngrams", "both"]),
    help="What suggests.  [default: both; no --model: ngrams]",
)
ROOT = click.option("--root", type=PATH, help="Folder of the project whose text the n-grams know.")
ANY_MODEL = click.option("--model", "-m", help="As for generate; not needed for --using ngrams.")
RATE = click.FloatRange(0, 1)
THRESHOLD = click.option("--threshold", type=RATE, help="Show nothing less likely than this to be right.  [default: 0]")
FALSE_SHOW = click.option(
    "--false-show", type=RATE, help="The threshold at which so many of the suggestions shown are wrong."
)
CONTEXT = click.option(
    "--context/--no-context", default=None,
    help="Show the model, where a file leaves room, what the file imports and what is like it in the --root.  "
    "[default: no]",
)  # fmt: skip
QUANTIZED = click.option("--quantize", type=click.Choice(QUANTIZE), help="Quantize the weights as they are loaded.")


def given_defaults(
    model: str | None, root: Path | None, using: Any, threshold: float | None, false_show: float | None,
    context: bool | None,
) -> "Defaults":  # fmt: skip
    """The options that `.mlxgpt.toml` may say too. Raises UsageError where two of them say what is shown."""
    if threshold is not None and false_show is not None:
        raise UsageError("--threshold and --false-show exclude each other")
    from mlxgpt.completion.defaults import Defaults

    return Defaults(model, None if root is None else str(root), using, threshold, false_show, context)


@click.command()
@ANY_MODEL
@click.argument("file", required=False, type=PATH)
@click.option("--line", "-l", type=click.IntRange(min=1), help="The cursor's line, from 1.")
@click.option(
    "--column", "-c", type=click.IntRange(min=1), help="The cursor's column, from 1: characters before it, plus 1."
)
@click.option("--multiline", is_flag=True, help="Go on to the end of the block.")
@USING
@ROOT
@CONTEXT
@ADAPTER
@THRESHOLD
@FALSE_SHOW
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def complete(
    model: str | None, file: Path | None, line: int | None, column: int | None, multiline: bool, using: Any,
    root: Path | None, context: bool | None, adapter: Path | None, threshold: float | None, false_show: float | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Print what should be inserted at a cursor to finish its line. Without FILE, stdin is the text before it."""
    if file is None:
        if line or column:
            raise UsageError("--line and --column go with a FILE; without one, stdin is the text before the cursor")
        prefix, suffix = sys.stdin.buffer.read(), b""
    else:
        if line is None or column is None:
            raise UsageError("with a FILE, both --line and --column are needed")
        from mlxgpt.completion.prompt import split_at

        prefix, suffix = split_at(file, line, column)
    from mlxgpt import backend

    backend.start()
    from mlxgpt.completion.defaults import settle
    from mlxgpt.completion.opening import open_suggester

    given = given_defaults(model or (str(adapter) if adapter else None), root, using, threshold, false_show, context)
    settled = settle(given)
    names = settled.names()
    base = model if adapter else names.model
    suggester = open_suggester(base, names.root, names.using, adapter=adapter, context=names.context)
    least = suggester.gate.least(settled.threshold, settled.false_show)
    document = None if file is None else str(file.absolute())
    answer = suggester.suggest(prefix, suffix, document=document, multiline=multiline, threshold=least)
    if as_json:
        print_json({
            "completion": answer.completion, "tokens": answer.tokens, "mean_logprob": answer.mean_logprob,
            "latency_ms": answer.latency_ms, "confidence": answer.confidence, "reason": answer.reason,
        })  # fmt: skip
    else:
        click.echo(answer.completion)


@click.command("eval")
@ANY_MODEL
@click.argument("paths", nargs=-1, type=PATH)
@click.option(
    "--cursors", default=200, show_default=True, type=click.IntRange(min=0), help="Random places to complete at."
)
@click.option(
    "--at", type=click.Choice(["anywhere", "token"]), default="anywhere", show_default=True,
    help="Where cursors stand: before any character, or before a word or sign.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of the places.")
@click.option(
    "--examples", default=0, show_default=True, type=click.IntRange(min=0), help="Completions to show beside the truth."
)
@USING
@ROOT
@CONTEXT
@ADAPTER
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(
    model: str | None, paths: tuple[Path, ...], cursors: int, at: Any, seed: int, examples: int, using: Any,
    root: Path | None, context: bool | None, adapter: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure a model on held-out files (default: its run's validation split): loss, bits a byte, completions.

    The n-grams know the files that the run was trained on, or those of --root, and of the file itself all but the line.
    Without --model and --root, model, n-grams and context are those of `.mlxgpt.toml`.
    """
    from mlxgpt import backend

    backend.start()
    from mlxgpt import hub, layouts
    from mlxgpt.completion import session
    from mlxgpt.completion.defaults import settle

    if model is adapter is root is None:
        its = settle(given_defaults(None, None, using, None, None, context)).names()
        model, using, context = its.model, its.using, its.context
        root = its.root if model is None else None  # a model's n-grams are what it was trained on
    folder = adapter or (hub.resolve(model, check=layouts.describe) if model else None)
    base = model if adapter else None
    options = session.Options(cursors, seed, examples, using, at, root, base, bool(context))
    result = session.evaluate(folder, paths, options)
    if as_json:
        print_json(result.as_json())
    else:
        click.echo(result.as_table())
