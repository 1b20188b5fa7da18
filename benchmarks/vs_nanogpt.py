"""A code model after equal wall time, by mlxgpt and by nanoGPT; and the time to nanoGPT's shakespeare loss.

    python benchmarks/vs_nanogpt.py CORPUS --nanogpt CHECKOUT [--minutes 3] [--rounds 1] [--columns A,B]
                                    [--text tinyshakespeare.txt] [--json FILE]

CHECKOUT is a folder with nanoGPT's train.py and model.py; torch must be there. All columns train on the same files and
are measured on the same held-out ones, in bits a byte of the whole held-out split, read in the model's own sequences.
`mlxgpt` is `mlxgpt train --config speedrun --minutes M`. The others are nanoGPT's train.py, compiled, with a tokenizer
and a size: characters as its own prepare.py makes them, or mlxgpt's tokens, which are more than it brings along; its
GPT-2 tokens are not among them, whose 50,304 rows of embeddings would take nine tenths of such a model's time. Its
steps are first measured in float32 and in bfloat16 (autocast, which its train.py leaves off on a CPU); the quicker one
then trains for the minutes, of which its compilation, its evaluations and its checkpoint are no part.

With --text both train on it as whole processes: nanoGPT as its README says for a CPU, which publishes 1.88 after 2,000
steps; mlxgpt the speedrun recipe on characters, for half a minute. Their losses are over the whole last tenth.
"""

import argparse
import json
import math
import pickle
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from mlxgpt import backend
from mlxgpt.config import load_recipe
from mlxgpt.data import shards

# isort: split
import mlx.core as mx  # after mlxgpt, which puts its BLAS under it
import shakespeare

# Tokens, and nanoGPT's settings beside those of NANOGPT.
COLUMNS = {
    "its shakespeare size, characters": ("characters", "--block_size=64 --batch_size=12"),
    "blocks of 256, characters": ("characters", "--block_size=256 --batch_size=4"),
    "blocks of 256, mlxgpt's tokens": ("tokens", "--block_size=256 --batch_size=4"),
    "the same, rate 3e-3": ("tokens", "--block_size=256 --batch_size=4 --learning_rate=3e-3 --min_lr=3e-4"),
    "6 layers × 384, characters": ("characters", "--block_size=256 --batch_size=4 --n_layer=6 --n_head=6 --n_embd=384"),
}
NANOGPT = (
    "--device=cpu --compile=True --eval_interval=1000000000 --eval_iters=1 --log_interval=1 --n_layer=4 --n_head=4 "
    "--n_embd=128 --dropout=0.0 --dataset=corpus --out_dir=out --always_save_checkpoint=True"
)
MEASURED, SETTLED = 60, 20  # steps of a run that measures, and those of them that do not count
SHAKESPEARE_MINUTES = 0.55
OURS = "mlxgpt"
AUTOCAST = "if device_type == 'cpu' else", "if device_type == 'cpu' and dtype == 'float32' else"
WHOLE_SPLIT = """
import json, math, numpy as np, torch
from model import GPT, GPTConfig
saved = torch.load("out/ckpt.pt", weights_only=False)
model = GPT(GPTConfig(**saved["model_args"])).eval()
model.load_state_dict({k.removeprefix("_orig_mod."): v for k, v in saved["model"].items()})
ids = torch.from_numpy(np.fromfile("data/corpus/val.bin", np.uint16).astype(np.int64))
block, nats = saved["model_args"]["block_size"], 0.0
starts = list(range(0, len(ids) - 1, block))
with torch.no_grad():
    whole = [s for s in starts if s + block < len(ids)]
    for i in range(0, len(whole), 16):
        x = torch.stack([ids[s : s + block] for s in whole[i : i + 16]])
        y = torch.stack([ids[s + 1 : s + block + 1] for s in whole[i : i + 16]])
        nats += model(x, y)[1].item() * x.numel()
    for s in starts[len(whole):]:
        nats += model(ids[None, s:-1], ids[None, s + 1 :])[1].item() * (len(ids) - 1 - s)
parameters = sum(p.numel() for p in model.parameters())
print(json.dumps({"nats": nats, "steps": saved["iter_num"], "parameters": parameters}))
"""


