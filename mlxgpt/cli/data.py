"""The verbs about what is trained on: data inspect, data report."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlxgpt.cli.base import PATH, print_json

if TYPE_CHECKING:
    from mlxgpt.config import Recipe

PATHS = click.argument("paths", nargs=-1, type=PATH)
CONFIG = click.option("--config", "-c", default="tiny", show_default=True, help="A recipe's name or a .toml file.")
SETTINGS = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a key of the recipe."
)  # fmt: skip
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def data() -> None:
    """Look at what a recipe trains on: its batches, and what it leaves out of a corpus."""


def _recipe(config: str, settings: tuple[str, ...]) -> "Recipe":
    from mlxgpt.config import load_recipe

    return load_recipe(config, settings)


@data.command()
@PATHS
@CONFIG
@SETTINGS
@click.option("--mix", multiple=True, metavar="PATH=SHARE", help="As for train.")
@click.option("--batches", default=1, show_default=True, type=click.IntRange(min=1), help="How many to show.")
@click.option("--first", default=0, show_default=True, type=click.IntRange(min=0), help="The first, counted from 0.")
@AS_JSON
def inspect(
    paths: tuple[Path, ...], config: str, settings: tuple[str, ...], mix: tuple[str, ...], batches: int, first: int,
    as_json: bool,
) -> None:  # fmt: skip
    """Show batches of PATHS as text, as `train` will make them once its steps have their full size: where a document
    begins, what of it is prefix, suffix and middle, how many tokens are targets. With --json also the ids, and the
    masks token by token."""
    recipe = _recipe(config, settings)
    from mlxgpt import backend
    from mlxgpt.data import inspection, shards
    from mlxgpt.data.batches import of_shards

    made, _ = shards.prepare(paths, recipe.data, recipe.tokenizer, backend.cache_dir(), shards.shares(mix))
    drawn = of_shards(made, recipe.data, recipe.train)
    shown = [inspection.describe(drawn, made, step) for step in range(first, first + batches)]
    if as_json:
        print_json({"batches": shown})
    else:
        click.echo("\n".join(map(inspection.as_text, shown)))


@data.command()
@PATHS
@CONFIG
@SETTINGS
@AS_JSON
def report(paths: tuple[Path, ...], config: str, settings: tuple[str, ...], as_json: bool) -> None:
    """List the files of PATHS that would not be trained on, each with the reason."""
    recipe = _recipe(config, settings)
    from mlxgpt.data import corpus, inspection

    found = corpus.collect(*corpus.find(paths, recipe.data), recipe.data)
    table = inspection.left_out(found.skipped, len({document.path for document in found.documents}))
    if as_json:
        print_json(table)
        return
    for file in table["files"]:
        click.echo(f"{file['reason']:22} {file['path']}{file['more'] and ' ' + file['more']}")
    reasons = ", ".join(f"{count} {reason}" for reason, count in table["reasons"].items())
    click.echo(f"{table['kept']} files kept, {table['left_out']} left out{reasons and ': ' + reasons}")
