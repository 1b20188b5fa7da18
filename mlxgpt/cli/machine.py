"""The verbs about the machine: doctor, kernels, bench."""

from pathlib import Path

import click

from mlxgpt.cli.base import PATH, print_json
from mlxgpt.errors import Error, UsageError


@click.command()
@click.option(
    "--server", metavar="URL", is_flag=False, flag_value="http://127.0.0.1:8012",
    help="Ask a running `mlxgpt serve` what editors ask it.  [without URL: http://127.0.0.1:8012]",
)  # fmt: skip
@click.option("--api-key", envvar="MLXGPT_API_KEY", default="", metavar="KEY", help="With --server: the key it wants.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(server: str | None, api_key: str, as_json: bool) -> None:
    """Say what mlxgpt runs on here: device, BLAS and its measured speed, compiler, memory, caches.

    With --server, what the known editors' plugins would show of a running server's answers, and why where nothing.
    """
    if server is not None:
        return _replay(server, api_key, as_json)
    from mlxgpt import backend, native

    found = backend.examine() | native.examine()
    if as_json:
        print_json(found)
    else:
        for name, value in found.items():
            click.echo(f"{name:18} {value}")


def _replay(server: str, api_key: str, as_json: bool) -> None:
    from mlxgpt.server.replay import replay

    outcomes = replay(server, api_key)
    if as_json:
        print_json({"server": server, "clients": [outcome.as_json() for outcome in outcomes]})
    else:
        click.echo("\n".join(outcome.as_row() for outcome in outcomes))
    if failing := sum(not outcome.works for outcome in outcomes):
        raise Error(f"{failing} of {len(outcomes)} clients could not use what {server} answers")


@click.command()
@click.option("--verify", is_flag=True, help="Hold every kernel to its reference on this GPU.")
@click.option("--simulate", is_flag=True, help="With --verify: on a CPU model of a GPU, in a checkout.")
@click.option("--benchmark", is_flag=True, help="Measure every kernel on this GPU beside plain MLX.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def kernels(verify: bool, simulate: bool, benchmark: bool, as_json: bool) -> None:
    """List the operations and what each runs as here; verify or measure those that have a kernel."""
    if simulate and (benchmark or not verify):
        raise UsageError("--simulate goes with --verify alone: the CPU model has no speed to measure")
    from mlxgpt import backend

    backend.start(warn=False)
    from mlxgpt import kernels_report as report

    tables = {"verified": report.verified(simulate)} if verify else {}
    tables |= {"benchmarked": report.benchmarked()} if benchmark else {}
    tables = tables or {"operations": report.forms()}
    if as_json:
        print_json(tables)
    else:
        click.echo("\n\n".join(report.table(rows) for rows in tables.values()))
    if wrong := sum(not row["passed"] for row in tables.get("verified", [])):
        raise Error(f"{wrong} of {len(tables['verified'])} checks failed")


@click.command()
@click.argument("what", type=click.Choice(["train", "decode", "complete"]))
@click.argument("paths", nargs=-1, type=PATH)
@click.option("--model", "-m", help="A model to decode or complete with; decode without one takes the recipe's shape.")
@click.option("--config", "-c", default="tiny", show_default=True, help="The recipe whose shape is measured.")
@click.option("--steps", default=8, show_default=True, type=click.IntRange(min=1), help="train: steps to measure.")
@click.option("--prompt", default=128, show_default=True, type=click.IntRange(min=1), help="decode: prompt tokens.")
@click.option("--tokens", default=64, show_default=True, type=click.IntRange(min=1), help="decode: tokens to write.")
@click.option("--cursors", default=50, show_default=True, type=click.IntRange(min=1), help="complete: places.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench(
    what: str, paths: tuple[Path, ...], model: str | None, config: str, steps: int, prompt: int, tokens: int,
    cursors: int, as_json: bool,
) -> None:  # fmt: skip
    """Measure this machine: tokens/s in training and decoding, and how near they come to what it can do at most;
    milliseconds a suggestion, at random places in PATHS (default: this Python's standard library)."""
    if what == "complete" and model is None:
        raise UsageError("bench complete needs a --model")
    from mlxgpt import backend

    backend.start()
    from mlxgpt import bench as measure

    if what == "train":
        found = measure.train(config, steps)
    elif what == "decode":
        found = measure.decode(model, config, prompt, tokens)
    else:
        found = measure.complete(str(model), list(paths), cursors)
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        text = f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        click.echo(f"{name:26} {text}")
