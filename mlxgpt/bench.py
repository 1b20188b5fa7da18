"""`mlxgpt bench`: how fast this machine trains, decodes and completes, and how near that comes to what it could do.

The yardsticks are measured in the same run: the fastest matrix product, and the fastest reading of one large matrix.
"""

import statistics
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlxgpt import answer, backend, config, measure, models
from mlxgpt.completion.cursors import pick_cursors
from mlxgpt.completion.opening import open_suggester
from mlxgpt.config import DataConfig, Recipe
from mlxgpt.data import corpus
from mlxgpt.errors import Error
from mlxgpt.generation.engine import Decoder
from mlxgpt.models import Model
from mlxgpt.models.layers import named_parameters
from mlxgpt.training import optimizers
from mlxgpt.training.step import make_step, training_dtype
from mlxgpt.training.utilization import flops_a_token, peak

VOCABULARY = 2048  # tokens, where a recipe leaves it to a tokenizer that is not trained here


def build(recipe: Recipe) -> Model:
    """A recipe's model with random weights."""
    table = {"vocab_size": recipe.tokenizer.vocab_size or VOCABULARY} | recipe.model
    model = models.build(models.config_from_table(table))
    mx.random.seed(0)
    model.init_weights()
    mx.eval(model.parameters())
    return model


def pace(recipe: Recipe, steps: int) -> tuple[Model, float]:
    """A recipe's model with random weights, and the seconds that a step of it takes, on random tokens."""
    settings, dtype = recipe.train, training_dtype(recipe.train.dtype)
    model = build(recipe)
    step = make_step(model, optimizers.make(recipe.optimizer), recipe.optimizer.clip, dtype)
    draw = np.random.default_rng(0)
    shape = (settings.batch_size, settings.sequence_length + 1)
    block = draw.integers(0, model.config.vocab_size, shape).astype(np.int32)
    x, y = mx.array(block[:, :-1]), mx.array(block[:, 1:])

    def one() -> None:
        mx.eval(step([(x, y)] * settings.accumulation), model.state)

    model.train()
    return model, measure.seconds_of(one, steps)


def train(name: str, steps: int) -> dict[str, Any]:
    """Steps of a recipe on random tokens: tokens/s, and the share of the measured peak that its arithmetic reaches."""
    recipe = config.load_recipe(name, [])
    settings, dtype = recipe.train, training_dtype(recipe.train.dtype)
    model, seconds = pace(recipe, steps)
    tokens = settings.batch_size * settings.sequence_length * settings.accumulation
    work, top = flops_a_token(model, settings.sequence_length) * tokens / seconds, peak(dtype)
    return {
        "what": "train", "recipe": name, "device": backend.device(), "parameters": _count(model),
        "step_ms": 1000 * seconds, "tokens_per_second": tokens / seconds, "gflops": work / 1e9,
        "peak_gflops": top / 1e9, "fraction_of_peak": work / top, "peak_memory_bytes": mx.get_peak_memory(),
    }  # fmt: skip


def decode(name: str | None, recipe: str, prompt: int, tokens: int) -> dict[str, Any]:
    """Prefill and decode with the model `name` (None: a recipe's, random weights): tokens/s of both, and the share of
    the measured bandwidth that reading every weight and the cache once a token takes."""
    if name is None:
        model = build(config.load_recipe(recipe, []))
        dtype = backend.compute_dtype()
        model.apply(lambda p: p.astype(dtype))
    else:
        model, _ = answer.load(name, answer.Options())
    model.eval()
    context = model.config.context
    if prompt + tokens > context:
        raise Error(f"--prompt {prompt} and --tokens {tokens} do not fit the model's context of {context}")
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, prompt).tolist()
    prefills, steps = [], []
    for _ in range(4):
        decoder = Decoder(model)
        start = time.perf_counter()
        token = decoder.prefill(ids).argmax(-1)
        mx.eval(token)
        first = time.perf_counter()
        for _ in range(tokens):
            token = decoder.step(token).argmax(-1)
            mx.async_eval(token)
        mx.eval(token)
        prefills.append(first - start)
        steps.append((time.perf_counter() - first) / tokens)
    prefill, step = statistics.median(prefills[1:]), statistics.median(steps[1:])
    cache = sum(b.nbytes for c in decoder.caches for b in c.buffers)
    read = sum(p.nbytes for p in named_parameters(model).values()) + cache
    top = measure.bandwidth()
    return {
        "what": "decode", "model": name or recipe, "device": backend.device(), "parameters": _count(model),
        "prefill_tokens_per_second": prompt / prefill, "time_to_first_token": prefill,
        "tokens_per_second": 1 / step, "bytes_a_token": read, "bandwidth_gb_s": top / 1e9,
        "fraction_of_bandwidth": read / step / top, "peak_memory_bytes": mx.get_peak_memory(),
    }  # fmt: skip


def complete(name: str, paths: list[Path], cursors: int) -> dict[str, Any]:
    """Suggestions at random cursors of files (none: this Python's standard library): milliseconds where the file was
    not seen before (`cold`), and one typed character later (`warm`)."""
    suggester = open_suggester(name)
    rules = DataConfig(validation_fraction=0.0, near_duplicates=0.0)
    documents = corpus.collect(*corpus.find(paths or corpus.default_paths(), rules), rules).documents
    texts = [(d.name, "".join(d.pieces()).encode()) for d in documents]
    places = pick_cursors(texts, cursors + 1, seed=0)
    if not places:
        raise Error("there is no line to complete in the files named")
    cold, warm = [], []
    for place in places:
        cold.append(suggester.suggest(place.prefix).latency_ms)
        warm.append(suggester.suggest(place.prefix + place.truth[:1].encode("utf-8", "surrogateescape")).latency_ms)

    def quantiles(times: list[float]) -> dict[str, float]:
        p50, p95 = np.percentile(times[1:] or times, [50, 95]).tolist()
        return {"p50": p50, "p95": p95}

    return {
        "what": "complete", "model": name, "device": backend.device(), "cursors": cursors,
        "cold_ms": quantiles(cold), "warm_ms": quantiles(warm), "peak_memory_bytes": mx.get_peak_memory(),
    }  # fmt: skip


def _count(model: Model) -> int:
    return sum(p.size for p in named_parameters(model).values())
