"""The verb of the language server: lsp."""

from pathlib import Path
from typing import Any

import click

from mlxgpt.cli.base import QUANTIZE
from mlxgpt.cli.complete import ANY_MODEL, RATE, ROOT, USING
from mlxgpt.errors import UsageError


@click.command()
@ANY_MODEL
@ROOT
@USING
@click.option("--multiline", is_flag=True, help="Suggest to the end of the block, where the editor does not say.")
@click.option("--quantize", type=click.Choice(QUANTIZE), help="Quantize the weights as they are loaded.")
@click.option("--threshold", type=RATE, help="Show nothing less likely than this to be right.  [default: 0]")
@click.option("--false-show", type=RATE, help="The threshold at which so many of the suggestions shown are wrong.")
@click.option(
    "--debounce", default=300, show_default=True, type=click.IntRange(0, 10_000), metavar="MS",
    help="The longest wait for you to type on, while you type faster than answers come. 0: none.",
)  # fmt: skip
def lsp(
    model: str | None, root: Path | None, using: Any, multiline: bool, quantize: str | None, threshold: float | None,
    false_show: float | None, debounce: int,
) -> None:  # fmt: skip
    """Complete code in an editor that starts this: the Language Server Protocol on stdin and stdout."""
    if threshold is not None and false_show is not None:
        raise UsageError("--threshold and --false-show exclude each other")
    from mlxgpt import __version__, backend

    backend.start()
    from mlxgpt.lsp import run

    source = run.Source(model, root, using, quantize, threshold or 0.0, false_show)
    run.serve(source, multiline, debounce / 1000, __version__)
