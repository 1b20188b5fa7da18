"""The verb of the server: serve."""

from pathlib import Path
from typing import Any

import click

from mlxgpt.cli.complete import ANY_MODEL, CONTEXT, FALSE_SHOW, QUANTIZED, ROOT, THRESHOLD, USING, given_defaults


@click.command()
@ANY_MODEL
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; beyond this machine with a key.")
@click.option("--port", default=8012, show_default=True, type=click.IntRange(0, 65535), help="0: any that is free.")
@ROOT
@USING
@click.option(
    "--api-key", envvar="MLXGPT_API_KEY", default="", metavar="KEY",
    help="Answer only those who send it. Also MLXGPT_API_KEY, which other users of the machine do not see.",
)  # fmt: skip
@click.option("--multiline", is_flag=True, help="Suggest to the end of the block, where a request does not say.")
@CONTEXT
@QUANTIZED
@THRESHOLD
@FALSE_SHOW
def serve(
    model: str | None, host: str, port: int, root: Path | None, using: Any, api_key: str, multiline: bool,
    context: bool | None, quantize: str | None, threshold: float | None, false_show: float | None,
) -> None:  # fmt: skip
    """Complete code over HTTP for editors: llama.cpp's, OpenAI's, Mistral's and Ollama's protocols, and a page."""
    from mlxgpt import backend

    given = given_defaults(model, root, using, threshold, false_show, context)
    backend.start()
    from mlxgpt.completion.defaults import settle
    from mlxgpt.server import run
    from mlxgpt.server.state import Settings

    settled = settle(given)
    folder = "" if settled.root is None else str(Path(settled.root).resolve())
    settings = Settings(host, api_key, folder, multiline, settled.threshold or 0.0, settled.false_show)
    run.serve(settled.names(quantize), settings, port)
