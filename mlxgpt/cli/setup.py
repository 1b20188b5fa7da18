"""The verb that sets a project up: setup."""

import sys
from pathlib import Path

import click

from mlxgpt.cli.base import PATH, print_json


@click.command()
@click.argument("folder", default=".", type=PATH, metavar="[DIR]")
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), help="Time to train.  [default: 10, or what you answer]"
)
@click.option(
    "--yes", "-y", is_flag=True, help="Take what is proposed; without it, and without a terminal, only say it."
)
@click.option("--again", is_flag=True, help="Train anew where a model is there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def setup(folder: Path, minutes: float | None, yes: bool, again: bool, as_json: bool) -> None:
    """Set up completion for the project in DIR (default: here): index it, train a model of a size that fits the text,
    the time and this machine, compare it with the n-grams alone, and write .mlxgpt.toml for complete, serve, lsp and
    eval."""
    from mlxgpt.setup import session

    def say(text: str) -> None:
        click.echo(f"mlxgpt: {text}", err=True)

    def ask_minutes(default: float) -> float:
        kind = click.FloatRange(min=0, min_open=True)
        return click.prompt("Minutes to train", default=default, type=kind, err=True)

    talk = session.Talk(say)
    if sys.stdin.isatty():
        talk = session.Talk(say, ask_minutes, lambda question, default: click.confirm(question, default, err=True))
    found = session.setup(folder, talk, minutes, yes, again)
    if as_json:
        print_json(found)
    elif "config" in found:
        click.echo(f"setup {found['config']}")
