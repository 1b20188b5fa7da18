"""nanoGPT's shakespeare_char CPU configuration, trained by mlxgpt: loss on the whole validation split, and time.

    python benchmarks/shakespeare.py path/to/tinyshakespeare.txt [--seeds 1337 1 2] [--json FILE]

nanoGPT's README gives 1.88 after 2,000 steps (about 3 minutes on its author's MacBook), measured on 20 random
batches; here it is every character of the last tenth of the text.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PUBLISHED = 1.88


def train(text: Path, seed: int, steps: int) -> dict[str, float]:
    """One run as a whole process: best and last validation loss, seconds, and the median tokens/s of its steps."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "mlxgpt.cli", "train", str(text), "--config", "shakespeare_char_cpu",
                   "--out", str(out), "--steps", str(steps), "--seed", str(seed)]  # fmt: skip
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        records = [json.loads(line) for line in (out / "training" / "metrics.jsonl").read_text().splitlines()]
    losses = [r["val_loss"] for r in records if r["kind"] == "evaluation"]
    speeds = [r["tokens_per_second"] for r in records if r["kind"] == "train"]
    return {"seed": seed, "best": min(losses), "last": losses[-1], "seconds": seconds,
            "tokens_per_second": statistics.median(speeds)}  # fmt: skip


def main() -> None:
    """Train with each seed, print a table and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337, 1, 2])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"{'seed':>6} {'best val':>9} {'last val':>9} {'seconds':>8} {'tokens/s':>9}")
    runs = []
    for seed in options.seeds:
        run = train(options.text, seed, options.steps)
        runs.append(run)
        print(f"{seed:>6} {run['best']:>9.4f} {run['last']:>9.4f} {run['seconds']:>8.0f} "
              f"{run['tokens_per_second']:>9.0f}", flush=True)  # fmt: skip
    median = statistics.median(r["last"] for r in runs)
    print(f"median last val {median:.4f}; published {PUBLISHED} (20 random batches)")
    if options.json:
        machine = f"{platform.system()} {platform.machine()}"
        table = {"machine": machine, "steps": options.steps, "published": PUBLISHED, "runs": runs}
        options.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
