"""Loading Mistral 7B into 4 bits: seconds, and peak resident memory, which must stay under 7 GB.

    python benchmarks/load_7b.py [--quantize 4|8|mxfp4|none] [--dtype stored|float32|bfloat16] [--folder DIR]

Writes a checkpoint with the names, shapes, types and shards of Mistral 7B v0.3 (14.5 GB of bfloat16) and random
contents into a temporary folder, loads it in a process of its own for each type, and deletes it. Prints a table, and
one JSON object on the last line.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CONFIG = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "torch_dtype": "bfloat16", "vocab_size": 32768,
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "hidden_act": "silu", "max_position_embeddings": 32768, "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False,
}  # fmt: skip
SHARD = 5 * 10**9  # bytes
LIMIT = 7e9  # bytes of resident memory

LOADS = """
import json, resource, sys, time
from pathlib import Path
from mlxgpt import backend
backend.start()
import mlx.core as mx
from mlxgpt import weights
from mlxgpt.quantization import CHOICES
start = time.perf_counter()
dtype = None if sys.argv[2] == "stored" else getattr(mx, sys.argv[2])
model = weights.load(Path(sys.argv[1]), dtype, CHOICES.get(sys.argv[3]))
seconds = time.perf_counter() - start
if sys.platform == "darwin":
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
else:  # ru_maxrss of a new process begins with its parent's there
    peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
print(json.dumps({"seconds": seconds, "peak_bytes": peak, "model_bytes": mx.get_active_memory()}))
"""


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint, in the order of the Hub's shards."""
    width, inner, kv = CONFIG["hidden_size"], CONFIG["intermediate_size"], 1024
    layer = {
        "self_attn.q_proj": (width, width), "self_attn.k_proj": (kv, width), "self_attn.v_proj": (kv, width),
        "self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner), "input_layernorm": (width,), "post_attention_layernorm": (width,),
    }  # fmt: skip
    layers = {f"model.layers.{i}.{n}.weight": s for i in range(CONFIG["num_hidden_layers"]) for n, s in layer.items()}
    ends = {"model.norm.weight": (width,), "lm_head.weight": (CONFIG["vocab_size"], width)}
    return {"model.embed_tokens.weight": (CONFIG["vocab_size"], width)} | layers | ends


def size(shape: tuple[int, ...]) -> int:
    """Bytes of a bfloat16 tensor."""
    return 2 * int(np.prod(shape))


def write(folder: Path) -> int:
    """Write the checkpoint; its size in bytes."""
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes().items():
        if sum(map(size, groups[-1].values())) + size(shape) > SHARD:
            groups.append({})
        groups[-1][name] = shape
    block = (np.random.default_rng(0).standard_normal(1 << 24, dtype=np.float32) * 0.02).view(np.uint32) >> 16
    noise = block.astype(np.uint16).tobytes()
    index, total = {}, 0
    for i, group in enumerate(groups, 1):
        name = f"model-{i:05}-of-{len(groups):05}.safetensors"
        header, position = {}, 0
        for tensor, shape in group.items():
            offsets = [position, position := position + size(shape)]
            header[tensor] = {"dtype": "BF16", "shape": list(shape), "data_offsets": offsets}
        text = json.dumps(header).encode()
        with open(folder / name, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for left in range(position, 0, -len(noise)):
                file.write(noise[:left])
        index |= dict.fromkeys(group, name)
        total += position
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quantize", default="4", choices=["4", "8", "mxfp4", "none"])
    parser.add_argument("--dtype", action="append", choices=["stored", "float32", "bfloat16"])
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    arguments = parser.parse_args()
    need = sum(map(size, shapes().values()))
    place = arguments.folder or Path(tempfile.gettempdir())
    if shutil.disk_usage(place).free < need * 1.1:
        sys.exit(f"{place} has no room for {need / 1e9:.1f} GB: give another --folder")
    rows = []
    with tempfile.TemporaryDirectory(dir=place) as name:
        start = time.perf_counter()
        total = write(Path(name))
        print(f"wrote {total / 1e9:.2f} GB in {time.perf_counter() - start:.0f} s", flush=True)
        print("type      to      seconds  peak GB  model GB")
        for dtype in arguments.dtype or ["stored", "float32"]:
            done = subprocess.run(
                [sys.executable, "-c", LOADS, name, dtype, arguments.quantize], capture_output=True, text=True,
                check=False, env=os.environ,
            )  # fmt: skip
            if done.returncode:
                sys.exit(done.stderr)
            row = {"dtype": dtype, "quantize": arguments.quantize} | json.loads(done.stdout.splitlines()[-1])
            sizes = f"{row['seconds']:9.1f}{row['peak_bytes'] / 1e9:9.2f}{row['model_bytes'] / 1e9:10.2f}"
            print(f"{dtype:9} {arguments.quantize:5} {sizes}", flush=True)
            rows.append(row)
    print(json.dumps({"checkpoint_bytes": total, "limit_bytes": LIMIT, "loads": rows}))
    if arguments.quantize == "4" and any(row["peak_bytes"] >= LIMIT for row in rows):
        sys.exit("the peak is over the limit")


if __name__ == "__main__":
    main()
