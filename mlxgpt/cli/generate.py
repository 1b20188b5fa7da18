"""The verbs of whole models: generate, convert, models."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlxgpt.cli.base import ADAPTER, DTYPES, MODEL, PATH, QUANTIZE, SEED, print_json, write_now
from mlxgpt.errors import UsageError

if TYPE_CHECKING:
    from mlxgpt.answer import Options
    from mlxgpt.generation.engine import Request


@click.command()
@MODEL
@ADAPTER
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
    model: str | None, adapter: Path | None, prompts: tuple[str, ...], file: Path | None, max_tokens: int,
    temperature: float, top_p: float, top_k: int, min_p: float, xtc_probability: float, xtc_threshold: float,
    repetition_penalty: float, presence_penalty: float, frequency_penalty: float, penalty_context: int,
    stops: tuple[str, ...], seed: int, dtype: str, quantize: str | None, kv_bits: str | None, draft: str | None,
    lookup: bool, prompt_cache: Path | None, chat: bool, system: str | None, logprobs: int, as_json: bool,
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
    if model is adapter is None:
        raise UsageError("--model or --adapter says what writes: a folder, an alias (`mlxgpt models`) or a Hub id")
    if chat and (len(texts) > 1 or file or prompt_cache):
        raise UsageError("--chat goes with one --prompt, and neither with --prompts nor with --prompt-cache")
    if system is not None and not chat:
        raise UsageError("--system goes with --chat")
    backend.start()
    from mlxgpt.answer import Options, answer
    from mlxgpt.generation.engine import Request

    request = Request(max_tokens, sampling, stops, seed, logprobs)
    options = Options(dtype, quantize, int(kv_bits) if kv_bits else None, draft, lookup, prompt_cache, adapter)
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
    model: str | None, prompts: list[bytes], system: str | None, request: "Request", options: "Options", as_json: bool
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


@click.command()
@click.argument("source")
@click.argument("target", type=PATH)
@click.option("--quantize", type=click.Choice(QUANTIZE), help="Bits a weight, or mxfp4.")
@click.option("--dtype", type=click.Choice(DTYPES[1:]), help="Type of what is not quantized; default: as it is stored.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def convert(source: str, target: Path, quantize: str | None, dtype: str | None, as_json: bool) -> None:
    """Write the model SOURCE (a folder, an alias, a Hub id) to the folder TARGET, quantized or in another type."""
    from mlxgpt import backend, hub, layouts

    folder = hub.resolve(source, check=layouts.describe)
    backend.start()
    from mlxgpt.convert import convert as write
    from mlxgpt.quantization import CHOICES

    write(folder, target, backend.compute_dtype(dtype) if dtype else None, CHOICES[quantize] if quantize else None)
    _written(target, as_json)


@click.command()
@click.option(
    "--model", "-m", metavar="MODEL", help="The model that carries it.  [default: the one it was trained for]"
)
@click.option("--adapter", "-a", required=True, type=PATH, help="The adapter's folder.")
@click.option("--out", "-o", required=True, type=PATH, help="The new model folder.")
@click.option("--dequantize", is_flag=True, help="Write a quantized model's weights in floating point.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def fuse(model: str | None, adapter: Path, out: Path, dequantize: bool, as_json: bool) -> None:
    """Write a model with an adapter's changes in its weights: a folder as any other, for every program."""
    from mlxgpt import adapters, backend

    folder, beside = adapters.locate(model, adapter)
    backend.start()
    from mlxgpt.convert import convert as write

    write(folder, out, adapter=beside, dequantize=dequantize)
    _written(out, as_json)


def _written(folder: Path, as_json: bool) -> None:
    """Say which model folder was written, and with --json how large it is and in what its weights are."""
    if not as_json:
        click.echo(f"model {folder}")
        return
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    size = sum(file.stat().st_size for file in folder.iterdir())
    table = {"model": str(folder), "bytes": size, "dtype": config["torch_dtype"]}
    print_json(table | {"quantization": config.get("quantization")})


@click.command()
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
