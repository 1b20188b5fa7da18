"""A training step on the CPU, against PyTorch's on the same shape in the same run.

    python benchmarks/train_step.py [--rounds 3] [--steps 8] [--threads 2] [--json FILE]

The model: 6 layers, 384 wide, 6 heads, SwiGLU 1024, RoPE, RMSNorm, a vocabulary of 512, sequences of 256, batches of 8,
AdamW, gradients clipped at 1. Columns: mlxgpt's own step in float32; PyTorch eager, compiled (torch.compile), and with
bfloat16 autocast (compiled). Each measurement is a process of its own, the tools in turn; a process's figure is the
median of its steps after the warm-up, and the table gives medians over the rounds. Memory is the process's peak.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from synthetic import peak_memory

LAYERS, WIDTH, HEADS, INNER, VOCABULARY, LENGTH, BATCH = 6, 384, 6, 1024, 512, 256, 8
WARM_UP = 3


def batches() -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, int [BATCH, LENGTH] each."""
    block = np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, LENGTH + 1))
    return block[:, :-1], block[:, 1:]


def ours(seed: int = 0) -> Any:
    """Our model, with random weights, in training."""
    from mlxgpt import backend

    backend.start()
    import mlx.core as mx

    from mlxgpt import models

    mx.random.seed(seed)
    table = {
        "type": "mistral", "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
        "max_position_embeddings": LENGTH,
    }  # fmt: skip
    model = models.build(models.config_from_table(table))
    model.init_weights()
    return model.train()


def mlxgpt(steps: int, dtype: str) -> list[float]:
    """Seconds of each step of ours."""
    model = ours()
    import mlx.core as mx

    from mlxgpt.config import OptimizerConfig
    from mlxgpt.training import optimizers
    from mlxgpt.training.step import make_step

    config = OptimizerConfig()
    step = make_step(model, optimizers.make(config), config.clip, getattr(mx, dtype))
    x, y = (mx.array(a.astype(np.int32)) for a in batches())
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        mx.eval(step([(x, y)]), model.state)
        times.append(time.perf_counter() - start)
    return times


def pytorch(steps: int, compiled: bool, autocast: bool) -> list[float]:
    """Seconds of each step of PyTorch's."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.RMSNorm(WIDTH, eps=1e-5), nn.RMSNorm(WIDTH, eps=1e-5)
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
            self.gate_up, self.down = nn.Linear(WIDTH, 2 * INNER, bias=False), nn.Linear(INNER, WIDTH, bias=False)

        def forward(self, x, cos, sin):
            q, k, v = self.qkv(self.norm1(x)).view(BATCH, LENGTH, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            q, k = (turn(t, cos, sin) for t in (q, k))
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(a.transpose(1, 2).reshape(BATCH, LENGTH, WIDTH))
            gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
            return x + self.down(F.silu(gate) * up)

    def turn(t, cos, sin):
        a, b = t.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(VOCABULARY, WIDTH)
            self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
            self.norm, self.head = nn.RMSNorm(WIDTH, eps=1e-5), nn.Linear(WIDTH, VOCABULARY, bias=False)
            half = WIDTH // HEADS // 2
            angles = torch.arange(LENGTH)[:, None] * 10000.0 ** (-torch.arange(half) / half)
            self.register_buffer("cos", angles.cos())
            self.register_buffer("sin", angles.sin())

        def forward(self, x, y):
            x = self.embed(x)
            for block in self.blocks:
                x = block(x, self.cos, self.sin)
            return F.cross_entropy(self.head(self.norm(x)).float().flatten(0, 1), y.flatten())

    model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    forward = torch.compile(model) if compiled else model
    x, y = (torch.from_numpy(a.astype(np.int64)) for a in batches())
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = forward(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        times.append(time.perf_counter() - start)
    return times


TOOLS = {
    "mlxgpt": lambda steps: mlxgpt(steps, "float32"),
    "mlxgpt bf16": lambda steps: mlxgpt(steps, "bfloat16"),
    "torch eager": lambda steps: pytorch(steps, compiled=False, autocast=False),
    "torch compiled": lambda steps: pytorch(steps, compiled=True, autocast=False),
    "torch bf16": lambda steps: pytorch(steps, compiled=True, autocast=True),
}


def measure(tool: str, steps: int, threads: int) -> dict[str, float]:
    """One process: its median step in seconds and its peak memory in bytes."""
    count = str(threads)
    limits = {"OMP_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count, "MKL_NUM_THREADS": count}
    command = [sys.executable, __file__, "--tool", tool, "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | limits)
    if done.returncode:
        sys.exit(f"{tool}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure the tools in turn, print a table and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="counted steps a process")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tool", choices=TOOLS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tool:
        times = TOOLS[options.tool](options.steps + WARM_UP)[WARM_UP:]
        print(json.dumps({"seconds": statistics.median(times), "peak_bytes": peak_memory()}))
        return
    runs: dict[str, list[dict[str, float]]] = {tool: [] for tool in options.tools}
    for _ in range(options.rounds):
        for tool in options.tools:
            runs[tool].append(measure(tool, options.steps, options.threads))
    medians = {t: {k: statistics.median(r[k] for r in found) for k in found[0]} for t, found in runs.items()}
    ours = medians["mlxgpt"]["seconds"]
    print(f"{'':>15} {'s/step':>8} {'ours/its':>9} {'peak MB':>8}")
    for tool, found in medians.items():
        ratio = ours / found["seconds"]
        print(f"{tool:>15} {found['seconds']:>8.3f} {ratio:>9.2f} {found['peak_bytes'] / 1e6:>8.0f}")
    if options.json:
        machine = f"{platform.system()} {platform.machine()}"
        table = {"machine": machine, "threads": options.threads, "rounds": options.rounds, "medians": medians}
        options.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
