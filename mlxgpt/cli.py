"""The verbs. Each parses, calls one function and prints; what is heavy is imported inside the verb."""

import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from mlxgpt import __version__
from mlxgpt.errors import Error, UsageError

if TYPE_CHECKING:
    from mlxgpt.answer import Options
    from mlxgpt.generation.engine import Request

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


MODEL = click.option(
    "--model", "-m", required=True, help="A folder, an alias (`mlxgpt models`), or ORG/NAME[@REVISION] on the Hub."
)


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
@MODEL
@click.option("--prompt", "-p", "prompts", multiple=True, help="Text to continue; - reads stdin. Several are batched.")
@click.option("--prompts", "file", type=PATH, help='A file of prompts, one JSON object with "prompt" a line.')
@click.option("--max-tokens", "-n", default=256, show_default=True, type=click.IntRange(min=1), help="Most to write.")
@click.option("--temperature", "-t", default=0.0, show_default=True, help="0 always takes the likeliest token.")
@click.option("--top-p", default=1.0, show_default=True, help="Draw from the likeliest that reach this probability.")
@click.option("--top-k", default=0, show_default=True, help="Draw from this many likeliest tokens; 0: from all.")
@click.option("--min-p", default=0.0, show_default=True, help="Drop tokens this much less likely than the likeliest.")
@click.option("--xtc-probability", default=0.0, show_default=True, help="How often XTC drops the likeliest tokens.")
@click.option("--xtc-threshold", default=0.1, show_default=True, help="XTC drops tokens at least this likely but one.")
@click.option("--repetition-penalty", default=1.0, show_default=True, help="Above 1: tokens seen are less likely.")
@click.option("--presence-penalty", default=0.0, show_default=True, help="Taken from the logit of each token seen.")
@click.option("--frequency-penalty", default=0.0, show_default=True, help="The same, for every time it was seen.")
@click.option("--penalty-context", default=20, show_default=True, help="Tokens back that the penalties look.")
@click.option("--stop", "stops", multiple=True, metavar="TEXT", help="End before this text; may be repeated.")
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of the draws.")
@click.option("--dtype", type=click.Choice(DTYPES), default="auto", show_default=True, help="auto: bfloat16 on a GPU.")
@click.option("--quantize", type=click.Choice(QUANTIZE), help="Quantize the weights as they are loaded.")
@click.option("--kv-bits", type=click.Choice(["8", "4"]), help="Keep the key and value cache quantized.")
@click.option("--draft", metavar="MODEL", help="A smaller model with the same tokenizer that guesses ahead.")
@click.option("--lookup", is_flag=True, help="Guess ahead from what followed the same tokens before.")
@click.option("--prompt-cache", type=PATH, help="Keep the prompt's cache in this file and begin with what it shares.")
@click.option("--chat", is_flag=True, help="Talk with an instruct model: at a prompt, or a line of stdin a message.")
@click.option("--system", metavar="TEXT", help="With --chat: what the model is told before the conversation.")
@click.option("--logprobs", default=0, type=click.IntRange(0, 20), help="With --json: this many alternatives a token.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the text.")
def generate(
    model: str, prompts: tuple[str, ...], file: Path | None, max_tokens: int, temperature: float, top_p: float,
    top_k: int, min_p: float, xtc_probability: float, xtc_threshold: float, repetition_penalty: float,
    presence_penalty: float, frequency_penalty: float, penalty_context: int, stops: tuple[str, ...], seed: int,
    dtype: str, quantize: str | None, kv_bits: str | None, draft: str | None, lookup: bool, prompt_cache: Path | None,
    chat: bool, system: str | None, logprobs: int, as_json: bool,
) -> None:  # fmt: skip
    """Continue a prompt, streaming the text as it is decoded; several prompts are answered side by side."""
    from mlxgpt import backend
    from mlxgpt.generation.sampling import Sampling

    sampling = Sampling(
        temperature, top_p, top_k, min_p, xtc_probability, xtc_threshold, repetition_penalty, presence_penalty,
        frequency_penalty, penalty_context,
    )  # fmt: skip
    texts = [_stdin() if p == "-" else p.encode("utf-8", "surrogateescape") for p in prompts] + _prompts_in(file)
    if not texts and not chat:
        raise UsageError("there is nothing to continue: give --prompt TEXT, or --prompts FILE")
    if chat and (len(texts) > 1 or file or prompt_cache):
        raise UsageError("--chat goes with one --prompt, and neither with --prompts nor with --prompt-cache")
    if system is not None and not chat:
        raise UsageError("--system goes with --chat")
    backend.start()
    from mlxgpt.answer import Options, answer
    from mlxgpt.generation.engine import Request

    request = Request(max_tokens, sampling, stops, seed, logprobs)
    options = Options(dtype, quantize, int(kv_bits) if kv_bits else None, draft, lookup, prompt_cache)
    if chat:
        return _chat(model, texts, system, request, options, as_json)
    answers = answer(model, texts, request, options, show=(lambda text: None) if as_json else write_now)
    if as_json:
        tables = [a.as_json(logprobs) for a in answers]
        print_json(tables[0] if len(tables) == 1 else {"answers": tables})
    elif len(answers) == 1:
        click.echo()
    else:
        for text, each in zip(texts, answers, strict=True):
            click.echo(f"=== {text.decode('utf-8', 'replace')}\n{each.generation.text}")
    for each in answers:
        if each.acceptance_rate is not None and not as_json:
            click.echo(f"mlxgpt: {each.acceptance_rate:.0%} of the guesses were right", err=True)
    if any(each.cancelled for each in answers):
        raise click.Abort


