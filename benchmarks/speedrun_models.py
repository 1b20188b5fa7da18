"""Architectures that speedrun.py ablates and that neither mlx_lm nor transformers opens: hence no options of mlxgpt's.

Each function of ARCHITECTURES puts its parts in the place of Mistral's, for the rest of the process.
"""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
from mlxgpt.kernels.linear_cross_entropy import linear_cross_entropy

from mlxgpt.models import mistral
from mlxgpt.models.cache import Caches
from mlxgpt.models.layers import Embedding, Linear, normal_
from mlxgpt.training import step

CAP = 30.0  # Gemma 2's (arXiv 2408.00118)


class SquaredReLU(nn.Module):
    """Primer's MLP (arXiv 2109.08668): down(relu(up(x))²), half as wide again, so with as many weights as SwiGLU."""

    def __init__(self, config: mistral.Config) -> None:
        super().__init__()
        width = config.intermediate_size * 3 // 2
        self.up_proj = Linear(config.hidden_size, width, bias=False)
        self.down_proj = Linear(width, config.hidden_size, bias=False)

    @property
    def gate_proj(self) -> Linear:
        """What `init_weights` draws beside `up_proj`: the same."""
        return self.up_proj

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(mx.maximum(self.up_proj(x), 0).square())


class GatedSquaredReLU(mistral.MLP):
    """down(relu(gate(x))² · up(x))."""

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(mx.maximum(self.gate_proj(x), 0).square() * self.up_proj(x))


class Capped(mistral.Model):
    """Logits bent to within ± CAP."""

    def logits(self, x: mx.array) -> mx.array:
        """CAP · tanh(logits / CAP)."""
        return CAP * mx.tanh(super().logits(x) / CAP)


def capped_loss(model: Capped, features: mx.array, targets: mx.array, rounded: bool = False) -> mx.array:
    """`step.mean_loss` of such logits."""
    return linear_cross_entropy(features, model.head, targets, softcap=CAP, rounded=rounded)


class Value(Linear):
    """The projection to the values, to which a row of a table of its own is added, by the token, times a number."""

    tokens: list[mx.array] = []  # noqa: RUF012 (of the forward pass that is being made)

    def __init__(self, config: mistral.Config) -> None:
        width = config.num_key_value_heads * config.head_size
        super().__init__(config.hidden_size, width, bias=False)
        self.embed_tokens = Embedding(config.vocab_size, width)
        self.share = mx.ones(1)

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(x) + self.share * self.embed_tokens(Value.tokens[0])


class ValueEmbeddings(mistral.Model):
    """Value embeddings (Jordan et al., github.com/KellerJordan/modded-nanogpt) in every other layer and the last."""

    def __init__(self, config: mistral.Config) -> None:
        super().__init__(config)
        for block in self.layers[::-2]:
            block.self_attn.v_proj = Value(config)

    def init_weights(self) -> None:
        """Mistral's; the rows' numbers are as large as those that the projection makes of a normed x."""
        super().init_weights()
        for block in self.layers[::-2]:
            normal_(block.self_attn.v_proj.embed_tokens, 0.02 * self.config.hidden_size**0.5)

    def features(
        self, tokens: mx.array, cache: Caches | None = None, documents: mx.array | None = None
    ) -> mx.array:  # fmt: skip
        """Mistral's, the tokens laid out for the tables."""
        Value.tokens = [tokens]
        return super().features(tokens, cache, documents)


def relu2() -> None:
    """ReLU² without a gate."""
    mistral.MLP = SquaredReLU  # type: ignore[misc, assignment]


def relu2_gated() -> None:
    """ReLU² in the place of SwiGLU's silu."""
    mistral.MLP = GatedSquaredReLU  # type: ignore[misc]


def softcap() -> None:
    """Logits within ± CAP."""
    mistral.Model = Capped  # type: ignore[misc]
    step.mean_loss = capped_loss  # type: ignore[assignment]


def value_embeddings() -> None:
    """A second embedding that goes into the values."""
    mistral.Model = ValueEmbeddings  # type: ignore[misc]


ARCHITECTURES: dict[str, Callable[[], None]] = {
    "relu2": relu2, "relu2-gated": relu2_gated, "softcap": softcap, "value-embeddings": value_embeddings,
}  # fmt: skip
