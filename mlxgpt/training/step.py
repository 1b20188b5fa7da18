"""One optimizer step: loss, gradients, clipping, update, as compiled graphs."""

from collections.abc import Callable

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_map

from mlxgpt import backend
from mlxgpt.kernels import bf16_matmul
from mlxgpt.kernels.linear_cross_entropy import linear_cross_entropy
from mlxgpt.models import Model
from mlxgpt.models.layers import round_products
from mlxgpt.training.optimizers import clip_and_apply

Batch = tuple[mx.array, mx.array]  # inputs and targets, int32 [B, T] each


def training_dtype(wanted: str) -> mx.Dtype:
    """The type that `train.dtype` has a step compute in; "auto": bfloat16, but float32 on a CPU that is no faster
    then."""
    fast = wanted == "auto" and bf16_matmul.is_fast()
    return mx.bfloat16 if fast else backend.compute_dtype(wanted)


def make_step(
    model: Model, optimizer: optim.Optimizer, clip: float, dtype: mx.Dtype
) -> Callable[[list[Batch]], tuple[mx.array, mx.array]]:
    """A function from micro-batches to (mean loss in nats a token, gradient norm before clipping), float32 scalars; it
    updates the model and the optimizer, as they are now: make it after restoring them.

    Compute runs in `dtype`, the model's own weights stay as they are; on a CPU, where MLX is slow in bfloat16, that
    means the linear layers' products, as in PyTorch's autocast. `clip` is the largest norm, 0 for none. One micro-batch
    is one compiled graph; several are a compiled gradient each, averaged, and a compiled update.
    """
    optimizer.init(model.trainable_parameters())
    state = [model.state, optimizer.state, mx.random.state]
    rounded = dtype == mx.bfloat16 and mx.default_device() == mx.cpu
    held = mx.float32 if rounded else dtype
    round_products(model, rounded)

    def loss_of(parameters: dict, x: mx.array, y: mx.array) -> mx.array:
        model.update(tree_map(lambda p: p.astype(held), parameters))
        return linear_cross_entropy(model.features(x), model.head, y, rounded=rounded)

    def gradients(x: mx.array, y: mx.array) -> tuple[mx.array, dict]:
        parameters = model.trainable_parameters()
        result = mx.value_and_grad(loss_of)(parameters, x, y)
        model.update(parameters)
        return result

    def update(grads: dict) -> mx.array:
        updated, norm = clip_and_apply(optimizer, grads, model.trainable_parameters(), clip)
        model.update(updated)
        return norm

    def whole(x: mx.array, y: mx.array) -> tuple[mx.array, mx.array]:
        loss, grads = gradients(x, y)
        return loss, update(grads)

    whole_step = mx.compile(whole, inputs=state, outputs=state)
    gradient_step = mx.compile(gradients, inputs=state, outputs=state)
    update_step = mx.compile(update, inputs=state, outputs=state)

    def step(batches: list[Batch]) -> tuple[mx.array, mx.array]:
        if len(batches) == 1:
            return whole_step(*batches[0])
        total: dict = {}
        mean = mx.array(0.0)
        for x, y in batches:
            loss, grads = gradient_step(x, y)
            grads = tree_map(lambda g: g / len(batches), grads)
            total = tree_map(mx.add, total, grads) if total else grads
            mean = mean + loss / len(batches)
            mx.eval(total, mean)
        return mean, update_step(total)

    return step