def write_corpus(folder: Path, data: shards.Shards, tokens: str) -> None:
    """nanoGPT's data folder of the same splits: in characters, of both as its prepare.py has it, or as they are."""
    folder.mkdir(parents=True)
    splits = {"train": data.tokens("train"), "val": data.tokens("validation")}
    if tokens == "tokens":
        assert data.manifest["dtype"] == "<u2"
        vocabulary = data.tokenizer.vocab_size
    else:
        texts = {name: data.tokenizer.decode(ids.tolist()).decode() for name, ids in splits.items()}
        ids_of = {c: i for i, c in enumerate(sorted(set("".join(texts.values()))))}
        splits = {name: np.array([ids_of[c] for c in text], np.uint16) for name, text in texts.items()}
        vocabulary = len(ids_of)
    for name, ids in splits.items():
        np.asarray(ids, np.uint16).tofile(folder / f"{name}.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": vocabulary}))


class NanoGPT:
    """One column: a checkout's files with a corpus beside them, in a folder of their own."""

    def __init__(self, folder: Path, checkout: Path, data: shards.Shards, tokens: str, settings: str) -> None:
        self.folder, self.settings = folder, [*NANOGPT.split(), *settings.split()]
        for file in ("train.py", "model.py", "configurator.py", "config/train_shakespeare_char.py"):
            (folder / file).parent.mkdir(exist_ok=True, parents=True)
            shutil.copy(checkout / file, folder / file)
        source = (folder / "train.py").read_text()
        assert source.count(AUTOCAST[0]) == 1, "this train.py chooses its precision elsewhere"
        (folder / "train.py").write_text(source.replace(*AUTOCAST))
        write_corpus(folder / "data" / "corpus", data, tokens)

    def _run(self, steps: int, dtype: str) -> list[float]:
        """Train for so many steps; milliseconds of each. The last one writes the checkpoint."""
        command = [sys.executable, "train.py", "config/train_shakespeare_char.py", *self.settings, f"--dtype={dtype}",
                   f"--max_iters={steps}", f"--lr_decay_iters={steps}", f"--eval_interval={steps}"]  # fmt: skip
        log = subprocess.run(command, cwd=self.folder, check=True, stdout=subprocess.PIPE, text=True).stdout
        return [float(ms) for ms in re.findall(r"iter \d+: loss [\d.]+, time ([\d.]+)ms", log)]

    def pace(self) -> tuple[str, float]:
        """The quicker of its two precisions, and the median milliseconds of a step of it."""
        times = {d: statistics.median(self._run(MEASURED, d)[SETTLED:]) for d in ("float32", "bfloat16")}
        dtype = min(times, key=lambda d: times[d])
        return dtype, times[dtype]

    def train(self, minutes: float, n_bytes: int) -> dict[str, Any]:
        """What it reaches in so many minutes of training."""
        dtype, ms = self.pace()
        steps = int(60_000 * minutes / ms)
        seconds = sum(self._run(steps, dtype)[SETTLED:-1]) / 1000
        found = subprocess.run([sys.executable, "-c", WHOLE_SPLIT], cwd=self.folder, check=True, stdout=subprocess.PIPE)
        saved = json.loads(found.stdout.splitlines()[-1])
        assert saved["steps"] == steps, f"nanoGPT's checkpoint is of step {saved['steps']}"
        return {"val_bpb": saved["nats"] / math.log(2) / n_bytes, "steps": steps, "seconds": seconds, "dtype": dtype,
                "parameters": saved["parameters"]}  # fmt: skip


