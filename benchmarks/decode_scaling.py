"""How decoding's speed goes with the batch, the context, the window and the threads, on a CPU: a table and a plot.

    python benchmarks/decode_scaling.py [--json FILE] [--plot FILE] [--repeats 7]

A Mistral of 34M random weights in float32; caches hold random keys and values. A figure is tokens/s of the median step
that writes one token for every row of the batch. With a sliding window the cost should stop growing with the context.
Each count of threads is a process of its own.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from synthetic import SHAPES

CONTEXTS = (128, 512, 2048, 8192)
BATCHES = (1, 2, 4, 8, 16, 32)
MOST = 1 << 16  # positions in all caches together: 2 GB
WINDOW = 512


def measure(repeats: int) -> list[dict[str, Any]]:
    """Every batch and context that fits, with the threads this process has."""
    from mlxgpt import backend

    backend.start()
    import mlx.core as mx

    from mlxgpt import models
    from mlxgpt.measure import seconds_of
    from mlxgpt.models.cache import KVCache

    names = models.mistral.Config.__dataclass_fields__
    table = {"type": "mistral"} | {k: v for k, v in SHAPES["34m"].items() if k in names}
    rows = []
    for window in (None, WINDOW):
        model = models.build(models.config_from_table(table | {"sliding_window": window}))
        model.init_weights()
        model.eval()
        mx.eval(model.parameters())
        heads, size = model.config.num_key_value_heads, model.config.head_size
        for batch in BATCHES if window is None else (1,):
            for context in (c for c in CONTEXTS if batch * c <= MOST):
                caches = [KVCache(window) for _ in model.layers]
                for cache in caches:
                    held = min(context, cache.limit or context)
                    cache.buffers = [mx.random.normal((batch, heads, held, size)) for _ in range(2)]
                    cache.offset = context
                    cache.reserve(repeats + 2)
                    mx.eval(cache.buffers)
                tokens = mx.zeros((batch, 1), mx.int32)
                speed = batch / seconds_of(lambda m=model, t=tokens, c=caches: mx.eval(m(t, c)), repeats)
                rows.append({"batch": batch, "context": context, "window": window, "tokens_per_second": speed})
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Tokens/s over the batch, a line a context, a panel a count of threads; and over the context."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    threads = sorted({r["threads"] for r in rows})
    figure, panels = plt.subplots(1, len(threads) + 1, figsize=(4.2 * (len(threads) + 1), 3.6))
    for panel, count in zip(panels, threads, strict=False):
        for context in CONTEXTS:
            some = [r for r in rows if (r["threads"], r["context"], r["window"]) == (count, context, None)]
            panel.plot([r["batch"] for r in some], [r["tokens_per_second"] for r in some], "o-", label=f"{context}")
        panel.set(xscale="log", yscale="log", xlabel="batch", ylabel="tokens/s", title=f"{count} thread(s), by context")
        panel.set_xscale("log", base=2)
        panel.legend()
    for window in (None, WINDOW):
        some = [r for r in rows if (r["threads"], r["batch"], r["window"]) == (threads[-1], 1, window)]
        label = f"window {window}" if window else "no window"
        panels[-1].plot([r["context"] for r in some], [r["tokens_per_second"] for r in some], "o-", label=label)
    panels[-1].set(xlabel="context", ylabel="tokens/s", title=f"one row, {threads[-1]} threads", ylim=(0, None))
    panels[-1].set_xscale("log", base=2)
    panels[-1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure with each count of threads, print a table, and write JSON and a plot where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.repeats)))
        return
    rows: list[dict[str, Any]] = []
    for threads in sorted({1, os.cpu_count() or 1}):
        command = [sys.executable, __file__, "--one", "--repeats", str(options.repeats)]
        environment = os.environ | {"MLXGPT_THREADS": str(threads)}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        rows += [{"threads": threads} | row for row in json.loads(done.stdout.splitlines()[-1])]
    print(f"{'threads':>7} {'window':>7} {'context':>8}" + "".join(f"{b:>9}" for b in BATCHES) + "   (batch)")
    for threads, window, context in sorted({(r["threads"], r["window"] or 0, r["context"]) for r in rows}):
        key = (threads, window or None, context)
        some = {r["batch"]: r for r in rows if (r["threads"], r["window"], r["context"]) == key}
        cells = "".join(f"{some[b]['tokens_per_second']:>9.1f}" if b in some else f"{'':>9}" for b in BATCHES)
        print(f"{threads:>7} {window or '-':>7} {context:>8}{cells}")
    if options.json:
        table = {"machine": f"{platform.system()} {platform.machine()}", "rows": rows}
        options.json.write_text(json.dumps(table, indent=1) + "\n")
    if options.plot:
        draw(rows, options.plot)


if __name__ == "__main__":
    main()
