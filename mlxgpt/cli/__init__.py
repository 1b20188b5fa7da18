"""The command line. Each verb parses, calls one function and prints; what is heavy is imported inside the verb."""

import click

from mlxgpt import __version__
from mlxgpt.cli.base import Group
from mlxgpt.cli.complete import complete, evaluate
from mlxgpt.cli.data import data
from mlxgpt.cli.generate import convert, fuse, generate, models
from mlxgpt.cli.lsp import lsp
from mlxgpt.cli.machine import bench, doctor, kernels
from mlxgpt.cli.runs import compare, runs
from mlxgpt.cli.serve import serve
from mlxgpt.cli.setup import setup
from mlxgpt.cli.train import configs, train


@click.group(
    cls=Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="mlxgpt")
@click.pass_context
def main(context: click.Context) -> None:
    """Train small code models on your own code, run them, and complete lines with them, on this machine alone."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for verb in (
    setup, train, data, runs, compare, generate, complete, serve, lsp, evaluate, convert, fuse, models, configs,
    kernels, bench, doctor,
):  # fmt: skip
    main.add_command(verb)
