"""Model folders with a Mistral's names and shapes and random contents, for benchmarks: nothing to download."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SHARD = 5 * 10**9  # bytes
MISTRAL_7B: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "torch_dtype": "bfloat16", "vocab_size": 32768,
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "hidden_act": "silu", "max_position_embeddings": 32768, "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "34m": MISTRAL_7B | {
        "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 8, "rope_theta": 10000.0,
    },
    "110m": MISTRAL_7B | {
        "vocab_size": 32768, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
        "num_attention_heads": 12, "num_key_value_heads": 12, "rope_theta": 10000.0, "tie_word_embeddings": True,
    },
    "7b": MISTRAL_7B,
}  # fmt: skip


def tensors(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint and its shape, in the order of the Hub's shards."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    kv = width // config["num_attention_heads"] * config["num_key_value_heads"]
    layer = {
        "self_attn.q_proj": (width, width), "self_attn.k_proj": (kv, width), "self_attn.v_proj": (kv, width),
        "self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner), "input_layernorm": (width,), "post_attention_layernorm": (width,),
    }  # fmt: skip
    layers = {f"model.layers.{i}.{n}.weight": s for i in range(config["num_hidden_layers"]) for n, s in layer.items()}
    ends: dict[str, tuple[int, ...]] = {"model.norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        ends["lm_head.weight"] = (config["vocab_size"], width)
    return {"model.embed_tokens.weight": (config["vocab_size"], width)} | layers | ends


def size(shape: tuple[int, ...]) -> int:
    """Bytes of a bfloat16 tensor."""
    return 2 * int(np.prod(shape))


def total_size(config: dict[str, Any]) -> int:
    """Bytes of the whole checkpoint in bfloat16."""
    return sum(map(size, tensors(config).values()))


def write(folder: Path, config: dict[str, Any]) -> None:
    """Write a bfloat16 checkpoint in the Hub's layout: matrices from N(0, 0.02²), norms 1."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in tensors(config).items():
        if sum(map(size, shards[-1].values())) + size(shape) > SHARD:
            shards.append({})
        shards[-1][name] = shape
    block = (np.random.default_rng(0).standard_normal(1 << 24, dtype=np.float32) * 0.02).view(np.uint32) >> 16
    noise = block.astype(np.uint16).tobytes()
    one = np.array([1.0], np.float32).view(np.uint16)[1:].tobytes()
    index = {}
    for i, shard in enumerate(shards, 1):
        file_name = f"model-{i:05}-of-{len(shards):05}.safetensors"
        header, position = {}, 0
        for tensor, shape in shard.items():
            offsets = [position, position := position + size(shape)]
            header[tensor] = {"dtype": "BF16", "shape": list(shape), "data_offsets": offsets}
        text = json.dumps(header).encode()
        with open(folder / file_name, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for shape in shard.values():
                for part in _contents(size(shape), one if len(shape) == 1 else noise):
                    file.write(part)
        index |= dict.fromkeys(shard, file_name)
    table = {"metadata": {"total_size": total_size(config)}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))
    (folder / "config.json").write_text(json.dumps(config))


def _contents(count: int, pattern: bytes) -> Iterator[bytes]:
    """`count` bytes of a repeated pattern."""
    pattern *= max(1, (1 << 16) // len(pattern))
    for left in range(count, 0, -len(pattern)):
        yield pattern[:left]


def peak_memory() -> int:
    """The process's peak resident bytes; on macOS, where the GPU's share may not count as resident, MLX's own peak."""
    if sys.platform == "darwin":
        import mlx.core as mx

        return mx.get_peak_memory()
    # ru_maxrss of a new process begins with its parent's there
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
