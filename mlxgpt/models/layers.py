"""What the model files share: MLX's linear layers and embeddings, their products done by `kernels`."""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlxgpt.kernels import compiled, decode_block, dispatch
from mlxgpt.kernels.add_norm import add_norm
from mlxgpt.kernels.bf16_matmul import bf16_matmul
from mlxgpt.kernels.decoder_layer import Weights
from mlxgpt.kernels.quantized_matmul import quantized_matmul
from mlxgpt.kernels.rope import rope

Norm = nn.RMSNorm | nn.LayerNorm
_keys: list[mx.array] = []  # of the block that `through` computes now: what it draws from next


def normal_(layer: nn.Module, std: float) -> None:
    """Draw `layer.weight` from N(0, std²) with MLX's global generator; a bias becomes 0."""
    layer.weight = mx.random.normal(layer.weight.shape) * std
    if "bias" in layer:
        layer.bias = mx.zeros_like(layer.bias)


def named_parameters(model: nn.Module) -> dict[str, mx.array]:
    """Every parameter by its dotted name in the module tree."""
    return dict(tree_flatten(model.parameters()))


def _product(layer: nn.Module, x: mx.array) -> mx.array:
    """x by the transpose of a quantized layer's weights."""
    return quantized_matmul(
        x, layer["weight"], layer["scales"], layer.get("biases"), layer.group_size, layer.bits, layer.mode
    )


class QuantizedLinear(nn.QuantizedLinear):
    """`nn.QuantizedLinear`, by `kernels.quantized_matmul`."""

    def __call__(self, x: mx.array) -> mx.array:
        y = _product(self, x)
        return y + self["bias"] if "bias" in self else y


class QuantizedEmbedding(nn.QuantizedEmbedding):
    """`nn.QuantizedEmbedding`, the head by `kernels.quantized_matmul`."""

    def as_linear(self, x: mx.array) -> mx.array:
        """Logits [..., num_embeddings] of x [..., dims]."""
        return _product(self, x)


def _by_kernel(weight: mx.array) -> bool:
    """Whether a plain layer's product is not MLX's: that of bfloat16 weights is scalar on a CPU."""
    return weight.dtype == mx.bfloat16 and mx.default_device() == mx.cpu


class Linear(nn.Linear):
    """`nn.Linear`, by `kernels.bf16_matmul` where its weights are bfloat16, and quantized to this file's own.

    In training, `rounded` has the products of float32 done in bfloat16, as PyTorch's autocast does.
    """

    rounded = False

    def __call__(self, x: mx.array) -> mx.array:
        rounded = self.rounded and self.training
        if not rounded and not _by_kernel(self["weight"]):
            return super().__call__(x)
        y = bf16_matmul(x, self["weight"], rounded)
        return y + self["bias"] if "bias" in self else y

    def to_quantized(self, group_size: int, bits: int, mode: str = "affine") -> QuantizedLinear:  # type: ignore[override]
        """The layer with its weights quantized, as `mx.quantize` does it."""
        return QuantizedLinear.from_linear(self, group_size, bits, mode)


class Embedding(nn.Embedding):
    """`nn.Embedding`, the head by `kernels.bf16_matmul` where it is bfloat16, and quantized to this file's own."""

    def as_linear(self, x: mx.array) -> mx.array:
        """Logits [..., num_embeddings] of x [..., dims]."""
        return bf16_matmul(x, self["weight"]) if _by_kernel(self["weight"]) else super().as_linear(x)

    def to_quantized(self, group_size: int, bits: int, mode: str = "affine") -> QuantizedEmbedding:  # type: ignore[override]
        """The embedding with its weights quantized, as `mx.quantize` does it."""
        return QuantizedEmbedding.from_embedding(self, group_size, bits, mode)


def round_products(model: nn.Module, wanted: bool) -> None:
    """Have every linear layer of the model do its products in bfloat16 while it trains, or not."""
    for layer in model.modules():
        if isinstance(layer, Linear):
            layer.rounded = wanted


def next_key() -> mx.array | None:
    """The key of the next draw in a block whose activations are computed twice, and None, MLX's own, elsewhere."""
    if not _keys:
        return None
    _keys[-1], key = mx.random.split(_keys[-1])
    return key


