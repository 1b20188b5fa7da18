"""The short form of the speed benchmarks, in under ten minutes, against the baseline kept here: `make bench`.

    python benchmarks/short.py [--write]

Every figure is a ratio to a peer in the same run (above 1: mlxgpt is better), so that machines can be compared; a noisy
machine moves it by a fifth. `--write` makes this run the baseline. PyTorch is a peer where it is installed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BASELINE = HERE / "baseline.json"
LOWER_IS_BETTER = ("first token s", "peak GB")


def run(name: str, *options: str) -> dict[str, Any]:
    """The JSON that a benchmark of this folder writes; its table goes to stderr."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, str(HERE / name), *options, "--json", str(out)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        return json.loads(out.read_text())


def training() -> dict[str, float]:
    """A training step: PyTorch's time over ours."""
    tools = ["mlxgpt", "torch eager"]
    medians = run("train_step.py", "--rounds", "2", "--steps", "5", "--tools", *tools)["medians"]
    seconds = {tool: medians[tool]["seconds"] for tool in tools}
    memory = {tool: medians[tool]["peak_bytes"] for tool in tools}
    return {
        "train step, torch eager": seconds["torch eager"] / seconds["mlxgpt"],
        "train memory, torch eager": memory["torch eager"] / memory["mlxgpt"],
    }


def decoding() -> dict[str, float]:
    """Each figure of decode.py, ours against each tool's, for the smallest shape."""
    options = ["--shapes", "34m", "--formats", "float32", "4", "--prompt", "128", "--tokens", "32", "--rounds", "1"]
    rows = run("decode.py", *options)["rows"]
    ours = {row["format"]: row for row in rows if row["tool"] == "mlxgpt"}
    found = {}
    for row in rows:
        if row["tool"] == "mlxgpt":
            continue
        for column in ("first token s", "prefill t/s", "decode t/s", "peak GB"):
            a, b = ours[row["format"]][column], row[column]
            found[f"34m {row['format']} {column}, {row['tool']}"] = b / a if column in LOWER_IS_BETTER else a / b
    return found


def starting() -> dict[str, float]:
    """`mlxgpt generate` of one token as a whole process, by a model of a few steps: mlx-lm's time over ours."""
    with tempfile.TemporaryDirectory() as folder:
        model = str(Path(folder) / "model")
        train = [
            "train",
            str(Path(json.__file__).parent),
            "--steps",
            "5",
            "--set",
            "train.evaluations=1",
            "--out",
            model,
        ]
        subprocess.run([sys.executable, "-m", "mlxgpt.cli", *train], check=True, stdout=sys.stderr)
        medians = run("start.py", model, "--rounds", "3")["seconds"]
    return {"whole process, one token, mlx-lm": medians["mlx-lm"] / medians["mlxgpt"]}


def main() -> None:
    """Measure, print each ratio beside the baseline's, and keep them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="make this run the baseline")
    options = parser.parse_args()
    ratios = decoding() | starting()
    if find_spec("torch"):
        ratios |= training()
    else:
        print("PyTorch is not installed: the training step is not measured", file=sys.stderr)
    before = json.loads(BASELINE.read_text()) if BASELINE.is_file() else {}
    print(f"{'better than its peer by':48} {'now':>7} {'baseline':>9} {'change':>7}")
    for name, ratio in ratios.items():
        old = before.get(name)
        rest = f" {old:>8.2f}x {ratio / old - 1:>+7.0%}" if old else ""
        print(f"{name:48} {ratio:>6.2f}x{rest}")
    if options.write:
        BASELINE.write_text(json.dumps(ratios, indent=1) + "\n")


if __name__ == "__main__":
    main()
