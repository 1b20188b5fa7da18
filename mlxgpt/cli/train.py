"""The verbs of training: train, configs."""

from pathlib import Path

import click

from mlxgpt.cli.base import PATH, SEED
from mlxgpt.errors import UsageError


@click.command()
@click.argument("paths", nargs=-1, type=PATH)
@click.option("--config", "-c", help="A recipe's name (`mlxgpt configs`) or a .toml file.  [default: tiny]")
@click.option("--out", "-o", required=True, type=PATH, help="Folder of the run and its model.")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Train for this long, evaluations not counted; the schedule is fitted to it.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Train for this many steps.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the recipe, such as train.batch_size=8.",
)
@click.option("--seed", type=SEED, help="Seed of weights, batches and samples.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in --out, with its own recipe.")
@click.option("--force", is_flag=True, help="Replace the run that is in --out.")
def train(
    paths: tuple[Path, ...], config: str | None, out: Path, minutes: float | None, steps: int | None,
    settings: tuple[str, ...], seed: int | None, resume: bool, force: bool,
) -> None:  # fmt: skip
    """Train a model on files and folders of code; with no PATHS, on this Python's standard library."""
    if minutes and steps:
        raise UsageError("--minutes and --steps exclude each other")
    from mlxgpt.training.session import run

    overrides = list(settings)
    overrides += [f"train.minutes={minutes}"] if minutes else []
    overrides += [f"train.steps={steps}", "train.minutes=0"] if steps else []
    overrides += [f"train.seed={seed}"] if seed is not None else []
    run(paths, config, overrides, out, resume=resume, force=force)


@click.command()
@click.argument("name", required=False)
def configs(name: str | None) -> None:
    """List the recipes that ship with mlxgpt, print one of them, or document every key with NAME `keys`."""
    from mlxgpt import config

    if name == "keys":
        click.echo(config.document_keys())
    elif name:
        click.echo(config.read_recipe_text(name), nl=False)
    else:
        for recipe in config.recipe_names():
            first = config.read_recipe_text(recipe).partition("\n")[0].lstrip("# ")
            click.echo(f"{recipe:22} {first}")
