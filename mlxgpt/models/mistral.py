"""Mistral (arXiv 2310.06825): rotary positions, RMSNorm, SwiGLU, grouped-query attention, a sliding window.

Parameter names are the Hub's (`mistralai/Mistral-7B-v0.1`).
"""

from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from mlxgpt.config import key, require
from mlxgpt.kernels import compiled, decoder_layer
from mlxgpt.kernels.swiglu import swiglu
from mlxgpt.kernels.windowed_attention import windowed_attention
from mlxgpt.models.cache import Cache, Caches, Slot
from mlxgpt.models.layers import Embedding, Linear, added, normal_, rotated, through, weights_of


@dataclass(frozen=True)
class Config:
    """[model] with type = "mistral"; the names are the Hub's."""

    vocab_size: int = key(0, "number of tokens; 0: the tokenizer's", 0)
    hidden_size: int = key(4096, "width", 1)
    intermediate_size: int = key(14336, "width of the SwiGLU", 1)
    num_hidden_layers: int = key(32, "layers", 1)
    num_attention_heads: int = key(32, "query heads", 1)
    num_key_value_heads: int = key(8, "key and value heads; divides num_attention_heads", 1)
    head_dim: int | None = key(None, "size of a head; unset: hidden_size / num_attention_heads", 2)
    max_position_embeddings: int = key(32768, "longest sequence, in tokens", 1)
    sliding_window: int | None = key(None, "keys a query sees, itself included; unset: all", 1)
    rope_theta: float = key(10000.0, "base of the rotary frequencies", 1)
    rms_norm_eps: float = key(1e-5, "added to the mean square in RMSNorm", 0)
    tie_word_embeddings: bool = key(False, "the head shares the embedding's weights")
    zero_init: bool = key(False, "the projections into the residual stream, and an untied head, begin as zeros")
    qk_norm: ClassVar[bool] = False  # Qwen3's

    def __post_init__(self) -> None:
        heads, kv = self.num_attention_heads, self.num_key_value_heads
        require(heads % kv == 0, f"model.num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({kv})")
        require(
            self.head_dim is not None or self.hidden_size % heads == 0,
            f"model.hidden_size ({self.hidden_size}) is not a multiple of num_attention_heads ({heads}): set head_dim",
        )
        require(self.head_size % 2 == 0, f"model.head_dim ({self.head_size}) must be even for rotary positions")

    @property
    def head_size(self) -> int:
        """Size of one head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def context(self) -> int:
        """Most positions a sequence may have."""
        return self.max_position_embeddings


class Attention(nn.Module):
    """Grouped-query causal self-attention with rotary positions and an optional window."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        C, D = config.hidden_size, config.head_size
        self.head_size, self.window = D, config.sliding_window
        self.q_proj = Linear(C, config.num_attention_heads * D, bias=False)
        self.k_proj = Linear(C, config.num_key_value_heads * D, bias=False)
        self.v_proj = Linear(C, config.num_key_value_heads * D, bias=False)
        self.o_proj = Linear(config.num_attention_heads * D, C, bias=False)
        self.rope_theta = config.rope_theta
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(D, config.rms_norm_eps)
            self.k_norm = nn.RMSNorm(D, config.rms_norm_eps)

    def __call__(self, x: mx.array, cache: Cache | None = None, documents: mx.array | None = None) -> mx.array:
        B, T, _ = x.shape
        D, offset = self.head_size, cache.offset if cache else 0
        q, k, v = (p(x).reshape(B, T, -1, D) for p in (self.q_proj, self.k_proj, self.v_proj))
        if self.qk_norm:
            q, k = (added(heads, None, norm, False)[1] for heads, norm in ((q, self.q_norm), (k, self.k_norm)))
        q, k, v = (heads.swapaxes(1, 2) for heads in (q, k, v))  # q [B, H, T, D]; k, v [B, Hkv, T, D]
        q, k = rotated(q, k, offset, self.rope_theta, isinstance(cache, Slot))
        if cache:
            out = cache.attend(q, k, v, D**-0.5, self.window)
        else:
            out = windowed_attention(q, k, v, D**-0.5, self.window, documents)
        return self.o_proj(out.swapaxes(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) · up(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    What is added last is returned beside x: the next norm adds it, so that the two can be one kernel.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(
        self, x: mx.array, change: mx.array | None, cache: Cache | None = None, documents: mx.array | None = None
    ) -> tuple[mx.array, mx.array | None]:  # fmt: skip
        if cache and x.shape[1] <= decoder_layer.FEW and (done := self._at_once(x, change, cache)) is not None:
            return done, None
        decoding = isinstance(cache, Slot)
        x, normed = added(x, change, self.input_layernorm, decoding)
        x, normed = added(x, self.self_attn(normed, cache, documents), self.post_attention_layernorm, decoding)
        return x, self.mlp(normed)

    def _at_once(self, x: mx.array, change: mx.array | None, cache: Cache) -> mx.array | None:
        """What x becomes, as one node of the graph: for a few tokens on a CPU."""
        if compiled.load("decoder_layer") is None or (place := cache.place(x.shape[1])) is None:
            return None
        attention, mlp = self.self_attn, self.mlp
        layers = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj,
                  mlp.gate_proj, mlp.up_proj, mlp.down_proj)  # fmt: skip
        weights = [w for layer in layers if (w := weights_of(layer)) is not None]
        norms = [self.input_layernorm.weight, self.post_attention_layernorm.weight]
        norms += [attention.q_norm.weight, attention.k_norm.weight] if attention.qk_norm else []
        keys, values, position = place
        if len(weights) < len(layers) or not decoder_layer.served(x, keys, norms, weights):
            return None
        D = attention.head_size
        x, keys, values = decoder_layer.decoder_layer(
            x if change is None else x + change, keys, values, position, norms, weights, D, attention.rope_theta,
            D**-0.5, attention.window, self.input_layernorm.eps,
        )  # fmt: skip
        cache.put(keys, values, x.shape[1])
        return x


class Backbone(nn.Module):
    """Embedding, blocks and the last norm (the Hub's `model.` prefix)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = [Block(config) for _ in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(
        self, tokens: mx.array, cache: Caches | None = None, documents: mx.array | None = None
    ) -> mx.array:  # fmt: skip
        x = self.embed_tokens(tokens).astype(self.norm.weight.dtype)  # mxfp4 and the like come out as bfloat16
        change = None
        for i, block in enumerate(self.layers):
            x, change = through(block, x, change, cache[i] if cache else None, documents)
        return added(x, change, self.norm, isinstance(cache[0] if cache else None, Slot))[1]


class Model(nn.Module):
    """tokens [B, T] int -> logits [B, T, V]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def layers(self) -> list[Block]:
        """The blocks, in order."""
        return self.model.layers

    def features(
        self, tokens: mx.array, cache: Caches | None = None, documents: mx.array | None = None
    ) -> mx.array:  # fmt: skip
        """The last hidden state [B, T, hidden_size] of tokens [B, T]; each layer's cache is read and extended.

        Without a cache, `documents` as in `windowed_attention`; rotary positions go on from one document to the next,
        which is all the same to them: attention sees their differences.
        """
        return self.model(tokens, cache, documents)

    @property
    def head(self) -> mx.array:
        """The weight [V, C] that `logits` multiplies by."""
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def logits(self, x: mx.array) -> mx.array:
        """Unnormalised log-probabilities [..., V] of hidden states [..., hidden_size]."""
        return self.model.embed_tokens.as_linear(x) if self.config.tie_word_embeddings else self.lm_head(x)

    def __call__(self, tokens: mx.array, cache: Caches | None = None) -> mx.array:
        return self.logits(self.features(tokens, cache))

    def init_weights(self) -> None:
        """N(0, 0.02) (the Hub's initializer_range), and the projections into the residual stream / √(2 layers).

        embed_tokens, lm_head 0.02 | q, k, v, gate, up 0.02 | o, down 0.02 / √(2 layers) | norms 1
        With `zero_init` (arXiv 2203.03466) o, down and lm_head 0: each block begins as the identity.
        """
        zero = self.config.zero_init
        residual = 0.0 if zero else 0.02 / (2 * self.config.num_hidden_layers) ** 0.5
        normal_(self.model.embed_tokens, 0.02)
        if not self.config.tie_word_embeddings:
            normal_(self.lm_head, 0.0 if zero else 0.02)
        for block in self.model.layers:
            attention, mlp = block.self_attn, block.mlp
            for layer in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
                normal_(layer, 0.02)
            normal_(attention.o_proj, residual)
            normal_(mlp.down_proj, residual)
