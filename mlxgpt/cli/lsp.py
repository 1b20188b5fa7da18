"""The verb of the language server: lsp."""

from pathlib import Path
from typing import Any

import click

from mlxgpt.cli.complete import ANY_MODEL, FALSE_SHOW, QUANTIZED, ROOT, THRESHOLD, USING, check_shown


@click.command()
@ANY_MODEL
@ROOT
@USING
@click.option("--multiline", is_flag=True, help="Suggest to the end of the block, where the editor does not say.")
@QUANTIZED
@THRESHOLD
@FALSE_SHOW
@click.option(
    "--debounce", default=300, show_default=True, type=click.IntRange(0, 10_000), metavar="MS",
    help="The longest wait for you to type on, while you type faster than answers come. 0: none.",
)  # fmt: skip
def lsp(
    model: str | None, root: Path | None, using: Any, multiline: bool, quantize: str | None, threshold: float | None,
    false_show: float | None, debounce: int,
) -> None:  # fmt: skip
    """Complete code in an editor that starts this: the Language Server Protocol on stdin and stdout."""
    check_shown(threshold, false_show)
    from mlxgpt import __version__, backend

    backend.start()
    from mlxgpt.completion.opening import Names
    from mlxgpt.lsp import run

    source = Names(model, root, using, quantize)
    run.serve(source, threshold or 0.0, false_show, multiline, debounce / 1000, __version__)
