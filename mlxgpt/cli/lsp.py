"""The verb of the language server: lsp."""

from pathlib import Path
from typing import Any

import click

from mlxgpt.cli.complete import ANY_MODEL, CONTEXT, FALSE_SHOW, QUANTIZED, ROOT, THRESHOLD, USING, given_defaults


@click.command()
@ANY_MODEL
@ROOT
@USING
@click.option("--multiline", is_flag=True, help="Suggest to the end of the block, where the editor does not say.")
@CONTEXT
@QUANTIZED
@THRESHOLD
@FALSE_SHOW
@click.option(
    "--debounce", default=300, show_default=True, type=click.IntRange(0, 10_000), metavar="MS",
    help="The longest wait for you to type on, while you type faster than answers come. 0: none.",
)  # fmt: skip
def lsp(
    model: str | None, root: Path | None, using: Any, multiline: bool, context: bool | None,
    quantize: str | None, threshold: float | None, false_show: float | None, debounce: int,
) -> None:  # fmt: skip
    """Complete code in an editor that starts this: the Language Server Protocol on stdin and stdout."""
    from mlxgpt import __version__, backend

    given = given_defaults(model, root, using, threshold, false_show, context)
    backend.start()
    from mlxgpt.lsp import run

    run.serve(given, quantize, multiline, debounce / 1000, __version__)
