"""The verbs of training: train, configs."""

import json
from pathlib import Path

import click

from mlxgpt.cli.base import PATH, SEED, print_json
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
@click.option("--mix", multiple=True, metavar="PATH=SHARE", help="Have this share of the training text from elsewhere.")
@click.option("--batch-size", metavar="N|auto", help="Sequences a pass; auto: a step's, in the fewest that fit memory.")
@click.option("--init", metavar="MODEL", help="Go on from this model: a folder, an alias (`mlxgpt models`), a Hub id.")
@click.option("--lora", is_flag=True, help="With --init: train an adapter; --out is then its folder.")
@click.option("--rank", type=click.IntRange(min=1), help="With --lora: the adapter's rank.  [default: 8]")
@click.option("--bits", type=click.Choice(["4", "8"]), help="With --lora: quantize the model as it is loaded (QLoRA).")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard's files too, in --out's training/tensorboard.")
@click.option("--seed", type=SEED, help="Seed of weights, batches and samples.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in --out, with its own recipe.")
@click.option("--allow-changed-data", is_flag=True, help="With --resume: go on though files of the corpus changed.")
@click.option("--force", is_flag=True, help="Replace the run that is in --out.")
def train(
    paths: tuple[Path, ...], config: str | None, out: Path, minutes: float | None, steps: int | None,
    settings: tuple[str, ...], mix: tuple[str, ...], batch_size: str | None, init: str | None, lora: bool,
    rank: int | None, bits: str | None, tensorboard: bool, seed: int | None, resume: bool, allow_changed_data: bool,
    force: bool,
) -> None:  # fmt: skip
    """Train a model on files and folders of code; with no PATHS, on this Python's standard library."""
    if minutes and steps:
        raise UsageError("--minutes and --steps exclude each other")
    if not init and (lora or rank or bits):
        raise UsageError("--lora, --rank and --bits go with --init MODEL")
    if (rank or bits) and not lora:
        raise UsageError("--rank and --bits go with --lora")
    from mlxgpt.training.session import run

    overrides = list(settings)
    overrides += [f"train.minutes={minutes}"] if minutes else []
    overrides += [f"train.steps={steps}", "train.minutes=0"] if steps else []
    overrides += [f"train.seed={seed}"] if seed is not None else []
    overrides += _batch(batch_size)
    overrides += ["train.tensorboard=true"] if tensorboard else []
    overrides += [f"init.model={json.dumps(init)}", f"init.lora={str(lora).lower()}"] if init else []
    overrides += [f"init.rank={rank}"] if rank else []
    overrides += [f"init.bits={bits}"] if bits else []
    run(paths, config or ("finetune" if init else None), overrides, out, resume, force, mix, allow_changed_data)


def _batch(size: str | None) -> list[str]:
    if size is None or size == "auto":
        return ["train.auto_batch=true"] if size else []
    if not size.isdecimal() or int(size) < 1:
        raise UsageError(f"--batch-size is a number of sequences or auto, not {size!r}")
    return [f"train.batch_size={size}"]


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: the recipes, or the keys of one.")
def configs(name: str | None, as_json: bool) -> None:
    """List the recipes that ship with mlxgpt, print one of them, or document every key with NAME `keys`."""
    from mlxgpt import config

    def about(recipe: str) -> str:
        return config.read_recipe_text(recipe).partition("\n")[0].lstrip("# ")

    if as_json and name == "keys":
        raise UsageError("configs keys is a text: leave --json away, or name a recipe")
    if as_json and name:
        print_json(config.to_table(config.load_recipe(name)))
    elif as_json:
        print_json({"recipes": [{"name": recipe, "about": about(recipe)} for recipe in config.recipe_names()]})
    elif name == "keys":
        click.echo(config.document_keys())
    elif name:
        click.echo(config.read_recipe_text(name), nl=False)
    else:
        for recipe in config.recipe_names():
            click.echo(f"{recipe:22} {about(recipe)}")
