"""The verbs of completion: complete, eval."""

import sys
from pathlib import Path

import click

from mlxgpt.cli.base import MODEL, PATH, SEED, print_json
from mlxgpt.errors import UsageError


@click.command()
@MODEL
@click.argument("file", required=False, type=PATH)
@click.option("--line", "-l", type=click.IntRange(min=1), help="The cursor's line, from 1.")
@click.option(
    "--column", "-c", type=click.IntRange(min=1), help="The cursor's column, from 1: characters before it, plus 1."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def complete(model: str, file: Path | None, line: int | None, column: int | None, as_json: bool) -> None:
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
    from mlxgpt import answer as answers
    from mlxgpt.completion.suggest import Suggester

    suggester = Suggester(*answers.load(model, answers.Options()))
    answer = suggester.suggest(prefix, suffix)
    if as_json:
        print_json({
            "completion": answer.completion, "tokens": answer.tokens, "mean_logprob": answer.mean_logprob,
            "latency_ms": answer.latency_ms,
        })  # fmt: skip
    else:
        click.echo(answer.completion)


@click.command("eval")
@MODEL
@click.argument("paths", nargs=-1, type=PATH)
@click.option(
    "--cursors", default=200, show_default=True, type=click.IntRange(min=0), help="Random places to complete at."
)
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of the places.")
@click.option(
    "--examples", default=0, show_default=True, type=click.IntRange(min=0), help="Completions to show beside the truth."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(model: str, paths: tuple[Path, ...], cursors: int, seed: int, examples: int, as_json: bool) -> None:
    """Measure a model on held-out files (default: its run's validation split): loss, bits a byte, completions."""
    from mlxgpt import backend

    backend.start()
    from mlxgpt import hub, layouts
    from mlxgpt.completion import session

    result = session.evaluate(hub.resolve(model, check=layouts.describe), paths, cursors, seed, examples)
    if as_json:
        print_json(result.as_json())
    else:
        click.echo(result.as_table())
