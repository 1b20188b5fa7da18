"""What fill-in-the-middle costs left to right, and what it gives: one recipe at several rates, seed by seed.

    python benchmarks/fim.py [PATHS] [--steps 300] [--rates 0 0.5] [--seeds 1337] [--cursors 300] [--json FILE]

Every run has the same recipe, steps and seed but for `data.fim_rate`. Each is then measured on its held-out files: bits
a byte read left to right, and lines completed by the model alone, asked left to right and, where it has learned it,
with the suffix before the prefix (spm) and after it (psm).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mlxgpt import backend, weights
from mlxgpt.completion import evaluation, session
from mlxgpt.completion.cursors import pick_cursors
from mlxgpt.completion.settings import Settings
from mlxgpt.completion.suggest import Suggester
from mlxgpt.evaluation import Evaluator

LENGTH = 256


@dataclass(frozen=True)
class Result:
    """One way to ask one run; fractions of cursors and of characters."""

    rate: float
    seed: int
    asked: str
    val_bpb: float
    exact_match: float
    edit_similarity: float
    completed_ratio: float


def train(paths: list[str], rate: float, seed: int, options: argparse.Namespace, out: Path) -> None:
    """Train a run into `out`, its progress on stderr."""
    keys = (f"data.fim_rate={rate}", "train.evaluations=1", "train.sample_tokens=0")
    settings = [part for key in keys for part in ("--set", key)]
    command = [sys.executable, "-m", "mlxgpt.cli", "train", *paths, "--config", options.config, *settings]
    command += ["--steps", str(options.steps), "--seed", str(seed), "--out", str(out)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def measure(out: Path, rate: float, seed: int, cursors: int) -> list[Result]:
    """The run in `out`, asked in every way that it knows."""
    model, tokenizer = weights.load_with_tokenizer(out, backend.compute_dtype(), compact=True)
    held_out = session.from_run(out, tokenizer)
    size = sum(len(data) for _, data in held_out.documents)
    loss = Evaluator(model, held_out.tokens, size, 8, min(LENGTH, model.config.context)).run()
    places = pick_cursors(held_out.documents, cursors, 0)
    rows = []
    for asked in ("", "spm", "psm") if tokenizer.fim else ("",):
        settings = replace(Settings.load(out), fim=asked)
        scores = evaluation.evaluate(Suggester(model, tokenizer, using="model", settings=settings), places)
        figures = scores.exact_match, scores.edit_similarity, scores.completed_ratio
        rows.append(Result(rate, seed, asked or "left to right", loss.val_bpb, *figures))
    return rows


def main() -> None:
    """Train, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", help="default: this Python's standard library")
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337])
    parser.add_argument("--cursors", type=int, default=300)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    backend.start()
    rows: list[Result] = []
    print(
        "| rate | seed | asked | val_bpb | exact match | edit similarity | completed |\n|---|---|---|---|---|---|---|"
    )
    for seed in options.seeds:
        for rate in options.rates:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "run"
                train(options.paths, rate, seed, options, out)
                for row in measure(out, rate, seed, options.cursors):
                    rows.append(row)
                    print(
                        f"| {row.rate:g} | {row.seed} | {row.asked} | {row.val_bpb:.4f} | {row.exact_match:.1%} | "
                        f"{row.edit_similarity:.1%} | {row.completed_ratio:.1%} |",
                        flush=True,
                    )
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
