"""`mlxgpt generate`, whole: a model by its name, prompts, and what is to help or be kept, to answers."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxgpt import backend, hub, layouts, weights
from mlxgpt.config import require
from mlxgpt.errors import Error
from mlxgpt.generation import batch, engine, prompt_cache, speculation
from mlxgpt.models import Model
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


@dataclass(frozen=True)
class Answer:
    """One finished answer, the prompt's ids, and the share of guesses that were right where there were guesses."""

    generation: engine.Generation
    prompt_ids: list[int]
    acceptance_rate: float | None

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


def load(name: str, options: Options) -> tuple[Model, Tokenizer]:
    """The model that `name` means (a folder, an alias, a Hub id) and its tokenizer. Raises Error, UsageError."""
    folder = hub.resolve(name, check=layouts.describe)
    quantize = CHOICES[options.quantize] if options.quantize else None
    return weights.load_with_tokenizer(folder, backend.compute_dtype(options.dtype), quantize)


def answer(
    name: str, prompts: Sequence[bytes], request: engine.Request, options: Options, show: Callable[[str], object]
) -> list[Answer]:
    """Answer every prompt; `show` streams the text of a single one. Raises Error, UsageError."""
    guessing = options.lookup or options.draft is not None
    require(not (options.lookup and options.draft), "--draft and --lookup exclude each other")
    alone = not guessing and options.prompt_cache is None
    require(alone or len(prompts) == 1, "--draft, --lookup and --prompt-cache take one prompt, not several")
    model, tokenizer = load(name, options)
    opening = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids = [opening + tokenizer.encode(prompt) for prompt in prompts]
    if len(prompts) > 1:
        answers = batch.generate(model, tokenizer, ids, request, options.kv_bits)
        return [Answer(a, i, None) for a, i in zip(answers, ids, strict=True)]
    decoder = engine.Decoder(model, options.kv_bits)
    if options.prompt_cache is not None:
        _reuse(options.prompt_cache, decoder, ids[0])
    tally = speculation.Tally()
    if guessing:
        draft = None if options.draft is None else _draft(options.draft, tokenizer)
        pieces = speculation.generate(model, tokenizer, ids[0], request, tally, draft, decoder)
    else:
        pieces = engine.generate(model, tokenizer, ids[0], request, decoder)
    done = engine.collect(_saving(pieces, options.prompt_cache, decoder, ids[0]), show)
    return [Answer(done, ids[0], tally.rate if guessing else None)]


def _draft(name: str, tokenizer: Tokenizer) -> Model:
    model, its = load(name, Options())
    if its.fingerprint() != tokenizer.fingerprint():
        raise Error(f"the draft model {name} has another tokenizer: it must be the model's own")
    return model


def _reuse(path: Path, decoder: engine.Decoder, ids: list[int]) -> None:
    shared = prompt_cache.load(path, decoder, ids)
    if shared:
        print(f"mlxgpt: {shared} of {len(ids)} prompt tokens came from {path}", file=sys.stderr)


def _saving(
    pieces: Iterator[engine.Piece], path: Path | None, decoder: engine.Decoder, ids: list[int]
) -> Iterator[engine.Piece]:
    """The pieces, and after the last of them the prompt's cache on disk."""
    yield from pieces
    if path is not None:
        prompt_cache.save(path, decoder, ids)
