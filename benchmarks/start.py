"""From a command to its end: `mlxgpt generate` of a few tokens, against mlx-lm's command on the same folder.

    python benchmarks/start.py MODEL [--rounds 5] [--tokens 1] [--json FILE]

MODEL is a folder that both open, such as a run of `mlxgpt train`. Whole processes, in turn, after one of each that is
not counted (the disk is warm then, and what is compiled is there); medians of the rounds.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROMPT = "def main("


def seconds(command: list[str]) -> float:
    """Time of a whole process, which must succeed."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Run the commands in turn, print a table and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rest = ["--model", str(options.model), "--prompt", PROMPT, "--max-tokens", str(options.tokens)]
    commands = {"mlxgpt": ["-m", "mlxgpt.cli", "generate", *rest], "mlx-lm": ["-m", "mlx_lm", "generate", *rest]}
    runs: dict[str, list[float]] = {tool: [] for tool in commands}
    for i in range(options.rounds + 1):
        for tool, command in commands.items():
            took = seconds(command)
            runs[tool] += [took] if i else []
    medians = {tool: statistics.median(times) for tool, times in runs.items()}
    for tool, median in medians.items():
        print(f"{tool:>8} {median:>7.2f} s  ours/its {medians['mlxgpt'] / median:.2f}")
    if options.json:
        table = {"machine": f"{platform.system()} {platform.machine()}", "tokens": options.tokens, "seconds": medians}
        options.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