def ours(paths: list[Path], *options: str) -> dict[str, Any]:
    """One run of `mlxgpt train --config speedrun` as a whole process: the last evaluation, and the run's seconds."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "mlxgpt.cli", "train", *map(str, paths), "--config", "speedrun", "--out",
                   str(out), *options]  # fmt: skip
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        records = [json.loads(line) for line in (out / "training" / "metrics.jsonl").read_text().splitlines()]
        weights: dict[str, mx.array] = mx.load(str(out / "model.safetensors"))  # type: ignore[assignment]
        parameters = sum(array.size for array in weights.values())
    last = [r for r in records if r["kind"] == "evaluation"][-1]
    return {"val_loss": last["val_loss"], "val_bpb": last["val_bpb"], "steps": last["step"], "seconds": seconds,
            "parameters": parameters}  # fmt: skip


def on_code(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every column in turn, round by round."""
    recipe = load_recipe("speedrun", [])
    backend.start()
    data, _ = shards.prepare(options.corpus, recipe.data, recipe.tokenizer, backend.cache_dir())
    rows = []
    with tempfile.TemporaryDirectory() as name:
        peers = {c: NanoGPT(Path(name) / str(i), options.nanogpt, data, *COLUMNS[c])
                 for i, c in enumerate(options.columns)}  # fmt: skip
        for number in range(options.rounds):
            row = ours(options.corpus, "--minutes", str(options.minutes), "--seed", str(1337 + number))
            rows.append({"column": OURS} | row)
            say(rows[-1])
            for column, peer in peers.items():
                row = peer.train(options.minutes, data.bytes_in("validation"))
                rows.append({"column": column} | row)
                say(rows[-1])
    return rows


def on_shakespeare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The time to nanoGPT's loss, whole processes in turn."""
    like = load_recipe("shakespeare_char_cpu", []).data
    settings = ["tokenizer.kind=char", "tokenizer.byte_fallback=false", f"data.split={like.split}",
                f"data.validation_fraction={like.validation_fraction}", "data.max_validation_bytes=0",
                "train.evaluations=1"]  # fmt: skip
    rows = []
    for number in range(options.rounds):
        sets = [part for setting in settings for part in ("--set", setting)]
        row = ours([options.text], "--minutes", str(SHAKESPEARE_MINUTES), "--seed", str(1337 + number), *sets)
        rows.append({"column": f"shakespeare, {OURS}"} | row)
        say(rows[-1])
        its = shakespeare.nanogpt(options.text, options.nanogpt, 2000)
        rows.append({"column": "shakespeare, nanoGPT", "val_loss": its["loss"], "seconds": its["seconds"]})
        say(rows[-1])
    return rows


def say(row: dict[str, Any]) -> None:
    """One line of progress."""
    print(json.dumps(row), file=sys.stderr, flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    """Medians of the rounds, and each column's ratio to mlxgpt's."""
    lines = ["| | parameters | steps | bits a byte | nats a token | seconds |", "|---" * 6 + "|"]
    for column in dict.fromkeys(row["column"] for row in rows):
        its = [row for row in rows if row["column"] == column]

        def middle(key: str, form: str, its: list[dict[str, Any]] = its) -> str:
            found = [row[key] for row in its if key in row]
            return format(statistics.median(found), form) if found else ""

        shown = [middle("parameters", ",.0f"), middle("steps", ",.0f"), middle("val_bpb", ".4f"),
                 middle("val_loss", ".4f"), middle("seconds", ".0f")]  # fmt: skip
        lines.append(" | ".join([f"| {column}", *shown]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train in turn, print the table, write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, nargs="*")
    parser.add_argument("--nanogpt", type=Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--columns", help="nanoGPT's, by their numbers from 1, separated by commas; default: all")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    chosen = [int(n) for n in options.columns.split(",")] if options.columns else range(1, len(COLUMNS) + 1)
    options.columns = [list(COLUMNS)[n - 1] for n in chosen]
    code = on_code(options) if options.corpus else []
    text = on_shakespeare(options) if options.text else []
    print(table([*code, *text]))
    if code:
        mine, best = (min(r["val_bpb"] for r in code if (r["column"] == OURS) is its) for its in (True, False))
        print(f"\nmlxgpt's bits a byte are {1 - mine / best:.1%} below nanoGPT's best.")
    if options.json:
        options.json.write_text(json.dumps({"minutes": options.minutes, "rows": [*code, *text]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
