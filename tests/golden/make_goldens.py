"""Makes tests/golden/hub/: tiny models that transformers itself wrote, and the logits it gives for them.

    pip install -e ".[oracle]" && python tests/golden/make_goldens.py

The weights are random and every one matters: none is 0 or 1, and the logits are of order 1; those of the blocks are
small enough for bfloat16 to be within 2 % of float32. The sequence is longer than
Mistral's window, a head is not hidden_size / heads wide, and two query heads share a key head. One Mistral is in
several shards, another is tied and has a large rope_theta; so is and has the Qwen3.
"""

import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "hub"
CONFIGS = {
    "mistral": transformers.MistralConfig(
        vocab_size=48, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, max_position_embeddings=64, sliding_window=6,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    ),
    "mistral_sharded": transformers.MistralConfig(
        vocab_size=48, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, max_position_embeddings=64, sliding_window=7,
    ),
    "mistral_tied": transformers.MistralConfig(
        vocab_size=48, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, max_position_embeddings=64, sliding_window=None, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    ),
    "qwen3": transformers.Qwen3Config(
        vocab_size=48, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, max_position_embeddings=64, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    ),
    "gpt2": transformers.GPT2Config(
        vocab_size=48, n_positions=32, n_embd=24, n_layer=2, n_head=3, bos_token_id=0, eos_token_id=0
    ),
}  # fmt: skip


SHARDS = {"mistral_sharded": 20_000}  # bytes at most
PROMPT = 10  # tokens of the first row that `greedy` continues


def make(name: str, config: transformers.PretrainedConfig) -> None:
    """Write one model folder and, in logits.safetensors, `tokens` int64 [2, 24], `logits` float32 [2, 24, V] and
    `greedy` int64 [22]: PROMPT tokens of the first row and the likeliest ones after them, by full forwards."""
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            is_norm = parameter.ndim == 1 and path.endswith("weight")
            in_block = parameter.ndim == 2 and (".layers." in path or ".h." in path)
            parameter.copy_(torch.randn_like(parameter) * (0.15 if in_block else 0.3) + is_norm)
        tokens = torch.randint(0, config.vocab_size, (2, 24))
        logits = model(tokens).logits
        greedy = tokens[:1, :PROMPT]
        while greedy.shape[1] < 22:
            likeliest = model(greedy, use_cache=False).logits[:, -1:].argmax(-1)
            greedy = torch.cat([greedy, likeliest], 1)
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, max_shard_size=SHARDS.get(name, "5GB"))
    golden = {"tokens": tokens, "logits": logits.float().contiguous(), "greedy": greedy[0].contiguous()}
    save_file(golden, folder / "logits.safetensors")
    for file in folder.iterdir():
        file.chmod(0o644)


if __name__ == "__main__":
    for name, config in CONFIGS.items():
        make(name, config)
