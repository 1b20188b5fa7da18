"""One optimizer step: loss, gradients, clipping, update, as compiled graphs."""

from collections.abc import Callable

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map

from mlxgpt import backend
from mlxgpt.kernels import bf16_matmul
from mlxgpt.kernels.cross_entropy import cross_entropy
from mlxgpt.kernels.linear_cross_entropy import linear_cross_entropy
from mlxgpt.kernels.linear_cross_entropy.op import CHUNK
from mlxgpt.models import Model
from mlxgpt.models.layers import round_products
from mlxgpt.training.optimizers import clip_and_apply

Batch = tuple[mx.array, ...]  # inputs, targets and, where they are isolated, the inputs' documents; int32 [B, T] each


def training_dtype(wanted: str) -> mx.Dtype:
    """The type that `train.dtype` has a step compute in; "auto": bfloat16, but float32 on a CPU that is no faster
    then."""
    fast = wanted == "auto" and bf16_matmul.is_fast()
    return mx.bfloat16 if fast else backend.compute_dtype(wanted)


def held_dtype(dtype: mx.Dtype) -> mx.Dtype:
    """What weights and activations are held in while a step computes in `dtype`: on a CPU, where MLX is slow in
    bfloat16, only the linear layers' products are, as in PyTorch's autocast."""
    return mx.float32 if dtype == mx.bfloat16 and mx.default_device() == mx.cpu else dtype


def mean_loss(model: Model, features: mx.array, targets: mx.array, rounded: bool = False) -> mx.array:
    """Mean cross-entropy, in nats, of features [B, T, C] through the head, which is trained, against targets [B, T].
    `rounded`: its products are done in bfloat16."""
    return linear_cross_entropy(features, model.head, targets, rounded=rounded)


def frozen_head_loss(model: Model, features: mx.array, targets: mx.array, rounded: bool = False) -> mx.array:
    """`mean_loss` through a head that is not trained and may be quantized: its gradient is not made, and logits are
    those of a chunk of tokens at a time, computed again in the backward pass."""

    def chunk_loss(x: mx.array, y: mx.array) -> mx.array:
        return cross_entropy(model.logits(x), y).sum()

    x, y = features.reshape(-1, features.shape[-1]), targets.reshape(-1)
    size = max(1, CHUNK // model.config.vocab_size)
    if len(y) <= size:
        return chunk_loss(x, y) / len(y)
    total = mx.array(0.0)
    for start in range(0, len(y), size):
        chunk = mx.depends([x[start : start + size]], [total])[0]  # or all logits are there at once
        total = total + mx.checkpoint(chunk_loss)(chunk, y[start : start + size])
    return total / len(y)


def make_step(
    model: Model, optimizer: optim.Optimizer, clip: float, dtype: mx.Dtype,
    average: Callable[[dict], dict] | None = None,
) -> Callable[[list[Batch]], tuple[mx.array, mx.array]]:  # fmt: skip
    """A function from micro-batches to (mean loss in nats a token, gradient norm before clipping), float32 scalars; it
    updates the model and the optimizer, as they are now: make it after restoring them.

    Compute runs in `dtype` (see `held_dtype`), the model's own weights stay as they are. `clip` is the largest norm, 0
    for none. One micro-batch is one compiled graph; several are a compiled gradient each, averaged, and a compiled
    update. `average` makes of this process's gradients the mean of several processes', which the norm is then of; the
    loss stays this process's own.
    """
    optimizer.init(model.trainable_parameters())
    trained = {id(p) for p in dict(tree_flatten(model.trainable_parameters())).values()}
    loss = mean_loss if id(model.head) in trained else frozen_head_loss
    state = [model.state, optimizer.state, mx.random.state]
    held = held_dtype(dtype)
    rounded = held != dtype
    round_products(model, rounded)

    def loss_of(parameters: dict, x: mx.array, y: mx.array, documents: mx.array | None = None) -> mx.array:
        model.update(tree_map(lambda p: p.astype(held), parameters))
        return loss(model, model.features(x, documents=documents), y, rounded)

    def gradients(*batch: mx.array) -> tuple[mx.array, dict]:
        parameters = model.trainable_parameters()
        result = mx.value_and_grad(loss_of)(parameters, *batch)
        model.update(parameters)
        return result

    def update(grads: dict) -> mx.array:
        updated, norm = clip_and_apply(optimizer, grads, model.trainable_parameters(), clip)
        model.update(updated)
        return norm

    def whole(*batch: mx.array) -> tuple[mx.array, mx.array]:
        loss, grads = gradients(*batch)
        return loss, update(grads)

    whole_step = mx.compile(whole, inputs=state, outputs=state)
    gradient_step = mx.compile(gradients, inputs=state, outputs=state)
    update_step = mx.compile(update, inputs=state, outputs=state)

    def step(batches: list[Batch]) -> tuple[mx.array, mx.array]:
        if len(batches) == 1 and average is None:
            return whole_step(*batches[0])
        total: dict = {}
        mean = mx.array(0.0)
        for batch in batches:
            loss, grads = gradient_step(*batch)
            grads = tree_map(lambda g: g / len(batches), grads)
            total = tree_map(mx.add, total, grads) if total else grads
            mean = mean + loss / len(batches)
            mx.eval(total, mean)
        return mean, update_step(average(total) if average else total)

    return step
