"""GPT-2 (Radford et al., 2019): learned positions, LayerNorm before each part, GELU, a head tied to the embedding.

Parameter names are the Hub's (`openai-community/gpt2`), whose Conv1D matrices are stored transposed: `weights.py`
turns them.
"""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlxgpt.config import key, require
from mlxgpt.kernels.attention import causal_attention
from mlxgpt.kernels.gelu import gelu
from mlxgpt.models.cache import Cache, Caches, Slot
from mlxgpt.models.layers import Dropout, Embedding, Linear, added, next_key, normal_, through


@dataclass(frozen=True)
class Config:
    """[model] with type = "gpt2"; the names are the Hub's."""

    vocab_size: int = key(0, "number of tokens; 0: the tokenizer's", 0)
    n_positions: int = key(1024, "longest sequence, in tokens", 1)
    n_embd: int = key(768, "width", 1)
    n_layer: int = key(12, "layers", 1)
    n_head: int = key(12, "attention heads; divides n_embd", 1)
    bias: bool = key(True, "biases in linear layers and norms (nanoGPT trains without them)")
    dropout: float = key(0.0, "share of activations dropped in training: embedding, attention and residuals", 0)
    layer_norm_epsilon: float = key(1e-5, "added to the variance in LayerNorm", 0)

    def __post_init__(self) -> None:
        require(
            self.n_embd % self.n_head == 0, f"model.n_embd ({self.n_embd}) is not a multiple of n_head ({self.n_head})"
        )
        require(self.dropout < 1, "model.dropout must be below 1")

    @property
    def context(self) -> int:
        """Most positions a sequence may have."""
        return self.n_positions


class Attention(nn.Module):
    """Multi-head causal self-attention."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=config.bias)

    def __call__(self, x: mx.array, cache: Cache | None = None, documents: mx.array | None = None) -> mx.array:
        B, T, C = x.shape
        D = C // self.n_head
        qkv = self.c_attn(x).reshape(B, T, 3, self.n_head, D)
        q, k, v = (qkv[:, :, i].swapaxes(1, 2) for i in range(3))  # [B, H, T, D]
        if cache is None:
            dropout = self.dropout if self.training else 0.0
            key = next_key() if dropout else None
            out = causal_attention(q, k, v, D**-0.5, dropout=dropout, documents=documents, key=key)
        else:
            out = cache.attend(q, k, v, D**-0.5)
        return self.c_proj(out.swapaxes(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """Two linear layers with GPT-2's tanh form of GELU between them."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def __call__(self, x: mx.array) -> mx.array:
        return self.c_proj(gelu(self.c_fc(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    What is added last is returned beside x: the next norm adds it, so that the two can be one kernel.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon, bias=config.bias)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon, bias=config.bias)
        self.mlp = MLP(config)
        self.drop = Dropout(config.dropout)

    def __call__(
        self, x: mx.array, change: mx.array | None, cache: Cache | None = None, documents: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:  # fmt: skip
        decoding = isinstance(cache, Slot)
        x, normed = added(x, change, self.ln_1, decoding)
        x, normed = added(x, self.drop(self.attn(normed, cache, documents)), self.ln_2, decoding)
        return x, self.drop(self.mlp(normed))


class Model(nn.Module):
    """tokens [B, T] int -> logits [B, T, V]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.n_positions, config.n_embd)
        self.drop = Dropout(config.dropout)
        self.h = [Block(config) for _ in range(config.n_layer)]
        self.ln_f = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon, bias=config.bias)

    @property
    def layers(self) -> list[Block]:
        """The blocks, in order."""
        return self.h

    def features(
        self, tokens: mx.array, cache: Caches | None = None, documents: mx.array | None = None
    ) -> mx.array:  # fmt: skip
        """The last hidden state [B, T, n_embd] of tokens [B, T]; each layer's cache is read and extended.

        Without a cache, `documents` as in `windowed_attention`; positions go on from one document to the next.
        """
        start = mx.array(cache[0].offset if cache else 0)
        positions = start.reshape(-1, 1) + mx.arange(tokens.shape[1])  # [1 or B, T]
        dtype = self.ln_f.weight.dtype  # embeddings in mxfp4 and the like come out as bfloat16
        x = self.drop(self.wte(tokens).astype(dtype) + self.wpe(positions).astype(dtype))
        change = None
        for i, block in enumerate(self.h):
            x, change = through(block, x, change, cache[i] if cache else None, documents)
        return added(x, change, self.ln_f, isinstance(cache[0] if cache else None, Slot))[1]

    @property
    def head(self) -> mx.array:
        """The weight [V, C] that `logits` multiplies by."""
        return self.wte.weight

    def logits(self, x: mx.array) -> mx.array:
        """Unnormalised log-probabilities [..., V] of hidden states [..., n_embd]."""
        return self.wte.as_linear(x)

    def __call__(self, tokens: mx.array, cache: Caches | None = None) -> mx.array:
        return self.logits(self.features(tokens, cache))

    def init_weights(self) -> None:
        """GPT-2's scheme: N(0, 0.02), biases 0, and the projections into the residual stream / √(2 n_layer).

        wte, wpe 0.02 | c_attn, c_fc 0.02 | c_proj 0.02 / √(2 n_layer) | norms 1, biases 0
        """
        residual = 0.02 / (2 * self.config.n_layer) ** 0.5
        normal_(self.wte, 0.02)
        normal_(self.wpe, 0.02)
        for block in self.h:
            normal_(block.attn.c_attn, 0.02)
            normal_(block.attn.c_proj, residual)
            normal_(block.mlp.c_fc, 0.02)
            normal_(block.mlp.c_proj, residual)