class Dropout(nn.Dropout):
    """`nn.Dropout` that drops the same where a block is computed again."""

    def __call__(self, x: mx.array) -> mx.array:
        if self._p_1 == 1 or not self.training or not _keys:
            return super().__call__(x)
        return (mx.random.bernoulli(self._p_1, x.shape, next_key()) * x) * (1 / self._p_1)


def recompute(model: nn.Module) -> None:
    """Have `through` keep only what goes into each block of `model` (arXiv 1604.06174)."""
    for block in model.layers:
        block.recomputed = True


def through(block: nn.Module, *inputs: Any) -> tuple[mx.array, mx.array]:
    """`block(*inputs)`; in training after `recompute`, its activations are computed again when they are needed.

    Unlike `mx.checkpoint` this waits until the gradient has come to the block, or all blocks' would be there at once,
    and draws the same again: what is dropped follows a key that is kept.
    """
    if not (block.training and getattr(block, "recomputed", False)):
        return block(*inputs)
    key = mx.random.randint(-(1 << 31), (1 << 31) - 1, (2,)).view(mx.uint32)
    parameters = dict(tree_flatten(block.trainable_parameters()))
    places = [i for i, a in enumerate(inputs) if isinstance(a, mx.array) and mx.issubdtype(a.dtype, mx.floating)]

    def compute(*arrays: mx.array) -> tuple[mx.array, mx.array]:
        block.update(tree_unflatten(list(zip(parameters, arrays, strict=False))))
        given = list(inputs)
        for i, array in zip(places, arrays[len(parameters) :], strict=True):
            given[i] = array
        _keys.append(key)
        try:
            return block(*given)
        finally:
            _keys.pop()

    def gradients(primals: Any, cotangents: Any, outputs: Any) -> list[mx.array]:
        waiting = mx.depends(list(primals), list(cotangents))
        return mx.vjp(lambda *arrays: list(compute(*arrays)), waiting, list(cotangents))[1]

    run: Any = mx.custom_function(compute)
    run.vjp(gradients)
    result = run(*parameters.values(), *(inputs[i] for i in places))
    block.update(tree_unflatten(list(parameters.items())))
    return result


def kept_in_bf16(module: nn.Module, stored: Mapping[str, mx.array]) -> frozenset[str]:
    """Which of a layer's `stored` parameters are of bfloat16 and serve it in a float32 model as they are: on a CPU, the
    weights or the scales of what `kernels` multiplies by. Their operation is compiled, if need be now."""
    quantized = isinstance(module, QuantizedLinear | QuantizedEmbedding)
    op, names = ("quantized_matmul", ["scales", "biases"]) if quantized else ("bf16_matmul", ["weight"])
    kept = frozenset(name for name in names if name in stored and stored[name].dtype == mx.bfloat16)
    ours = quantized or isinstance(module, Linear | Embedding)
    return kept if kept and ours and compiled.load(op) is not None else frozenset()


def weights_of(layer: nn.Module) -> Weights | None:
    """What a linear layer multiplies by, where that is all it does."""
    if "bias" in layer:
        return None
    if isinstance(layer, QuantizedLinear) and layer.mode == "affine":
        return Weights(layer["weight"], layer["scales"], layer["biases"], layer.group_size, layer.bits)
    return Weights(layer["weight"]) if isinstance(layer, Linear) else None


def added(x: mx.array, change: mx.array | None, norm: Norm, decoding: bool) -> tuple[mx.array, mx.array]:
    """x + change, where there is one, and its norm; [B, T, C] all. One kernel in a decoding step on a GPU."""
    centered, bias = isinstance(norm, nn.LayerNorm), norm.get("bias")
    if change is not None and decoding:
        problem = "" if x.dtype == change.dtype == norm.weight.dtype else "the norm's weight is of another dtype than x"
        if dispatch.use_kernel("decode_block", problem):
            return decode_block.add_norm(x, change, norm.weight, bias, norm.eps, centered)
    return add_norm(x, change, norm.weight, bias, norm.eps, centered)


def rotated(
    q: mx.array, k: mx.array, offset: int | mx.array, base: float, decoding: bool
) -> tuple[mx.array, mx.array]:  # fmt: skip
    """Queries [B, H, T, D] and keys [B, Hkv, T, D] after rotary positions from `offset` on, an int or int [B]."""
    if decoding and isinstance(offset, mx.array) and dispatch.use_kernel("decode_block"):
        return decode_block.rotate(q, k, offset, base)
    return rope(q, offset, base), rope(k, offset, base)
