"""What training on your code buys: held-out files completed after 3, 10 and 30 minutes, by model, n-grams and both.

    python benchmarks/autocomplete.py [--corpus PATH...] [--minutes 3 10 30] [--config autocomplete] [--cursors 400]
                                      [--runs DIR] [--json FILE]

For each time `mlxgpt train` from scratch, then `mlxgpt eval` of the same cursors in the same held-out files, once for
each of --using model, ngrams and both; "gain" is what both complete over what the better one alone does, in exact
matches, and in characters where the gate lets a quarter of what is shown be wrong. --config
and --set may say what to train; --corpus defaults to this Python's standard library. With --runs the runs are kept, and
those that are finished there are not trained again.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

USING = ("model", "ngrams", "both")


def mlxgpt(*arguments: str) -> dict[str, Any]:
    """A command's JSON object."""
    command = [sys.executable, "-m", "mlxgpt.cli", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    lines = done.stdout.splitlines()
    return json.loads(lines[-1]) if "--json" in arguments else {}


def trained(options: argparse.Namespace, folder: Path, minutes: float) -> Path:
    """The run of so many minutes, which is trained where it is not there."""
    run = folder / f"{minutes:g}"
    if not (run / "completion.json").exists():
        sets = [part for setting in options.set for part in ("--set", setting)]
        mlxgpt("train", *map(str, options.corpus), "--config", options.config, "--minutes", str(minutes), "--out",
               str(run), "--force", *sets)  # fmt: skip
    return run


def measured(options: argparse.Namespace, run: Path, minutes: float) -> list[dict[str, Any]]:
    """A row for each of USING."""
    summary = [json.loads(line) for line in (run / "training" / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in summary if record["kind"] == "train"]
    rows = []
    for using in USING:
        found = mlxgpt("eval", "--model", str(run), "--cursors", str(options.cursors), "--using", using, "--json")
        rows.append({"minutes": minutes, "steps": len(steps)} | found)
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    head = ("minutes", "using", "steps", "bits a byte", "exact match", "gain", "edit similarity", "completed",
            "completed, gated", "gain", "cold p50, p95", "warm p50, p95")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]

    def gain(row: dict[str, Any], value: Callable[[dict[str, Any]], float]) -> str:
        alone = max(value(r) for r in rows if r["minutes"] == row["minutes"] and r["using"] != "both")
        return f"{value(row) / alone:.2f}" if row["using"] == "both" and alone else ""

    for row in rows:
        bpb = "" if row["using"] == "ngrams" else f"{row['val_bpb']:.3f}"
        cold, warm = row["latency_ms"], row["warm_latency_ms"]
        cells = (f"{row['minutes']:g}", row["using"], f"{row['steps']:,}", bpb, f"{row['exact_match']:.1%}",
                 gain(row, lambda r: r["exact_match"]), f"{row['edit_similarity']:.1%}",
                 f"{row['completed_ratio']:.1%}", f"{row['gated']['completed_ratio']:.1%}",
                 gain(row, lambda r: r["gated"]["completed_ratio"]), f"{cold['p50']:.0f}, {cold['p95']:.0f} ms",
                 f"{warm['p50']:.0f}, {warm['p95']:.0f} ms")  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train and evaluate, time by time; print the table; write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, nargs="+", default=[])
    parser.add_argument("--minutes", type=float, nargs="+", default=[3, 10, 30])
    parser.add_argument("--config", default="autocomplete")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--cursors", type=int, default=400)
    parser.add_argument("--runs", type=Path, metavar="DIR")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.runs or Path(temporary)
        rows = [row for m in options.minutes for row in measured(options, trained(options, folder, m), m)]
    print(table(rows))
    if options.json:
        its = {"config": options.config, "set": options.set, "cursors": options.cursors, "rows": rows}
        options.json.write_text(json.dumps(its, indent=1) + "\n")


if __name__ == "__main__":
    main()
