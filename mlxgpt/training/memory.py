"""The memory that a training step takes: estimated before it starts, and the largest batch that fits, measured.

The estimate is the sum of
- the weights as they are held, and for what is trained its gradient and the optimizer's moments, float32 all, new
  weights and moments beside the old ones, and a copy in the compute type; with accumulation, the sum of the gradients,
  and the new ones only as far as they need more than the activations, which are gone by then;
- the activations that a block keeps for its gradient: in units of B · T numbers of the compute type 6 C + 3 H D +
  2 Hkv D + 3 I for Mistral, (H + Hkv) D more for Qwen3, 9 C + 8 C for GPT-2 (C width, I the SwiGLU's, H heads of D),
  with attention's T × T weights where they are kept; with gradient checkpointing what enters each block, 2 C, and one
  block's;
- the gradients that pass through one block at a time, about as much as one block keeps, and with an adapter, whose
  products are as wide as the layers', three times that;
- the logits of a chunk of tokens and their gradient, float32, and the head's gradient where it is trained.
"""

import dataclasses
from contextlib import suppress
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlxgpt import backend
from mlxgpt.config import Recipe
from mlxgpt.errors import Error
from mlxgpt.kernels.cross_entropy import cross_entropy
from mlxgpt.kernels.linear_cross_entropy.op import CHUNK
from mlxgpt.models import Model, gpt2
from mlxgpt.models.layers import named_parameters
from mlxgpt.training import optimizers
from mlxgpt.training.step import Batch, held_dtype, make_step, training_dtype

SHARE = 0.8  # of the machine's memory that is filled: the rest is the system's and other programs'


@dataclass(frozen=True)
class Estimate:
    """Bytes: weights as they are held, what training adds to those that are trained, activations, and logits."""

    weights: int
    state: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.state + self.activations + self.logits

    def __str__(self) -> str:
        parts = (("weights", self.weights), ("optimizer", self.state), ("activations", self.activations + self.logits))
        return f"about {gigabytes(self.total)} ({', '.join(f'{what} {gigabytes(n)}' for what, n in parts)})"


def gigabytes(size: float) -> str:
    """4.07 GB."""
    return f"{size / 1e9:,.{2 if size < 1e11 else 0}f} GB"


def available(processes: int) -> int:
    """Bytes of memory that each of so many processes on this machine has: an equal part of the machine's, but with
    CUDA, where each has a GPU of its own, all of that."""
    return backend.total_memory() // (1 if backend.device() == "cuda" else processes)


