"""What the verbs share: how a command ends, how it prints, and the options that several have."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from mlxgpt import ending
from mlxgpt.errors import Error, UsageError

SEED = click.IntRange(min=0, max=(1 << 32) - 1)


class GivenPath(click.Path):
    """A path, and not the empty string that a shell's unset variable leaves, which would mean this very folder."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """The Path of what was typed."""
        if not str(value):
            self.fail("the path is empty", parameter, context)
        return super().convert(value, parameter, context)


PATH = GivenPath(path_type=Path)
DTYPES = ["auto", "float32", "float16", "bfloat16"]
QUANTIZE = ["4", "8", "mxfp4"]


class Group(click.Group):
    """Ends every command in one line: status 2 for usage, 1 for anything else that is known to go wrong."""

    def __call__(self, *args: Any, **extra: Any) -> NoReturn:
        """Run the command line as the program that this process is, and end it."""
        try:
            self.main(*args, **extra)
        except SystemExit as end:
            status = end.code
        ending.leave(status if isinstance(status, int) else int(status is not None))

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run the command line and raise SystemExit."""
        if isinstance(sys.stdout, io.TextIOWrapper):  # a character or path it cannot encode is no reason to fail
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            status = super().main(*args, **{"prog_name": "mlxgpt"} | extra | {"standalone_mode": False})
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "mlxgpt"
            fail(f"{error.format_message().rstrip('.')}; see `{command} --help`", 2)
        except UsageError as error:
            fail(str(error), 2)
        except (Error, click.ClickException) as error:
            fail(str(error), 1)
        except (KeyboardInterrupt, click.Abort):
            fail("aborted", 130)
        except BrokenPipeError:  # who read our output has gone: nothing is left to say, nor to flush
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OverflowError as error:
            fail(f"a number is too large: {error}", 2)
        except MemoryError:
            fail("there is not enough memory for this", 1)
        except OSError as error:
            fail(": ".join(str(part) for part in (error.filename, error.strerror or error) if part), 1)
        sys.exit(status if isinstance(status, int) else 0)


def fail(message: str, status: int) -> NoReturn:
    """Print one line of error and exit."""
    click.echo(f"mlxgpt: error: {' '.join(message.split())}", err=True)
    sys.exit(status)


def print_json(table: dict[str, Any]) -> None:
    """One JSON object as the last line of stdout."""
    click.echo(json.dumps(table, ensure_ascii=False))


MODEL = click.option("--model", "-m", help="A folder, an alias (`mlxgpt models`), or ORG/NAME[@REVISION] on the Hub.")
ADAPTER = click.option(
    "--adapter",
    type=PATH,
    help="An adapter's folder (`mlxgpt train --lora`); without --model, on its own model.",
)


def write_now(text: str) -> None:
    """Text to stdout at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
