"""The verbs. Each parses, calls one function and prints; what is heavy is imported inside the verb."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from mlxgpt import __version__
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


class Group(click.Group):
    """Ends every command in one line: status 2 for usage, 1 for anything else that is known to go wrong."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line and exit."""
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


@main.command()
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


@main.command()
@click.option("--model", "-m", required=True, type=PATH, help="A model folder.")
@click.option("--prompt", "-p", required=True, help="Text to continue; - reads it from stdin.")
@click.option(
    "--max-tokens", "-n", default=256, show_default=True, type=click.IntRange(min=1), help="Most tokens to write."
)
@click.option("--temperature", "-t", default=0.0, show_default=True, help="0 always takes the likeliest token.")
@click.option(
    "--top-p", default=1.0, show_default=True, help="Draw from the likeliest tokens that reach this probability."
)
@click.option("--top-k", default=0, show_default=True, help="Draw from this many likeliest tokens; 0: from all.")
@click.option("--min-p", default=0.0, show_default=True, help="Drop tokens this much less likely than the likeliest.")
@click.option(
    "--repetition-penalty", default=1.0, show_default=True, help="Above 1 makes tokens of the last 20 less likely."
)
@click.option(
    "--stop", "stops", multiple=True, metavar="TEXT", help="End before this text; may be given several times."
)
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of the draws.")
@click.option("--dtype", type=click.Choice(DTYPES), default="auto", show_default=True, help="auto: bfloat16 on a GPU.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the text.")
def generate(
    model: Path, prompt: str, max_tokens: int, temperature: float, top_p: float, top_k: int, min_p: float,
    repetition_penalty: float, stops: tuple[str, ...], seed: int, dtype: str, as_json: bool,
) -> None:  # fmt: skip
    """Continue a prompt, streaming the text as it is decoded."""
    from mlxgpt import backend
    from mlxgpt.generation.sampling import Sampling

    sampling = Sampling(temperature, top_p, top_k, min_p, repetition_penalty)
    backend.start()
    import mlx.core as mx

    from mlxgpt import weights
    from mlxgpt.generation.engine import collect
    from mlxgpt.generation.engine import generate as decode

    data = sys.stdin.buffer.read() if prompt == "-" else prompt.encode("utf-8", "surrogateescape")
    loaded, tokenizer = weights.load_with_tokenizer(model, backend.compute_dtype(dtype))
    opening = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    prompt_ids = opening + tokenizer.encode(data)
    pieces = decode(loaded, tokenizer, prompt_ids, max_tokens, sampling, stops, seed)
    answer = collect(pieces, show=(lambda text: None) if as_json else write_now)
    if not as_json:
        click.echo()
        return
    print_json({
        "text": answer.text, "token_ids": answer.token_ids, "prompt_token_ids": prompt_ids,
        "finish_reason": answer.finish_reason, "time_to_first_token": answer.time_to_first_token,
        "tokens_per_second": answer.tokens_per_second, "peak_memory_bytes": mx.get_peak_memory(),
    })  # fmt: skip


def write_now(text: str) -> None:
    """Text to stdout at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


@main.command()
@click.option("--model", "-m", required=True, type=PATH, help="A model folder.")
@click.argument("file", required=False, type=PATH)
@click.option("--line", "-l", type=click.IntRange(min=1), help="The cursor's line, from 1.")
@click.option(
    "--column", "-c", type=click.IntRange(min=1), help="The cursor's column, from 1: characters before it, plus 1."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def complete(model: Path, file: Path | None, line: int | None, column: int | None, as_json: bool) -> None:
    """Print what should be inserted at a cursor to finish its line. Without FILE, stdin is the text before it."""
    if file is None:
        if line or column:
            raise UsageError("--line and --column go with a FILE; without one, stdin is the text before the cursor")
        prefix, suffix = sys.stdin.buffer.read(), b""
    else:
        if line is None or column is None:
            raise UsageError("with a FILE, both --line and --column are needed")
        from mlxgpt.completion.prompt import split_at

        prefix, suffix = split_at(file, line, column)
    from mlxgpt import backend

    backend.start()
    from mlxgpt import weights
    from mlxgpt.completion.suggest import Suggester

    suggester = Suggester(*weights.load_with_tokenizer(model, backend.compute_dtype()))
    answer = suggester.suggest(prefix, suffix)
    if as_json:
        print_json({
            "completion": answer.completion, "tokens": answer.tokens, "mean_logprob": answer.mean_logprob,
            "latency_ms": answer.latency_ms,
        })  # fmt: skip
    else:
        click.echo(answer.completion)


@main.command("eval")
@click.option("--model", "-m", required=True, type=PATH, help="A model folder.")
@click.argument("paths", nargs=-1, type=PATH)
@click.option(
    "--cursors", default=200, show_default=True, type=click.IntRange(min=0), help="Random places to complete at."
)
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of the places.")
@click.option(
    "--examples", default=0, show_default=True, type=click.IntRange(min=0), help="Completions to show beside the truth."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(model: Path, paths: tuple[Path, ...], cursors: int, seed: int, examples: int, as_json: bool) -> None:
    """Measure a model on held-out files (default: its run's validation split): loss, bits a byte, completions."""
    from mlxgpt import backend

    backend.start()
    from mlxgpt.completion import session

    result = session.evaluate(model, paths, cursors, seed, examples)
    if as_json:
        print_json(result.as_json())
    else:
        click.echo(result.as_table())


@main.command()
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


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> None:
    """Say what mlxgpt runs on here: device, BLAS and its measured speed, compiler, memory, caches."""
    from mlxgpt import backend

    found = backend.examine()
    if as_json:
        print_json(found)
    else:
        for name, value in found.items():
            click.echo(f"{name:18} {value}")


if __name__ == "__main__":
    main()