def room(processes: int) -> int:
    """Bytes that a step of each of so many processes may fill: `SHARE` of what is available, on Metal at most the
    working set that the system recommends, beyond which pages are not kept in memory."""
    filled = int(SHARE * available(processes))
    if backend.device() == "metal":
        return min(filled, int(mx.device_info()["max_recommended_working_set_size"]) // processes)
    return filled


def limit() -> dict[str, int]:
    """Have MLX keep few freed buffers while a model trains, and on macOS keep what it uses in memory; returns the
    limits in bytes: `cache_limit_bytes`, and on Metal `wired_limit_bytes` (0 before macOS 15, which has none)."""
    limits = {"cache_limit_bytes": backend.cache_limit()}
    mx.set_cache_limit(limits["cache_limit_bytes"])
    if backend.device() == "metal":
        wired = int(mx.device_info()["max_recommended_working_set_size"])
        limits["wired_limit_bytes"] = 0
        with suppress(RuntimeError, ValueError):
            mx.set_wired_limit(wired)
            limits["wired_limit_bytes"] = wired
    return limits


def estimate(model: Model, recipe: Recipe, dtype: mx.Dtype) -> Estimate:
    """What a step of `recipe` on `model` takes when it computes in `dtype`. Nothing of the model is computed."""
    train, c, dtype = recipe.train, model.config, held_dtype(dtype)
    trained = dict(tree_flatten(model.trainable_parameters()))
    count = sum(p.size for p in trained.values())
    held = sum(p.nbytes for p in named_parameters(model).values())
    lower = 0 if dtype == mx.float32 else dtype.size * count
    moments = 1 if recipe.optimizer.kind == "muon" else 2
    rows, layers = train.batch_size * train.sequence_length, len(model.layers)
    if isinstance(c, gpt2.Config):
        width, block = c.n_embd, 17 * c.n_embd
        if c.dropout > 0:
            block += 4 * c.n_head * train.sequence_length
    else:
        width = c.hidden_size
        block = 6 * width + 3 * c.num_attention_heads * c.head_size + 2 * c.num_key_value_heads * c.head_size
        block += 3 * c.intermediate_size
        block += (c.num_attention_heads + c.num_key_value_heads) * c.head_size if c.qk_norm else 0
    kept = 2 * width * layers + block if train.grad_checkpoint else block * layers
    kept += block * (3 if recipe.init.lora else 1)
    activations, new = rows * kept * dtype.size, 4 * (moments + 1) * count
    if train.accumulation > 1:
        new = 4 * count + max(0, new - activations)
    state = 4 * (moments + 1) * count + lower + new
    vocabulary = c.vocab_size
    logits = 3 * 4 * vocabulary * min(rows, max(1, CHUNK // vocabulary))
    if any(name.endswith(("lm_head.weight", "embed_tokens.weight", "wte.weight")) for name in trained):
        logits += 4 * vocabulary * width
    return Estimate(held, state, activations, logits)


def require(model: Model, recipe: Recipe, dtype: mx.Dtype, processes: int = 1) -> Estimate:
    """`estimate`, of one sequence where the batch is yet to be found. Raises Error where this machine, which so many
    processes of the run share, has less."""
    train = recipe.train
    if train.auto_batch:
        recipe = dataclasses.replace(recipe, train=dataclasses.replace(train, batch_size=1, accumulation=2))
    found, there = estimate(model, recipe, dtype), available(processes)
    if found.total <= there:
        return found
    advice = []
    if found.activations + found.logits > found.total / 20:
        smaller = [name for name in ("batch_size", "sequence_length") if getattr(recipe.train, name) > 1]
        advice += [f"lower train.{' or train.'.join(smaller)}"]
        advice += [] if train.grad_checkpoint else ["set train.grad_checkpoint=true"]
    if recipe.init.model:
        advice += [] if recipe.init.lora else ["train an adapter (--lora)"]
        advice += ["lower the rank (--rank)"] if recipe.init.lora and found.state > found.total / 20 else []
        advice += ["quantize the model (--bits 4)"] if recipe.init.lora and not recipe.init.bits else []
    each = f" for each of {processes} processes" if processes > 1 else ""
    raise Error(
        f"a training step takes {found}, and this machine has {gigabytes(there)}{each}: "
        + (", ".join([*advice, "or choose a smaller model"]) if advice else "choose a smaller model")
    )


def fitted(model: Model, recipe: Recipe, processes: int = 1) -> Recipe:
    """`recipe` with the batch_size and the accumulation that `fit` finds, to be kept when the run is resumed. Raises
    Error."""
    size, passes = fit(model, recipe, training_dtype(recipe.train.dtype), room(processes))
    train = dataclasses.replace(recipe.train, batch_size=size, accumulation=passes, auto_batch=False)
    return dataclasses.replace(recipe, train=train)


def fit(model: Model, recipe: Recipe, dtype: mx.Dtype, room: int) -> tuple[int, int]:
    """The largest batch_size that fits `room`, in bytes, and the accumulation with which a step has as many sequences
    as the recipe says.

    Measured: the peak of a step and of an evaluation's batch. The next size to try is the largest for which the slope
    between the last two, or that of `estimate` where it is steeper (at small sizes the optimizer's part hides the
    activations'), promises room. The steps' rate is 0, which leaves the weights as they are, bit for bit. Raises Error
    where one sequence does not fit.
    """
    train = recipe.train
    total = train.batch_size * train.accumulation
    sizes = [n for n in range(1, total + 1) if total % n == 0]
    foreseen = dataclasses.replace(recipe, train=dataclasses.replace(train, batch_size=1))
    slope = estimate(model, foreseen, dtype).activations
    size, peak = 1, _peak(model, recipe, dtype, 1)
    if peak > room:
        raise Error(
            f"one sequence of {train.sequence_length} tokens takes {gigabytes(peak)}, more than the {gigabytes(room)} "
            "of this machine's memory that a step may fill: lower train.sequence_length or choose a smaller model"
        )
    steepest = float(slope)
    while next_sizes := [n for n in sizes if n > size and peak + (n - size) * steepest <= room]:
        measured = _peak(model, recipe, dtype, next_sizes[-1])
        if measured > room:
            break
        steepest = max(slope, (measured - peak) / (next_sizes[-1] - size))
        size, peak = next_sizes[-1], measured
    return size, total // size


def _peak(model: Model, recipe: Recipe, dtype: mx.Dtype, size: int) -> int:
    """Most bytes in use in two steps, which accumulate, and an evaluation, of `size` random sequences."""
    draw = np.random.default_rng(0).integers(0, model.config.vocab_size, (size, recipe.train.sequence_length + 1))
    x, y = mx.array(draw[:, :-1].astype(np.int32)), mx.array(draw[:, 1:].astype(np.int32))
    mx.eval(model.parameters())
    mx.clear_cache()
    mx.reset_peak_memory()
    optimizer = optimizers.make(recipe.optimizer)
    step = make_step(model, optimizer, recipe.optimizer.clip, dtype)
    optimizer.learning_rate = 0.0
    model.train()
    batch: Batch = (x, y)
    for batches in ([batch], [batch] * 2):
        mx.eval(step(batches), model.state, optimizer.state)
    model.eval()
    mx.eval(cross_entropy(model(x), y).sum())
    model.train()
    return mx.get_peak_memory()
