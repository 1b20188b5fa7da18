"""`mlxgpt generate`, whole: a model by its name, prompts, and what is to help or be kept, to answers."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlxgpt import adapters, backend, files, interrupts, weights
from mlxgpt.config import require
from mlxgpt.errors import Error
from mlxgpt.generation import batch, engine, prompt_cache, speculation
from mlxgpt.models import Model
from mlxgpt.prompt_bar import PromptBar
from mlxgpt.quantization import CHOICES
from mlxgpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Options:
    """How a model is loaded and what it decodes with; names are the command's."""

    dtype: str = "auto"
    quantize: str | None = None
    kv_bits: int | None = None
    draft: str | None = None
    lookup: bool = False
    prompt_cache: Path | None = None
    adapter: Path | None = None

    @property
    def guessing(self) -> bool:
        """Whether tokens are guessed ahead."""
        return self.lookup or self.draft is not None


@dataclass(frozen=True)
class Answer:
    """One finished answer, the prompt's ids, and the share of guesses that were right where there were guesses."""

    generation: engine.Generation
    prompt_ids: list[int]
    acceptance_rate: float | None

    @property
    def cancelled(self) -> bool:
        """Whether Ctrl-C ended it."""
        return self.generation.finish_reason == "cancelled"

    def as_json(self, logprobs: int) -> dict[str, Any]:
        """The command's JSON object; with `logprobs` each token's log-probability and likeliest alternatives."""
        import mlx.core as mx

        g = self.generation
        table: dict[str, Any] = {
            "text": g.text, "token_ids": g.token_ids, "prompt_token_ids": self.prompt_ids,
            "finish_reason": g.finish_reason, "time_to_first_token": g.time_to_first_token,
            "tokens_per_second": g.tokens_per_second, "peak_memory_bytes": mx.get_peak_memory(),
        }  # fmt: skip
        if logprobs:
            table["logprobs"] = [{"logprob": c.logprob, "top": c.top} for c in g.choices]
        if self.acceptance_rate is not None:
            table["acceptance_rate"] = self.acceptance_rate
        return table


def load(name: str | None, options: Options) -> tuple[Model, Tokenizer]:
    """The model that `name` means (a folder, an alias, a Hub id), with its adapter, if any, and its tokenizer. Raises
    Error, UsageError."""
    folder, adapter = adapters.locate(name, options.adapter)
    quantize = CHOICES[options.quantize] if options.quantize else None
    dtype = backend.compute_dtype(options.dtype)
    return weights.load_with_tokenizer(folder, dtype, quantize, options.dtype == "auto", adapter)


def answer(
    name: str | None, prompts: Sequence[bytes], request: engine.Request, options: Options, show: Callable[[str], object]
) -> list[Answer]:
    """Answer every prompt; `show` streams the text of a single one, and Ctrl-C ends it where it is.

    Raises Error, UsageError.
    """
    check(options)
    alone = not options.guessing and options.prompt_cache is None
    require(alone or len(prompts) == 1, "--draft, --lookup and --prompt-cache take one prompt, not several")
    folder, adapter = adapters.locate(name, options.adapter)
    model, tokenizer = load(str(folder), replace(options, adapter=adapter))
    request = replace(request, closing=closing_ids(folder))
    ids = [tokenizer.begin(prompt) for prompt in prompts]
    if len(prompts) > 1:
        answers = batch.generate(model, tokenizer, ids, request, options.kv_bits)
        return [Answer(a, i, None) for a, i in zip(answers, ids, strict=True)]
    decoder = engine.Decoder(model, options.kv_bits)
    if options.prompt_cache is not None:
        _reuse(options.prompt_cache, decoder, ids[0])
    draft = load_draft(options, tokenizer)
    with interrupts.deferred() as interrupted, PromptBar() as bar:
        request = replace(request, cancelled=interrupted, progress=bar)
        done = continued(decoder, tokenizer, ids[0], request, options, draft, show)
    if options.prompt_cache is not None and decoder.position >= len(ids[0]):
        prompt_cache.save(options.prompt_cache, decoder, ids[0])
    return [done]


def closing_ids(folder: Path) -> frozenset[int]:
    """The ids of tokens that end an answer, by generation_config.json and config.json; there may be several."""
    ids: list[Any] = []
    for path in (folder / "generation_config.json", folder / "config.json"):
        given = files.read_table(path).get("eos_token_id")
        ids += given if isinstance(given, list) else [given]
    return frozenset(i for i in ids if isinstance(i, int))


def check(options: Options) -> None:
    """Raise UsageError for options that exclude each other."""
    require(not (options.lookup and options.draft), "--draft and --lookup exclude each other")


def continued(
    decoder: engine.Decoder, tokenizer: Tokenizer, ids: list[int], request: engine.Request, options: Options,
    draft: Model | None, show: Callable[[str], object],
) -> Answer:  # fmt: skip
    """Continue `ids`, whose beginning `decoder` may hold, with the guesses that the options ask for, streaming to
    `show`. Raises Error, UsageError."""
    tally = speculation.Tally()
    if options.guessing:
        pieces = speculation.generate(decoder.model, tokenizer, ids, request, tally, draft, decoder)
    else:
        pieces = engine.generate(decoder.model, tokenizer, ids, request, decoder)
    return Answer(engine.collect(pieces, show), ids, tally.rate if options.guessing else None)


def load_draft(options: Options, tokenizer: Tokenizer) -> Model | None:
    """The draft model of the options, if they name one. Raises Error where its tokenizer is not `tokenizer`."""
    if options.draft is None:
        return None
    model, its = load(options.draft, Options())
    if its.fingerprint() != tokenizer.fingerprint():
        raise Error(f"the draft model {options.draft} has another tokenizer: it must be the model's own")
    return model


def _reuse(path: Path, decoder: engine.Decoder, ids: list[int]) -> None:
    shared = prompt_cache.load(path, decoder, ids)
    if shared:
        print(f"mlxgpt: {shared} of {len(ids)} prompt tokens came from {path}", file=sys.stderr)