def _chat(
    model: str, prompts: list[bytes], system: str | None, request: "Request", options: "Options", as_json: bool
) -> None:
    from mlxgpt.chat import conversation, prompt

    def aside(text: str) -> None:  # whoever sits before a terminal reads the answers all the same
        if sys.stdin.isatty():
            click.echo(text, err=True, nl=False)

    begun = conversation.begin(model, system, request, options)
    first = prompts[0].decode("utf-8", "surrogateescape") if prompts else None
    turns, status = prompt.talk(begun, first, aside if as_json else write_now, request.max_tokens)
    if as_json:
        print_json({"messages": begun.messages, "turns": [turn.as_json(request.logprobs) for turn in turns]})
    if status == prompt.INTERRUPTED:
        raise click.Abort
    sys.exit(status)


def _stdin() -> bytes:
    return sys.stdin.buffer.read()


def _prompts_in(file: Path | None) -> list[bytes]:
    """The prompts of a JSON-lines file. Raises UsageError naming the line that is none."""
    if file is None:
        return []
    found = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line)["prompt"].encode())
        except (ValueError, LookupError, TypeError, AttributeError):
            raise UsageError(f'{file}, line {number}: not a JSON object with "prompt": TEXT') from None
    return found


@main.command()
@click.argument("source")
@click.argument("target", type=PATH)
@click.option("--quantize", type=click.Choice(QUANTIZE), help="Bits a weight, or mxfp4.")
@click.option("--dtype", type=click.Choice(DTYPES[1:]), help="Type of what is not quantized; default: as it is stored.")
def convert(source: str, target: Path, quantize: str | None, dtype: str | None) -> None:
    """Write the model SOURCE (a folder, an alias, a Hub id) to the folder TARGET, quantized or in another type."""
    from mlxgpt import backend, hub, layouts

    folder = hub.resolve(source, check=layouts.describe)
    backend.start()
    from mlxgpt.convert import convert as write
    from mlxgpt.quantization import CHOICES

    write(folder, target, backend.compute_dtype(dtype) if dtype else None, CHOICES[quantize] if quantize else None)
    click.echo(f"model {target}")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def models(as_json: bool) -> None:
    """List the models that have an alias: licence, download, memory in bf16 and 4 bits, whether it is here."""
    from mlxgpt import hub

    rows = hub.table()
    if as_json:
        print_json({"models": rows})
        return
    click.echo(f"{'alias':25} {'licence':11} {'download':>11} {'bf16':>8} {'4 bits':>8}")
    for r in rows:
        bf16 = f"{r['memory_bf16'] / 1e9:.1f} GB" if r["memory_bf16"] else "-"
        size, four = f"{r['download'] / 1e9:.2f} GB", f"{r['memory_4bit'] / 1e9:.1f} GB"
        here = "  cached" if r["cached"] else ""
        click.echo(f"{r['alias']:25} {r['licence']:11} {size:>11} {bf16:>8} {four:>8}{here}  {r['note']}".rstrip())


def write_now(text: str) -> None:
    """Text to stdout at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


@main.command()
@MODEL
@click.argument("file", required=False, type=PATH)
@click.option("--line", "-l", type=click.IntRange(min=1), help="The cursor's line, from 1.")
@click.option(
    "--column", "-c", type=click.IntRange(min=1), help="The cursor's column, from 1: characters before it, plus 1."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def complete(model: str, file: Path | None, line: int | None, column: int | None, as_json: bool) -> None:
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
    from mlxgpt import answer as answers
    from mlxgpt.completion.suggest import Suggester

    suggester = Suggester(*answers.load(model, answers.Options()))
    answer = suggester.suggest(prefix, suffix)
    if as_json:
        print_json({
            "completion": answer.completion, "tokens": answer.tokens, "mean_logprob": answer.mean_logprob,
            "latency_ms": answer.latency_ms,
        })  # fmt: skip
    else:
        click.echo(answer.completion)


@main.command("eval")
@MODEL
@click.argument("paths", nargs=-1, type=PATH)
@click.option(
    "--cursors", default=200, show_default=True, type=click.IntRange(min=0), help="Random places to complete at."
)
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of the places.")
@click.option(
    "--examples", default=0, show_default=True, type=click.IntRange(min=0), help="Completions to show beside the truth."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(model: str, paths: tuple[Path, ...], cursors: int, seed: int, examples: int, as_json: bool) -> None:
    """Measure a model on held-out files (default: its run's validation split): loss, bits a byte, completions."""
    from mlxgpt import backend

    backend.start()
    from mlxgpt import hub, layouts
    from mlxgpt.completion import session

    result = session.evaluate(hub.resolve(model, check=layouts.describe), paths, cursors, seed, examples)
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
