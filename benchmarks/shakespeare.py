"""nanoGPT's shakespeare_char CPU configuration, trained by mlxgpt and, beside it, by nanoGPT: loss and time.

    python benchmarks/shakespeare.py path/to/tinyshakespeare.txt [--nanogpt CHECKOUT] [--seeds 1337 1 2] [--json FILE]

Three columns: `adamw` is nanoGPT's configuration to the letter (configs/shakespeare_char_cpu.toml); `muon` is the same
with `--set optimizer.kind=muon`; `nanogpt` is its own train.py with its README's command, on PyTorch, where a checkout
(a folder with train.py and model.py) and torch are there. The loss is in nats a character over the whole last tenth of
the text, for all three; nanoGPT's published 1.88 is an estimate from 20 random batches. Seconds are of whole processes
with their eight evaluations. nanoGPT fixes its seed: it runs once for each of ours, and draws the same each time.
"""

import argparse
import json
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PUBLISHED = 1.88
COLUMNS: dict[str, list[str]] = {"adamw": [], "muon": ["--set", "optimizer.kind=muon"]}
NANOGPT = (
    "--device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 "
    "--n_head=4 --n_embd=128 --lr_decay_iters=2000 --dropout=0.0 --always_save_checkpoint=True"
)  # its README's command, but for the last option: the newest weights, not those of the best estimate
PREPARE = """
import pickle, sys, numpy as np
text = open(sys.argv[1]).read()
stoi = {c: i for i, c in enumerate(sorted(set(text)))}
ids = np.array([stoi[c] for c in text], np.uint16)
cut = int(0.9 * len(text))
ids[:cut].tofile("data/shakespeare_char/train.bin")
ids[cut:].tofile("data/shakespeare_char/val.bin")
pickle.dump({"vocab_size": len(stoi), "stoi": stoi, "itos": sorted(stoi)}, open("data/shakespeare_char/meta.pkl", "wb"))
"""
WHOLE_SPLIT = """
import numpy as np, torch
from model import GPT, GPTConfig
saved = torch.load("out-shakespeare-char/ckpt.pt", weights_only=False)
model = GPT(GPTConfig(**saved["model_args"])).eval()
model.load_state_dict(saved["model"])
ids = torch.from_numpy(np.fromfile("data/shakespeare_char/val.bin", np.uint16).astype(np.int64))
n = (len(ids) - 1) // 64
with torch.no_grad():
    losses = [model(x, y)[1].item() * len(x) for x, y in
              zip(ids[: n * 64].view(n, 64).split(64), ids[1 : n * 64 + 1].view(n, 64).split(64))]
print(saved["iter_num"], sum(losses) / n)
"""


def ours(text: Path, column: str, seed: int, steps: int) -> dict:
    """One run of mlxgpt as a whole process: validation loss after each eighth of the steps, and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "mlxgpt.cli", "train", str(text), "--config", "shakespeare_char_cpu",
                   "--out", str(out), "--steps", str(steps), "--seed", str(seed), *COLUMNS[column]]  # fmt: skip
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        records = [json.loads(line) for line in (out / "training" / "metrics.jsonl").read_text().splitlines()]
    losses = {r["step"]: r["val_loss"] for r in records if r["kind"] == "evaluation"}
    return {"column": column, "seed": seed, "loss": losses[steps], "seconds": seconds, "losses": losses}


def nanogpt(text: Path, checkout: Path, steps: int) -> dict:
    """One run of nanoGPT's train.py as a whole process: its last weights' loss on the whole split, and seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("train.py", "model.py", "configurator.py", "config/train_shakespeare_char.py"):
            (folder / file).parent.mkdir(exist_ok=True)
            shutil.copy(checkout / file, folder / file)
        (folder / "data" / "shakespeare_char").mkdir(parents=True)
        subprocess.run([sys.executable, "-c", PREPARE, str(text.resolve())], cwd=folder, check=True)
        command = [sys.executable, "train.py", "config/train_shakespeare_char.py", *NANOGPT.split(),
                   f"--max_iters={steps}", "--eval_interval=250"]  # fmt: skip
        start = time.perf_counter()
        log = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout
        seconds = time.perf_counter() - start
        measured = subprocess.run([sys.executable, "-c", WHOLE_SPLIT], cwd=folder, check=True, stdout=subprocess.PIPE)
        step, loss = measured.stdout.decode().splitlines()[-1].split()
        assert int(step) == steps, f"nanoGPT's checkpoint is of step {step}"
    estimates = dict(re.findall(r"step (\d+): train loss [\d.]+, val loss ([\d.]+)", log))
    return {"column": "nanogpt", "seed": 1337, "loss": float(loss), "seconds": seconds,
            "estimate": float(estimates[str(steps)])}  # fmt: skip


def main() -> None:
    """Run the columns in turn for each seed, print a table of medians and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--nanogpt", type=Path, metavar="CHECKOUT")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337, 1, 2])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"{'':>8} {'seed':>6} {'val_loss':>9} {'seconds':>8}")
    runs = []
    for seed in options.seeds:
        turn = [ours(options.text, column, seed, options.steps) for column in COLUMNS]
        turn += [nanogpt(options.text, options.nanogpt, options.steps)] if options.nanogpt else []
        for run in turn:
            print(f"{run['column']:>8} {run['seed']:>6} {run['loss']:>9.4f} {run['seconds']:>8.0f}", flush=True)
        runs += turn
    for column in dict.fromkeys(run["column"] for run in runs):
        loss, seconds = (
            statistics.median(r[key] for r in runs if r["column"] == column) for key in ("loss", "seconds")
        )
        print(f"{column:>8} median {loss:>9.4f} {seconds:>8.0f}")
    print(f"nanoGPT's README: {PUBLISHED} (20 random batches)")
    if options.json:
        machine = f"{platform.system()} {platform.machine()}"
        table = {"machine": machine, "steps": options.steps, "published": PUBLISHED, "runs": runs}
        options.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
