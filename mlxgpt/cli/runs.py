"""The verbs about runs that there are: runs, compare."""

from pathlib import Path

import click

from mlxgpt.cli.base import PATH, print_json
from mlxgpt.errors import UsageError


@click.command()
@click.argument("folder", default="runs", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def runs(folder: Path, as_json: bool) -> None:
    """List the runs in FOLDER (default: runs) with their best figures, the best first."""
    from mlxgpt.training import runs as known

    found, wrong = known.listed(folder)
    for line in wrong:
        click.echo(f"mlxgpt: {line}", err=True)
    if as_json:
        print_json(known.as_json(found))
    elif found:
        click.echo(known.as_table(found))
    else:
        click.echo(f"there is no run in {folder}", err=True)


@click.command()
@click.argument("folders", nargs=-1, required=True, type=PATH, metavar="RUN RUN...")
@click.option("--out", "-o", default="report.html", show_default=True, type=PATH, help="The page to write.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compare(folders: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Draw the curves of several runs in one page."""
    if len(folders) < 2:
        raise UsageError("compare takes two runs or more; `mlxgpt train` writes the report of one")
    from mlxgpt.training import runs as known

    report = known.compare(folders, out)
    if as_json:
        print_json({"report": str(report)} | known.as_json([known.describe(folder) for folder in folders]))
    else:
        click.echo(f"report {report}")
