"""A layer of a decoder of Mistral's shape (arXiv 2310.06825) over a few tokens: on a CPU one node of the graph, in C++.

As nodes of its own a layer is some 25, of about 10 µs each on a CPU, which in a small model is more than its products
take. On a GPU a layer stays MLX's nodes, and `kernels.decode_block`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
from mlxgpt.kernels import compiled
from mlxgpt.kernels.add_norm import reference as norm
from mlxgpt.kernels.rope import reference as rope
from mlxgpt.kernels.swiglu import reference as swiglu
from mlxgpt.kernels.windowed_attention import reference as attention

FORMS = {"metal": "MLX", "cuda": "MLX", "cpu": "C++"}
FEW = 8  # tokens; more are better done by products of matrices
GROUPS = (32, 64, 128)


@dataclass(frozen=True)
class Weights:
    """What x is multiplied by: N rows of K numbers, float32, bfloat16, or as `mx.quantize` (affine) made them."""

    weight: mx.array
    scales: mx.array | None = None
    biases: mx.array | None = None
    group_size: int = 0
    bits: int = 0

    def served(self) -> bool:
        """Whether the operation in C++ reads them."""
        if self.scales is None:
            even = self.weight.shape[1] % 2 == 0
            return self.weight.dtype == mx.float32 or (self.weight.dtype == mx.bfloat16 and even)
        real = self.scales.dtype in (mx.float32, mx.bfloat16)
        return real and self.biases is not None and self.bits in (4, 8) and self.group_size in GROUPS

    def format(self) -> tuple[int, int]:
        """Bits a number, and numbers a group or 0."""
        return (self.weight.itemsize * 8, 0) if self.scales is None else (self.bits, self.group_size)

    def arrays(self) -> list[mx.array]:
        """Those that there are."""
        return [a for a in (self.weight, self.scales, self.biases) if a is not None]

    def product(self, x: mx.array) -> mx.array:
        """x [..., K] by the transpose, in plain MLX."""
        if self.scales is None:
            return x @ self.weight.astype(mx.float32).T
        return mx.quantized_matmul(x, self.weight, self.scales, self.biases, True, self.group_size, self.bits)


def reference(
    x: mx.array, keys: mx.array, values: mx.array, position: mx.array, norms: Sequence[mx.array],
    weights: Sequence[Weights], head_size: int, base: float, scale: float, window: int | None, eps: float,
) -> tuple[mx.array, mx.array, mx.array]:  # fmt: skip
    """`decoder_layer` in plain MLX."""
    q_by, k_by, v_by, o_by, gate_by, up_by, down_by = (w.product for w in weights)
    T, S = x.shape[1], keys.shape[2]
    normed = norm(x, norms[0], None, eps, False)
    q, k, v = (by(normed).reshape(1, T, -1, head_size) for by in (q_by, k_by, v_by))
    if len(norms) == 4:
        q, k = norm(q, norms[2], None, eps, False), norm(k, norms[3], None, eps, False)
    q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))
    q, k = rope(q, position, base), rope(k, position, base)
    at = position + mx.arange(T)
    keys, values = mx.array(keys), mx.array(values)  # what is assigned to below is nobody else's
    keys[:, :, at % S], values[:, :, at % S] = k, v
    place = at[-1] - (at[-1] - mx.arange(S)) % S  # the position whose keys a slot has
    seen = (place >= 0) & (place <= at[:, None])
    if window is not None:
        seen = seen & (place > at[:, None] - window)
    out = attention(q, keys, values, scale, seen)
    x = x + o_by(out.swapaxes(1, 2).reshape(1, T, -1))
    normed = norm(x, norms[1], None, eps, False)
    return x + down_by(swiglu(gate_by(normed), up_by(normed))), keys, values


def decoder_layer(
    x: mx.array, keys: mx.array, values: mx.array, position: mx.array, norms: Sequence[mx.array],
    weights: Sequence[Weights], head_size: int, base: float, scale: float, window: int | None, eps: float,
) -> tuple[mx.array, mx.array, mx.array]:  # fmt: skip
    """One layer over T tokens of one sequence, T at most FEW: x after it, and the cache with their keys and values.

    x float32 [1, T, C]; keys and values float32 [1, Hkv, S, D], a ring in which position p lies in slot p modulo S, as
    in `models.cache`; position int32 [1], the first token's. norms: the weights of the RMSNorm before attention, of the
    one before the MLP and, where queries and keys have their own (arXiv 2302.05442), theirs, [D] each; `eps` is that of
    all. weights: of q, k, v, o, gate, up and down. head_size D, base of the rotary frequencies, scale of the scores; a
    query sees at most the `window` newest positions, T + window of which the ring must hold. Not differentiable.

    In C++ what is returned is the cache's own memory: whoever else holds the arrays sees the new keys and values in the
    slots of their positions. Keys and values must be rows in memory, or evaluating raises RuntimeError.
    """
    cpu = compiled.load("decoder_layer")
    if not (cpu and served(x, keys, norms, weights)):
        return reference(x, keys, values, position, norms, weights, head_size, base, scale, window, eps)
    numbers = [head_size, base, scale, window or 0, eps, len(norms) == 4, *(n for w in weights for n in w.format())]
    arrays = [keys, values, position, x, *norms, *(a for w in weights for a in w.arrays())]
    x, keys, values = cpu.layer(arrays, numbers)
    return x, keys, values


def served(x: mx.array, keys: mx.array, norms: Sequence[mx.array], weights: Sequence[Weights]) -> bool:
    """Whether the operation in C++ takes these."""
    float32 = all(a.dtype == mx.float32 for a in (x, keys, *norms))
    return float32 and x.shape[0] == keys.shape[0] == 1 and 0 < x.shape[1] <= FEW and all(w.served() for w in weights)
